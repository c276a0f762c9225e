// A matrix as SVG: vectors that a paper can print, in the page's light colours.

import { RAMPS } from "./colours.js";
import { digits } from "./dom.js";
import { shortLabel } from "./labels.js";

const escaped = (text) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);

function colourAt(stops, share) {
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const channel = (hex, n) => parseInt(hex.slice(1 + 2 * n, 3 + 2 * n), 16);
  const mixed = [0, 1, 2].map((n) => Math.round(channel(stops[low], n) + (place - low) * (channel(stops[low + 1], n) - channel(stops[low], n))));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

// `share(row, column)` is −1 to 1 where `isSigned`, else 0 to 1; `masked(row, column)` cells are left out.
export function matrixSvg({ title, rows, columns, share, isSigned, masked, low, high, cellWidth, cellHeight }) {
  const stops = isSigned ? RAMPS.light.diverging : RAMPS.light.sequential;
  const names = rows.map(shortLabel);
  const left = 8 + 6.7 * Math.max(...names.map((name) => name.length));
  const labels = columns.names ? columns.names.map(shortLabel) : [];
  const top = 34 + (labels.length ? 6.7 * Math.max(...labels.map((name) => name.length)) : 0);
  const [width, height] = [left + columns.count * cellWidth + 10, top + rows.length * cellHeight + 40];
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width.toFixed(1)} ${height.toFixed(1)}" width="${width.toFixed(1)}" height="${height.toFixed(1)}" font-family="ui-monospace, DejaVu Sans Mono, Menlo, monospace" font-size="11">`,
    `<rect width="100%" height="100%" fill="#ffffff"/>`,
    `<text x="8" y="18" font-family="system-ui, sans-serif" font-size="13" font-weight="600" fill="#1a202b">${escaped(title)}</text>`,
  ];
  const every = (size) => Math.max(1, Math.ceil(11 / size));
  names.forEach((name, row) => {
    if (row % every(cellHeight)) return;
    parts.push(`<text x="${left - 5}" y="${(top + (row + 0.5) * cellHeight + 4).toFixed(1)}" text-anchor="end" fill="#566072">${escaped(name)}</text>`);
  });
  labels.forEach((name, column) => {
    if (column % every(cellWidth)) return;
    const x = left + (column + 0.5) * cellWidth + 4;
    parts.push(`<text transform="translate(${x.toFixed(1)} ${top - 5}) rotate(-90)" fill="#566072">${escaped(name)}</text>`);
  });
  const gap = Math.min(cellWidth, cellHeight) >= 8 ? 1 : 0;
  for (let row = 0; row < rows.length; row++) {
    for (let column = 0; column < columns.count; column++) {
      if (masked(row, column)) continue;
      const value = share(row, column);
      const colour = colourAt(stops, isSigned ? (value + 1) / 2 : value);
      parts.push(`<rect x="${(left + column * cellWidth).toFixed(2)}" y="${(top + row * cellHeight).toFixed(2)}" width="${(cellWidth - gap).toFixed(2)}" height="${(cellHeight - gap).toFixed(2)}" fill="${colour}"/>`);
    }
  }
  const ramp = stops.map((stop, place) => `<stop offset="${(place / (stops.length - 1)).toFixed(3)}" stop-color="${stop}"/>`).join("");
  const y = height - 20;
  parts.push(`<defs><linearGradient id="ramp">${ramp}</linearGradient></defs>`,
    `<text x="${left}" y="${y}" fill="#566072">${escaped(low)}</text>`,
    `<rect x="${left + 50}" y="${y - 9}" width="100" height="9" fill="url(#ramp)"/>`,
    `<text x="${left + 158}" y="${y}" fill="#566072">${escaped(high)}</text>`, "</svg>");
  return parts.join("\n");
}

// The same as a PNG, twice as large as on the screen.
export async function svgToPng(text) {
  const address = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    await new Promise((done, failed) => { image.onload = done; image.onerror = () => failed(new Error("the picture is too large")); image.src = address; });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

export const numberLabel = (value, sign) => `${sign}${digits(value)}`;
