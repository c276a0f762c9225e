"""An output head whose logits have a learned factor for each token."""

import torch
from torch import Tensor, nn

from lightning_gpt.models.head import OutputHead


class ScaledHead(OutputHead):
    """``logits = s ⊙ (H Wᵀ)``, s learned per token of the vocabulary, initially 1: s_z of nGPT.

    Loshchilov et al. 2024, "nGPT" (2410.01131), eq. 3. Products of unit vectors lie between −1 and 1; s lets a softmax
    of them be sharp. It is computed as the head of ``s ⊙ W``. s is √dim times a parameter that starts at 1/√dim
    (section 2.5).

    Args:
        dim: Width of the hidden states.
        vocab_size: Number of token ids.
    """

    no_mup = "the factors of logit_scale are stored at 1/√dim, and their rates stay as they are"

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__(dim, vocab_size)
        self.unit = dim**-0.5
        self.scale = nn.Parameter(torch.empty(vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """1/√dim, which makes each s 1."""
        nn.init.constant_(self.scale, self.unit)

    @property
    def weight(self) -> Tensor:
        """``s ⊙ W``, ``(vocab_size, dim)``."""
        scaled: Tensor = (self.scale / self.unit)[:, None] * super().weight
        return scaled

    def flops(self, positions: Tensor) -> float:
        """The product with the hidden states; that of s and W is the same for any number of tokens."""
        return 2.0 * super().weight.numel()
