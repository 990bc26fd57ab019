"""Create self-contained HTML pages with a common style."""

from html import escape

TEXT, LINE = "#1d2733", "#b8c2cc"
STYLE = f"""
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 92rem; padding: 0 1rem;
       color: {TEXT}; background: #fff; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.05rem; margin: 2.5rem 0 .5rem; }}
p {{ max-width: 50rem; }} table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ padding: .2rem .6rem; text-align: right; font-variant-numeric: tabular-nums; }}
th {{ font-weight: normal; }} thead th {{ border-bottom: 1px solid {LINE}; }}
"""


def make_page(title: str, body: str, *, style: str = "") -> str:
    """Return a page with a title (text, escaped) and a body (HTML); `style` is additional CSS."""
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{style}</style>\n'
        f"<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )
