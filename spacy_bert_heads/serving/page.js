"use strict";
const settings = JSON.parse(document.getElementById("settings").textContent);
const $ = id => document.getElementById(id);
const has = kind => settings.kinds.includes(kind);
const MAX_BARS = 12;

// Inputs by kind: title, placeholder, hint. The server turns categories into hypotheses, by Hugging Face's
// template.
const ASKS = {
  questions: ["Questions", "Who …?", "Ask a question"],
  hypotheses: ["Hypotheses", "The text says that …", "Write a hypothesis that the text may entail"],
  categories: ["Your own categories", "travel", "Name a category"],
  others: ["Texts to compare with", "A sentence", "Write a text to compare with"],
  options: ["Options to choose from", "She left", "Write an option; it takes two"],
};
const asked = Object.fromEntries(Object.keys(ASKS).map(kind => [kind, []]));
const colours = {};
const hidden = new Set(); // labels of entities that are hidden
let shown = null; // { text, record } of the latest answer
let chosen = null; // number of the selected answer
let running = null;

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties))
    if (key in node && key !== "style") node[key] = value;
    else node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// --- inputs

function addAsk(kind) {
  const [title, example, name] = ASKS[kind];
  const input = make("input", { type: "text", placeholder: example, ariaLabel: name });
  const button = make("button", { type: "button", ariaLabel: `Add to ${title.toLowerCase()}` }, "Add");
  const chips = make("ul", { className: "chips", ariaLabel: title });
  const field = make("fieldset", { className: "ask", id: kind }, make("legend", {}, title),
    make("div", { className: "add" }, input, button), chips);
  if (kind === "categories") {
    const box = make("input", { type: "checkbox", id: "exclusive" });
    field.append(make("label", { className: "choice" }, box, "exactly one of them holds"));
    box.addEventListener("change", () => asked.categories.length && annotate());
  }
  function add() {
    const value = input.value.trim();
    input.value = "";
    input.focus();
    if (!value || asked[kind].includes(value)) return;
    asked[kind].push(value);
    const remove = make("button", { type: "button", ariaLabel: `Remove ${value}` }, "×");
    const chip = make("li", {}, value, remove);
    remove.addEventListener("click", () => {
      asked[kind].splice(asked[kind].indexOf(value), 1);
      chip.remove();
      input.focus();
      annotate();
    });
    chips.append(chip);
    annotate();
  }
  button.addEventListener("click", add);
  input.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    add();
  });
  $("asks").append(field);
}

async function annotate() {
  const text = $("text").value;
  if (!text.trim()) return;
  running?.abort();
  const mine = (running = new AbortController());
  const body = { texts: [text] };
  for (const kind of Object.keys(asked)) if (asked[kind].length) body[kind] = asked[kind];
  delete body.options;
  if (asked.options.length > 1) body.choices = [{ options: asked.options }];
  if (body.categories) body.category_softmax = $("exclusive").checked ? "categories" : "contradiction";
  $("run").ariaBusy = "true";
  $("status").textContent = "Reading …";
  const start = performance.now();
  try {
    const response = await fetch("annotate", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body), signal: mine.signal,
    });
    const answer = await response.json();
    const record = response.ok ? answer.results[0] : answer;
    if (record.error) throw new Error(record.error);
    shown = { text, record };
    chosen = null;
    $("status").textContent = `Done in ${Math.round(performance.now() - start)} ms`;
    $("error").hidden = true;
    render();
  } catch (error) {
    if (mine.signal.aborted) return;
    $("status").textContent = "";
    $("error").textContent = error instanceof TypeError ? "The server can't be reached." : error.message;
    $("error").hidden = false;
  } finally {
    if (running === mine) $("run").ariaBusy = "false";
  }
}

// --- results

function colourOf(label) {
  return (colours[label] ??= settings.colours[Object.keys(colours).length % settings.colours.length]);
}

function threshold() {
  return Number($("threshold").value);
}

function isShown(one) {
  return one.score === null || one.score >= threshold();
}

function entitiesShown() {
  return (shown.record.entities ?? []).filter(one => !hidden.has(one.label) && isShown(one));
}

// Answers are numbered like their questions, from 1.
function answersShown() {
  return (shown.record.answers ?? [])
    .map((answer, i) => ({ ...answer, number: i + 1 }))
    .filter(answer => answer.text && isShown(answer));
}

function renderText() {
  // The server's offsets count characters, JavaScript's strings count UTF-16 code units.
  const chars = [...shown.text];
  const entities = entitiesShown(), answers = answersShown();
  const cuts = new Set([0, chars.length]);
  for (const one of [...entities, ...answers]) cuts.add(one.start).add(one.end);
  const bounds = [...cuts].sort((a, b) => a - b);
  const covers = (one, from, to) => one.start <= from && to <= one.end;
  const parts = [];
  const open = new Map(); // elements of entities, in which answers may start and end
  for (let i = 0; i + 1 < bounds.length; i++) {
    const [from, to] = [bounds[i], bounds[i + 1]];
    let node = document.createTextNode(chars.slice(from, to).join(""));
    const here = answers.filter(one => covers(one, from, to));
    if (here.length) {
      const numbers = here.map(one => one.number);
      node = make("mark", { className: "answer" }, node);
      node.classList.toggle("chosen", numbers.includes(chosen));
      const ends = here.filter(one => one.end === to).map(one => one.number);
      if (ends.length) node.append(make("sup", {}, ends.join(" ")));
    }
    const entity = entities.find(one => covers(one, from, to));
    if (!entity) {
      parts.push(node);
      continue;
    }
    if (!open.has(entity)) {
      open.set(entity, make("mark", { className: "entity", style: `background: ${colourOf(entity.label)}` }));
      parts.push(open.get(entity));
    }
    open.get(entity).append(node);
    if (to === entity.end) {
      const score = entity.score === null ? "" : ` ${entity.score.toFixed(2)}`;
      open.get(entity).append(make("span", { className: "tag" }, entity.label, make("span", {}, score)));
    }
  }
  $("marked").replaceChildren(...parts);
}

function renderLabels() {
  const counts = {};
  for (const one of shown.record.entities ?? []) counts[one.label] = (counts[one.label] ?? 0) + 1;
  const boxes = Object.keys(counts).sort().map(label => {
    const box = make("input", { type: "checkbox", checked: !hidden.has(label), value: label });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(label);
      else hidden.add(label);
      renderText();
    });
    return make("label", { style: `background: ${colourOf(label)}` }, box, `${label} ${counts[label]}`);
  });
  const none = has("entities") ? [make("span", { className: "muted" }, "No entities were found.")] : [];
  $("labels").replaceChildren(...(boxes.length ? boxes : none));
}

function bars(scores, best) {
  const rows = Object.entries(scores).sort((a, b) => b[1] - a[1]);
  const list = make("dl", { className: "bars" });
  for (const [label, score] of rows.slice(0, MAX_BARS)) {
    const width = `${(100 * Math.min(Math.max(score, 0), 1)).toFixed(1)}%`;
    list.append(
      make("dt", { className: label === best ? "is-best" : "" }, label),
      make("dd", { className: "bar", ariaHidden: "true" }, make("span", { style: `width: ${width}` })),
      make("dd", { className: "value" }, score.toFixed(2)));
  }
  const left = rows.length - MAX_BARS;
  return left > 0 ? [list, make("p", { className: "muted" }, `${left} more, less probable`)] : [list];
}

function numbers(values) {
  const rows = Object.entries(values).map(([label, value]) =>
    make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, String(value))));
  return make("table", {}, make("tbody", {}, ...rows));
}

function card(title, ...children) {
  return make("section", { className: "card" }, make("h2", {}, title), ...children);
}

function highest(scores) {
  return Object.keys(scores).reduce((a, b) => (scores[b] > scores[a] ? b : a), Object.keys(scores)[0]);
}

function answerButton(answer, number) {
  const found = isShown(answer) && answer.text;
  const words = answer.text === null ? "This question is too long."
    : found ? answer.text : answer.text ? "less probable than the threshold" : "no answer";
  const score = answer.score === null ? "" : ` ${answer.score.toFixed(2)}`;
  const button = make("button", { type: "button", className: "found" },
    make("span", { className: "number" }, `${number} `), answer.question, make("br"),
    make(found ? "b" : "span", { className: found ? "" : "muted" }, words),
    make("span", { className: "muted value" }, score));
  button.disabled = !found;
  button.ariaPressed = String(chosen === number);
  button.addEventListener("click", () => {
    chosen = chosen === number ? null : number;
    renderText();
    for (const [i, other] of document.querySelectorAll(".found").entries())
      other.ariaPressed = String(chosen === i + 1);
    document.querySelector("mark.chosen")?.scrollIntoView({ block: "nearest" });
  });
  return button;
}

function renderCards() {
  const { record } = shown;
  const cards = [];
  if (record.answers?.length)
    cards.push(card("Answers", ...record.answers.map((one, i) => answerButton(one, i + 1))));
  if (record.categories && Object.keys(record.categories).length)
    cards.push(card("Categories", ...bars(record.categories, highest(record.categories))));
  if (record.zero_shot)
    cards.push(card("Your own categories", ...bars(record.zero_shot, highest(record.zero_shot))));
  if (record.verdicts?.length)
    cards.push(card("Hypotheses", ...record.verdicts.map(one => make("div", {},
      make("p", {}, one.hypothesis),
      ...(one.scores ? bars(one.scores, one.label) : [make("p", { className: "muted" }, "too long")])))));
  if (record.chosen?.length)
    cards.push(card("Choices", ...record.chosen.map(one => make("div", {},
      ...(one.question ? [make("p", {}, one.question)] : []),
      ...(one.scores ? bars(Object.fromEntries(one.options.map((text, i) => [text, one.scores[i]])), one.text)
        : [make("p", { className: "muted" }, "too long")])))));
  if (record.similarities?.length)
    cards.push(card("Similarities", ...record.similarities.map(one => make("div", {},
      make("p", {}, one.other), one.scores ? numbers(one.scores) : make("p", { className: "muted" }, "too long")))));
  if (record.numbers && Object.keys(record.numbers).length) cards.push(card("Numbers", numbers(record.numbers)));
  if (record.generated) cards.push(card("Generated", make("p", {}, record.generated)));
  if (record.tags?.length) {
    const chars = [...shown.text];
    const rows = record.tags.map(one => make("tr", {},
      make("td", {}, chars.slice(one.start, one.end).join("")), make("td", {}, one.tag ?? one.pos ?? "–")));
    cards.push(make("details", { className: "card" }, make("summary", {}, "Tags"),
      make("table", {}, make("tbody", {}, ...rows))));
  }
  $("cards").replaceChildren(...cards);
}

function render() {
  document.body.classList.remove("empty");
  $("results").hidden = false;
  $("results").classList.remove("is-old");
  renderLabels();
  renderText();
  renderCards();
  $("json").textContent = JSON.stringify(shown.record, null, 2);
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("json").textContent);
  } catch {
    getSelection().selectAllChildren($("json")); // where pages may not copy, the user presses Ctrl + C
    $("copy").textContent = "Press Ctrl + C";
    return;
  }
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
}

for (const kind of Object.keys(ASKS)) if (settings.asks[kind]) addAsk(kind);
$("text").maxLength = 2 * settings.maxChars; // UTF-16 code units; the server counts characters
$("threshold-label").hidden = !has("entities") && !has("answers");
document.body.classList.add("empty");
$("form").addEventListener("submit", event => {
  event.preventDefault();
  annotate();
});
$("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) annotate();
});
$("text").addEventListener("input", () => {
  $("results").classList.toggle("is-old", shown !== null && $("text").value !== shown.text);
});
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = threshold().toFixed(2);
  if (!shown) return;
  renderText();
  renderCards();
});
$("copy").addEventListener("click", copy);
