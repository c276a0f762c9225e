// The page of one text as a file: its data is part of the page, and is unpacked layer by layer.

import { AblationTable } from "./ablation.js";
import { Head, unpackFloats, unpackGzip } from "./arrays.js";
import { byId, element } from "./dom.js";
import { Lens, LensPart } from "./lens.js";
import { run } from "./run.js";
import { fit, layOut, makePickers, page, show, startView } from "./view.js";
import { makeTokens } from "./text.js";

const data = JSON.parse(byId("data").textContent);

// What a function gives, remembered by its argument.
function remembered(make) {
  const known = new Map();
  return (key) => {
    if (!known.has(key)) known.set(key, make(key));
    return known.get(key);
  };
}

const maskNumber = remembered((number) => unpackGzip(data.masks[number], Uint8Array));

const headsOf = remembered(async (index) => {
  const [masks, scores, pattern] = await Promise.all([
    Promise.all(data.maskOfHead[index].map(maskNumber)),
    unpackFloats(data.scores[index], data.type),
    unpackFloats(data.pattern[index], data.type),
  ]);
  const size = run.rowCount * run.columnCount;
  return masks.map((mask, head) => {
    const [start, end] = [head * size, (head + 1) * size];
    return new Head(mask, scores.subarray(start, end), pattern.subarray(start, end), run.rowCount, run.columnCount);
  });
});

const matricesOf = remembered(async (index) => {
  const { type, ...matrices } = data.vectors[index];
  return Promise.all(Object.entries(matrices).map(async ([symbol, { shape, data: packed }]) =>
    ({ symbol, shape, values: await unpackFloats(packed, type) })));
});

async function stripsOf(index, head) {
  if (!data.vectors.length) return [];
  return (await matricesOf(index)).map(({ symbol, shape, values }) => {
    const [rows, columns] = shape.slice(-2);
    const of = shape.length === 3 ? Math.floor((head * shape[0]) / data.headCount) : 0; // heads may share keys and values
    return { symbol, rows, columns, values: values.subarray(of * rows * columns, (of + 1) * rows * columns) };
  });
}

function drawTop() {
  byId("title").textContent = document.title = data.title;
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

async function makeLens() {
  const { depths, k } = data.lens;
  const [top, probability, nll] = await Promise.all([
    unpackGzip(data.lens.top, Int32Array), unpackGzip(data.lens.probability, Float32Array), unpackGzip(data.lens.nll, Float32Array),
  ]);
  const predicted = nll.length / depths.length;
  const losses = depths.map((_, depth) =>
    predicted ? nll.subarray(depth * predicted, (depth + 1) * predicted).reduce((sum, value) => sum + value, 0) / predicted : null);
  const part = new LensPart({ depths, first: 0, count: run.rowCount, k, top, probability, nll, losses, names: data.vocabulary });
  const lens = new Lens(() => part, (depth, row) => { lens.depth = depth; page.hold(row, null); lens.draw(row); });
  return lens;
}

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the page's data");
  const { tokens, ids, keys, layers, headCount, headDim, biased } = data;
  Object.assign(run, { tokens, ids, keys, layers, headCount, headDim, biased, headsOf, stripsOf });
  drawTop();
  const last = run.rowCount - 1;
  Object.assign(page, { index: Math.max(0, layers.indexOf(data.start[0])), headNumber: data.start[1], row: last, held: { row: last, column: null } });
  startView(await makeLens());
  makeTokens(page);
  makePickers();
  const ablation = new AblationTable(
    data.ablated, layers, (layer, head) => show(layers.indexOf(layer), head), () => [layers[page.index], page.headNumber]);
  page.changed = page.redraw = () => ablation.draw();
  page.heads = await headsOf(page.index);
  fit();
  layOut();
  page.reveal();
  page.lens.draw(page.row);
  await show(page.index, page.headNumber);
}

start().catch((error) => {
  byId("notice").textContent = `The page could not be drawn: ${error.message}.`;
  byId("notice").hidden = false;
});
