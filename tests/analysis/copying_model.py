"""A model with weights written by hand that copies: a previous-token head, then an induction head."""

import torch

from lightning_gpt.models import GPT, GPTConfig

VOCAB, TIME = 60, 13
_DIM = 2 * VOCAB + TIME
_TOKEN, _BEFORE, _POSITION = slice(0, VOCAB), slice(VOCAB, 2 * VOCAB), slice(2 * VOCAB, _DIM)


def copying_model() -> GPT:
    """Each token's stream is (token, token before it, position), one-hot.

    Head 0 of layer 0 looks up the position before its own and writes that token; head 0 of layer 1 looks for its token
    among the tokens before others, and adds the token found there to the logits.
    """
    config = GPTConfig(
        n_layer=2, n_head=1, dim=_DIM, block_size=TIME, vocab_size=VOCAB, ffn="none", norm="none", bias=False
    )
    model = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.token_embedding.weight[:, _TOKEN] = torch.eye(VOCAB)
        model.positions.weight[:, _POSITION] = torch.eye(TIME)
        before, copy = (block.attention for block in model.blocks)
        q, k, v = before.qkv.weight.split(_DIM)
        # a key of position j answers the query of position j + 1
        q[1:TIME, _POSITION] = 1000 * torch.eye(TIME)[1:]
        k[1:TIME, _POSITION] = torch.eye(TIME)[:-1]
        v[_TOKEN, _TOKEN] = torch.eye(VOCAB)
        before.w_o.weight[_BEFORE, _TOKEN] = torch.eye(VOCAB)
        q, k, v = copy.qkv.weight.split(_DIM)
        q[_TOKEN, _TOKEN] = 1000 * torch.eye(VOCAB)
        k[_TOKEN, _BEFORE] = torch.eye(VOCAB)
        v[_TOKEN, _TOKEN] = torch.eye(VOCAB)
        q[VOCAB, _POSITION] = 1000  # the first token has none before it, and is looked up by no other
        k[VOCAB, _POSITION.start] = -1
        copy.w_o.weight[_TOKEN, _TOKEN] = 10 * torch.eye(VOCAB)
    return model
