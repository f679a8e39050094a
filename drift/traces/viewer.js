"use strict";
// The page of drift/traces/page.py. Texts reach the page by textContent only, never as HTML.
const { title, rows } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const CLASSES = [0.1, 0.3, 0.5, 0.7, 0.9]; // lower ends of the shades p1 .. p5
const PLAY_MS = 8000; // a whole play; a step takes between 40 and 400 ms
const NONE = "none";
const DIFFER = "differ"; // a grade of its own: another source's completion has another one

const state = {
  row: 0, step: 0, // what was committed at this step or before is shown; -1 = nothing yet
  token: null, // { pane, index }
  shade: "probability", // or the number of a view
  beside: null, // null = the same prompt's completion of another source, NONE, or a row
  grade: "", query: "", source: "",
};
let panes = []; // { row, number, tokens: [elements] }
let timer;

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const distinct = (values) => [...new Set(values)];
const fixed = (value, digits) => value === null ? "not finite"
  : value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
const signed = (value) => (value > 0 ? "+" : "") + fixed(value, 2);
const probability = (row, i) => (row.logps[i] === null ? null : Math.exp(row.logps[i]));
const lastStep = (row) => row.steps.reduce((last, step) => Math.max(last, step), -1);

// White space and control characters as signs; line breaks break the line as well.
function readable(text, breaks = false) {
  if (text === "") return "∅";
  return text
    .replace(/\r\n|[\r\n\u0085\u2028\u2029]/g, breaks ? "↵\n" : "↵")
    .replace(/\t/g, breaks ? "→\t" : "→")
    .replace(/[\x00-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\x7f\u200b-\u200f\u2060-\u2064\ufeff]/g, "␡");
}
// In the running text a space is a space, unless the token is nothing else.
const inText = (text) => (/^ +$/.test(text) ? "␣".repeat(text.length) : readable(text, true));
const alone = (text) => readable(text).replace(/ /g, "␣");
// One dot for each character, spaces kept: nothing moves when the token appears.
const hiddenText = (text) => inText(text).replace(/\S/gu, "·");

// ---- the list of completions
const sources = distinct(rows.map((row) => row.source));
const grades = distinct(rows.map((row) => row.label)).filter(Boolean).sort();
const listed = () =>
  rows.map((_, i) => i).filter((i) => {
    const row = rows[i];
    return (!state.source || row.source === state.source)
      && (!state.grade || (state.grade === DIFFER ? differs(i) : row.label === state.grade))
      && row.prompt.toLowerCase().includes(state.query.toLowerCase());
  });

function drawList() {
  const shown = listed(), all = plural(rows.length, "completion");
  at("count").textContent = shown.length ? `${shown.length} of ${all}` : "No completion matches";
  at("rows").replaceChildren(...shown.map((i) => {
    const row = rows[i];
    const said = row.prompt.trim().split("\n")[0] || "(empty prompt)";
    const grade = make("span", { className: "grade" },
      make("span", { className: row.label ? `mark ${row.label}` : "", textContent: row.label }),
      row.reward === null ? "" : make("span", { textContent: `reward ${fixed(row.reward, 2)}` }));
    const button = make("button", { type: "button", className: "row" },
      make("span", { className: "number", textContent: i + 1 }),
      make("span", { className: "said", textContent: said, title: said }),
      sources.length > 1 && !state.source
        ? make("span", { className: "number", textContent: row.source }) : "", grade);
    button.dataset.row = i;
    return make("li", {}, button);
  }));
  for (const button of at("filter").children) {
    button.ariaPressed = button.dataset.grade === state.grade;
  }
  markRow();
}

function markRow(focus = false) {
  const buttons = [...at("rows").querySelectorAll(".row")];
  const current = buttons.find((button) => Number(button.dataset.row) === state.row);
  for (const button of buttons) {
    button.ariaCurrent = button === current ? "true" : null;
    button.tabIndex = button === (current || buttons[0]) ? 0 : -1;
  }
  if (!current) return;
  if (focus) current.focus({ preventScroll: true });
  const list = at("rows"); // scrolled by hand: scrollIntoView would move the page too
  const top = current.offsetTop - list.offsetTop;
  list.scrollTop = Math.min(top, Math.max(list.scrollTop, top + current.offsetHeight - list.clientHeight));
}

function moveRow(by) {
  const shown = listed(), now = shown.indexOf(state.row);
  const next = now < 0 ? shown[0] : shown[now + by];
  if (next !== undefined) chooseRow(next, at("rows").contains(document.activeElement));
}

// ---- one completion, or two beside each other
const name = (i) => [rows[i].source, `completion ${i + 1}`, rows[i].label].filter(Boolean).join(" · ");

// The completion of another source that has the same place among those of its prompt.
function counterpart(i) {
  const same = rows.map((_, j) => j).filter((j) => rows[j].prompt === rows[i].prompt);
  const place = same.filter((j) => rows[j].source === rows[i].source).indexOf(i);
  const other = sources.find((s) => s !== rows[i].source && same.some((j) => rows[j].source === s));
  const theirs = same.filter((j) => rows[j].source === other);
  return other === undefined ? NONE : theirs[Math.min(place, theirs.length - 1)];
}

function differs(i) {
  const other = counterpart(i);
  return other !== NONE && rows[other].label !== rows[i].label;
}

function chooseRow(i, focus = false) {
  stop();
  state.row = i;
  state.token = null;
  if (state.beside !== NONE) state.beside = null;
  at("prompt").textContent = rows[i].prompt;
  markRow(focus);
  drawPanes();
}

function drawPanes() {
  const others = rows.map((_, j) => j)
    .filter((j) => j !== state.row && rows[j].prompt === rows[state.row].prompt);
  const beside = state.beside ?? counterpart(state.row);
  at("compare-field").hidden = !others.length;
  at("compare").replaceChildren(
    make("option", { value: NONE, textContent: "nothing" }),
    ...others.map((j) => make("option", { value: j, textContent: name(j) })));
  at("compare").value = beside;
  panes = (beside === NONE ? [state.row] : [state.row, beside]).map(makePane);
  at("panes").replaceChildren(...panes.map((pane) => pane.node));
  at("step").max = Math.max(0, ...panes.map((pane) => lastStep(pane.row)));
  state.step = Number(at("step").max);
  drawShades();
  paint();
}

function makePane(i, number) {
  const row = rows[i];
  const facts = [
    row.label && make("span", { className: `mark ${row.label}`, textContent: row.label }),
    row.reward !== null && `reward ${fixed(row.reward, 2)}`,
    row.advantage !== null && `advantage ${signed(row.advantage)}`,
    `length ${row.length} of ${row.tokens.length}`,
    plural(lastStep(row) + 1, "step"),
  ].filter(Boolean);
  const tokens = row.tokens.map((text, index) => {
    const span = make("span", { role: "button", tabIndex: -1 });
    Object.assign(span.dataset, { pane: number, index });
    return span;
  });
  tokens[0]?.setAttribute("tabindex", "0");
  const canvas = make("div", { className: "canvas", role: "group",
    ariaLabel: `Tokens of ${name(i)}; shift with left or right arrow moves` }, ...tokens);
  const node = make("section", { className: "pane", ariaLabel: name(i) },
    make("h2", { textContent: row.source || `Completion ${i + 1}` }),
    make("p", { className: "meta" }, ...facts.map((fact) => make("span", {}, fact))), canvas);
  return { row, number, tokens, node };
}

// ---- colours
function drawShades() {
  const views = Math.max(0, ...panes.map((pane) => pane.row.views?.length ?? 0));
  if (state.shade !== "probability" && state.shade >= views) state.shade = "probability";
  at("shade").replaceChildren(
    make("option", { value: "probability", textContent: "probability" }),
    ...Array.from({ length: views }, (_, k) =>
      make("option", { value: k, textContent: `view ${k + 1} of ${views}` })));
  at("shade").value = state.shade;
  drawLegend();
}

function drawLegend() {
  const swatch = (name, textContent) => make("span", { className: `token ${name}`, textContent });
  const item = (className, sample, text) => make("li", {}, swatch(className, sample), text);
  const masked = item("masked", "···", "masked");
  if (state.shade === "probability") {
    const names = ["< 0.1", "0.1", "0.3", "0.5", "0.7", "≥ 0.9"];
    const scale = names.map((text, k) => swatch(`p${k}`, text)).reverse();
    at("legend").replaceChildren(
      make("li", { className: "scale-item" }, "Probability when committed",
        make("span", { className: "scale" }, ...scale)),
      masked, item("now", "abc", "committed at this step"));
    return;
  }
  const scored = panes.map(({ row }) => (row.views?.[state.shade]?.scored ?? "").split("1").length - 1);
  at("legend").replaceChildren(item("", "abc", "shown to the network"), item("hid", "abc", "hidden"),
    item("scored", "abc", `hidden and scored (${scored.join(" and ")})`), masked);
}

function shadeOf(row, i) {
  if (state.shade === "probability") {
    const p = probability(row, i);
    return `p${CLASSES.filter((low) => p >= low).length}`;
  }
  const view = row.views?.[state.shade];
  if (!view) return "";
  return view.scored[i] === "1" ? "scored" : view.hidden[i] === "1" ? "hid" : "";
}

function paint() {
  for (const { row, tokens, number } of panes) {
    tokens.forEach((span, i) => {
      const done = row.steps[i] >= 0 && row.steps[i] <= state.step;
      const tail = i >= row.length;
      const text = done ? inText(row.tokens[i])
        : tail || row.steps[i] < 0 ? "·" : hiddenText(row.tokens[i]);
      if (span.textContent !== text) span.textContent = text;
      const chosen = state.token?.pane === number && state.token.index === i;
      const viewed = state.shade !== "probability";
      span.className = ["token", done || viewed ? shadeOf(row, i) : "", done ? "" : "masked",
        !viewed && row.steps[i] === state.step ? "now" : "", tail ? "tail" : "",
        chosen ? "chosen" : ""].filter(Boolean).join(" ");
      const words = done ? alone(row.tokens[i]) : row.steps[i] < 0 ? "never decoded" : "masked";
      span.ariaLabel = `token ${i + 1}: ${words}`;
      span.ariaPressed = chosen;
    });
  }
  at("step").value = state.step;
  const words = state.step < 0 ? "start" : `step ${state.step} / ${at("step").max}`;
  at("step-text").textContent = words;
  at("step").ariaValueText = words;
  drawDetail();
}

// ---- steps
function setStep(step) {
  state.step = Math.min(Number(at("step").max), Math.max(-1, step));
  paint();
}

function stop() {
  timer = clearInterval(timer); // undefined
  at("play").textContent = "Play";
}

function play() {
  if (timer) return stop();
  const last = Number(at("step").max);
  if (state.step >= last) setStep(-1);
  at("play").textContent = "Pause";
  timer = setInterval(() => {
    setStep(state.step + 1);
    if (state.step >= last) stop();
  }, Math.min(400, Math.max(40, PLAY_MS / (last + 1))));
}

// ---- one token
function chooseToken(pane, index, focus = false) {
  const tokens = panes[pane].tokens;
  state.token = { pane, index };
  for (const span of tokens) span.tabIndex = -1;
  tokens[index].tabIndex = 0;
  paint();
  if (focus) tokens[index].focus({ preventScroll: true });
  const panel = at("detail").getBoundingClientRect(); // on small screens it lies over the text
  const low = getComputedStyle(at("detail")).position === "fixed" ? panel.top : innerHeight;
  const high = document.querySelector(".player").getBoundingClientRect().bottom;
  const place = tokens[index].getBoundingClientRect();
  if (place.bottom > low) scrollBy(0, place.bottom - low + 16);
  else if (place.top < high && high < innerHeight / 2) scrollBy(0, place.top - high - 16);
}

function moveToken(by) {
  const { pane, index } = state.token ?? { pane: 0, index: by > 0 ? -1 : panes[0].tokens.length };
  const next = index + by;
  if (next >= 0 && next < panes[pane].tokens.length) chooseToken(pane, next, true);
}

function drawDetail() {
  if (!state.token) {
    const hint = "Choose a token to see what the network thought of it.";
    at("detail").replaceChildren(make("h2", { textContent: "Token" }),
      make("p", { className: "hint", textContent: hint }));
    return;
  }
  const { pane, index: i } = state.token;
  const row = panes[pane].row, step = row.steps[i], never = step < 0;
  const facts = [["position", `${i + 1} of ${row.tokens.length}`],
    ["step", never ? "never decoded" : step > state.step ? `${step}, masked so far` : `${step}`]];
  if (!never) {
    facts.push(["log-prob", fixed(row.logps[i], 3)], ["probability", fixed(probability(row, i), 3)]);
    if (row.entropies) facts.push(["entropy", `${fixed(row.entropies[i], 3)} nats`]);
  }
  (row.views ?? []).forEach((view, k) => facts.push([`view ${k + 1}`,
    view.scored[i] === "1" ? "hidden, scored" : view.hidden[i] === "1" ? "hidden" : "shown"]));
  const close = make("button",
    { type: "button", id: "close", textContent: "Close", onclick: leaveToken });
  const list = make("dl", {}, ...facts.flatMap(([key, value]) =>
    [make("dt", { textContent: key }), make("dd", { textContent: value })]));
  at("detail").replaceChildren(make("div", { className: "panel" },
    make("h2", { textContent: row.source ? `Token · ${row.source}` : "Token" }),
    make("span", { className: "text", textContent: alone(row.tokens[i]) }), list,
    row.alternatives && !never ? wordTable(row.alternatives[i], row.tokens[i]) : ""), close);
}

function wordTable(words, taken) {
  const body = words.map(([word, p]) => {
    const bar = make("td", { className: "bar", textContent: fixed(p, 3) });
    bar.style.setProperty("--share", `${100 * p}%`);
    return make("tr", { className: word === taken ? "taken" : "" },
      make("th", { scope: "row", textContent: alone(word), title: alone(word) }), bar);
  });
  return make("table", { className: "words" },
    make("caption", { textContent: "Likeliest words when committed" }), make("tbody", {}, ...body));
}

function leaveToken() {
  state.token = null;
  paint();
}

// ---- what the reader does
const shifted = { ArrowLeft: -1, ArrowRight: 1 };
const keys = {
  ArrowLeft: () => setStep(state.step - 1), ArrowRight: () => setStep(state.step + 1),
  ArrowUp: () => moveRow(-1), ArrowDown: () => moveRow(1),
  Home: () => setStep(-1), End: () => setStep(Infinity), " ": play, Escape: leaveToken,
};
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (target.matches("input[type=search], select")) return;
  if (key === " " && target.matches("button:not(.row)")) return; // the button's own key
  if (key === "Enter" && target.matches(".token")) target.click();
  else if (event.shiftKey && shifted[key]) moveToken(shifted[key]);
  else if (keys[key]) {
    if (key !== " ") stop();
    keys[key]();
  } else return;
  event.preventDefault();
});
for (const [kind, selector] of [["click", ".token"], ["focusin", ".token:focus-visible"]]) {
  at("panes").addEventListener(kind, ({ target }) => {
    if (target.matches(selector)) chooseToken(Number(target.dataset.pane), Number(target.dataset.index));
  });
}
at("rows").addEventListener("click", (event) => {
  const button = event.target.closest(".row");
  if (!button) return;
  chooseRow(Number(button.dataset.row));
  openList(false);
});
at("step").addEventListener("input", () => { stop(); setStep(Number(at("step").value)); });
at("play").addEventListener("click", play);
at("shade").addEventListener("change", ({ target }) => {
  state.shade = target.value === "probability" ? target.value : Number(target.value);
  drawLegend();
  paint();
});
at("compare").addEventListener("change", ({ target }) => {
  stop();
  state.token = null;
  state.beside = target.value === NONE ? NONE : Number(target.value);
  drawPanes();
});
at("search").addEventListener("input", ({ target }) => { state.query = target.value; drawList(); });
at("source").addEventListener("change", ({ target }) => { state.source = target.value; drawList(); });

function openList(open) {
  at("browser").classList.toggle("open", open);
  at("open-list").ariaExpanded = open;
}
at("open-list").addEventListener("click", () => openList(!at("browser").classList.contains("open")));

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const theme = document.documentElement.dataset;
const isDark = () => (theme.theme ? theme.theme === "dark" : systemDark.matches);
const nameTheme = () => { at("theme").textContent = isDark() ? "Light" : "Dark"; };
at("theme").addEventListener("click", () => {
  theme.theme = isDark() ? "light" : "dark";
  nameTheme();
});
systemDark.addEventListener("change", nameTheme);

// ---- the start
at("title").textContent = title;
at("summary").textContent = [plural(rows.length, "completion"),
  plural(distinct(rows.map((row) => row.prompt)).length, "prompt"),
  ...(sources.length > 1 ? [plural(sources.length, "source")] : [])].join(", ");
at("open-label").textContent = `Choose among ${plural(rows.length, "completion")}`;
at("source-field").hidden = sources.length < 2;
at("source").append(make("option", { value: "", textContent: "all" }),
  ...sources.filter(Boolean).map((s) => make("option", { value: s, textContent: s })));
at("filter").hidden = !grades.length;
for (const grade of ["", ...grades, ...(sources.length > 1 ? [DIFFER] : [])]) {
  const button = make("button", { type: "button", textContent: grade || "all" });
  button.dataset.grade = grade;
  button.addEventListener("click", () => { state.grade = grade; drawList(); });
  at("filter").append(button);
}
if (sources.length > 1) at("source").value = state.source = sources[0];
nameTheme();
drawList();
chooseRow(state.source ? rows.findIndex((row) => row.source === state.source) : 0);
