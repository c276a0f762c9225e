// Names of rows and columns on a canvas.

const LONGEST_LABEL = 11;
export const LABEL_FONT = '11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';
export const shortLabel = (text) => (text.length > LONGEST_LABEL ? `${text.slice(0, LONGEST_LABEL - 1)}…` : text);

const widths = new Map(); // of the names measured last
const MOST_WIDTHS = 20000;

const ruler = document.createElement("canvas").getContext("2d");

// The room that the longest of `names` takes.
export function labelRoom(names) {
  if (widths.size > MOST_WIDTHS) widths.clear();
  let longest = 0;
  for (const name of names) {
    if (!widths.has(name)) {
      ruler.font = LABEL_FONT;
      widths.set(name, ruler.measureText(shortLabel(name)).width);
    }
    longest = Math.max(longest, widths.get(name));
  }
  return Math.ceil(longest) + 8;
}

// The name at `place`, or nothing where cells are too small for every name; the selected one is always shown.
export function labelAt(names, place, selected, cell) {
  const every = Math.max(1, Math.ceil(12 / cell));
  const near = selected !== null && every > 1 && Math.abs(place - selected) < every;
  return place === selected || (place % every === 0 && !near) ? shortLabel(names[place]) : "";
}
