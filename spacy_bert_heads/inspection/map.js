// A map's documents by pointer, touch and keyboard. Places are shares of a picture's width and
// height, so they hold at any size.
const data = JSON.parse(document.getElementById("data").textContent);
const plots = [...document.querySelectorAll(".plot")];
const shown = document.getElementById("shown");
const REACH = 22;  // pixels around a pointer or finger
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
let selected = -1;

function select(i) {
  selected = i;
  plots.forEach((plot, view) => {
    const ring = plot.querySelector(".ring");
    ring.hidden = i < 0;
    if (i < 0) return;
    ring.style.left = `${100 * data.points[view][i][0]}%`;
    ring.style.top = `${100 * data.points[view][i][1]}%`;
  });
  const [category, text] = i < 0 ? ["", ""] : data.docs[i];
  shown.replaceChildren();
  if (i < 0) return;
  const name = document.createElement("b");
  name.textContent = category;
  shown.append(name, ` (${i + 1} of ${data.docs.length}): ${text}`);
}

function nearest(view, plot, event) {
  const box = plot.getBoundingClientRect();
  let best = -1, least = REACH;
  data.points[view].forEach(([x, y], i) => {
    const away = Math.hypot(box.left + x * box.width - event.clientX,
      box.top + y * box.height - event.clientY);
    if (away < least) [best, least] = [i, away];
  });
  return best;
}

// The next document in a direction: near, and not far off to the side.
function next(view, plot, [right, down]) {
  const {width, height} = plot.getBoundingClientRect();
  const [fromX, fromY] = data.points[view][selected];
  let best = selected, least = Infinity;
  data.points[view].forEach(([x, y], i) => {
    const dx = (x - fromX) * width, dy = (y - fromY) * height;
    const along = dx * right + dy * down, aside = Math.abs(dx * down) + Math.abs(dy * right);
    if (along > 0 && along + 3 * aside < least) [best, least] = [i, along + 3 * aside];
  });
  return best;
}

plots.forEach((plot, view) => {
  const point = event => {
    const i = nearest(view, plot, event);
    if (i >= 0) select(i);
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("click", point);
  plot.addEventListener("focus", () => { if (selected < 0) select(0); });
  plot.addEventListener("keydown", event => {
    const last = data.docs.length - 1;
    if (event.key in ARROWS) select(next(view, plot, ARROWS[event.key]));
    else if (event.key === "PageDown") select(Math.min(selected + 1, last));
    else if (event.key === "PageUp") select(Math.max(selected - 1, 0));
    else if (event.key === "Home") select(0);
    else if (event.key === "End") select(last);
    else if (event.key === "Escape") select(-1);
    else return;
    event.preventDefault();
  });
});
