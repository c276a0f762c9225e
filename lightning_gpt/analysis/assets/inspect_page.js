// The current selection (layer, head, row, column) and everything that depends on it.

const byId = (id) => document.getElementById(id);
const page = {
  index: Math.max(0, data.layers.indexOf(data.start[0])), // index into the page's layers
  headNumber: data.start[1],
  row: rowCount - 1,
  column: null,
  held: { row: rowCount - 1, column: null }, // the selection restored when the pointer leaves
  cell: 20,
  scale: columnCount > 16 ? "row" : "absolute",
  heads: null,
  get head() { return this.heads[this.headNumber]; },
  point(row, column) { select(row, column); },
  hold(row, column) { page.held = { row, column }; select(row, column); },
  leave() { select(this.held.row, this.held.column); },
  scrolled(moved) {
    for (const view of views) {
      if (view === moved) continue;
      [view.scroller.scrollLeft, view.scroller.scrollTop] = [moved.scroller.scrollLeft, moved.scroller.scrollTop];
    }
    later(drawMatrices);
  },
};
let views = [];
let lens = null;

// Draw once per frame, however many changes there are.
const waiting = new Set();
function later(draw) {
  if (waiting.has(draw)) return;
  waiting.add(draw);
  requestAnimationFrame(() => { waiting.delete(draw); draw(); });
}

// The layer and head last chosen; shown once the layer is unpacked, unless another was chosen by then.
let goal = { index: page.index, headNumber: page.headNumber };

async function show(index, headNumber) {
  const mine = (goal = { index, headNumber });
  document.documentElement.dataset.ready = "false";
  const heads = await headsOf(index);
  if (goal !== mine) return;
  Object.assign(page, { index, headNumber, heads });
  drawPickers();
  drawAblation();
  drawSelection();
  document.documentElement.dataset.ready = "true";
}

function select(row, column) {
  if (row === page.row && column === page.column) return;
  const rowChanged = row !== page.row;
  Object.assign(page, { row, column });
  if (rowChanged) lens.draw(row);
  drawSelection();
}

function drawSelection() {
  drawTokens();
  drawReadout();
  drawMatrices();
}

// Scroll the selected row into view; the other matrices follow the first.
function reveal() {
  views[0].reveal(page.row, page.column);
}

function drawMatrices() {
  for (const view of views) view.draw();
}

// --- header -------------------------------------------------------------------------------------------------------

function drawTop() {
  byId("title").textContent = document.title = data.title;
  byId("head-dim").textContent = data.headDim;
  byId("bias").toggleAttribute("hidden", !data.biased);
  byId("facts").replaceChildren(...Object.entries(data.facts).map(([fact, value]) => {
    const pair = element("div");
    pair.append(element("dt", fact), element("dd", value));
    return pair;
  }));
  const exact = data.type === "float32";
  byId("footer").textContent =
    `Scores and weights are stored in this file as ${data.type}${exact ? "" : ", at most 0.05 % off"}. ` +
    (data.layers.length < data.layerCount ? `It contains layers ${data.layers.join(", ")} of a model with layers 0–${data.layerCount - 1}. ` : "") +
    "· is a space, ⏎ a line break, ⇥ a tab, \\x.. a byte that is part of a character.";
}

// --- text ---------------------------------------------------------------------------------------------------------

function makeTokens() {
  const list = byId("tokens");
  data.tokens.forEach((token, row) => {
    const entry = element("li", token, { "data-row": row, "data-id": data.ids[row], tabindex: row === page.row ? 0 : -1 });
    const look = (use) => () => { use(row, null); reveal(); };
    entry.addEventListener("mouseenter", look(page.point));
    entry.addEventListener("focus", look(page.hold));
    entry.addEventListener("click", look(page.hold));
    list.append(entry);
  });
  list.addEventListener("mouseleave", () => page.leave());
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = list.children[Math.max(0, Math.min(rowCount - 1, page.row + step))];
    next.focus();
  });
}

function drawTokens() {
  const others = columnCount - rowCount;
  const colours = table("sequential");
  const largest = page.scale === "row" ? page.head.largestOfRow[page.row] || 1 : 1;
  for (const [place, entry] of [...byId("tokens").children].entries()) {
    const { mask, weight } = page.head.at(page.row, others + place);
    const colour = sequential(weight / largest, colours);
    entry.style.background = mask ? css(colour) : "";
    entry.style.color = mask ? inkOn(colour) : "";
    entry.dataset.weight = weight;
    entry.classList.toggle("masked", !mask);
    entry.classList.toggle("row", place === page.row);
    entry.classList.toggle("held", place === page.held.row);
    entry.tabIndex = place === page.row ? 0 : -1;
    entry.title = `position ${place}, id ${data.ids[place]}, weight ${digits(weight)}`;
  }
}

// --- layer and head -----------------------------------------------------------------------------------------------

function makePickers() {
  byId("pickers").hidden = byId("keys").hidden = data.layers.length === 1 && data.headCount === 1;
  data.layers.forEach((layer, index) => {
    const button = element("button", `layer ${layer}`, { type: "button", "data-layer": layer });
    button.addEventListener("click", () => show(index, goal.headNumber));
    byId("layers").append(button);
  });
  for (let head = 0; head < data.headCount; head++) {
    const button = element("button", "", { type: "button", "data-head": head });
    button.append(element("canvas", "", { "aria-hidden": "true" }), `head ${head}`);
    button.addEventListener("click", () => show(goal.index, head));
    byId("heads").append(button);
  }
}

function drawPickers() {
  [...byId("layers").children].forEach((button, index) => button.setAttribute("aria-pressed", index === page.index));
  [...byId("heads").children].forEach((button, head) => {
    button.setAttribute("aria-pressed", head === page.headNumber);
    drawThumbnail(button.querySelector("canvas"), page.heads[head]);
    if (head === page.headNumber) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

// At most 64 x 64 pixels; for a longer text, each pixel shows the largest weight in its block.
function drawThumbnail(canvas, head) {
  const [height, width] = [Math.min(64, rowCount), Math.min(64, columnCount)];
  const share = new Float32Array(height * width);
  for (let row = 0; row < rowCount; row++) {
    const largest = page.scale === "row" ? head.largestOfRow[row] || 1 : 1;
    const line = Math.floor((row * height) / rowCount) * width;
    head.weights(row).forEach((weight, column) => {
      const place = line + Math.floor((column * width) / columnCount);
      if (weight / largest > share[place]) share[place] = weight / largest;
    });
  }
  [canvas.width, canvas.height] = [width, height];
  const picture = new ImageData(width, height);
  const colours = table("sequential");
  share.forEach((value, place) => picture.data.set([...sequential(value, colours), 255], 4 * place));
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// --- readout ------------------------------------------------------------------------------------------------------

function drawReadout() {
  const { row, column, head } = page;
  const token = (names, place) => element("span", names[place], { class: "token" });
  const cell = byId("cell-readout");
  for (const key of Object.keys(cell.dataset)) delete cell.dataset[key];
  cell.replaceChildren();
  Object.assign(cell.dataset, { layer: data.layers[page.index], head: page.headNumber, row });
  if (column === null) {
    cell.append("Hover over a cell to see its values.");
  } else {
    const { mask, score, weight } = head.at(row, column);
    Object.assign(cell.dataset, { column, mask, score, weight });
    cell.append(`Row ${row} `, token(data.tokens, row), ` → column ${column} `, token(data.keys, column));
    for (const [label, value] of [["mask", String(mask)], ["score", digits(score)], ["weight", digits(weight)]]) {
      cell.append(`  ·  ${label} `, element("b", value));
    }
  }
  const weights = head.weights(row);
  const best = [...weights.keys()].filter((place) => head.at(row, place).mask).sort((a, b) => weights[b] - weights[a]);
  const line = byId("row-readout");
  line.replaceChildren(token(data.tokens, row), ` at position ${row} attends most to `);
  best.slice(0, 5).forEach((place, i) => line.append(i ? ", " : "", token(data.keys, place), ` ${digits(weights[place])}`));
}

// --- ablation -----------------------------------------------------------------------------------------------------

function drawAblation() {
  if (!data.ablated) return;
  const { kind, parts, change } = data.ablated;
  byId("ablation-card").hidden = false;
  byId("ablation-hint").textContent =
    `Change in the loss on this text, in nats, when a part's output is ${kind === "zero" ? "set to zero" : "replaced by its mean over the text"}.`;
  const largest = Math.max(...change.flat().map((value) => Math.abs(value ?? 0))) || 1;
  const head = element("tr");
  head.append(element("th"), ...parts.map((part) => element("th", part === "ffn" ? "FFN" : `head ${part}`, { scope: "col" })));
  const body = change.map((values, layer) => {
    const line = element("tr");
    line.append(element("th", `layer ${layer}`, { scope: "row" }));
    values.forEach((value, place) => line.append(ablationCell(layer, parts[place], value, value / largest)));
    return line;
  });
  byId("ablation").replaceChildren(head, ...body);
}

function ablationCell(layer, part, change, share) {
  const colour = diverging(share);
  const text = change === null ? "–" : `${change < 0 ? "−" : "+"}${digits(Math.abs(change))}`;
  const button = element("button", text, {
    type: "button", "data-part": `${layer}.${part}`, "data-change": change,
    "aria-pressed": layer === data.layers[page.index] && part === String(page.headNumber),
  });
  Object.assign(button.style, { background: css(colour), color: inkOn(colour) });
  button.disabled = part === "ffn" || !data.layers.includes(layer);
  button.style.opacity = 1;
  button.addEventListener("click", () => show(data.layers.indexOf(layer), Number(part)));
  const cell = element("td");
  cell.append(button);
  return cell;
}

// --- controls and start -------------------------------------------------------------------------------------------

function layOut() {
  for (const view of views) view.layOut();
  drawMatrices();
}

function listen() {
  byId("cell").addEventListener("input", (event) => { page.cell = Number(event.target.value); layOut(); });
  byId("scale").addEventListener("change", (event) => { page.scale = event.target.value; drawAll(); });
  byId("theme").addEventListener("click", () => {
    document.documentElement.style.colorScheme = themeNow().dark ? "light" : "dark";
    changeTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changeTheme);
  window.addEventListener("resize", () => later(() => { layOut(); lens.draw(page.row); }));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, .scroller")) return;
    const [layer, head] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    const [index, number] = [goal.index + layer, goal.headNumber + head];
    if ((!layer && !head) || index < 0 || index >= data.layers.length || number < 0 || number >= data.headCount) return;
    event.preventDefault();
    show(index, number);
  });
}

function changeTheme() {
  theme = null;
  drawAll();
}

function drawAll() {
  drawPickers();
  drawAblation();
  drawSelection();
  lens.draw(page.row);
}

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the page's data");
  drawTop();
  makeTokens();
  makePickers();
  const { top, probability, nll } = data.lens;
  lens = new Lens(await unpack(top, Int32Array), await unpack(probability, Float32Array), await unpack(nll, Float32Array),
    (depth, row) => { lens.depth = depth; page.hold(row, null); lens.draw(row); });
  page.heads = await headsOf(page.index);
  views = [...document.querySelectorAll("#matrices figure")].map((figure) => new MatrixView(figure, page));
  page.cell = views[0].fittingCell();
  byId("cell").value = page.cell;
  byId("scale").value = page.scale;
  listen();
  layOut();
  reveal();
  lens.draw(page.row);
  await show(page.index, page.headNumber);
}

start().catch((error) => {
  byId("notice").textContent = `The page could not be drawn: ${error.message}.`;
  byId("notice").hidden = false;
});
