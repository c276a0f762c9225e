"""TransformerLens on a model of this package, by way of the folder that ``convert`` writes.

    pip install transformer-lens
    lightning-gpt convert --source runs/quickstart/version_0/checkpoints/last.ckpt --output published
    python examples/transformer_lens/read_converted.py published

Prints how far its logits and attention patterns are from ours.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # the folder holds all that is needed

import torch
from transformer_lens.model_bridge import TransformerBridge

from lightning_gpt import load

folder = sys.argv[1]
ours = load(folder).float()
theirs = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
ids = torch.randint(ours.config.vocab_size, (1, 9), generator=torch.Generator().manual_seed(0))
with torch.no_grad(), ours.record() as trace:
    ours(ids)
with torch.no_grad():
    logits, cache = theirs.run_with_cache(ids)
for what, their, our in (
    ("logits", logits, trace["logits"]),
    ("attention of layer 0", cache["blocks.0.attn.hook_pattern"], trace["blocks.0.attention.pattern"]),
):
    print(f"{what}: largest difference {(their - our).abs().max():.1e} of {our.abs().max():.2f}")
    torch.testing.assert_close(their, our, rtol=1e-4, atol=1e-5)
