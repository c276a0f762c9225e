// The next token's distribution, what temperature, top-k and top-p leave of it, and tokens drawn from that.

import { ask } from "./ask.js";
import { byId, digits, element, tokenElement } from "./dom.js";
import { run } from "./run.js";
import { passes, state } from "./state.js";

let vocabulary = 2;
let longest = Infinity; // tokens that the page shows at most
let seed = 0;

const sampling = () => {
  const share = Number(byId("top-k").value); // from 1 to the whole vocabulary, evenly on a logarithmic scale
  const k = Math.round(vocabulary ** share);
  const p = Number(byId("top-p").value);
  return { temperature: Number(byId("temperature").value), top_k: k >= vocabulary ? null : k, top_p: p >= 1 ? null : p };
};

// `redraw` draws the distribution again; `appended` is called when tokens were drawn, `failed` with an error.
export function startGenerating(mostTokens, redraw, appended, failed) {
  longest = mostTokens;
  for (const name of ["temperature", "top-k", "top-p"]) byId(name).addEventListener("input", () => { drawSliders(); redraw(); });
  const draw = (count) => async () => {
    byId("draw").disabled = byId("draw-ten").disabled = true;
    const { more } = state; // of the text that is continued; another text has another list
    try {
      for (let n = 0; n < count; n++) {
        if (run.rowCount + n >= longest) {
          byId("drawn").textContent = `The text is as long as this page can show: ${longest} tokens.`;
          break;
        }
        const { drawn } = await ask("next", { ...passes(), against: null, row: run.rowCount - 1 + n, ...sampling(), seed: seed++ });
        if (state.more !== more) break;
        more.push(drawn.id);
        byId("drawn").replaceChildren("Drew ", tokenElement(drawn.name), ` with probability ${digits(drawn.probability)}.`);
      }
    } catch (error) {
      failed(error);
    } finally {
      byId("draw").disabled = byId("draw-ten").disabled = false;
    }
    state.row = state.column = null;
    appended();
  };
  byId("draw").addEventListener("click", draw(1));
  byId("draw-ten").addEventListener("click", draw(10));
  byId("take-back").addEventListener("click", () => { state.more.pop(); state.row = state.column = null; appended(); });
  drawSliders();
}

export function setVocabulary(size) {
  vocabulary = size;
  drawSliders();
}

function drawSliders() {
  const { temperature, top_k: k, top_p: p } = sampling();
  byId("temperature").nextElementSibling.textContent = temperature.toFixed(2);
  byId("top-k").nextElementSibling.textContent = k === null ? "all" : k.toLocaleString("en");
  byId("top-p").nextElementSibling.textContent = p === null ? "all" : p.toFixed(2);
}

export async function drawDistribution(row) {
  const next = await ask("next", { ...passes(), row, ...sampling() });
  if (next.row >= run.rowCount) return;
  byId("take-back").disabled = !state.more.length;
  byId("generate-after").replaceChildren("The next token after ", tokenElement(run.tokens[next.row]), `, position ${next.row}`);
  const largest = Math.max(...next.probability, ...next.after, ...(next.before ?? []));
  byId("distribution").replaceChildren(...next.names.map((name, place) => {
    const [model, after, before] = [next.probability[place], next.after[place], next.before?.[place]];
    const entry = element("li", "", { "data-id": next.ids[place], "data-probability": model, "data-after": after });
    entry.classList.toggle("cut", after === 0);
    const bars = element("span", "", { class: "bars" });
    const bar = (value, kind) => {
      const made = element("i", "", { class: kind });
      made.style.width = `${(100 * value) / largest}%`;
      bars.append(made);
    };
    if (before !== undefined) bar(before, "before");
    bar(model, "model");
    bar(after, "");
    entry.append(element("span", name, { class: "name", title: name }), bars);
    entry.append(element("span", after === model ? digits(model) : `${digits(model)} → ${digits(after)}`, { class: "value" }));
    return entry;
  }));
  const words = [`Grey: the model's probability; blue: after the rules, which leave ${next.kept.toLocaleString("en")} of ${vocabulary.toLocaleString("en")} tokens with ${(100 * next.keptMass).toFixed(1)} % of it.`,
    `Entropy ${digits(next.entropy)} nats.`];
  if (next.before) words.push("Dashed: without the changes, or of the model compared with.");
  byId("cut-words").textContent = words.join(" ");
}
