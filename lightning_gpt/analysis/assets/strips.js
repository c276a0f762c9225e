// The head's other matrices, whose columns are dimensions: X, N, Q, K, V before the softmax, AV and Y after it.

import { gradient, paint, table, themeNow } from "./colours.js";
import { byId, digits, element, signed, tokenElement } from "./dom.js";
import { run } from "./run.js";

const AFTER = ["AV", "Y"];
const SAYS = {
  X: ["X", "the stream that comes in"],
  N: ["N", "norm(X), what the head reads"],
  Q: ["Q", "N W_Q, what each row looks for"],
  K: ["K", "N W_K, what each row is found by"],
  V: ["V", "N W_V, what each row hands on"],
  AV: ["A V", "the values, mixed by the softmax"],
  Y: ["Y", "X + A V W_O, the stream that goes out"],
};
const SAMPLES = 4096;

// Almost every entry lies within ± this; a few large ones would leave the others without colour.
function typicalLargest(values) {
  const step = Math.max(1, Math.floor(values.length / SAMPLES));
  const sizes = new Float32Array(Math.ceil(values.length / step));
  for (let i = 0; i < sizes.length; i++) sizes[i] = Math.abs(values[i * step]);
  sizes.sort();
  return sizes[Math.floor(0.995 * (sizes.length - 1))] || 1;
}

export class Strips {
  // `page` has row, point(row, column), hold(row, column) and leave().
  constructor(page) {
    this.page = page;
    this.shown = [];
    this.cell = null;
  }

  // `strips`: for each matrix its symbol, values, rows and columns, and `change` where a difference is shown.
  set(strips) {
    byId("strips-before").hidden = byId("strips-after").hidden = strips.length === 0;
    if (strips.map(({ symbol }) => symbol).join() !== this.shown.map(({ strip }) => strip.symbol).join()) {
      byId("strips-before").replaceChildren();
      byId("strips-after").replaceChildren();
      this.shown = strips.map((strip) => this.#figure(strip.symbol));
    }
    this.shown.forEach((entry, place) => { entry.strip = strips[place]; });
    this.cell = null;
    this.drawReadout();
    this.draw();
  }

  #figure(name) {
    const [symbol, words] = SAYS[name];
    const figure = element("figure", "", { class: "strip", "data-symbol": name });
    const caption = element("figcaption");
    caption.append(element("strong", symbol), element("span", words), element("span", "", { class: "size" }));
    const frame = element("div", "", { class: "strip-frame" });
    const canvas = element("canvas", "", { role: "img", "aria-label": `${symbol}: ${words}` });
    const mark = element("i", "", { class: "strip-mark" });
    frame.append(canvas, mark);
    const legend = element("p", "", { class: "legend" });
    figure.append(caption, frame, legend);
    byId(AFTER.includes(name) ? "strips-after" : "strips-before").append(figure);
    const entry = { strip: null, figure, canvas, mark, legend };
    const place = (event) => {
      const { strip } = entry;
      const box = canvas.getBoundingClientRect();
      const within = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));
      return [
        within((event.clientY - box.top) / box.height, strip.rows),
        within((event.clientX - box.left) / box.width, strip.columns),
      ];
    };
    canvas.addEventListener("mousemove", (event) => this.#point(entry.strip, ...place(event), this.page.point));
    canvas.addEventListener("click", (event) => this.#point(entry.strip, ...place(event), this.page.hold));
    canvas.addEventListener("mouseleave", () => { this.page.leave(); });
    return entry;
  }

  #point(strip, row, dimension, use) {
    this.cell = { strip, row, dimension };
    use(row, null);
    this.drawReadout();
  }

  draw() {
    const colours = table("diverging");
    const height = Math.max(2, Math.min(15, Math.floor(200 / Math.max(1, run.rowCount))));
    for (const { strip, figure, canvas, legend } of this.shown) {
      const values = strip.change ?? strip.values;
      strip.largest ??= typicalLargest(values);
      paint(canvas, strip.columns, strip.rows, (place) => values[place] / strip.largest, true);
      canvas.style.height = `${strip.rows * height}px`;
      figure.querySelector(".size").textContent = `${strip.rows} × ${strip.columns}`;
      const bar = element("i");
      bar.style.background = gradient(colours);
      legend.replaceChildren(`−${digits(strip.largest)}`, bar, `+${digits(strip.largest)}`);
    }
    this.mark();
  }

  // Move the mark to the selected row.
  mark() {
    for (const { strip, mark } of this.shown) {
      mark.style.top = `${(100 * this.page.row) / strip.rows}%`;
      mark.style.height = `${100 / strip.rows}%`;
      mark.style.borderColor = themeNow().mark;
    }
    if (this.cell && this.cell.row !== this.page.row) { this.cell = null; this.drawReadout(); }
  }

  drawReadout() {
    const line = byId("strip-readout");
    for (const key of Object.keys(line.dataset)) delete line.dataset[key];
    line.replaceChildren();
    if (!this.cell) return;
    const { strip, row, dimension } = this.cell;
    const value = strip.values[row * strip.columns + dimension];
    Object.assign(line.dataset, { symbol: strip.symbol, row, dimension, value });
    line.append(element("b", SAYS[strip.symbol][0]), " of ", tokenElement(run.tokens[row]), `, dimension ${dimension}: `, element("b", digits(value)));
    if (strip.change) line.append(` (changed by ${signed(strip.change[row * strip.columns + dimension])})`);
  }
}

