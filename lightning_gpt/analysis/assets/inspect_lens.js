// The logit lens by layer and position, and the most likely next tokens in the selected cell.

const depthCount = data.lens.depths.length;
const lastDepth = depthCount - 1;
const name = (id) => data.vocabulary[id];

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

class Lens {
  // `choose(depth, row)` is called when a cell is clicked.
  constructor(top, probability, nll, choose) {
    Object.assign(this, { top, probability, nll, choose });
    this.depth = lastDepth;
    this.first = 0;
    this.table = document.getElementById("lens");
    document.getElementById("lens-back").addEventListener("click", () => this.turn(-1));
    document.getElementById("lens-on").addEventListener("click", () => this.turn(1));
  }

  // The k most likely next tokens in a cell: id and probability, most likely first.
  best(depth, row) {
    const start = (depth * rowCount + row) * data.lens.k;
    return Array.from({ length: data.lens.k }, (_, i) => ({ id: this.top[start + i], probability: this.probability[start + i] }));
  }

  // Negative log-likelihood in nats of the token after `row`; null after the last.
  nllAt(depth, row) {
    return row < rowCount - 1 ? this.nll[depth * (rowCount - 1) + row] : null;
  }

  lossAt(depth) {
    const all = this.nll.subarray(depth * (rowCount - 1), (depth + 1) * (rowCount - 1));
    return all.length ? all.reduce((sum, value) => sum + value, 0) / all.length : null;
  }

  // How many positions fit side by side.
  get width() {
    const room = document.getElementById("lens-scroll").clientWidth - 110;
    return Math.max(1, Math.min(rowCount, Math.floor(room / 92)));
  }

  turn(direction) {
    this.first = Math.max(0, Math.min(rowCount - this.width, this.first + direction * this.width));
    this.draw(this.row);
  }

  // Draw with the position `row` marked; scrolls to it if it was just selected and is out of view.
  draw(row) {
    const { width } = this;
    if (row !== this.row && (row < this.first || row >= this.first + width)) this.first = row;
    this.first = Math.max(0, Math.min(this.first, rowCount - width));
    this.row = row;
    const rows = Array.from({ length: width }, (_, i) => this.first + i);
    const head = element("tr");
    head.append(element("th", "after"));
    for (const place of rows) {
      const label = element("th", data.tokens[place], { scope: "col", title: data.tokens[place] });
      label.classList.toggle("row", place === row);
      head.append(label);
    }
    const body = element("tbody");
    for (let depth = 0; depth < depthCount; depth++) body.append(this.#line(depth, rows));
    const top = element("thead");
    top.append(head);
    this.table.replaceChildren(top, body);
    document.getElementById("lens-range").textContent = `tokens ${rows[0] + 1}–${rows.at(-1) + 1} of ${rowCount}`;
    document.getElementById("lens-back").disabled = this.first === 0;
    document.getElementById("lens-on").disabled = this.first + width >= rowCount;
    this.#drawNext();
  }

  #line(depth, rows) {
    const line = element("tr");
    const label = element("th", data.lens.depths[depth], { scope: "row" });
    const loss = this.lossAt(depth);
    if (loss !== null) label.append(element("small", `loss ${digits(loss)}`, { "data-loss": loss }));
    line.append(label);
    for (const row of rows) {
      const best = this.best(depth, row)[0];
      const colour = sequential(best.probability);
      const button = element("button", "", {
        type: "button", "data-depth": depth, "data-row": row, "data-id": best.id, "data-probability": best.probability,
        "aria-pressed": depth === this.depth && row === this.row, title: name(best.id),
      });
      button.style.background = css(colour);
      button.style.color = inkOn(colour);
      button.classList.toggle("right", row < rowCount - 1 && best.id === data.ids[row + 1]);
      button.append(element("span", name(best.id)), element("small", digits(best.probability)));
      button.addEventListener("click", () => this.choose(depth, row));
      const cell = element("td");
      cell.append(button);
      line.append(cell);
    }
    return line;
  }

  #drawNext() {
    const { depth, row } = this;
    const where = depth === lastDepth ? "" : `, if the model ended after ${data.lens.depths[depth]}`;
    const after = document.getElementById("next-after");
    after.replaceChildren("after ", element("span", data.tokens[row], { class: "token" }), where);
    const following = row < rowCount - 1 ? data.ids[row + 1] : null;
    const best = this.best(depth, row);
    const list = document.getElementById("next");
    list.replaceChildren(...best.map(({ id, probability }) => {
      const entry = element("li", "", { "data-id": id, "data-probability": probability });
      entry.classList.toggle("came", id === following);
      const [bar, fill] = [element("span", "", { class: "bar" }), element("i")];
      fill.style.width = `${(100 * probability) / best[0].probability}%`;
      bar.append(fill);
      entry.append(element("span", name(id), { class: "name", title: name(id) }), bar);
      entry.append(element("span", digits(probability), { class: "value" }));
      return entry;
    }));
    const came = document.getElementById("came-next");
    const nll = this.nllAt(depth, row);
    came.replaceChildren();
    delete came.dataset.nll;
    if (following === null) return;
    came.dataset.nll = nll;
    came.append("Actual next token: ", element("span", data.tokens[row + 1], { class: "token" }));
    came.append(`, probability ${digits(Math.exp(-nll))}, loss ${digits(nll)} nats.`);
  }
}
