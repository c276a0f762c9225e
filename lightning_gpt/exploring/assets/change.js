// All heads and feed-forward networks at a glance, and what is done to them.

import { paint } from "./colours.js";
import { byId, digits, element, signed } from "./dom.js";
import { changeText, state } from "./state.js";

const WORDS = { zero: "set to zero", mean: "replaced by its mean", scale: "scaled", patch: "patched from the second text" };
const SIGNS = { zero: "0", mean: "mean", scale: "×", patch: "⇄" };
const past = []; // lists of changes, for undo

let chosen = "0.0"; // the part that the buttons act on
let afterChange = () => {};
let choose = () => {};

export function startChanges(onChange, onChoose) {
  afterChange = onChange;
  choose = onChoose;
  for (const button of byId("change-part").querySelectorAll("[data-kind]")) {
    button.addEventListener("click", () => set(chosen, button.dataset.kind, button.dataset.kind === "patch" ? patchPlace() : ""));
  }
  byId("factor").addEventListener("input", () => {
    byId("factor-value").textContent = Number(byId("factor").value).toFixed(1);
    set(chosen, "scale", String(Number(byId("factor").value)));
  });
  byId("patch-here").addEventListener("change", () => {
    if (changeOf(chosen)?.kind === "patch") set(chosen, "patch", patchPlace());
  });
  byId("undo").addEventListener("click", undo);
  byId("map").addEventListener("keydown", moveInMap);
  byId("clear").addEventListener("click", () => replace([]));
}

// The arrow keys go from cell to cell; one cell is reached by the tab key.
function moveInMap(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  const from = event.target.closest("td");
  if (!step || !from) return;
  event.preventDefault();
  const line = byId("map").rows[from.parentElement.rowIndex + step[0]];
  const button = line?.cells[from.cellIndex + step[1]]?.querySelector("button");
  if (!button) return;
  const { part } = button.dataset;
  button.click();
  byId("map").querySelector(`[data-part="${part}"]`)?.focus();
}

const patchPlace = () => (byId("patch-here").checked && state.row !== null ? String(state.row) : "");
const changeOf = (part) => state.changes.find((change) => change.part === part);

function set(part, kind, value) {
  const others = state.changes.filter((change) => change.part !== part);
  const isNothing = kind === "none" || (kind === "scale" && Number(value) === 1);
  replace(isNothing ? others : [...others, { part, kind, value }]);
}

function replace(changes) {
  past.push(state.changes);
  state.changes = changes;
  settle();
}

export function undo() {
  if (!past.length) return;
  state.changes = past.pop();
  settle();
}

// Take the chosen part out, or put it back.
export function toggle() {
  set(chosen, changeOf(chosen) ? "none" : "zero", "");
}

function settle() {
  if (state.changes.length && state.against === "") [state.against, state.show] = ["unchanged", "difference"];
  if (!state.changes.length && state.against === "unchanged") [state.against, state.show] = ["", "values"];
  afterChange();
}

// The part that is shown is the one that is changed.
export function choosePart(part) {
  chosen = part;
  const [layer, of] = part.split(".");
  byId("part-name").textContent = of === "ffn" ? `Layer ${layer}, feed-forward network` : `Layer ${layer}, head ${of}`;
  drawButtons();
  for (const button of byId("map").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.part === part);
    button.tabIndex = button.dataset.part === part ? 0 : -1;
  }
}

function drawButtons() {
  const change = changeOf(chosen);
  for (const button of byId("change-part").querySelectorAll("[data-kind]")) {
    button.setAttribute("aria-pressed", button.dataset.kind === (change?.kind ?? "none"));
  }
  const factor = change?.kind === "scale" ? Number(change.value) : 1;
  byId("factor").value = factor;
  byId("factor-value").textContent = factor.toFixed(1);
  byId("patch-here").checked = change?.kind === "patch" ? change.value !== "" : byId("patch-here").checked;
}

const built = { key: "", canvases: new Map() }; // the table as it stands: each head's canvases

// Draw the map from a look's answer.
export function drawMap(look, isDifference) {
  const { thumbnails, "other.thumbnails": beside } = look.arrays;
  const key = JSON.stringify([look.headCounts, look.hasFfn, beside?.shape.slice(0, 2)]);
  if (built.key !== key) buildMap(look, beside);
  built.key = key;
  for (const [part, canvases] of built.canvases) {
    const [layer, n] = part.split(".").map(Number);
    [thumbnails, beside].slice(0, canvases.length).forEach(({ shape: [, all, rows, columns], values }, of) => {
      const start = (layer * all + n) * rows * columns;
      paint(canvases[of], columns, rows, (place) => (isDifference ? (values[start + place] - 128) / 127 : values[start + place] / 255), isDifference);
    });
  }
  for (const button of byId("map").querySelectorAll("button")) markChange(button);
  choosePart(chosen);
}

function buildMap(look, beside) {
  const { shape: [layers, heads] } = look.arrays.thumbnails;
  built.canvases.clear();
  byId("map").style.setProperty("--thumb", layers * heads > 64 ? "26px" : layers * heads > 16 ? "min(44px, 9vw)" : "min(60px, 11vw)");
  const place = (layer, n) => {
    if (n === heads) return look.hasFfn[layer] ? cell(`${layer}.ffn`, `layer ${layer}, feed-forward network`) : element("td");
    if (n >= look.headCounts[layer]) return element("td");
    const isPair = beside && layer < beside.shape[0] && n < beside.shape[1];
    const canvases = Array.from({ length: isPair ? 2 : 1 }, () => element("canvas"));
    built.canvases.set(`${layer}.${n}`, canvases);
    return cell(`${layer}.${n}`, `layer ${layer}, head ${n}`, ...canvases);
  };
  const [allLayers, allParts] = [[...Array(layers).keys()], [...Array(heads + (look.hasFfn.some(Boolean) ? 1 : 0)).keys()]];
  const nameOf = (n) => (n === heads ? "FFN" : n);
  const isDeep = layers > 12; // then layers run from left to right
  byId("map").classList.toggle("deep", isDeep);
  const head = element("tr");
  head.append(element("th", isDeep ? "layer" : "head"));
  head.append(...(isDeep ? allLayers : allParts.map(nameOf)).map((name) => element("th", name, { scope: "col" })));
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  const lines = isDeep ? allParts : allLayers;
  body.append(...lines.map((of) => {
    const line = element("tr");
    line.append(element("th", isDeep ? (of === heads ? "FFN" : `head ${of}`) : `layer ${of}`, { scope: "row" }));
    line.append(...(isDeep ? allLayers.map((layer) => place(layer, of)) : allParts.map((n) => place(of, n))));
    return line;
  }));
  const before = byId("map-scroll").scrollTop;
  byId("map").replaceChildren(top, body);
  byId("map-scroll").scrollTop = before;
}

function cell(part, says, ...canvases) {
  const button = element("button", "", { type: "button", "data-part": part, title: says });
  if (canvases.length) button.append(...canvases);
  else { button.className = "ffn"; button.append("FFN"); }
  button.classList.toggle("pair", canvases.length > 1);
  button.addEventListener("click", () => { choosePart(part); choose(part); });
  const place = element("td");
  place.append(button);
  return place;
}

function markChange(button) {
  const change = changeOf(button.dataset.part);
  button.classList.toggle("changed", Boolean(change));
  button.setAttribute("aria-label", change ? `${button.title}, ${WORDS[change.kind]}` : button.title);
  if (change) button.dataset.change = change.kind === "scale" ? `×${change.value}` : SIGNS[change.kind];
  else delete button.dataset.change;
}

export function drawChanges(look) {
  byId("changes").replaceChildren(...state.changes.map((change) => {
    const entry = element("li", "", { "data-change": changeText(change) });
    const value = change.kind === "scale" ? ` by ${change.value}` : change.value !== "" ? ` at token ${change.value}` : "";
    const remove = element("button", "×", { type: "button", "aria-label": `remove the change of ${change.part}` });
    remove.addEventListener("click", () => set(change.part, "none", ""));
    entry.append(`${change.part} ${WORDS[change.kind]}${value}`, remove);
    return entry;
  }));
  byId("undo").disabled = !past.length;
  byId("clear").disabled = !state.changes.length;
  drawButtons();
  const words = byId("change-words");
  words.replaceChildren();
  delete words.dataset.change;
  if (!look.before || look.loss === null || look.before.loss === null) return;
  const change = look.loss - look.before.loss;
  words.dataset.change = change;
  const what = state.against === "unchanged" ? "With these changes the" : "Compared with the other model, the";
  words.append(`${what} loss on the text is `, element("b", digits(look.loss)), " nats instead of ",
    element("b", digits(look.before.loss)), ": ", element("b", signed(change), { class: change > 0 ? "worse" : "better" }), ". ");
  const rises = look.nll.map((nll, place) => nll - look.before.nll[place]);
  const worst = rises.indexOf(Math.max(...rises));
  if (rises[worst] > 0.0005) words.append("It rises most on ", element("span", look.tokens[worst + 1], { class: "token" }), ` (${signed(rises[worst])}).`);
}

