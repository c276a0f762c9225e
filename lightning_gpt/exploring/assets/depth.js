// The stream by layer, as small charts; one token's way through it; and what each part is worth.

import { ask } from "./ask.js";
import { css, diverging, inkOn } from "./colours.js";
import { byId, digits, element, signed, tokenElement } from "./dom.js";
import { run } from "./run.js";
import { shownText, state } from "./state.js";

const CHARTS = [
  ["cosine", "Token cosine", "Mean cosine of two tokens. 1: all point one way (over-smoothing)."],
  ["rank", "Effective rank", "Directions that the tokens fill. 1: all lie on one line."],
  ["residual", "Rank residual", "Size without the mean token. 0: all tokens are equal (rank collapse)."],
  ["norm", "Norm", "Mean length of a token's vector."],
];
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [300, 130, 38, 18, 8];

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function chart(values, before, layer, says) {
  const all = [...values, ...(before ?? [])];
  const [low, high] = [Math.min(0, ...all), Math.max(...all) || 1];
  const x = (place) => LEFT + ((WIDTH - LEFT - 8) * place) / Math.max(1, values.length - 1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low || 1));
  const drawn = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": says });
  for (const value of [low, high]) {
    drawn.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }));
    drawn.append(svg("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": "end" }, Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2)));
  }
  drawn.append(svg("line", { class: "here", x1: x(layer + 1), x2: x(layer + 1), y1: TOP, y2: HEIGHT - BOTTOM }));
  const path = (points) => points.map((value, place) => `${place ? "L" : "M"}${x(place).toFixed(1)},${y(value).toFixed(1)}`).join("");
  if (before) drawn.append(svg("path", { class: "before", d: path(before) }));
  drawn.append(svg("path", { class: "value", d: path(values) }));
  values.forEach((value, place) => {
    const dot = svg("circle", { class: "dot", cx: x(place), cy: y(value), r: values.length > 16 ? 1.8 : 3 });
    dot.append(svg("title", {}, `${place ? `after layer ${place - 1}` : "embedding"}: ${digits(value)}`));
    drawn.append(dot);
  });
  drawn.append(svg("text", { x: LEFT, y: HEIGHT - 4 }, "embedding"));
  drawn.append(svg("text", { x: WIDTH - 8, y: HEIGHT - 4, "text-anchor": "end" }, `layer ${values.length - 2}`));
  return drawn;
}

export async function drawDepth(against) {
  const { measures } = await ask("depth", { of: shownText() });
  const before = against === null ? null : (await ask("depth", { of: against })).measures;
  byId("depth").replaceChildren(...CHARTS.filter(([name]) => measures[name]).map(([name, title, words]) => {
    const values = measures[name];
    const other = before?.[name]?.length === values.length ? before[name] : null;
    const figure = element("div", "", { class: "chart", "data-measure": name, "data-values": JSON.stringify(values) });
    const says = `${title} from ${digits(values[0])} at the embedding to ${digits(values.at(-1))} after the last layer`;
    const line = element("p", `${words} ${digits(values[0])} → ${digits(values.at(-1))}${other ? ` (dashed: ${digits(other.at(-1))})` : ""}`);
    figure.append(element("h3", title), chart(values, other, state.layer, says), line);
    return figure;
  }));
}

export async function drawWay(row) {
  const way = await ask("way", { of: shownText(), row });
  if (way.row >= run.rowCount) return;
  byId("way-hint").replaceChildren("What each part adds directly to the logit of ", tokenElement(way.target.name),
    `${way.target.actual ? ", the actual next token" : ", the most likely next token"}, after `, tokenElement(run.tokens[way.row]), ". Click another token to follow it.");
  const layers = new Map();
  way.parts.forEach((part, place) => {
    const [layer, of] = part.includes(".") ? part.split(".") : [part, ""];
    if (!layers.has(layer)) layers.set(layer, []);
    layers.get(layer).push([of, way.values[place]]);
  });
  const largest = Math.max(...way.values.map(Math.abs)) || 1;
  const table = element("table");
  const norms = new Map(way.steps.map((step) => [step.name, step]));
  for (const [layer, parts] of layers) {
    const line = element("tr");
    const isLayer = /^\d+$/.test(layer);
    const title = element("th", isLayer ? `layer ${layer}` : layer === "bias" ? "bias of norm and head" : layer, { scope: "row" });
    const after = norms.get(`${layer}.ffn`) ?? norms.get(`${layer}.attention`) ?? norms.get(layer);
    if (after) title.append(element("small", `length ${digits(after.norm)}${after.cosine === null ? "" : `, cosine to before ${digits(after.cosine)}`}`));
    line.append(title);
    for (const [of, value] of parts) {
      const cell = element("td");
      const box = element("span", signed(value), { "data-part": of ? `${layer}.${of}` : layer, "data-value": value });
      const colour = diverging(value / largest);
      Object.assign(box.style, { background: css(colour), color: inkOn(colour) });
      box.title = isLayer ? (of === "ffn" ? "feed-forward network" : of === "bias" ? "output bias" : /^\d+$/.test(of) ? `head ${of}` : of) : layer;
      cell.append(box);
      line.append(cell);
    }
    table.append(line);
  }
  const wrap = element("div", "", { class: "heat" });
  wrap.append(table);
  const sum = way.values.reduce((total, value) => total + value, 0);
  const words = element("p", `Together ${signed(sum)}: the logit less the mean of all logits, ${signed(way.logit)}. Columns: the heads in order, the output bias, the feed-forward network.`, { class: "hint" });
  words.id = "way-sum";
  Object.assign(words.dataset, { sum, logit: way.logit });
  byId("way").replaceChildren(wrap, words);
}
