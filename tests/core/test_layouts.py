"""Tensors that store only some of their elements are refused by the name of their argument, with the way out."""

from __future__ import annotations

import pytest
import torch

import crossent

X, Y, T = torch.linspace(-1, 1, 15).reshape(3, 5), torch.tensor([0, 3, 1]), torch.full((3, 5), 0.2)
C, ALLOWED = torch.ones(5), torch.ones(5, dtype=torch.bool)

CALLS = {
    "input": lambda x: crossent.cross_entropy(x(X), Y),
    "target": lambda x: crossent.cross_entropy(X, x(T)),
    "weight": lambda x: crossent.cross_entropy(X, Y, weight=x(C)),
    "logit_bias": lambda x: crossent.cross_entropy(X, Y, logit_bias=x(C)),
    "class_mask": lambda x: crossent.cross_entropy(X, Y, class_mask=x(ALLOWED)),
    "sample_weight": lambda x: crossent.cross_entropy(X, Y, sample_weight=x(torch.ones(3))),
    "input ": lambda x: crossent.cross_entropy_stats(x(X), Y),
    "input  ": lambda x: crossent.focal_loss(x(X), Y),
    "input   ": lambda x: crossent.multilabel_cross_entropy(x(X), T > 0.1),
    "input    ": lambda x: crossent.binary_cross_entropy_with_logits(x(X), T),
    "target ": lambda x: crossent.binary_cross_entropy_with_logits(X, x(T)),
    "mask": lambda x: crossent.binary_cross_entropy_with_logits(X, T, mask=x(ALLOWED)),
    "student_logits": lambda x: crossent.distillation_loss(x(X), X),
    "teacher_logits": lambda x: crossent.distillation_loss(X, x(X)),
    "a": lambda x: crossent.contrastive_cross_entropy(x(X), X),
    "input     ": lambda x: crossent.linear_cross_entropy(x(X), torch.ones(4, 5), Y),
    "linear_weight": lambda x: crossent.linear_cross_entropy(X, x(torch.ones(4, 5)), Y),
    "input      ": lambda x: crossent.CrossEntropyLoss()(x(X), Y),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_refused(name, layout):
    def sparse(x):
        if x.dim() == 1 and layout is torch.sparse_csr:
            pytest.skip("a CSR tensor has rows")
        return x.to_sparse(layout=layout)

    argument = name.strip()
    with pytest.raises(
        NotImplementedError, match=rf"^{argument} must be dense, got the layout {layout}: .*to_dense\(\)"
    ):
        CALLS[name](sparse)


def test_the_way_out_is_safe():
    assert torch.equal(crossent.cross_entropy(X.to_sparse().to_dense(), Y), crossent.cross_entropy(X, Y))
