// What the server answers: one JSON object and arrays, in one piece of bytes.

const TYPES = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const content = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  for (const [name, { type, shape, start }] of Object.entries(content.arrays)) {
    const size = shape.reduce((product, side) => product * side, 1);
    arrays[name] = { shape, values: new TYPES[type](buffer, 4 + length + start, size) };
  }
  return { ...content, arrays };
}

async function answer(route, body) {
  let response;
  try {
    response = await fetch(`/api/${route}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw new Error("the server does not answer; is lightning-gpt explore still running?");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new Error(said?.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

export const ask = async (route, body) => unpack(await (await answer(route, body)).arrayBuffer());
export const askText = async (route, body) => (await answer(route, body)).text();
export const askStart = async () => (await fetch("/api/start")).json();

// A function that runs `work` once at a time, and once more if it was called meanwhile.
export function latest(work) {
  let running = false;
  let again = false;
  return async function call() {
    if (running) { again = true; return; }
    running = true;
    try {
      do { again = false; await work(); } while (again);
    } finally {
      running = false;
    }
  };
}
