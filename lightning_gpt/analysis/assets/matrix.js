// A matrix of tokens by tokens, on a canvas that stays in place while its container scrolls: only visible cells are drawn.

import { css, diverging, gradient, inkOn, paint, sequential, table, themeNow } from "./colours.js";
import { digits } from "./dom.js";
import { labelAt, LABEL_FONT, labelRoom } from "./labels.js";
import { run } from "./run.js";

const SMALLEST_CELL = 1;
const SEPARATE_CELL = 8; // smaller cells are drawn together, without gaps, hatching or numbers

export class MatrixView {
  // `page` has head, row, column, cell, scale, and point(row, column), hold(row, column), leave(), scrolled(view).
  constructor(figure, page) {
    this.page = page;
    this.figure = figure;
    this.kind = figure.dataset.kind;
    this.scroller = figure.querySelector(".scroller");
    this.extent = figure.querySelector(".extent");
    this.canvas = figure.querySelector("canvas");
    this.legend = figure.querySelector(".legend");
    this.scroller.setAttribute("aria-label", `${figure.querySelector("strong").textContent}: arrow keys move the cell`);
    this.scroller.addEventListener("scroll", () => page.scrolled(this));
    this.canvas.addEventListener("mousemove", (event) => this.#withCell(event, (row, column) => page.point(row, column)));
    this.canvas.addEventListener("click", (event) => this.#withCell(event, (row, column) => page.hold(row, column)));
    this.canvas.addEventListener("mouseleave", () => page.leave());
    this.scroller.addEventListener("keydown", (event) => this.#move(event));
  }

  // The cell size at which all columns fit, between the smallest that can be seen and a maximum.
  fittingCell() {
    this.#measure();
    this.readRoom();
    const room = this.room.width - this.left - 1;
    return Math.max(SMALLEST_CELL, Math.min(52, Math.floor(room / run.columnCount)));
  }

  #measure() {
    this.left = labelRoom(run.tokens);
    this.top = labelRoom(run.keys);
  }

  get isHidden() {
    return this.figure.hidden || this.figure.classList.contains("folded");
  }

  // The room that the matrix takes, of the window's height at most. Everything is set before anything is read.
  setSize() {
    this.#measure();
    const { cell } = this.page;
    const [wide, high] = [this.left + run.columnCount * cell + 1, this.top + run.rowCount * cell + 1];
    Object.assign(this.extent.style, { width: `${wide}px`, height: `${high}px` });
    const most = Math.max(320, Math.round(window.innerHeight * 0.75));
    this.scroller.style.height = `${Math.min(high, most) + (wide > this.room.width ? 16 : 0)}px`;
  }

  // What is in sight, read from the page before any matrix is drawn.
  readRoom() {
    const { clientWidth: width, clientHeight: height, scrollLeft, scrollTop } = this.scroller;
    this.room = { width, height, scrollLeft, scrollTop };
  }

  setCanvas() {
    const { width, height } = this.room;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width === wide && this.canvas.height === high && this.context) return;
    [this.canvas.width, this.canvas.height] = [wide, high];
    this.context = this.canvas.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  draw() {
    if (!this.context || this.isHidden) return;
    const { cell, row: selectedRow, column: selectedColumn } = this.page;
    const { context, left, top, room: { width, height, scrollLeft, scrollTop } } = this;
    const [x0, y0] = [left - scrollLeft, top - scrollTop];
    const rows = this.#inSight(scrollTop, height - top, run.rowCount);
    const columns = this.#inSight(scrollLeft, width - left, run.columnCount);
    const colours = { ...themeNow(), table: table(this.#isSigned ? "diverging" : "sequential") };
    context.clearRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(left, top, width - left, height - top);
    context.clip();
    context.imageSmoothingEnabled = false;
    context.drawImage(this.#bitmap(colours), x0, y0, run.columnCount * cell, run.rowCount * cell);
    const gap = cell >= SEPARATE_CELL ? 1 : 0;
    if (gap) this.#drawCells(rows, columns, x0, y0, colours);
    context.strokeStyle = colours.mark;
    context.lineWidth = 1;
    context.strokeRect(x0 + 0.5, y0 + selectedRow * cell - 0.5, run.columnCount * cell, cell);
    if (selectedColumn !== null) {
      context.lineWidth = 2;
      context.strokeRect(x0 + selectedColumn * cell, y0 + selectedRow * cell, cell - gap, cell - gap);
    }
    context.restore();
    this.#drawLabels(rows, columns, x0, y0, width, height, colours);
    Object.assign(this.canvas.dataset, { cell, left, top, scrollLeft, scrollTop });
    this.#drawLegend(colours);
  }

  // Scroll a cell into view.
  reveal(row, column) {
    if (this.isHidden) return;
    const { cell } = this.page;
    const { scroller, left, top } = this;
    const within = (start, size, room) => Math.max(start + cell - room, Math.min(size, start));
    scroller.scrollTop = within(row * cell, scroller.scrollTop, scroller.clientHeight - top);
    if (column !== null) scroller.scrollLeft = within(column * cell, scroller.scrollLeft, scroller.clientWidth - left);
  }

  get #isSigned() {
    return this.kind === "scores" || (this.kind === "pattern" && run.difference !== null);
  }

  #inSight(scrolled, room, count) {
    const { cell } = this.page;
    return [Math.floor(scrolled / cell), Math.min(count, Math.ceil((scrolled + room) / cell))];
  }

  // One pixel per cell, kept until the head, the scale or the theme changes.
  #bitmap(colours) {
    const { kind, page: { head, scale } } = this;
    const known = this.known;
    if (known && known.head === head && known.scale === scale && known.table === colours.table) return known.canvas;
    const canvas = known?.canvas ?? document.createElement("canvas");
    // masked scores are not used, and paler
    paint(canvas, run.columnCount, run.rowCount, head.shares(kind, scale), this.#isSigned, kind === "scores" ? head.mask : null);
    this.known = { head, scale, table: colours.table, canvas };
    return canvas;
  }

  // Gaps between cells, strokes through masked ones, and numbers where there is room.
  #drawCells(rows, columns, x0, y0, colours) {
    const { context, kind, page } = this;
    const { cell, head } = page;
    const [xs, ys] = [x0 + columns[0] * cell, y0 + rows[0] * cell];
    const [xe, ye] = [x0 + columns[1] * cell, y0 + rows[1] * cell];
    const lines = new Path2D();
    for (let row = rows[0]; row < rows[1]; row++) lines.rect(xs, y0 + (row + 1) * cell - 1, xe - xs, 1);
    for (let column = columns[0]; column < columns[1]; column++) lines.rect(x0 + (column + 1) * cell - 1, ys, 1, ye - ys);
    context.fillStyle = colours.card;
    context.fill(lines);
    const strokes = new Path2D();
    const isNumbered = cell >= 34;
    const shares = head.shares(kind, page.scale);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let row = rows[0]; row < rows[1]; row++) {
      for (let column = columns[0]; column < columns[1]; column++) {
        const [x, y, place] = [x0 + column * cell, y0 + row * cell, row * run.columnCount + column];
        const isMasked = !head.mask[place];
        if (isMasked) {
          strokes.moveTo(x, y + cell - 1);
          strokes.lineTo(x + cell - 1, y);
        }
        if (!isNumbered || (isMasked && kind === "pattern")) continue;
        const value = head.at(row, column);
        const colour = this.#isSigned ? diverging(shares(place), colours.table) : sequential(shares(place), colours.table);
        const number = kind === "scores" ? value.scoreChange ?? value.score : value.weightChange ?? value.weight;
        context.fillStyle = isMasked ? colours.soft : inkOn(colour);
        context.fillText(kind === "mask" ? String(value.mask) : number.toFixed(2), x + (cell - 1) / 2, y + (cell - 1) / 2);
      }
    }
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.stroke(strokes);
  }

  #drawLabels(rows, columns, x0, y0, width, height, colours) {
    const { context, left, top } = this;
    const { cell, row: selectedRow, column: selectedColumn } = this.page;
    context.font = LABEL_FONT;
    context.textBaseline = "middle";
    const label = (names, place, selected) => {
      context.fillStyle = place === selected ? colours.mark : colours.soft;
      return labelAt(names, place, selected, cell);
    };
    context.save();
    context.beginPath();
    context.rect(0, top, left, height - top);
    context.clip();
    context.textAlign = "right";
    for (let row = rows[0]; row < rows[1]; row++) {
      context.fillText(label(run.tokens, row, selectedRow), left - 5, y0 + (row + 0.5) * cell);
    }
    context.restore();
    context.save();
    context.beginPath();
    context.rect(left, 0, width - left, top);
    context.clip();
    context.textAlign = "left";
    for (let column = columns[0]; column < columns[1]; column++) {
      const text = label(run.keys, column, selectedColumn);
      context.save();
      context.translate(x0 + (column + 0.5) * cell, top - 5);
      context.rotate(-Math.PI / 2);
      context.fillText(text, 0, 0);
      context.restore();
    }
    context.restore();
  }

  #drawLegend(colours) {
    const { head, scale } = this.page;
    const largest = digits(this.kind === "scores" ? head.largestScore : head.largestChange);
    const mask = `linear-gradient(to right, ${css(sequential(0))} 50%, ${css(sequential(0.62))} 50%)`;
    const [low, high, background] = this.kind === "mask" ? ["0", "1", mask]
      : this.#isSigned ? [`−${largest}`, `+${largest}`, gradient(colours.table)]
        : ["0", scale === "row" ? "row's largest" : "1", gradient(colours.table)];
    const key = `${low} ${high} ${background}`;
    if (this.shownLegend === key) return;
    this.shownLegend = key;
    const bar = document.createElement("i");
    bar.style.background = background;
    this.legend.replaceChildren(low, bar, high);
  }

  #withCell(event, use) {
    const { cell } = this.page;
    const [x, y] = [event.offsetX - this.left, event.offsetY - this.top];
    if (x < 0 || y < 0) return;
    const column = Math.floor((x + this.scroller.scrollLeft) / cell);
    const row = Math.floor((y + this.scroller.scrollTop) / cell);
    if (row < run.rowCount && column < run.columnCount) use(row, column);
  }

  #move(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const { row, column } = this.page;
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    const from = column ?? run.columnCount - run.rowCount + row;
    this.page.hold(within(row + step[0], run.rowCount), within(from + step[1], run.columnCount));
    this.reveal(this.page.row, this.page.column);
  }
}
