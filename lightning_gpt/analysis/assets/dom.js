// Small things that every part of the page uses.

export const byId = (id) => document.getElementById(id);

export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export const tokenElement = (name) => element("span", name, { class: "token" });

// Draw once per frame, however many changes there are.
const waiting = new Set();
export function later(draw) {
  if (waiting.has(draw)) return;
  waiting.add(draw);
  requestAnimationFrame(() => { waiting.delete(draw); draw(); });
}

// Three decimals, or three significant digits for numbers too small for that.
export function digits(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2).replace("e-", "e−") : value.toFixed(3);
}

// The same with a sign, for changes.
export function signed(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return `${value < 0 ? "−" : "+"}${digits(Math.abs(value))}`;
}
