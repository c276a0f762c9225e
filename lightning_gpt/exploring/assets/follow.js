// One cell of the softmax, step by step, with the numbers it was made of.

import { paint } from "./colours.js";
import { byId, digits, element, signed, tokenElement } from "./dom.js";

// A vector as a strip of colours, white at 0.
function vectorLine(name, values) {
  const line = element("div", "", { class: "vector" });
  const canvas = element("canvas", "", { role: "img", "aria-label": `${name}: ${values.length} numbers` });
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  paint(canvas, values.length, 1, (place) => values[place] / largest, true);
  canvas.title = `from −${digits(largest)} to +${digits(largest)}`;
  canvas.addEventListener("mousemove", (event) => {
    const place = Math.min(values.length - 1, Math.floor((event.offsetX / canvas.clientWidth) * values.length));
    canvas.title = `dimension ${place}: ${digits(values[place])}`;
  });
  line.append(element("span", name), canvas);
  return line;
}

function step(title, ...content) {
  const entry = element("li");
  const body = element("div");
  body.append(element("h3", title), ...content);
  entry.append(body);
  return entry;
}

function equation(...parts) {
  const line = element("p", "", { class: "equation" });
  line.append(...parts);
  return line;
}

const bold = (value) => element("b", typeof value === "number" ? digits(value) : value);

export function drawFollowHint() {
  const entry = element("li", "No cell is selected. Click one in the softmax above, or move there with the arrow keys.", { class: "plain" });
  byId("follow").replaceChildren(entry);
  delete byId("follow").dataset.weight;
}

export function drawFollow(cell) {
  const { row, column, names: [from, to], arrays, width } = cell;
  const steps = [];
  if (cell.product !== undefined) {
    const q = arrays.q.values;
    const k = arrays.k.values;
    const products = q.map((value, place) => value * k[place]);
    const terms = [...products.keys()].sort((a, b) => Math.abs(products[b]) - Math.abs(products[a])).slice(0, 3);
    steps.push(step(`The query of row ${row} meets the key of column ${column}`,
      vectorLine(`q of ${row}`, q), vectorLine(`k of ${column}`, k), vectorLine("q · k", products),
      equation(`q${row} · k${column} = ${terms.map((place) => `(${digits(q[place])})(${digits(k[place])})`).join(" + ")} + … = `, bold(cell.product))));
    const bias = cell.score - cell.scaled;
    const has = Math.abs(bias) > 1e-3 * Math.max(1, Math.abs(cell.score)); // a bias of positions, or a bound
    steps.push(step(`Divided by √${width}`,
      equation(`S = ${digits(cell.product)} / √${width} ${has ? `${signed(bias)} (position bias or bound) ` : ""}= `, bold(cell.score))));
  } else {
    steps.push(step("The score", equation("S = ", bold(cell.score))));
  }
  if (!cell.mask) {
    steps.push(step("Masked", equation(`M = 0, so S = −∞ and A = `, bold(cell.weight))));
    finish(cell, steps, `Row ${row} may not look at column ${column}: the weight is 0, whatever the score.`);
    return;
  }
  const bars = element("div", "", { class: "weights", role: "img", "aria-label": "the row's weights" });
  arrays.weights.values.forEach((weight, place) => {
    if (!arrays.masks.values[place]) return;
    const bar = element("i", "", { title: digits(weight) });
    bar.style.height = `${Math.max(1, 100 * weight)}%`;
    bar.classList.toggle("here", place === column);
    bars.append(bar);
  });
  if (!cell.isSoftmax) {
    steps.push(step("The weight", bars, equation("A = ", bold(cell.weight)),
      element("p", "This layer's attention makes its weights by a rule of its own, not by the softmax of these scores alone.", { class: "hint" })));
  } else steps.push(step(`Among the ${cell.allowed} that row ${row} may look at`, bars,
    equation(`A = exp(${digits(cell.score)} − ${digits(cell.largest)}) / ${digits(cell.sum)} = ${digits(cell.raised)} / ${digits(cell.sum)} = `, bold(cell.weight)),
    element("p", "The largest score of the row is subtracted first; that changes nothing but the rounding. The sum runs over the row.", { class: "hint" })));
  if (arrays.v) {
    steps.push(step("What it brings along", vectorLine(`v of ${column}`, arrays.v.values), vectorLine("A · v", arrays.brought.values),
      equation(`${digits(cell.weight)} × ‖v‖ ${digits(norm(arrays.v.values))} = `, bold(norm(arrays.brought.values)))));
  }
  if (cell.effect) steps.push(effectStep(cell));
  const said = element("span");
  said.append(tokenElement(from), " gives ", tokenElement(to), ` the weight ${digits(cell.weight)}: ${share(cell.weight)} of its attention.`);
  finish(cell, steps, said);
}

const share = (weight) => (weight >= 0.001 ? `${(100 * weight).toFixed(1)} %` : "less than 0.1 %");
const norm = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));

function effectStep({ row, effect }) {
  const list = (pairs) => pairs.flatMap(([name, value], place) => [place ? ", " : "", tokenElement(name), ` ${signed(value)}`]);
  const raised = element("p");
  raised.append("Raises ", ...list(effect.raised));
  const lowered = element("p");
  lowered.append("Lowers ", ...list(effect.lowered));
  const content = [
    equation(`‖A v W_O‖ = ${digits(effect.norm)}, in a stream of length ${digits(effect.streamNorm)}`), raised, lowered,
  ];
  if (effect.next) {
    const next = element("p");
    next.append("On the actual next token ", tokenElement(effect.next[0]), ": ", bold(signed(effect.next[1])));
    content.push(next);
  }
  content.push(element("p", "Logits less their mean, by the direct path: what later layers make of it is not counted.", { class: "hint" }));
  return step(`What that does to the logits after row ${row}`, ...content);
}

function finish(cell, steps, words) {
  const first = element("li", "", { class: "plain" });
  first.append(words);
  byId("follow").replaceChildren(first, ...steps);
  Object.assign(byId("follow").dataset, {
    layer: cell.layer, head: cell.head, row: cell.row, column: cell.column, score: cell.score, weight: cell.weight,
    product: cell.product ?? "", sum: cell.sum, next: cell.effect?.next?.[1] ?? "",
  });
}

