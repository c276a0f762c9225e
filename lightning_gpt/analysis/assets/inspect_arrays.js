// Decode the page's arrays: base64, gzip, little-endian numbers.

const data = JSON.parse(document.getElementById("data").textContent);
const rowCount = data.tokens.length;
const columnCount = data.keys.length;

async function unpack(packed, Type) {
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

async function unpackFloats(packed) {
  if (data.type === "float32") return unpack(packed, Float32Array);
  const halves = await unpack(packed, Uint16Array);
  if (!unpackFloats.table) unpackFloats.table = Float32Array.from({ length: 65536 }, (_, bits) => halfToNumber(bits));
  return Float32Array.from(halves, (bits) => unpackFloats.table[bits]);
}

// The three matrices of one head, in row-major order.
class Head {
  constructor(mask, scores, pattern) {
    this.mask = mask;
    this.scores = scores;
    this.pattern = pattern;
    // among the scores that the softmax uses
    this.largestScore = scores.reduce((largest, score, place) => Math.max(largest, mask[place] * Math.abs(score)), 0);
    this.largestOfRow = Float32Array.from({ length: rowCount }, (_, row) =>
      this.weights(row).reduce((largest, weight) => Math.max(largest, weight), 0));
  }

  at(row, column) {
    const place = row * columnCount + column;
    return { mask: this.mask[place], score: this.scores[place], weight: this.pattern[place] };
  }

  weights(row) {
    return this.pattern.subarray(row * columnCount, (row + 1) * columnCount);
  }
}

// The heads of each layer, unpacked on first use. `index` counts the layers that the page contains.
const layerPromises = new Map();

function headsOf(index) {
  if (!layerPromises.has(index)) layerPromises.set(index, loadLayer(index));
  return layerPromises.get(index);
}

async function loadLayer(index) {
  const [masks, scores, pattern] = await Promise.all([
    Promise.all(data.maskOfHead[index].map((number) => maskNumber(number))),
    unpackFloats(data.scores[index]),
    unpackFloats(data.pattern[index]),
  ]);
  const size = rowCount * columnCount;
  return masks.map((mask, head) => {
    const [start, end] = [head * size, (head + 1) * size];
    return new Head(mask, scores.subarray(start, end), pattern.subarray(start, end));
  });
}

const maskPromises = new Map();

function maskNumber(number) {
  if (!maskPromises.has(number)) maskPromises.set(number, unpack(data.masks[number], Uint8Array));
  return maskPromises.get(number);
}

// Three decimals, or three significant digits for numbers too small for that.
function digits(value) {
  if (value === null || value === undefined) return "–";
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2).replace("e-", "e−") : value.toFixed(3);
}
