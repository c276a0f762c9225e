// A matrix on a canvas that stays in place while its container scrolls: only visible cells are drawn.

const LONGEST_LABEL = 11;
const LABEL_FONT = '11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';
const short = (text) => (text.length > LONGEST_LABEL ? `${text.slice(0, LONGEST_LABEL - 1)}…` : text);

class MatrixView {
  // `page` has head, row, column, cell, scale, and point(row, column), hold(row, column), leave(), scrolled(view).
  constructor(figure, page) {
    this.page = page;
    this.kind = figure.dataset.kind;
    this.scroller = figure.querySelector(".scroller");
    this.extent = figure.querySelector(".extent");
    this.canvas = figure.querySelector("canvas");
    this.legend = figure.querySelector(".legend");
    this.scroller.setAttribute("aria-label", `${figure.querySelector("strong").textContent}: arrow keys move the cell`);
    const context = this.canvas.getContext("2d");
    context.font = LABEL_FONT;
    const width = (names) => Math.ceil(Math.max(...names.map((name) => context.measureText(short(name)).width))) + 8;
    this.left = width(data.tokens);
    this.top = width(data.keys);
    this.scroller.addEventListener("scroll", () => page.scrolled(this));
    this.canvas.addEventListener("mousemove", (event) => this.#withCell(event, (row, column) => page.point(row, column)));
    this.canvas.addEventListener("click", (event) => this.#withCell(event, (row, column) => page.hold(row, column)));
    this.canvas.addEventListener("mouseleave", () => page.leave());
    this.scroller.addEventListener("keydown", (event) => this.#move(event));
  }

  // The cell size at which all columns fit, between the smallest legible size and a maximum.
  fittingCell() {
    return Math.max(14, Math.min(52, Math.floor((this.scroller.clientWidth - this.left - 1) / columnCount)));
  }

  layOut() {
    const { cell } = this.page;
    this.extent.style.width = `${this.left + columnCount * cell + 1}px`;
    const height = this.top + rowCount * cell + 1;
    this.extent.style.height = `${height}px`;
    const most = Math.max(320, Math.round(window.innerHeight * 0.62));
    this.scroller.style.height = `${Math.min(height, most) + (this.left + columnCount * cell + 1 > this.scroller.clientWidth ? 16 : 0)}px`;
    const [width, inSight] = [this.scroller.clientWidth, this.scroller.clientHeight];
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${inSight}px` });
    [this.canvas.width, this.canvas.height] = [Math.round(width * ratio), Math.round(inSight * ratio)];
    this.context = this.canvas.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  draw() {
    const { cell, row: selectedRow, column: selectedColumn } = this.page;
    const { context, left, top, scroller } = this;
    const [width, height] = [scroller.clientWidth, scroller.clientHeight];
    const [x0, y0] = [left - scroller.scrollLeft, top - scroller.scrollTop];
    const rows = this.#inSight(scroller.scrollTop, height - top, rowCount);
    const columns = this.#inSight(scroller.scrollLeft, width - left, columnCount);
    const colours = this.#colours();
    context.clearRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(left, top, width - left, height - top);
    context.clip();
    const gap = cell >= 8 ? 1 : 0;
    for (let row = rows[0]; row < rows[1]; row++) {
      for (let column = columns[0]; column < columns[1]; column++) {
        this.#drawCell(row, column, x0 + column * cell, y0 + row * cell, cell - gap, colours);
      }
    }
    context.strokeStyle = colours.mark;
    context.lineWidth = 1;
    context.strokeRect(x0 + 0.5, y0 + selectedRow * cell - 0.5, columnCount * cell, cell);
    if (selectedColumn !== null) {
      context.lineWidth = 2;
      context.strokeRect(x0 + selectedColumn * cell, y0 + selectedRow * cell, cell - gap, cell - gap);
    }
    context.restore();
    this.#drawLabels(rows, columns, x0, y0, width, height, colours);
    Object.assign(this.canvas.dataset, { cell, left, top, scrollLeft: scroller.scrollLeft, scrollTop: scroller.scrollTop });
    this.#drawLegend(colours);
  }

  // Scroll a cell into view.
  reveal(row, column) {
    const { cell } = this.page;
    const { scroller, left, top } = this;
    const within = (start, size, room) => Math.max(start + cell - room, Math.min(size, start));
    scroller.scrollTop = within(row * cell, scroller.scrollTop, scroller.clientHeight - top);
    if (column !== null) scroller.scrollLeft = within(column * cell, scroller.scrollLeft, scroller.clientWidth - left);
  }

  #inSight(scrolled, room, count) {
    const { cell } = this.page;
    return [Math.floor(scrolled / cell), Math.min(count, Math.ceil((scrolled + room) / cell))];
  }

  #colours() {
    return { ...themeNow(), sequential: table("sequential"), diverging: table("diverging") };
  }

  #colourOf(row, value, colours) {
    const { head, scale } = this.page;
    if (this.kind === "mask") return sequential(value.mask ? 0.62 : 0, colours.sequential);
    if (this.kind === "scores") return diverging(value.score / (head.largestScore || 1), colours.diverging);
    return sequential(value.weight / (scale === "row" ? head.largestOfRow[row] || 1 : 1), colours.sequential);
  }

  #drawCell(row, column, x, y, size, colours) {
    const { context, kind } = this;
    const value = this.page.head.at(row, column);
    const masked = !value.mask;
    const colour = this.#colourOf(row, value, colours);
    context.globalAlpha = masked && kind === "scores" ? 0.45 : 1;
    context.fillStyle = css(colour);
    context.fillRect(x, y, size, size);
    context.globalAlpha = 1;
    if (masked && size >= 7) {
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(x, y + size);
      context.lineTo(x + size, y);
      context.stroke();
    }
    if (size >= 33 && !(masked && kind === "pattern")) {
      context.fillStyle = masked ? colours.soft : inkOn(colour);
      context.font = "11px system-ui, sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      const text = kind === "mask" ? String(value.mask) : (kind === "scores" ? value.score : value.weight).toFixed(2);
      context.fillText(text, x + size / 2, y + size / 2);
    }
  }

  #drawLabels(rows, columns, x0, y0, width, height, colours) {
    const { context, left, top } = this;
    const { cell, row: selectedRow, column: selectedColumn } = this.page;
    const every = Math.max(1, Math.ceil(12 / cell));
    context.font = LABEL_FONT;
    context.textBaseline = "middle";
    const label = (names, place, selected) => {
      const shown = place === selected || (place % every === 0 && (selected === null || every === 1 || Math.abs(place - selected) >= every));
      context.fillStyle = place === selected ? colours.mark : colours.soft;
      return shown ? short(names[place]) : "";
    };
    context.save();
    context.beginPath();
    context.rect(0, top, left, height - top);
    context.clip();
    context.textAlign = "right";
    for (let row = rows[0]; row < rows[1]; row++) {
      const text = label(data.tokens, row, selectedRow);
      context.fillText(text, left - 5, y0 + (row + 0.5) * cell);
    }
    context.restore();
    context.save();
    context.beginPath();
    context.rect(left, 0, width - left, top);
    context.clip();
    context.textAlign = "left";
    for (let column = columns[0]; column < columns[1]; column++) {
      const text = label(data.keys, column, selectedColumn);
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
    const largest = digits(head.largestScore);
    const [low, high, background] = {
      mask: ["0", "1", `linear-gradient(to right, ${css(sequential(0))} 50%, ${css(sequential(0.62))} 50%)`],
      scores: [`−${largest}`, `+${largest}`, gradient(colours.diverging)],
      pattern: ["0", scale === "row" ? "row's largest" : "1", gradient(colours.sequential)],
    }[this.kind];
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
    if (row < rowCount && column < columnCount) use(row, column);
  }

  #move(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const { row, column } = this.page;
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    this.page.hold(within(row + step[0], rowCount), within((column ?? columnCount - rowCount + row) + step[1], columnCount));
    this.reveal(this.page.row, this.page.column);
  }
}
