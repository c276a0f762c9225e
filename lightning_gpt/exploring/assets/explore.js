// The explorer: what is typed, clicked and changed becomes one state; the server answers for it, and the parts draw.

import { Head } from "./arrays.js";
import { ask, askStart, latest } from "./ask.js";
import { choosePart, drawChanges, drawMap, startChanges, toggle, undo } from "./change.js";
import { drawDepth, drawWay } from "./depth.js";
import { byId, digits, element, signed } from "./dom.js";
import { drawFollow, drawFollowHint } from "./follow.js";
import { drawDistribution, setVocabulary, startGenerating } from "./generate.js";
import { drawCode, drawPictureNames, startKeeping } from "./keep.js";
import { run } from "./run.js";
import { badge, drawSide, isSide, startSide } from "./side.js";
import { againstText, passes, readLink, shownText, state, writeLink, writeLinkSoon } from "./state.js";
import { chosen, drawText, page, show, startView, takeText } from "./view.js";
import { drawWorth, forgetWorth, startWorth } from "./worth.js";

let models = [];
let current = null; // the last answer to a look
let strips = [];
let isOtherHead = true; // than the one that the map has chosen

function fail(error) {
  byId("notice").textContent = error.message;
  byId("notice").hidden = false;
  document.documentElement.dataset.ready = "true";
}

// --- parts that are asked for when they are in sight ---------------------------------------------------------------

class Part {
  constructor(id, draw) {
    Object.assign(this, { isStale: true, inSight: false });
    this.draw = latest(async () => {
      this.isStale = false;
      try { await draw(); } catch (error) { fail(error); }
    });
    new IntersectionObserver(([entry]) => {
      this.inSight = entry.isIntersecting;
      if (this.inSight && this.isStale && current) this.draw();
    }, { rootMargin: "200px" }).observe(byId(id));
  }

  refresh() {
    this.isStale = true;
    return this.inSight && current ? this.draw() : null;
  }
}

let parts = {};

function makeParts() {
  parts = {
    follow: new Part("follow-card", drawCell),
    lens: new Part("lens", () => page.lens.draw(page.row)),
    lensOther: new Part("lens-card-other", () => page.lens.drawOther()),
    generate: new Part("generate-card", () => drawDistribution(page.held.row)),
    depth: new Part("depth", () => drawDepth(againstText())),
    way: new Part("way-hint", () => drawWay(page.held.row)),
    code: new Part("code", drawCode),
  };
}

async function drawCell() {
  const { row, column } = page.held;
  if (column === null) return drawFollowHint();
  return drawFollow(await ask("cell", { of: shownText(), layer: state.layer, head: state.head, row, column }));
}

// --- matrices --------------------------------------------------------------------------------------------------

function headsFrom({ arrays, heads }) {
  const [rows, columns] = arrays.mask.shape.slice(-2);
  const size = rows * columns;
  const of = (name, head) => arrays[name].values.subarray(head * size, (head + 1) * size);
  return Array.from({ length: heads }, (_, head) => {
    if (!arrays["pattern.shown"]) return new Head(of("mask", head), of("scores", head), of("pattern", head), rows, columns);
    const change = { scores: of("scores", head), pattern: of("pattern", head) };
    return new Head(of("mask", head), of("scores.shown", head), of("pattern.shown", head), rows, columns, change);
  });
}

// The heads, each with its counterpart where two models are shown side by side.
function headsOf(answer) {
  const found = headsFrom(answer);
  const { mask, scores, pattern } = Object.fromEntries(["mask", "scores", "pattern"].map((name) => [name, answer.arrays[`other.${name}`]]));
  if (!mask) return found;
  const heads = mask.shape[0];
  const others = headsFrom({ arrays: { mask, scores, pattern }, heads });
  found.forEach((head, n) => head.setBeside(others[Math.min(n, heads - 1)]));
  return found;
}

function stripsFrom({ arrays }) {
  strips = ["X", "N", "Q", "K", "V", "AV", "Y"].filter((symbol) => arrays[symbol]).map((symbol) => {
    const [rows, columns] = arrays[symbol].shape;
    const shown = arrays[`${symbol}.shown`];
    return { symbol, rows, columns, values: (shown ?? arrays[symbol]).values, change: shown ? arrays[symbol].values : null };
  });
  return strips;
}

// One answer holds the heads of a layer and the other matrices of one of them.
const layerAnswer = (() => {
  let known = { key: null, answer: null };
  return (layer, head) => {
    const key = JSON.stringify([passes(), layer, head]);
    if (known.key !== key) {
      const answer = ask("layer", { ...passes(), layer, head: Math.min(head, current.headCounts[layer] - 1) });
      answer.catch((error) => { known.key = null; fail(error); });
      known = { key, answer };
    }
    return known.answer;
  };
})();

run.headsOf = async (index, head = page.headNumber) => headsOf(await layerAnswer(index, head));
run.stripsOf = async (index, head) => stripsFrom(await layerAnswer(index, head));

// --- looking ----------------------------------------------------------------------------------------------------

let asked = 0; // looks so far

const look = latest(async () => {
  const mine = ++asked;
  document.documentElement.dataset.ready = "false";
  const isAnotherText = current === null || current.asked.text !== state.text || current.asked.more.join() !== state.more.join() || current.asked.model !== state.model;
  const [text, { choices }] = [shownText(), chosen()];
  let answer;
  try {
    answer = await ask("look", { ...passes(), layer: state.layer, head: state.head });
  } catch (error) {
    fail(error);
    document.documentElement.classList.add("stale"); // what is shown is of the text before
    return;
  }
  if (isOvertaken(choices)) return;
  byId("notice").hidden = true;
  document.documentElement.classList.remove("stale");
  if (isAnotherText) forgetWorth();
  current = { ...answer, asked: { ...text, more: [...text.more] } };
  isOtherHead ||= answer.layer !== state.layer || answer.head !== state.head; // another model may have fewer
  [state.layer, state.head] = [answer.layer, answer.head];
  const { tokens, ids, keys, headDim, biased, layerCount, heads } = answer;
  const difference = passes().show === "difference" ? nameOfOther() : null;
  Object.assign(run, { tokens, ids, keys, headDim, biased, difference, headCount: heads, layers: Array.from({ length: layerCount }, (_, n) => n) });
  const last = tokens.length - 1;
  page.held = state.row === null || state.row > last ? { row: last, column: null } : { row: state.row, column: state.column };
  page.lens.forget();
  takeText(state.layer, state.head, headsOf(answer));
  // the server answers these while the page is drawn
  const following = FAST.map((name) => parts[name].refresh());
  // what comes soon is drawn in the same frame
  await Promise.race([Promise.all(following), new Promise((done) => setTimeout(done, TOGETHER))]);
  if (isOvertaken(choices)) return;
  drawSide(answer, [state.changes.length ? `${models[state.model]}, with the changes` : models[state.model], nameOfOther()]);
  drawText(stripsFrom(answer));
  drawTop(answer);
  drawMap(answer, difference !== null);
  drawChanges(answer);
  drawPictureNames(strips);
  if (isOtherHead) choosePartOfHead();
  isOtherHead = false;
  await Promise.all(following);
  setTimeout(() => rest(mine), PAUSE);
});

const FAST = ["lens", "lensOther", "generate", "follow"];
const SLOW = ["code", "way", "depth"];
const TOGETHER = 30; // ms
const PAUSE = 120; // ms: what takes long is asked for when typing pauses

// Whether another head was chosen since; then that is looked at, and the answer that has come is of the one before.
function isOvertaken(choices) {
  if (chosen().choices === choices || !current) return false;
  const { index, headNumber } = chosen();
  [state.layer, state.head] = [run.layers[index], headNumber];
  isOtherHead = true;
  look();
  return true;
}

async function rest(mine) {
  if (mine !== asked) return;
  writeLink();
  await Promise.all(SLOW.map((name) => parts[name].refresh()));
  if (mine === asked) document.documentElement.dataset.ready = "true";
}

const nameOfOther = () => (state.against === "unchanged" ? "the unchanged model" : models[state.against] ?? "");

function drawTop(answer) {
  for (const radio of byId("show").querySelectorAll("input")) {
    radio.checked = radio.value === state.show;
    radio.disabled = state.against === "";
  }
  byId("against").value = state.against;
  setVocabulary(Number(answer.facts.vocabulary.replaceAll(",", "")));
  byId("facts").replaceChildren(...Object.entries({ ...answer.facts, layers: `${answer.layerCount} × ${answer.heads} heads` }).map(([fact, value]) => {
    const pair = element("div");
    pair.append(element("dt", fact), element("dd", value));
    return pair;
  }));
  const summary = byId("summary");
  summary.replaceChildren(`${answer.tokens.length} token${answer.tokens.length === 1 ? "" : "s"}`);
  delete summary.dataset.loss;
  if (answer.loss !== null) {
    summary.dataset.loss = answer.loss;
    const said = (loss) => [" loss ", element("b", digits(loss)), ` nats (perplexity ${Math.exp(loss).toLocaleString("en", { maximumFractionDigits: 1 })})`];
    summary.append(" · ", ...(isSide() ? [badge("A")] : []), ...said(answer.loss));
    if (isSide() && answer.before?.loss != null) summary.append(" · ", badge("B"), ...said(answer.before.loss));
    if (answer.before?.loss != null) {
      const change = answer.loss - answer.before.loss;
      summary.append(" · ", element("b", signed(change), { class: change > 0 ? "worse" : "better" }), state.against === "unchanged" ? " by the changes" : " to the other model");
    }
  }
  const generated = byId("generated");
  generated.hidden = !state.more.length;
  if (state.more.length) {
    const take = element("button", "Make it part of the text", { type: "button", class: "quiet" });
    take.addEventListener("click", () => { state.text += answer.moreText; state.more = []; byId("text").value = state.text; look(); });
    generated.replaceChildren(`Generated: ${state.more.length} token${state.more.length === 1 ? "" : "s"} `, element("span", answer.moreText, { class: "token" }), take);
  }
}

function choosePartOfHead() {
  choosePart(`${state.layer}.${state.head}`);
}

// --- start --------------------------------------------------------------------------------------------------------

function choosePartOfMap(part) {
  const [layer, of] = part.split(".");
  if (of === "ffn") return;
  show(Number(layer), Number(of));
}

function listen() {
  byId("text").addEventListener("input", (event) => {
    state.text = event.target.value;
    state.more = [];
    state.row = state.column = null;
    look();
  });
  byId("other").addEventListener("input", (event) => { state.other = event.target.value; look(); });
  byId("against").addEventListener("change", (event) => {
    state.against = event.target.value;
    if (state.against === "") state.show = "values";
    else if (state.show === "values") state.show = "difference";
    look();
  });
  byId("show").addEventListener("change", (event) => { state.show = event.target.value; look(); });
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input:not([type=radio]), select, textarea")) return;
    const act = { x: toggle, u: undo, d: () => showAs("difference"), s: () => showAs("side") }[event.key];
    if (act) act();
  });
  window.addEventListener("hashchange", () => { takeLink(); look(); });
}

// Show it so, or as it is if it is shown so already.
function showAs(show) {
  if (state.against === "") {
    byId("change-words").textContent = "There is nothing to compare with: change something, or choose a model under “Compare with”.";
    return;
  }
  state.show = state.show === show ? "values" : show;
  look();
}

// Take over what the address holds; what cannot be understood is said, and left out as a whole.
function takeLink() {
  isOtherHead = true;
  try {
    Object.assign(state, readLink());
  } catch (error) {
    fail(error);
    history.replaceState(null, "", location.pathname);
    return false;
  }
  byId("text").value = state.text;
  byId("other").value = state.other;
  byId("second").open = state.other !== "";
  nameModel();
  return true;
}

// The model's name in the window's title and, where there are several, in the choice of one.
function nameModel() {
  document.title = `${models[state.model]} · lightning-gpt explore`;
  const select = byId("model");
  if (select) select.value = state.model;
}

function drawModels() {
  byId("title").textContent = models[state.model] ?? "";
  if (models.length > 1) {
    const select = element("select", "", { id: "model", "aria-label": "Model" });
    select.append(...models.map((name, number) => element("option", name, { value: number })));
    select.addEventListener("change", () => { state.model = Number(select.value); nameModel(); look(); });
    byId("title").replaceChildren(select);
  }
  nameModel();
  byId("against").append(element("option", "nothing", { value: "" }), element("option", "the unchanged model", { value: "unchanged" }),
    ...models.map((name, number) => element("option", name, { value: number })).filter((_, number) => models.length > 1 || number < 0));
}

function selectionChanged() {
  const layer = run.layers[page.index];
  const isAnotherHead = layer !== state.layer || page.headNumber !== state.head;
  Object.assign(state, { layer, head: page.headNumber, row: page.held.row, column: page.held.column });
  writeLinkSoon();
  if (isAnotherHead) choosePartOfHead();
  for (const name of isAnotherHead ? ["follow", "depth", "code"] : ["follow", "generate", "way", "code"]) parts[name].refresh();
}

async function start() {
  const { models: names, text, longest } = await askStart();
  models = names;
  state.text = text;
  byId("text").value = text;
  const isUnderstood = takeLink();
  const said = byId("notice").textContent;
  drawModels();
  startView(null);
  page.lens = startSide((suffix) => parts[suffix ? "lensOther" : "lens"].inSight);
  makeParts();
  startChanges(look, choosePartOfMap);
  startGenerating(longest, () => parts.generate.refresh(), look, fail);
  startWorth((part) => { choosePart(part); choosePartOfMap(part); }, fail);
  startKeeping(() => strips, fail);
  page.changed = selectionChanged;
  page.redraw = () => { if (current) { drawMap(current, run.difference !== null); drawWorth(choosePartOfMap); parts.follow.refresh(); parts.way.refresh(); } };
  listen();
  await look();
  if (!isUnderstood) fail(new Error(said));
}

start().catch(fail);
