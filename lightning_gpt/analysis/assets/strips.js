// The head's other matrices, whose columns are dimensions: X, N, Q, K, V before the softmax, AV and Y after it.

import { diverging, gradient, table, themeNow } from "./colours.js";
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
  const sizes = [];
  for (let i = 0; i < values.length; i += step) sizes.push(Math.abs(values[i]));
  sizes.sort((a, b) => a - b);
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
    byId("strips-before").replaceChildren();
    byId("strips-after").replaceChildren();
    this.shown = strips.map((strip) => this.#figure(strip));
    this.draw();
  }

  #figure(strip) {
    const [symbol, words] = SAYS[strip.symbol];
    const figure = element("figure", "", { class: "strip", "data-symbol": strip.symbol });
    const caption = element("figcaption");
    caption.append(element("strong", symbol), element("span", words), element("span", `${strip.rows} × ${strip.columns}`, { class: "size" }));
    const frame = element("div", "", { class: "strip-frame" });
    const canvas = element("canvas", "", { role: "img", "aria-label": `${symbol}: ${words}` });
    const mark = element("i", "", { class: "strip-mark" });
    frame.append(canvas, mark);
    const legend = element("p", "", { class: "legend" });
    figure.append(caption, frame, legend);
    byId(AFTER.includes(strip.symbol) ? "strips-after" : "strips-before").append(figure);
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      const within = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));
      return [
        within((event.clientY - box.top) / box.height, strip.rows),
        within((event.clientX - box.left) / box.width, strip.columns),
      ];
    };
    canvas.addEventListener("mousemove", (event) => this.#point(strip, ...place(event), this.page.point));
    canvas.addEventListener("click", (event) => this.#point(strip, ...place(event), this.page.hold));
    canvas.addEventListener("mouseleave", () => { this.page.leave(); });
    return { strip, figure, canvas, mark, legend };
  }

  #point(strip, row, dimension, use) {
    this.cell = { strip, row, dimension };
    use(row, null);
    this.drawReadout();
  }

  draw() {
    const colours = table("diverging");
    const height = Math.max(2, Math.min(15, Math.floor(200 / Math.max(1, run.rowCount))));
    for (const { strip, canvas, legend } of this.shown) {
      const values = strip.change ?? strip.values;
      const largest = typicalLargest(values);
      [canvas.width, canvas.height] = [strip.columns, strip.rows];
      const picture = new ImageData(strip.columns, strip.rows);
      for (let place = 0; place < values.length; place++) {
        const colour = diverging(values[place] / largest, colours);
        picture.data[4 * place] = colour[0];
        picture.data[4 * place + 1] = colour[1];
        picture.data[4 * place + 2] = colour[2];
        picture.data[4 * place + 3] = 255;
      }
      canvas.getContext("2d").putImageData(picture, 0, 0);
      canvas.style.height = `${strip.rows * height}px`;
      const bar = element("i");
      bar.style.background = gradient(colours);
      legend.replaceChildren(`−${digits(largest)}`, bar, `+${digits(largest)}`);
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

