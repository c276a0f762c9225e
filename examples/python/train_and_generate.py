"""The public interface in one script: train a small model, load it from its checkpoint, continue a text, look inside.

    python examples/python/train_and_generate.py [STEPS]

No network is needed: the text comes with the installation. 200 steps take some minutes on two CPU cores.
"""

import sys
import tempfile
from pathlib import Path

import lightning as L
import torch

from lightning_gpt import GPTModule, TextData, load

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
CONTEXT = 64

with tempfile.TemporaryDirectory() as folder:
    # the parts of a run are ordinary Lightning classes: a data module, a module, a Trainer
    L.seed_everything(0)
    data = TextData(tokenizer=1024, block_size=CONTEXT, batch_size=8)
    module = GPTModule(n_layer=2, n_head=2, dim=64, block_size=CONTEXT, vocab_size=data.vocab_size)
    trainer = L.Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    checkpoint = Path(folder, "model.ckpt")
    trainer.save_checkpoint(checkpoint)

    # a checkpoint holds the model's description, its weights and its tokenizer: nothing else is needed to use it
    model = load(checkpoint)

generator = torch.Generator().manual_seed(0)
print(model.generate("The city was founded", 20, temperature=0.8, generator=generator))

# every intermediate has a name
ids = torch.tensor([[int(token) for token in model.tokenizer.encode("The city was founded in 1850")]])
with model.record() as trace:
    loss = model.loss(ids[:, :-1], ids[:, 1:])
print(f"loss {loss:.3f} nats")
print(f"attention of layer 0: {tuple(trace['blocks.0.attention.pattern'].shape)} (batch, head, query, key)")
