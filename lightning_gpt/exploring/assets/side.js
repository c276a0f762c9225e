// What is compared with beside what is shown: its attention, its logit lens and its next tokens, as B beside A.

import { ask } from "./ask.js";
import { byId, digits, element, signed, tokenElement } from "./dom.js";
import { Lens, LensPart } from "./lens.js";
import { run } from "./run.js";
import { againstText, passes, shownText } from "./state.js";
import { addFigures, page } from "./view.js";

export const isSide = () => passes().show === "side";
export const badge = (letter) => element("b", letter, { class: `who who-${letter.toLowerCase()}` });
const otherPage = Object.create(page, { head: { get: () => page.head.other } }); // the same cell of the other's heads
let figures = [];

// After the view has started: figures for the other's scores and softmax, which move with the first ones.
function makeFigures() {
  figures = ["scores", "pattern"].map((kind) => {
    const first = document.querySelector(`#matrices figure[data-kind=${kind}]`);
    const second = first.cloneNode(true);
    for (const [letter, figure] of [["A", first], ["B", second]]) figure.querySelector("figcaption").prepend(badge(letter));
    second.dataset.of = "B";
    second.hidden = true;
    byId("matrices").append(second);
    return second;
  });
  for (const heading of byId("lenses").querySelectorAll("section:first-child h2")) heading.prepend(badge("A"), " ");
  addFigures(figures, otherPage);
  byId("pickers").before(element("p", "", { id: "sides" }));
  byId("readout").append(element("p", "", { id: "other-readout" }));
  for (const figure of figures) {
    figure.querySelector(".scroller").setAttribute("aria-label", `${figure.querySelector("strong").textContent} of B: arrow keys move the cell`);
  }
}

// `inSight(suffix)` says whether a lens can be seen; returns both lenses as one.
function makeLenses(inSight) {
  const load = (text, suffix) => async (first, count) => {
    if (!inSight(suffix)) return null;
    const answer = await ask("lens", { of: text(), first, count: Math.min(64, count) });
    const { top, probability, nll } = answer.arrays;
    return new LensPart({ ...answer, top: top.values, probability: probability.values, nll: nll.values, losses: answer.loss, names: answer.vocabulary });
  };
  const choose = (lens) => (depth, row) => { lens.depth = depth; page.hold(row, null); both.draw(row); };
  const one = new Lens(load(shownText, ""), (depth, row) => choose(one)(depth, row));
  const two = new Lens(load(againstText, "-other"), (depth, row) => choose(two)(depth, row), "-other");
  const follow = (row) => { Object.assign(two, { first: one.first, row }); return isSide() ? two.draw(row) : null; };
  one.turned = () => follow(one.row);
  const both = {
    draw: (row) => Promise.all([one.draw(row), follow(row)]),
    drawOther: () => follow(page.row),
    forget: () => { one.forget(); two.forget(); },
  };
  return both;
}

export function startSide(inSight) {
  makeFigures();
  page.selected = drawReadout;
  return makeLenses(inSight);
}

// Show or hide what stands beside; `names` are what A and B are.
export function drawSide(answer, names) {
  const shown = isSide() && "other.pattern" in answer.arrays;
  document.documentElement.classList.toggle("side", shown);
  for (const figure of figures) figure.hidden = !shown;
  byId("lens-card-other").hidden = !shown;
  byId("sides").hidden = !shown;
  if (!shown) return;
  const line = (letter, name, loss) => {
    const entry = element("span");
    entry.append(badge(letter), ` ${name}`, loss == null ? "" : ` · loss ${digits(loss)}`);
    return entry;
  };
  byId("sides").replaceChildren(line("A", names[0], answer.loss), line("B", names[1], answer.before?.loss));
}

// The other's values of the selected cell.
function drawReadout() {
  const line = byId("other-readout");
  for (const key of Object.keys(line.dataset)) delete line.dataset[key];
  line.replaceChildren();
  const head = page.head.other;
  if (!head) return;
  const { row, column } = page;
  const weights = head.weights(row);
  line.append(badge("B"), " ");
  if (column !== null) {
    const { score, weight } = head.at(row, column);
    Object.assign(line.dataset, { row, column, score, weight });
    line.append("score ", element("b", digits(score)), "  ·  weight ", element("b", digits(weight)), `  ·  A − B ${signed(page.head.at(row, column).weight - weight)}`);
    return;
  }
  const best = [...weights.keys()].filter((place) => head.at(row, place).mask).sort((a, b) => weights[b] - weights[a]).slice(0, 5);
  line.append(tokenElement(run.tokens[row]), " attends most to ");
  best.forEach((place, i) => line.append(i ? ", " : "", tokenElement(run.keys[place]), ` ${digits(weights[place])}`));
}
