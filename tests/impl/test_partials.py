"""What a shard of the classes tells, by every implementation: the numbers of the specification."""

import numpy as np
import pytest
import torch
from cases import IMPLEMENTATIONS
from closeness import assert_close

from crossent import reference
from crossent.core.settings import Settings
from crossent.core.target import ELSEWHERE, Target
from crossent.impl import load

SMOOTHING, ALL = 0.1, 1000


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("shape", [(6, 7), (6, 300), (6, 1)], ids=str)
def test_partials_and_gradients_are_those_of_the_specification(shape, weighted, soft, dtype, impl):
    generator, classes = torch.Generator().manual_seed(4), shape[1]
    x = (4 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    x[1, 0] += 60  # nothing else is likely
    y = torch.tensor([0, 0, ELSEWHERE, -100, classes - 1, 0])
    t = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    c = torch.rand(classes, generator=generator, dtype=torch.float64).to(dtype) if weighted else None
    target = Target(t if soft else y, c, settings=Settings(label_smoothing=SMOOTHING, all_classes=ALL))
    given = t.double().numpy() if soft else np.asarray(y[:, None] == torch.arange(classes), np.float64)
    w = (1 - SMOOTHING) * given + SMOOTHING / ALL
    w = w if c is None else w * c.double().numpy()
    counts = np.ones(6, bool) if soft else (y != -100).numpy()
    exact = reference.partial(x.double().numpy()[counts], w[counts])

    told = load(impl).partials(x, target)
    for got, want in zip((*told.lse, told.loss, told.mass), exact, strict=True):
        assert_close(got[torch.from_numpy(counts)], want, dtype)
    if not soft:
        assert told.loss[3] == told.mass[3] == 0

    elsewhere = torch.linspace(0.0, 0.5, 6, dtype=dtype)
    other = reference.partial(np.zeros((6, 1))[counts], elsewhere.double().numpy()[counts, None])
    whole = reference.combine([exact, other])
    lse = torch.zeros(2, 6, dtype=dtype)
    lse[:, torch.from_numpy(counts)] = torch.from_numpy(np.stack([whole.top, whole.log_sum])).to(dtype)
    gradient = (
        load(impl).cross_entropy_backward(torch.ones((), dtype=dtype), x, target, lse, elsewhere=elsewhere).logits
    )
    want = reference.shard_gradient(x.double().numpy()[counts], w[counts], whole)
    assert_close(gradient[torch.from_numpy(counts)], want, dtype)
    if not soft:
        assert gradient[3].count_nonzero() == 0
