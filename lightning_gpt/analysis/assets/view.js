// The current selection (layer, head, row, column) and everything that depends on it.

import { forgetTheme, paint, table, themeNow } from "./colours.js";
import { byId, digits, element, later, signed, tokenElement } from "./dom.js";
import { MatrixView } from "./matrix.js";
import { run } from "./run.js";
import { Strips } from "./strips.js";
import { drawTokens, listenToTokens, makeTokens } from "./text.js";

export const page = {
  index: 0, // index into the layers that can be chosen
  headNumber: 0,
  row: 0,
  column: null,
  held: { row: 0, column: null }, // the selection restored when the pointer leaves
  cell: 20,
  scale: "absolute",
  heads: [],
  lens: null,
  changed: () => {}, // called when layer, head or the held cell has changed
  selected: () => {}, // called when another cell is read, held or pointed at
  redraw: () => {}, // called when the colours have changed
  get head() { return this.heads[this.headNumber]; },
  point(row, column) { select(row, column); },
  hold(row, column) { page.held = { row, column }; select(row, column); page.changed(); },
  leave() { select(page.held.row, page.held.column); },
  // Scroll the selected row into view; the other matrices follow the first.
  reveal() { for (const view of views) view.reveal(page.row, page.column); },
  scrolled(moved) {
    for (const view of views) {
      if (view === moved) continue;
      [view.scroller.scrollLeft, view.scroller.scrollTop] = [moved.scroller.scrollLeft, moved.scroller.scrollTop];
    }
    later(drawMatrices);
  },
};
let views = [];
let strips = null;

// The layer and head last chosen; shown once the layer is there, unless another was chosen by then.
let goal = { index: 0, headNumber: 0 };
let choices = 0;

// What was chosen last, and how often something was chosen.
export const chosen = () => ({ ...goal, choices });

export async function show(index, headNumber) {
  const mine = (goal = { index, headNumber });
  choices++;
  document.documentElement.dataset.ready = "false";
  const [heads, matrices] = await Promise.all([run.headsOf(index, headNumber), run.stripsOf(index, headNumber)]);
  if (goal !== mine) return;
  Object.assign(page, { index, headNumber: Math.min(headNumber, heads.length - 1), heads });
  run.headCount = heads.length;
  strips.set(matrices);
  drawPickers();
  drawSelection();
  page.changed();
  document.documentElement.dataset.ready = "true";
}

// Take over a text that was read anew, with its heads and matrices already there; `drawText` shows it.
export function takeText(index, headNumber, heads) {
  goal = { index, headNumber };
  const last = run.rowCount - 1;
  const keep = page.held.row <= last ? page.held : { row: last, column: null };
  const column = keep.column !== null && keep.column < run.columnCount ? keep.column : null;
  Object.assign(page, { index, headNumber, heads, held: { row: keep.row, column }, row: keep.row, column });
  run.headCount = heads.length;
}

// All but the lens.
export function drawText(matrices) {
  makeTokens(page);
  makePickers();
  fit();
  placeFigures();
  strips.set(matrices);
  drawPickers();
  drawSelection();
}

// The cell size at which everything is in sight.
export function fit() {
  foldMask(run.rowCount > 64 || Boolean(page.head.other));
  page.cell = views[1].fittingCell();
  page.scale = run.columnCount > 16 ? "row" : "absolute";
  byId("cell").value = page.cell;
  byId("scale").value = page.scale;
}

function select(row, column) {
  if (row === page.row && column === page.column) return;
  const rowChanged = row !== page.row;
  Object.assign(page, { row, column });
  if (rowChanged) page.lens?.draw(row);
  drawSelection();
}

function drawSelection() {
  drawTokens(page);
  drawReadout();
  drawMatrices();
  strips.mark();
  page.selected();
}

function drawMatrices() {
  for (const view of views) view.readRoom(); // reading between drawings would lay the page out each time
  for (const view of views) view.draw();
}

// --- layer and head -----------------------------------------------------------------------------------------------

export function makePickers() {
  byId("pickers").hidden = byId("keys").hidden = run.layers.length === 1 && run.headCount === 1;
  if ([...byId("layers").children].map((button) => button.dataset.layer).join() !== run.layers.join()) {
    byId("layers").replaceChildren(...run.layers.map((layer, index) => {
      const button = element("button", `layer ${layer}`, { type: "button", "data-layer": layer });
      button.addEventListener("click", () => show(index, goal.headNumber));
      return button;
    }));
  }
  byId("head-dim").textContent = run.headDim;
  byId("bias").toggleAttribute("hidden", !run.biased);
}

function makeHeads() {
  byId("heads").replaceChildren(...page.heads.map((_, head) => {
    const button = element("button", "", { type: "button", "data-head": head });
    button.append(element("canvas", "", { "aria-hidden": "true" }), `head ${head}`);
    button.addEventListener("click", () => show(goal.index, head));
    return button;
  }));
}

export function drawPickers() {
  if (byId("heads").children.length !== page.heads.length) makeHeads();
  [...byId("layers").children].forEach((button, index) => button.setAttribute("aria-pressed", index === page.index));
  [...byId("heads").children].forEach((button, head) => {
    button.setAttribute("aria-pressed", head === page.headNumber);
    drawThumbnail(button.querySelector("canvas"), page.heads[head]);
  });
  if (inSight.index === page.index && inSight.headNumber === page.headNumber) return;
  inSight = { index: page.index, headNumber: page.headNumber };
  scrollTo(byId("layers"), byId("layers").children[page.index]);
  scrollTo(byId("heads"), byId("heads").children[page.headNumber]);
}

let inSight = {}; // the choice that the lists were scrolled to

// Scroll a list from left to right until a button of it is in sight.
function scrollTo(list, button) {
  const [start, end] = [button.offsetLeft - list.offsetLeft, button.offsetLeft - list.offsetLeft + button.offsetWidth];
  if (start < list.scrollLeft || end > list.scrollLeft + list.clientWidth) list.scrollLeft = start - list.clientWidth / 2;
}

const thumbnails = new WeakMap(); // what each canvas shows

// At most 64 x 64 pixels; for a longer text, each pixel shows the largest weight, or change, in its block.
function drawThumbnail(canvas, head) {
  const colours = table(run.difference !== null ? "diverging" : "sequential");
  const known = thumbnails.get(canvas);
  if (known && known.head === head && known.scale === page.scale && known.colours === colours) return;
  thumbnails.set(canvas, { head, scale: page.scale, colours });
  const [height, width] = [Math.min(64, run.rowCount), Math.min(64, run.columnCount)];
  const [blocks, shareAt] = [new Float32Array(height * width), head.shares("pattern", page.scale)];
  const columnOf = Int32Array.from({ length: run.columnCount }, (_, column) => Math.floor((column * width) / run.columnCount));
  for (let row = 0, place = 0; row < run.rowCount; row++) {
    const line = Math.floor((row * height) / run.rowCount) * width;
    for (let column = 0; column < run.columnCount; column++, place++) {
      const [share, block] = [shareAt(place), line + columnOf[column]];
      if (Math.abs(share) > Math.abs(blocks[block])) blocks[block] = share;
    }
  }
  paint(canvas, width, height, (block) => blocks[block], run.difference !== null);
}

// --- readout ------------------------------------------------------------------------------------------------------

function drawReadout() {
  const { row, column, head } = page;
  const cell = byId("cell-readout");
  for (const key of Object.keys(cell.dataset)) delete cell.dataset[key];
  cell.replaceChildren();
  Object.assign(cell.dataset, { layer: run.layers[page.index], head: page.headNumber, row });
  if (column === null) {
    cell.append("Point at a cell to see its values.");
  } else {
    const { mask, score, weight, scoreChange, weightChange } = head.at(row, column);
    Object.assign(cell.dataset, { column, mask, score, weight });
    cell.append(`Row ${row} `, tokenElement(run.tokens[row]), ` → column ${column} `, tokenElement(run.keys[column]));
    for (const [label, value, change] of [["mask", String(mask)], ["score", digits(score), scoreChange], ["weight", digits(weight), weightChange]]) {
      cell.append(`  ·  ${label} `, element("b", value));
      if (change !== undefined) cell.append(` (${signed(change)})`);
    }
  }
  const weights = head.weights(row);
  const best = [...weights.keys()].filter((place) => head.at(row, place).mask).sort((a, b) => weights[b] - weights[a]);
  const line = byId("row-readout");
  line.replaceChildren(tokenElement(run.tokens[row]), ` at position ${row} attends most to `);
  best.slice(0, 5).forEach((place, i) => line.append(i ? ", " : "", tokenElement(run.keys[place]), ` ${digits(weights[place])}`));
}

// --- controls and start -------------------------------------------------------------------------------------------

export function layOut() {
  placeFigures();
  drawMatrices();
}

function placeFigures() {
  const shown = views.filter((view) => !view.figure.hidden);
  for (const view of shown) view.readRoom();
  for (const view of shown) view.setSize();
  for (const view of shown) view.readRoom();
  for (const view of shown) view.setCanvas();
}

function foldMask(folded) {
  byId("matrices").classList.toggle("mask-folded", folded);
  byId("matrices").querySelector("figure[data-kind=mask]").classList.toggle("folded", folded);
  byId("fold-mask").setAttribute("aria-expanded", !folded);
  byId("fold-mask").textContent = folded ? "show" : "fold";
}

export function changeTheme() {
  forgetTheme();
  drawAll();
  page.redraw();
}

export function drawAll() {
  if (!page.head) return;
  drawPickers();
  strips.draw();
  drawSelection();
  page.lens?.draw(page.row);
}

function refit() {
  page.cell = views[1].fittingCell();
  byId("cell").value = page.cell;
  layOut();
}

// More matrices of the selected cell; `ofPage` is like `page`, with heads of its own.
export function addFigures(figures, ofPage) {
  views.push(...figures.map((figure) => new MatrixView(figure, ofPage)));
}

// Listen to everything; `lens` is the logit lens.
export function startView(lens) {
  page.lens = lens;
  strips = new Strips(page);
  views = [...document.querySelectorAll("#matrices figure")].map((figure) => new MatrixView(figure, page));
  listenToTokens(page);
  byId("cell").addEventListener("input", (event) => { page.cell = Number(event.target.value); layOut(); });
  byId("scale").addEventListener("change", (event) => { page.scale = event.target.value; drawAll(); });
  byId("fold-mask").addEventListener("click", () => {
    foldMask(byId("fold-mask").getAttribute("aria-expanded") === "true");
    refit();
  });
  byId("theme").addEventListener("click", () => {
    document.documentElement.style.colorScheme = themeNow().dark ? "light" : "dark";
    changeTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changeTheme);
  window.addEventListener("resize", () => later(resized));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea, .scroller")) return;
    const [layer, head] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    const [index, number] = [goal.index + layer, goal.headNumber + head];
    if ((!layer && !head) || index < 0 || index >= run.layers.length || number < 0 || number >= run.headCount) return;
    event.preventDefault();
    show(index, number);
  });
}

function resized() {
  if (!page.head) return;
  refit();
  page.lens?.draw(page.row);
}

