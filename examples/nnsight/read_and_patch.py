"""nnsight on a model of this package: read an intermediate, replace one, and find what ``model.record`` finds.

    pip install nnsight
    python examples/nnsight/read_and_patch.py [CHECKPOINT]

Our models are ordinary modules that take ids and return logits, so ``NNsight`` wraps them as they are. Its names are
those of the modules (``blocks.0.attention``); ours go further inside (``blocks.0.attention.pattern``). Without a
checkpoint the model has random weights.
"""

import sys

import torch
from nnsight import NNsight

from lightning_gpt import GPT, GPTConfig, load

torch.manual_seed(0)
if len(sys.argv) > 1:
    model = load(sys.argv[1])
else:
    model = GPT(GPTConfig(n_layer=2, n_head=2, dim=32, block_size=32, vocab_size=100)).eval()
model = model.double()
ids = torch.randint(model.config.vocab_size, (1, 12))

wrapped = NNsight(model)
with torch.no_grad():
    with wrapped.trace(ids):
        attention = wrapped.blocks[0].attention.output.save()
        logits = wrapped.output.save()
    with wrapped.trace(ids):
        wrapped.blocks[0].attention.output[:] = 0  # what the first attention adds to the stream, taken out
        without = wrapped.output.save()

    with model.record() as trace:
        model(ids)
    with model.record(["logits"], {"blocks.0.attention.output": torch.zeros_like}) as edited:
        model(ids)

for what, theirs, ours in (
    ("attention", attention, trace["blocks.0.attention.output"]),
    ("logits", logits, trace["logits"]),
    ("logits without the first attention", without, edited["logits"]),
):
    print(f"{what}: largest difference {(theirs - ours).abs().max():.1e}")
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-10)
print(f"taking it out moves the logits by up to {(without - logits).abs().max():.3f}")
