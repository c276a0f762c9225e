// What each layer, head and feed-forward network is worth for the loss, measured one layer at a time.

import { ask } from "./ask.js";
import { css, diverging, inkOn } from "./colours.js";
import { byId, element, signed } from "./dom.js";
import { run } from "./run.js";
import { shownText } from "./state.js";

let measured = []; // answers by layer
let current = 0; // the measurement that is under way

export function startWorth(choose, failed) {
  byId("measure").addEventListener("click", async () => {
    const mine = ++current;
    const of = { ...shownText(), changes: "", other: "" };
    measured = [];
    try {
      for (let layer = 0; layer < run.layers.length && mine === current; layer++) {
        byId("worth-progress").textContent = `layer ${layer} of ${run.layers.length}…`;
        const answer = await ask("worth", { of, layer, kind: byId("worth-kind").value });
        if (mine !== current) return;
        measured.push(answer);
        drawWorth(choose);
      }
      if (mine === current) byId("worth-progress").textContent = `The loss of the unchanged model is ${measured[0].loss.toFixed(3)} nats.`;
    } catch (error) {
      byId("worth-progress").textContent = "";
      failed(error);
    }
  });
}

// Another text: what was measured is not of it.
export function forgetWorth() {
  current++;
  measured = [];
  byId("worth").replaceChildren();
  byId("worth-progress").textContent = "";
}

export function drawWorth(choose) {
  if (!measured.length) return;
  const largest = Math.max(...measured.flatMap(({ parts, whole }) => [whole, ...Object.values(parts)]).map(Math.abs)) || 1;
  const heads = Math.max(...measured.map(({ parts }) => Object.keys(parts).length));
  const top = element("tr");
  top.append(element("th"), element("th", "whole layer", { scope: "col" }), ...Array.from({ length: heads }, () => element("th")));
  const lines = measured.map(({ layer, parts, whole }) => {
    const line = element("tr");
    line.append(element("th", `layer ${layer}`, { scope: "row" }), cell(`${layer}`, whole, largest, null));
    for (const [part, value] of Object.entries(parts)) line.append(cell(part, value, largest, choose));
    return line;
  });
  byId("worth").replaceChildren(top, ...lines);
}

function cell(part, value, largest, choose) {
  const colour = diverging(value / largest);
  const of = part.split(".")[1];
  const name = of === undefined ? `layer ${part} skipped` : of === "ffn" ? "feed-forward network" : `head ${of}`;
  const button = element("button", signed(value), { type: "button", "data-part": part, "data-value": value, title: name });
  Object.assign(button.style, { background: css(colour), color: inkOn(colour), opacity: 1 });
  if (choose && of !== undefined) button.addEventListener("click", () => choose(part));
  else button.disabled = true;
  const place = element("td");
  place.append(button);
  return place;
}
