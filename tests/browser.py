"""What a browser makes of a page, in frames of several widths."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

# Frames with the page itself, so that their documents can be read.
HARNESS = """<!doctype html><meta charset="utf-8"><body>%s<pre id="seen"></pre><script>
const frames = [...document.querySelectorAll("iframe")];
window.onload = () => setTimeout(() => {
  const seen = frames.map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const shown = () => [...page.querySelectorAll(".doc")].filter(doc => doc.offsetHeight).length;
    const boxes = [...page.querySelectorAll("#filter input")];
    page.querySelectorAll("details").forEach(fold => { fold.open = true; });
    const wide = [...page.querySelectorAll("body *")].filter(
      one => one.getBoundingClientRect().right > root.clientWidth + 1);
    const filtered = {};
    const all = shown();
    for (const box of boxes) {
      box.click();
      filtered[box.value] = shown();
      box.click();
    }
    boxes.forEach(box => box.click());
    const any = shown();
    boxes.forEach(box => box.click());
    return {all, filtered, any, again: shown(), width: root.clientWidth,
      scrollWidth: root.scrollWidth, wide: wide.map(one => one.outerHTML.slice(0, 80)),
      status: page.getElementById("shown").textContent,
      labelled: boxes.every(box => box.labels.length === 1 && box.tabIndex === 0)};
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
}, 100);
</script>"""


def look(
    page: str, folder: Path, widths: tuple[int, ...]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What is seen in a frame of each width, and what was written to the console."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium to open the page in (apt-get install chromium)")
    frames = [
        f'<iframe width="{width}" height="900" srcdoc="{escape(page, quote=True)}"></iframe>'
        for width in widths
    ]
    file = folder / "harness.html"
    file.write_text(HARNESS % "".join(frames), encoding="utf8")
    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={folder / 'browser'}", "--window-size=1600,1000"]
    words += ["--virtual-time-budget=10000", "--dump-dom", file.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])), console
