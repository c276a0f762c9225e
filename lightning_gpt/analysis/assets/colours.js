// A sequential colour map for weights and probabilities and a diverging one for scores and changes, in light and dark.
// The sequential map starts at the card's own colour, so that 0 is invisible.

export const RAMPS = {
  light: {
    sequential: ["#f1f4f9", "#c9dcf3", "#84b3e3", "#3f82c8", "#1d5199", "#0b2559"],
    diverging: ["#0f4c8f", "#6ea3d8", "#f3f3f1", "#eba571", "#a8430b"],
  },
  dark: {
    sequential: ["#1d232e", "#1f3f6e", "#2f6cb0", "#58a0dd", "#9fd0f3", "#eaf6ff"],
    diverging: ["#8cc2f2", "#3a6da3", "#232831", "#9a5423", "#f5a76c"],
  },
};

const rgb = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

// 256 colours interpolated between the stops.
function ramp(stops) {
  const colours = stops.map(rgb);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (colours.length - 1);
    const low = Math.min(Math.floor(place), colours.length - 2);
    return colours[low].map((value, channel) => Math.round(value + (place - low) * (colours[low + 1][channel] - value)));
  });
}

const TABLES = Object.fromEntries(
  Object.entries(RAMPS).map(([theme, maps]) => [
    theme, Object.fromEntries(Object.entries(maps).map(([name, stops]) => [name, ramp(stops)])),
  ]),
);

export const css = (colour) => `rgb(${colour.join(",")})`;
const luminance = ([r, g, b]) => (0.2126 * (r / 255) ** 2.2 + 0.7152 * (g / 255) ** 2.2 + 0.0722 * (b / 255) ** 2.2);
export const inkOn = (colour) => (luminance(colour) > 0.18 ? "#10151d" : "#ffffff");

// The style sheet's current colours; cached until the theme changes.
let theme = null;

export function forgetTheme() {
  theme = null;
}

export function themeNow() {
  if (theme) return theme;
  theme = { dark: luminance(getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3).map(Number)) < 0.25 };
  const probe = document.createElement("span");
  document.body.append(probe);
  for (const name of ["soft", "line", "mark", "ink", "card"]) {
    probe.style.color = `var(--${name})`;
    theme[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return theme;
}

export const table = (name) => TABLES[themeNow().dark ? "dark" : "light"][name];
const shade = (share) => Math.max(0, Math.min(255, Math.round((Number.isFinite(share) ? share : 0) * 255)));

// 0 to 1.
export const sequential = (share, colours = table("sequential")) => colours[shade(share)];
// −1 to 1.
export const diverging = (share, colours = table("diverging")) => colours[shade((share + 1) / 2)];
const pixelsOf = new WeakMap(); // a table's colours as the bytes of a pixel: red, green, blue and opaque

// Colour a canvas of `columns` × `rows` pixels; `shareAt(place)` is −1 to 1 where `isSigned`, else 0 to 1.
// Where there is a `mask`, cells that it does not let through are paler.
export function paint(canvas, columns, rows, shareAt, isSigned, mask = null) {
  const colours = table(isSigned ? "diverging" : "sequential");
  if (!pixelsOf.has(colours)) pixelsOf.set(colours, Uint32Array.from(colours, ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0));
  const [pixels, picture] = [pixelsOf.get(colours), new ImageData(columns, rows)];
  const drawn = new Uint32Array(picture.data.buffer);
  for (let place = 0; place < drawn.length; place++) {
    const share = isSigned ? (shareAt(place) + 1) / 2 : shareAt(place);
    drawn[place] = pixels[share > 0 ? (share < 1 ? (share * 255 + 0.5) | 0 : 255) : 0];
  }
  if (mask) for (let place = 0; place < drawn.length; place++) if (!mask[place]) picture.data[4 * place + 3] = 115;
  if (canvas.width !== columns || canvas.height !== rows) [canvas.width, canvas.height] = [columns, rows];
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
export const gradient = (colours) => `linear-gradient(to right, ${[0, 51, 102, 153, 204, 255].map((i) => css(colours[i])).join(", ")})`;
