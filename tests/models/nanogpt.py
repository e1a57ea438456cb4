"""A language model of the nanoGPT kind, in plain PyTorch: it makes its logits and its loss itself."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class NanoGPT(nn.Module):
    def __init__(self, vocabulary=1000, features=16, length=12, tied=True, bias=False, softcap=None):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, features), nn.Embedding(length, features)
        self.mix = nn.Linear(features, features)
        self.lm_head = nn.Linear(features, vocabulary, bias=bias)
        self.softcap = softcap
        if tied:
            self.lm_head.weight = self.tokens.weight

    def forward(self, idx, targets=None):
        x = self.tokens(idx) + self.positions(torch.arange(idx.shape[1], device=idx.device))
        x = x.cumsum(1) / torch.arange(1, idx.shape[1] + 1, device=idx.device).unsqueeze(1)
        logits = self.lm_head(x + torch.tanh(self.mix(x)))
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, count):
        for _ in range(count):
            logits, _ = self(idx[:, -12:])
            probs = F.softmax(logits[:, -1, :] / 0.8, dim=-1)
            idx = torch.cat((idx, torch.multinomial(probs, 1)), dim=1)
        return idx


def batch(vocabulary=1000, rows=3, length=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    idx, targets = (torch.randint(vocabulary, (rows, length), generator=g) for _ in range(2))
    targets[0, :4] = -1
    return idx, targets
