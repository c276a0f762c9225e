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

function largestOf(values) {
  let largest = 0;
  for (let place = 0; place < values.length; place++) if (Math.abs(values[place]) > largest) largest = Math.abs(values[place]);
  return largest;
}

// Mask, scores and softmax of one head, in row-major order; `change` has what scores and softmax changed by.
export class Head {
  #largestScore = null;
  #largestOfRow = null;
  #byRow = null;

  constructor(mask, scores, pattern, rows, columns, change = null) {
    Object.assign(this, { mask, scores, pattern, rows, columns, change });
    this.other = null; // the head that it is compared with, side by side
    this.largestChange = change ? largestOf(change.pattern) : 0;
  }

  // Among the scores that the softmax uses.
  get largestScore() {
    if (this.#largestScore !== null) return this.#largestScore;
    const used = this.change ? this.change.scores : this.scores;
    let largest = 0;
    for (let place = 0; place < used.length; place++) {
      if (this.mask[place] && Math.abs(used[place]) > largest) largest = Math.abs(used[place]);
    }
    return (this.#largestScore = largest);
  }

  get largestOfRow() {
    return (this.#largestOfRow ??= Float32Array.from({ length: this.rows }, (_, row) => largestOf(this.weights(row))));
  }

  // Show it beside `other`, with one scale of colours for both.
  setBeside(other) {
    this.other = other;
    this.#largestScore = other.#largestScore = Math.max(this.largestScore, other.largestScore);
    this.#largestOfRow = other.#largestOfRow = this.largestOfRow.map((largest, row) => Math.max(largest, other.largestOfRow[row]));
    this.#byRow = other.#byRow = null;
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

  // What is coloured, by place: −1 to 1 for scores and differences, 0 to 1 for weights.
  shares(kind, scale) {
    const { mask, scores, pattern, change } = this;
    if (kind === "mask") return (place) => mask[place] * 0.62;
    if (kind === "scores") {
      const [used, largest] = [change ? change.scores : scores, this.largestScore || 1];
      return (place) => used[place] / largest;
    }
    if (change) {
      const largest = this.largestChange || 1;
      return (place) => change.pattern[place] / largest;
    }
    const shown = scale === "row" ? this.#sharesOfRow() : pattern;
    return (place) => shown[place];
  }

  // Each weight as a share of its row's largest.
  #sharesOfRow() {
    if (this.#byRow) return this.#byRow;
    const shares = (this.#byRow = new Float32Array(this.pattern.length));
    for (let row = 0, place = 0; row < this.rows; row++) {
      const largest = this.largestOfRow[row] || 1;
      for (let column = 0; column < this.columns; column++, place++) shares[place] = this.pattern[place] / largest;
    }
    return shares;
  }

  share(kind, row, column, scale) {
    return this.shares(kind, scale)(row * this.columns + column);
  }
}
