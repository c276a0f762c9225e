// What is shown and changed; the address holds all of it, so that a link gives the same picture.

export const state = {
  model: 0,
  text: "",
  more: [], // ids that were generated after the text
  other: "",
  changes: [], // {part: "3.2", kind: "zero" | "mean" | "scale" | "patch", value: "" | a factor | a position}
  against: "", // "", "unchanged" or the number of another model
  show: "values", // "values", "difference" or "side", where it is compared
  layer: 0,
  head: 0,
  row: null, // the last token where it is null
  column: null,
};
const FIRST = structuredClone(state);
const SHOWS = ["values", "difference", "side"];
const WHOLE = ["model", "layer", "head", "row", "column"];

export const changeText = ({ part, kind, value }) => `${part}:${kind}${value === "" ? "" : `:${value}`}`;
export const changesText = () => state.changes.map(changeText).join(",");

// The state that the address holds, or an error that says what is wrong with it. What a link leaves out is as at first,
// whatever the page shows; only the text stays.
export function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  const { text, ...read } = structuredClone(FIRST);
  for (const [key, value] of given) {
    if (!(key in FIRST)) throw new Error(`the link has ${JSON.stringify(key)}, which this page does not know; it is ignored`);
    if (WHOLE.includes(key)) {
      if (!/^\d{1,6}$/.test(value)) throw new Error(`the link is malformed: ${key} is ${JSON.stringify(value.slice(0, 40))}, not a whole number`);
      read[key] = Number(value);
    } else if (key === "more") {
      if (!/^\d{1,7}(,\d{1,7})*$/.test(value)) throw new Error(`the link is malformed: more is ${JSON.stringify(value.slice(0, 40))}, not a list of token ids`);
      read.more = value.split(",").map(Number);
    } else if (key === "changes") {
      read.changes = value.split(",").map((change) => {
        const found = /^(\d+\.(?:\d+|ffn)):(zero|mean|scale|patch)(?::([-\d.e]+))?$/.exec(change);
        if (!found) throw new Error(`the link is malformed: ${JSON.stringify(change.slice(0, 40))} is not a change such as 3.2:zero`);
        return { part: found[1], kind: found[2], value: found[3] ?? "" };
      });
    } else if (key === "show" && !SHOWS.includes(value)) {
      throw new Error(`the link is malformed: show is ${JSON.stringify(value.slice(0, 40))} (allowed: ${SHOWS.join(", ")})`);
    } else if (key === "against" && !/^(unchanged|\d{1,6})?$/.test(value)) {
      throw new Error(`the link is malformed: against is ${JSON.stringify(value.slice(0, 40))}`);
    } else {
      read[key] = value;
    }
  }
  return read;
}

let writing = 0;

// Not at every key that is held down: browsers limit how often an address may change.
export function writeLinkSoon() {
  clearTimeout(writing);
  writing = setTimeout(writeLink, 200);
}

export function writeLink() {
  clearTimeout(writing);
  const link = new URLSearchParams();
  for (const [key, first] of Object.entries(FIRST)) {
    const value = state[key];
    if (key === "changes") { if (value.length) link.set(key, changesText()); }
    else if (key === "more") { if (value.length) link.set(key, value.join(",")); }
    else if (value !== first && value !== null) link.set(key, value);
  }
  history.replaceState(null, "", `#${link}`);
}

// A text as the server is asked for it.
export const shownText = () => ({
  model: state.model, text: state.text, more: state.more, other: usesOther() ? state.other : "", changes: changesText(),
});
const usesOther = () => state.changes.some(({ kind }) => kind === "patch");

// What it is compared with.
export function againstText() {
  if (state.against === "") return null;
  if (state.against === "unchanged") return { ...shownText(), changes: "", other: "" };
  return { ...shownText(), model: Number(state.against), changes: "", other: "" };
}

export const passes = () => ({ of: shownText(), against: againstText(), show: state.against === "" ? "values" : state.show });
