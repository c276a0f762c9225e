// The change in loss when each part is taken out, as a table whose heads can be clicked.

import { css, diverging, inkOn } from "./colours.js";
import { byId, digits, element } from "./dom.js";

// `choose(layer, head)` is called when a head is clicked; `chosen()` gives the layer and head that are shown.
export class AblationTable {
  constructor(ablated, layers, choose, chosen) {
    Object.assign(this, { ablated, layers, choose, chosen });
  }

  draw() {
    if (!this.ablated) return;
    const { kind, parts, change } = this.ablated;
    byId("ablation-card").hidden = false;
    byId("ablation-hint").textContent =
      `Change in the loss on this text, in nats, when a part's output is ${kind === "zero" ? "set to zero" : "replaced by its mean over the text"}.`;
    const largest = Math.max(...change.flat().map((value) => Math.abs(value ?? 0))) || 1;
    const head = element("tr");
    head.append(element("th"), ...parts.map((part) => element("th", part === "ffn" ? "FFN" : `head ${part}`, { scope: "col" })));
    const body = change.map((values, layer) => {
      const line = element("tr");
      line.append(element("th", `layer ${layer}`, { scope: "row" }));
      values.forEach((value, place) => line.append(this.#cell(layer, parts[place], value, value / largest)));
      return line;
    });
    byId("ablation").replaceChildren(head, ...body);
  }

  #cell(layer, part, change, share) {
    const colour = diverging(share);
    const text = change === null ? "–" : `${change < 0 ? "−" : "+"}${digits(Math.abs(change))}`;
    const [chosenLayer, chosenHead] = this.chosen();
    const button = element("button", text, {
      type: "button", "data-part": `${layer}.${part}`, "data-change": change,
      "aria-pressed": layer === chosenLayer && part === String(chosenHead),
    });
    Object.assign(button.style, { background: css(colour), color: inkOn(colour) });
    button.disabled = part === "ffn" || !this.layers.includes(layer);
    button.style.opacity = 1;
    button.addEventListener("click", () => this.choose(layer, Number(part)));
    const cell = element("td");
    cell.append(button);
    return cell;
  }
}
