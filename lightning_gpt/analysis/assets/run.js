// The text that is shown, as the model read it. The page's file or the server fills it in.

export const run = {
  tokens: [],
  ids: [],
  keys: [], // the columns' names: keys that are not tokens, if any, then the tokens
  layers: [0], // the layers that can be chosen
  headCount: 1, // heads of the chosen layer
  headDim: 1,
  biased: false,
  difference: null, // what is subtracted, in words; null where values are shown as they are
  headsOf: async () => [], // the heads of a layer, by its index in `layers`
  stripsOf: async () => [], // X, N, Q, K, V, AV and Y of one head, by the same index and the head's number
  get rowCount() { return this.tokens.length; },
  get columnCount() { return this.keys.length; },
};
