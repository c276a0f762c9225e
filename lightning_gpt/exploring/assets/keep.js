// A link, the page as one file, a picture, and the Python that gives the same numbers.

import { askText } from "./ask.js";
import { byId, element, tokenElement } from "./dom.js";
import { matrixSvg, numberLabel, svgToPng } from "./picture.js";
import { run } from "./run.js";
import { passes, state, writeLink } from "./state.js";
import { page } from "./view.js";

const NAMES = { scores: "scaled scores", pattern: "softmax", mask: "mask", X: "X", N: "N", Q: "Q", K: "K", V: "V", AV: "A V", Y: "Y" };

function save(blob, name) {
  const link = element("a", "", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  byId("kept").replaceChildren("Saved ", tokenElement(name), ".");
}

// Where the browser does not let a page copy, `otherwise` says how to do it by hand.
async function copy(text, said, otherwise) {
  try {
    await navigator.clipboard.writeText(text);
    byId("kept").textContent = said;
  } catch {
    byId("kept").textContent = otherwise();
  }
}

function selectCode() {
  getSelection().selectAllChildren(byId("code"));
  byId("code").scrollIntoView({ block: "nearest" });
  return "This browser does not let a page copy. The lines are selected: press Ctrl+C.";
}

const asked = () => ({ ...passes(), layer: state.layer, head: state.head });
const fileName = (what, ending) => `layer${state.layer}_head${state.head}_${what}.${ending}`;

// `strips()` gives the matrices of the head that is shown.
export function startKeeping(strips, failed) {
  const guarded = (work) => async () => { try { await work(); } catch (error) { failed(error); } };
  byId("keep-link").addEventListener("click", guarded(() => { writeLink(); return copy(location.href, "The link is copied; it holds text, changes and selection.", () => "This browser does not let a page copy. The link is in the address bar."); }));
  byId("keep-code").addEventListener("click", guarded(async () => { await drawCode(); await copy(byId("code").textContent, "The code is copied.", selectCode); }));
  byId("keep-page").addEventListener("click", guarded(async () => save(new Blob([await askText("page", asked())], { type: "text/html" }), "attention.html")));
  byId("keep-svg").addEventListener("click", () => save(new Blob([picture(strips())], { type: "image/svg+xml" }), fileName(byId("keep-what").value, "svg")));
  byId("keep-png").addEventListener("click", guarded(async () => save(await svgToPng(picture(strips())), fileName(byId("keep-what").value, "png"))));
}

const code = () => askText("code", { ...asked(), row: page.held.row, column: page.held.column });

export async function drawCode() {
  byId("code").textContent = await code();
}

export function drawPictureNames(strips) {
  const names = ["pattern", "scores", "mask", ...strips.map(({ symbol }) => symbol)];
  if (names.length === byId("keep-what").children.length) return;
  byId("keep-what").replaceChildren(...names.map((name) => element("option", NAMES[name], { value: name })));
}

export function picture(strips) {
  const what = byId("keep-what").value;
  const of = run.layers.length === 1 && run.headCount === 1 ? "" : `, layer ${state.layer}, head ${state.head}`;
  const title = `${NAMES[what]}${of}${run.difference ? ` (less ${run.difference})` : ""}`;
  const strip = strips.find(({ symbol }) => symbol === what);
  if (strip) {
    const values = strip.change ?? strip.values;
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
    return matrixSvg({
      title, rows: run.tokens, columns: { count: strip.columns }, isSigned: true, masked: () => false,
      share: (row, column) => values[row * strip.columns + column] / largest,
      low: numberLabel(largest, "−"), high: numberLabel(largest, "+"), cellWidth: Math.max(2, Math.min(10, 640 / strip.columns)), cellHeight: 14,
    });
  }
  const { head, scale } = page;
  const isSigned = what === "scores" || (what === "pattern" && run.difference !== null);
  const largest = what === "scores" ? head.largestScore : head.largestChange;
  const cell = Math.max(3, Math.min(28, 560 / run.columnCount));
  return matrixSvg({
    title, rows: run.tokens, columns: { count: run.columnCount, names: run.keys }, isSigned,
    share: (row, column) => head.share(what, row, column, scale), masked: (row, column) => what !== "mask" && !head.at(row, column).mask,
    low: isSigned ? numberLabel(largest, "−") : "0", high: isSigned ? numberLabel(largest, "+") : what === "mask" || scale !== "row" ? "1" : "row's largest",
    cellWidth: cell, cellHeight: cell,
  });
}
