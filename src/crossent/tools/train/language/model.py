"""The model: a causal transformer of two layers whose inputs are the last four classes, and what it is trained by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

CONTEXT = 128
FEATURES, LAYERS, HEADS = 128, 2, 4
RECENT = 4
RATE, MATRIX_RATE = 0.01, 0.02


class Layer(nn.Module):
    """Attention over what came before, then two linear layers with the square of a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_wide = nn.RMSNorm(FEATURES), nn.RMSNorm(FEATURES)
        self.attend = nn.Linear(FEATURES, 3 * FEATURES, bias=False)
        self.mix = nn.Linear(FEATURES, FEATURES, bias=False)
        self.widen = nn.Linear(FEATURES, 4 * FEATURES, bias=False)
        self.narrow = nn.Linear(4 * FEATURES, FEATURES, bias=False)
        # a layer begins by adding nothing
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, D)`` to ``(B, T, D)``."""
        batch, length, _ = x.shape
        query, key, value = self.attend(self.norm(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, FEATURES))
        after: Tensor = x + self.narrow(F.relu(self.widen(self.norm_wide(x))).square())
        return after


class LanguageModel(nn.Module):
    """Hidden states ``(B, T, D)`` of class indices ``(B, T)``; ``head``, ``(C, D)``, makes logits of them.

    The head begins with zeros, so that the first loss is ``log C``.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.recent = nn.ModuleList(nn.Embedding(num_classes, FEATURES) for _ in range(RECENT))
        self.position = nn.Embedding(CONTEXT, FEATURES)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.RMSNorm(FEATURES)
        self.head = nn.Parameter(torch.zeros(num_classes, FEATURES))
        for table in (*self.recent, self.position):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the hidden states."""
        length = tokens.shape[1]
        x = self.position.weight[:length]
        for back, table in enumerate(self.recent):
            x = x + F.pad(table(tokens[:, : length - back]), (0, 0, back, 0))
        states: Tensor = self.norm(self.layers(x))
        return states


def build(num_classes: int, seed: int) -> LanguageModel:
    """Make a model; the seed fixes its first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(num_classes)


def optimisers(model: LanguageModel) -> tuple[Optimizer, Optimizer]:
    """Train the matrices of the layers by Muon, and all else by Adam."""
    matrices = [weight for weight in model.layers.parameters() if weight.dim() == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.0, momentum=0.95)
    return muon, torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
