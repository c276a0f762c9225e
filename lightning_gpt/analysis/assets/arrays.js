// Arrays as the page's file holds them (base64, gzip, little-endian), and the matrices of one head.

export async function unpackGzip(packed, Type) {
  const text = atob(packed);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Type(await new Response(stream).arrayBuffer());
}

// The value of a 16-bit IEEE 754 half; not every browser has Float16Array yet.
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

let halves = null;

export async function unpackFloats(packed, type) {
  if (type === "float32") return unpackGzip(packed, Float32Array);
  halves ??= Float32Array.from({ length: 65536 }, (_, bits) => halfToNumber(bits));
  return Float32Array.from(await unpackGzip(packed, Uint16Array), (bits) => halves[bits]);
}

const largestOf = (values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);

// Mask, scores and softmax of one head, in row-major order; `change` has what scores and softmax changed by.
export class Head {
  constructor(mask, scores, pattern, rows, columns, change = null) {
    Object.assign(this, { mask, scores, pattern, rows, columns, change });
    // among the scores that the softmax uses
    const used = change ? change.scores : scores;
    this.largestScore = used.reduce((largest, score, place) => Math.max(largest, mask[place] * Math.abs(score)), 0);
    this.largestChange = change ? largestOf(change.pattern) : 0;
    this.other = null; // the head that it is compared with, side by side
    this.largestOfRow = Float32Array.from({ length: rows }, (_, row) => largestOf(this.weights(row)));
  }

  // Show it beside `other`, with one scale of colours for both.
  setBeside(other) {
    this.other = other;
    this.largestScore = other.largestScore = Math.max(this.largestScore, other.largestScore);
    this.largestOfRow.forEach((largest, row) => { this.largestOfRow[row] = other.largestOfRow[row] = Math.max(largest, other.largestOfRow[row]); });
  }

  at(row, column) {
    const place = row * this.columns + column;
    const value = { mask: this.mask[place], score: this.scores[place], weight: this.pattern[place] };
    if (this.change) Object.assign(value, { scoreChange: this.change.scores[place], weightChange: this.change.pattern[place] });
    return value;
  }

  weights(row) {
    return this.pattern.subarray(row * this.columns, (row + 1) * this.columns);
  }

  // What is coloured: −1 to 1 for scores and differences, 0 to 1 for weights.
  share(kind, row, column, scale) {
    const place = row * this.columns + column;
    if (kind === "mask") return this.mask[place] * 0.62;
    if (kind === "scores") return (this.change ? this.change.scores : this.scores)[place] / (this.largestScore || 1);
    if (this.change) return this.change.pattern[place] / (this.largestChange || 1);
    return this.pattern[place] / (scale === "row" ? this.largestOfRow[row] || 1 : 1);
  }
}
