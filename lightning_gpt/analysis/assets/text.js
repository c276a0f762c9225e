// The tokens of the text, shaded by what the selected one attends to.

import { css, diverging, inkOn, sequential, table } from "./colours.js";
import { byId, digits, element } from "./dom.js";
import { run } from "./run.js";

// `page` has row, held, head, scale, point, hold, leave and reveal.
export function makeTokens(page) {
  const list = byId("tokens");
  while (list.children.length > run.rowCount) list.lastChild.remove();
  for (let row = list.children.length; row < run.rowCount; row++) list.append(makeToken(page, row));
  [...list.children].forEach((entry, row) => {
    if (entry.textContent !== run.tokens[row]) entry.textContent = run.tokens[row];
    entry.dataset.id = run.ids[row];
  });
}

function makeToken(page, row) {
  const entry = element("li", "", { "data-row": row });
  const look = (use) => () => { use(row, null); page.reveal(); };
  entry.addEventListener("mouseenter", look(page.point));
  entry.addEventListener("focus", look(page.hold));
  entry.addEventListener("click", look(page.hold));
  return entry;
}

export function listenToTokens(page) {
  const list = byId("tokens");
  list.addEventListener("mouseleave", () => page.leave());
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    list.children[Math.max(0, Math.min(run.rowCount - 1, page.row + step))].focus();
  });
}

export function drawTokens(page) {
  const others = run.columnCount - run.rowCount;
  const isSigned = run.difference !== null;
  const colours = table(isSigned ? "diverging" : "sequential");
  const [shares, from] = [page.head.shares("pattern", page.scale), page.row * run.columnCount + others];
  for (const [place, entry] of [...byId("tokens").children].entries()) {
    const { mask, weight } = page.head.at(page.row, others + place);
    const share = shares(from + place);
    const colour = isSigned ? diverging(share, colours) : sequential(share, colours);
    entry.style.background = mask ? css(colour) : "";
    entry.style.color = mask ? inkOn(colour) : "";
    entry.dataset.weight = weight;
    entry.classList.toggle("masked", !mask);
    entry.classList.toggle("row", place === page.row);
    entry.classList.toggle("held", place === page.held.row);
    entry.tabIndex = place === page.row ? 0 : -1;
    entry.title = `position ${place}, id ${run.ids[place]}, weight ${digits(weight)}`;
  }
}
