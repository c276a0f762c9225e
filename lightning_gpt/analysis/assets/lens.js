// The logit lens by layer and position, and the most likely next tokens in the selected cell.

import { css, inkOn, sequential } from "./colours.js";
import { byId, digits, element } from "./dom.js";
import { run } from "./run.js";

// What the model would predict at some positions: `count` of them, from `first` on.
export class LensPart {
  // `depths` names the layers, `names` has a token's text by its id, `losses` the mean loss after each layer.
  constructor({ depths, first, count, k, top, probability, nll, losses, names }) {
    Object.assign(this, { depths, first, count, k, top, probability, nll, losses, names });
    this.predicted = nll.length / depths.length; // positions that have a next token
  }

  has(row) {
    return row >= this.first && row < this.first + this.count;
  }

  // The k most likely next tokens in a cell: id and probability, most likely first.
  best(depth, row) {
    const start = (depth * this.count + row - this.first) * this.k;
    return Array.from({ length: this.k }, (_, i) => ({ id: this.top[start + i], probability: this.probability[start + i] }));
  }

  // Negative log-likelihood in nats of the token after `row`; null after the last.
  nllAt(depth, row) {
    const place = row - this.first;
    return place < this.predicted ? this.nll[depth * this.predicted + place] : null;
  }
}

export class Lens {
  // `load(first, count)` gives a LensPart, or a promise of it; `choose(depth, row)` is called when a cell is clicked.
  // `suffix` ends the ids of its elements where a page has several.
  constructor(load, choose, suffix = "") {
    this.at = (id) => byId(id + suffix);
    Object.assign(this, { load, choose, depth: null, first: 0, row: 0, part: null, asked: 0 });
    this.turned = () => {}; // called when other positions are shown
    this.at("lens-back")?.addEventListener("click", () => this.turn(-1));
    this.at("lens-on")?.addEventListener("click", () => this.turn(1));
  }

  // How many positions fit side by side.
  get width() {
    const room = this.at("lens-scroll").clientWidth - 110;
    return Math.max(1, Math.min(run.rowCount, Math.floor(room / 92)));
  }

  turn(direction) {
    this.first = Math.max(0, Math.min(run.rowCount - this.width, this.first + direction * this.width));
    this.turned();
    return this.draw(this.row);
  }

  // Forget what was loaded, because the text or the model has changed.
  forget() {
    this.part = null;
  }

  // Draw with the position `row` marked; scrolls to it if it was just selected and is out of view.
  async draw(row) {
    const { width } = this;
    if (row !== this.row && (row < this.first || row >= this.first + width)) this.first = row;
    this.first = Math.max(0, Math.min(this.first, run.rowCount - width));
    this.row = row;
    if (!this.part || !this.part.has(this.first) || !this.part.has(this.first + width - 1)) {
      const mine = ++this.asked;
      const loaded = this.load(this.first, width);
      if (loaded instanceof Promise) this.at("lens-scroll").ariaBusy = "true";
      let part = null;
      try {
        part = await loaded;
      } finally {
        if (mine === this.asked) this.at("lens-scroll").ariaBusy = "false";
      }
      if (mine !== this.asked || !part) return;
      this.part = part;
    }
    this.depth = Math.min(this.depth ?? Infinity, this.part.depths.length - 1);
    this.#drawTable(Array.from({ length: width }, (_, i) => this.first + i));
    this.#drawNext();
  }

  #drawTable(rows) {
    const head = element("tr");
    head.append(element("th", "after"));
    for (const place of rows) {
      const label = element("th", run.tokens[place], { scope: "col", title: run.tokens[place] });
      label.classList.toggle("row", place === this.row);
      head.append(label);
    }
    const body = element("tbody");
    for (let depth = 0; depth < this.part.depths.length; depth++) body.append(this.#line(depth, rows));
    const top = element("thead");
    top.append(head);
    this.at("lens").replaceChildren(top, body);
    if (!this.at("lens-range")) return; // it follows another's positions
    this.at("lens-range").textContent = `tokens ${rows[0] + 1}–${rows.at(-1) + 1} of ${run.rowCount}`;
    this.at("lens-back").disabled = this.first === 0;
    this.at("lens-on").disabled = this.first + rows.length >= run.rowCount;
  }

  #line(depth, rows) {
    const line = element("tr");
    const label = element("th", this.part.depths[depth], { scope: "row" });
    const loss = this.part.losses[depth];
    const some = this.part.count < run.rowCount ? " here" : "";
    if (loss !== null) label.append(element("small", `loss${some} ${digits(loss)}`, { "data-loss": loss }));
    line.append(label);
    for (const row of rows) {
      const best = this.part.best(depth, row)[0];
      const colour = sequential(best.probability);
      const isRight = row < run.rowCount - 1 && best.id === run.ids[row + 1];
      const button = element("button", "", {
        type: "button", "data-depth": depth, "data-row": row, "data-id": best.id, "data-probability": best.probability,
        "aria-pressed": depth === this.depth && row === this.row, title: this.part.names[best.id],
      });
      button.style.background = css(colour);
      button.style.color = inkOn(colour);
      button.classList.toggle("right", isRight);
      const value = element("small", digits(best.probability));
      if (isRight) value.append(element("b", " ✓", { title: "the actual next token" }));
      button.append(element("span", this.part.names[best.id]), value);
      button.addEventListener("click", () => this.choose(depth, row));
      const cell = element("td");
      cell.append(button);
      line.append(cell);
    }
    return line;
  }

  #drawNext() {
    const { depth, row, part } = this;
    const came = this.at("came-next");
    came.replaceChildren();
    delete came.dataset.nll;
    if (!part.has(row)) { // another part of the text is in sight
      this.at("next").replaceChildren();
      this.at("next-after").textContent = "";
      return;
    }
    const where = depth === part.depths.length - 1 ? "" : `, if the model ended after ${part.depths[depth]}`;
    this.at("next-after").replaceChildren("after ", element("span", run.tokens[row], { class: "token" }), where);
    const following = row < run.rowCount - 1 ? run.ids[row + 1] : null;
    const best = part.best(depth, row);
    this.at("next").replaceChildren(...best.map(({ id, probability }) => {
      const entry = element("li", "", { "data-id": id, "data-probability": probability });
      entry.classList.toggle("came", id === following);
      const [bar, fill] = [element("span", "", { class: "bar" }), element("i")];
      fill.style.width = `${(100 * probability) / best[0].probability}%`;
      bar.append(fill);
      entry.append(element("span", part.names[id], { class: "name", title: part.names[id] }), bar);
      entry.append(element("span", digits(probability), { class: "value" }));
      return entry;
    }));
    const nll = part.nllAt(depth, row);
    if (following === null || nll === null) return;
    came.dataset.nll = nll;
    came.append("Actual next token: ", element("span", run.tokens[row + 1], { class: "token" }));
    came.append(`, probability ${digits(Math.exp(-nll))}, loss ${digits(nll)} nats.`);
  }
}
