"""Define the style and the filter script of pages of predictions."""

from ..html import LINE

# Behind labels. None is red or green, which would look like a judgement.
COLOURS = [
    "#cfe3fb",  # blue
    "#fdebc2",  # yellow
    "#e4d7f7",  # violet
    "#c9eef0",  # cyan
    "#e6e2da",  # stone
    "#f6daf0",  # mauve
    "#d9dcf7",  # indigo
    "#f0e0bf",  # sand
]
MUTED, RIGHT, WRONG = "#55616d", "#1b6b3a", "#a11b1b"
RIGHT_GROUND, WRONG_GROUND, PLAIN_GROUND = "#e3f3e8", "#fbe9e7", "#f3f5f7"
# Behind counts, from none of a row to all of it.
SHADES = ["#ffffff", "#e8f0fa", "#cfe0f5", "#b3cdee", "#96b9e6"]
STYLE = f"""
.made {{ color: {MUTED}; overflow-wrap: anywhere; }}
body {{ max-width: 76rem; margin: 1.5rem auto 4rem; overflow-wrap: break-word; }}
h1 {{ line-height: 1.25; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin: 0; }} main > h2 {{ font-size: 1.25rem; margin: 2.2rem 0 .4rem; }}
h3 {{ font-size: .9rem; margin: 1rem 0 .3rem; }}
.muted, small {{ color: {MUTED}; }} small {{ font-size: .85em; }}
.scores {{ width: 100%; max-width: 50rem; font-size: 1rem; }}
.scores th, .scores td {{ text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top; }}
.scores thead th {{ color: {MUTED}; }}
fieldset {{ border: 1px solid {LINE}; border-radius: .5rem; margin: 1.5rem 0 .5rem; min-width: 0; }}
fieldset label {{ display: inline-flex; align-items: center; gap: .4rem; min-height: 2rem;
  margin-right: 1.2rem; cursor: pointer; }}
input {{ width: 1.15rem; height: 1.15rem; margin: 0; accent-color: #1f5fa8; }}
nav {{ display: flex; flex-wrap: wrap; gap: .3rem; margin: .8rem 0; }}
nav a {{ min-width: 2.2rem; padding: .15rem .3rem; border: 1px solid {LINE}; border-radius: .3rem;
  text-align: center; text-decoration: none; color: inherit; font-size: .85rem; }}
nav a.has-errors {{ background: {WRONG_GROUND}; }}
a:focus-visible, input:focus-visible, .text:focus-visible, summary:focus-visible {{
  outline: 3px solid #1f5fa8; outline-offset: 2px; }}
.matrices {{ display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: start; }}
.matrix {{ border-collapse: separate; border-spacing: 2px; }}
.matrix caption {{ text-align: left; font-weight: bold; padding-bottom: .3rem; }}
.matrix th {{ padding: .2rem .4rem; font-size: .85rem; }}
.matrix thead th {{ border: none; vertical-align: bottom; text-align: center; }}
.matrix td {{ text-align: center; min-width: 1.6rem; padding: .35rem .3rem; border-radius: .2rem; }}
.matrix .diagonal {{ font-weight: bold; outline: 1px solid #5b7fae; outline-offset: -1px; }}
details {{ margin-top: .8rem; }} summary {{ cursor: pointer; padding: .3rem 0; }}
summary h3, summary h4 {{ display: inline; }}
.anchor {{ color: inherit; text-decoration: none; }}
.anchor:hover {{ text-decoration: underline; }}
.doc {{ border-top: 1px solid {LINE}; margin-top: 2rem; padding-top: 1.2rem; }}
.head {{ display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: center; }}
.badge {{ border-radius: 1rem; padding: .05rem .7rem; font-size: .85rem; background: {PLAIN_GROUND};
  white-space: nowrap; }}
.right {{ color: {RIGHT}; }} .wrong {{ color: {WRONG}; }}
.badge.right {{ background: {RIGHT_GROUND}; }} .badge.wrong {{ background: {WRONG_GROUND}; }}
.sides, .cards {{ display: grid; gap: 0 1.5rem; }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; margin: 0;
  max-width: none; }}
.long {{ max-height: 26rem; overflow-y: auto; border: 1px solid {LINE}; border-radius: .5rem;
  padding: .3rem .7rem; }}
mark {{ color: inherit; border-radius: .3rem; padding: .1rem .3rem; line-height: 1.4;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }}
mark.wrong {{ color: inherit; border-bottom: 2px dashed {WRONG}; }}
.tag {{ display: inline-block; max-width: 100%; margin-left: .35rem; font-size: .75em;
  white-space: normal; }} .tag em {{ font-style: normal; font-weight: bold; color: {WRONG}; }}
mark.gold {{ background: none; border-bottom: 3px solid {RIGHT}; border-radius: 0;
  padding: 0 0 .05rem; }}
mark.found {{ background: {COLOURS[1]}; padding: .1rem 0; border-radius: 0; }}
mark.gold.found {{ background: {COLOURS[1]}; }}
.card {{ border: 1px solid {LINE}; border-radius: .5rem; padding: .6rem .8rem; margin: .4rem 0;
  min-width: 0; }}
.card p {{ margin: 0 0 .3rem; max-width: none; }} .card .text {{ font-size: .92rem; }}
.bars {{ display: grid; grid-template-columns: minmax(5rem, max-content) minmax(2.5rem, 1fr) auto;
  gap: .15rem .6rem; align-items: center; font-size: .9rem; margin: 0; }}
.bars dt {{ overflow-wrap: anywhere; }} .bars dd {{ margin: 0; }} .given {{ font-weight: bold; }}
.bar {{ height: .7rem; background: #e3e8ee; border-radius: .35rem; overflow: hidden; }}
.bar span {{ display: block; height: 100%; background: #2f6db3; }}
.value {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
dl.answer {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem;
  margin: 0 0 .3rem; }} .answer dt {{ color: {MUTED}; }} .answer dd {{ margin: 0; min-width: 0; }}
[hidden] {{ display: none !important; }}
@media (max-width: 35rem) {{
  .matrix thead span {{ writing-mode: vertical-rl; }}
}}
@media (min-width: 52rem) {{
  .sides {{ grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }}
  .cards {{ grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }}
}}
@media print {{ fieldset, nav {{ display: none; }} .card, mark {{ break-inside: avoid; }} }}
"""
# Docs of any kind that is chosen, in each group of kinds. Without scripts all Docs are shown.
SCRIPT = """
const groups = [...document.querySelectorAll("#filter fieldset")];
const docs = [...document.querySelectorAll(".doc")];
function filter() {
  const wanted = groups.map(group => [...group.querySelectorAll(":checked")].map(box => box.value));
  let shown = 0;
  for (const doc of docs) {
    const kinds = doc.dataset.kinds.split(" ");
    doc.hidden = wanted.some(some => some.length && !some.some(kind => kinds.includes(kind)));
    document.querySelector(`nav a[href="#${doc.id}"]`).hidden = doc.hidden;
    shown += !doc.hidden;
    for (const fold of doc.querySelectorAll("details"))
      fold.open ||= wanted.flat().includes(fold.dataset.task);
  }
  document.getElementById("shown").textContent = `${shown} of ${docs.length} Docs shown`;
}
document.getElementById("filter").addEventListener("change", filter);
filter();
"""
