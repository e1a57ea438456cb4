"""A head whose classes lie on several processes: the loss and the gradients of one process with the whole head."""

import collections
import functools

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

import crossent
from crossent import VocabShard, linear_cross_entropy, linear_cross_entropy_stats
from crossent.impl import load
from crossent.losses import linear

N, D, C = 24, 6, 13
CUTS = {"even": (5, 5, 3), "uneven": (2, 10, 1), "empty": (6, 0, 7)}
MEMBERS = {
    "plain": {},
    "weights and smoothing": {"weight": True, "label_smoothing": 0.2},
    "z-loss and cap": {"z_loss": 0.05, "softcap": 4.0, "temperature": 1.5},
    "bias and margin": {"logit_bias": True, "margin": 0.4},
    "a mask": {"class_mask": True},
    "focal": {"penalty": crossent.Focal(2.0)},
    "focal and smoothing": {"penalty": crossent.Focal(2.0), "label_smoothing": 0.1},
    "sample weights": {"sample_weight": True},
    "a denominator": {"denominator": 7.5},
}
BYTES = {
    "at once": None,
    "blocks": 8 * 3 * 5 * 2,
    "one block": 8 * N * 5 * 4,
}  # of two blocks of 3 rows, of an even share
GATHER, SCATTER = "all_gather_into_tensor", "reduce_scatter_tensor"
MUST_BE_FORMED = linear.must_be_formed
ranks = pool(3)


@functools.cache
def _data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    h, w, b = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((N, D), (C, D), (C,)))
    y = torch.randint(C, (N,), generator=generator)
    y[[2, 5, 6, 7]] = -100
    h[5] = torch.nan  # of a row that does not count
    t = torch.rand(N, C, generator=generator, dtype=torch.float64)
    return h.to(dtype), w.to(dtype), b.to(dtype), y, t.to(dtype)


def _options(name, reduction):
    generator, given = torch.Generator().manual_seed(7), dict(MEMBERS[name])
    for key, size in (("weight", C), ("logit_bias", C), ("sample_weight", N)):
        if given.get(key):
            given[key] = torch.rand(size, dtype=torch.float64, generator=generator)
    if "class_mask" in given:
        given["class_mask"] = torch.arange(C) % 5 != 2
    if reduction != "mean":
        given.pop("denominator", None)
    return given


def _shard(cut, **more):
    sizes = CUTS[cut]
    start = sum(sizes[: dist.get_rank()])
    return VocabShard(None, start, C, **more), slice(start, start + sizes[dist.get_rank()])


def _force_blocks(blocks):
    """Form all logits at once, in operations that autograd knows, as where somebody wants other gradients than a head's."""
    linear.must_be_formed = MUST_BE_FORMED if blocks else lambda call: "the test wants them"


def head(name, cut, reduction, size, soft, impl):
    """Hold a head's loss and gradients to those of the whole head on one process."""
    given, (h, w, b, y, t) = _options(name, reduction), _data()
    _force_blocks(size != "at once")
    shard, here = _shard(cut)
    if soft:
        h = h.nan_to_num()
    found = []
    for part in (slice(None), here):
        leaves = [x.clone().requires_grad_() for x in (h, w[part], b[part])]
        own = part is here
        more = {"shard": shard, "max_bytes": BYTES[size], "impl": impl} if own else {}
        loss = linear_cross_entropy(
            leaves[0], leaves[1], t if soft else y, linear_bias=leaves[2], reduction=reduction, **given, **more
        )
        rows = torch.linspace(-1, 2, loss.numel(), dtype=torch.float64).view(loss.shape)
        found.append((loss.detach(), *torch.autograd.grad((loss * rows).sum(), leaves)))
    (wanted, at_h, at_w, at_b), ours = found
    for a, e in zip(ours, (wanted, at_h, at_w[here], at_b[here]), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12, equal_nan=True)
    return ours[0], ours[1]


def heads(name, size, soft):
    """Do so for every reduction."""
    cuts = ("uneven", "empty") if size == "blocks" else ("even",)
    return [head(name, cut, reduction, size, soft, None) for cut in cuts for reduction in ("mean", "none", "sum")]


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("size", BYTES)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_sharded_head_is_the_whole_head(ranks, name, size, soft):
    if soft and "margin" in name:
        name = "plain"
    first, *others = ranks(heads, name, size, soft)
    for told in others:
        torch.testing.assert_close(told, first, rtol=0, atol=0, equal_nan=True)


def _teachers(whole):
    """Return a teacher of another width, whose head is whole or is a shard as the student's."""
    generator = torch.Generator().manual_seed(5)
    h, w, b = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((N, 4), (C, 4), (C,)))
    return crossent.Teacher(h, w[whole], b[whole], 1.7)


def taught(name, cut, size, twice=False):
    """Hold what a teacher's classes on several processes teach to what they do on one, and count what is told."""
    given, (h, w, b, _, _) = _options(name, "none"), _data()
    if name == "a mask":
        mask = torch.arange(N * C).view(N, C) % 4 != 1
        mask[3] = False
        given.update(class_mask=mask, label_smoothing=0.1)
    _force_blocks(size != "at once")
    shard, here = _shard(cut)
    for reduction in ("mean", "none"):
        found = []
        for part in (slice(None), here):
            leaves = [x.nan_to_num().clone().requires_grad_() for x in (h, w[part], b[part])]
            more = {"shard": shard, "max_bytes": BYTES[size]} if part is here else {}
            teacher = _teachers(part if size == "blocks" else slice(None))  # the shard's part, or whole
            call = (*leaves[:2], teacher)
            options = {"linear_bias": leaves[2], "reduction": reduction, **given, **more}
            loss = linear_cross_entropy(*call, **options)
            rows = torch.linspace(-1, 2, loss.numel(), dtype=torch.float64).view(loss.shape)
            grads = torch.autograd.grad((loss * rows).sum(), leaves, create_graph=twice)
            if twice:
                grads = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
            stats = linear_cross_entropy_stats(*call, **options)
            found.append((loss.detach(), grads, [value.detach() for value in stats]))
        (wanted, (at_h, at_w, at_b), told), (ours, grads, own_told) = found
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(own_told, told, rtol=1e-11, atol=1e-12)
        for a, e in zip(grads, (at_h, at_w[here], at_b[here]), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", BYTES)
@pytest.mark.parametrize("name", [name for name in MEMBERS if "margin" not in name and "denominator" not in name])
def test_a_teacher_may_lie_on_several_processes(ranks, name, size):
    ranks.assert_holds(taught, name, "empty" if size == "blocks" else "uneven", size)


def test_second_derivatives_of_what_a_teacher_teaches(ranks):
    ranks.assert_holds(taught, "weights and smoothing", "uneven", "blocks", True)


def teacher_traffic():
    h, w, _, _, _ = _data()
    _force_blocks(True)
    shard, here = _shard("even")
    own = [h.nan_to_num().requires_grad_(), w[here].clone().requires_grad_()]
    given = {"shard": shard, "max_bytes": 8 * BYTES["blocks"], "impl": "eager"}
    plan = crossent.linear_plan(*own, _teachers(here), **given)
    with Traffic() as forward:
        loss = linear_cross_entropy(*own, _teachers(here), **given)
    with Traffic() as backward:
        loss.backward()
    refusal = ""
    try:
        linear_cross_entropy(*own, _teachers(here), shard=_shard("even", sequence_parallel=True)[0])
    except RuntimeError as error:
        refusal = str(error)
    return plan.blocks, dict(forward.kinds), dict(backward.kinds), refusal


def test_a_teacher_takes_one_more_gather_a_block(ranks):
    for blocks, forward, backward, refusal in ranks(teacher_traffic):
        assert blocks > 1
        assert forward == {GATHER: 2 * blocks, "all_reduce": 1}
        assert backward == {}
        assert "a teacher: gather the hidden states" in refusal


def statistics(cut, reduction, size):
    h, w, b, y, _ = _data()
    _force_blocks(size != "at once")
    shard, here = _shard(cut)
    found = []
    for part in (slice(None), here):
        leaves = [x.clone().requires_grad_() for x in (h, w[part], b[part])]
        more = {"shard": shard, "max_bytes": BYTES[size]} if part is here else {}
        stats = linear_cross_entropy_stats(leaves[0], leaves[1], y, linear_bias=leaves[2], reduction=reduction, **more)
        rows = torch.linspace(-1, 2, stats.loss.numel(), dtype=torch.float64).view(stats.loss.shape)
        total = sum(((k + 1) * rows * value).sum() for k, value in enumerate(stats[:4]))
        found.append((stats, torch.autograd.grad(total, leaves)))
    (wanted, (at_h, at_w, at_b)), (ours, grads) = found
    torch.testing.assert_close(tuple(ours), tuple(wanted), rtol=1e-12, atol=1e-12)
    for a, e in zip(grads, (at_h, at_w[here], at_b[here]), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("size", BYTES)
def test_statistics_of_a_sharded_head(ranks, size, reduction):
    ranks.assert_holds(statistics, "uneven", reduction, size)


def _thirds():
    each = N // 3
    return slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)


def sequence_parallel(reduction, size, name, cut="uneven", function="loss"):
    """Each process has a third of the rows, and their labels; of rows kept apart each makes a sum of its own."""
    given, (h, w, b, y, _) = _options(name, reduction), _data()
    _force_blocks(size != "at once")
    (shard, here), mine = _shard(cut, sequence_parallel=True), _thirds()
    leaves = [x.clone().requires_grad_() for x in (h, w, b)]
    own = [x.clone().requires_grad_() for x in (h[mine].view(2, -1, D), w[here], b[here])]
    split = {**given, "shard": shard, "max_bytes": BYTES[size]}
    if "sample_weight" in given:
        leaves.append(given["sample_weight"].requires_grad_())
        own.append(leaves[3].detach()[mine].view(2, -1).clone().requires_grad_())
        split["sample_weight"] = own[3]
    call = linear_cross_entropy if function == "loss" else linear_cross_entropy_stats
    wanted = call(leaves[0], leaves[1], y, linear_bias=leaves[2], reduction=reduction, **given)
    found = call(own[0], own[1], y[mine].view(2, -1), linear_bias=own[2], reduction=reduction, **split)
    many, ones = ([found], [wanted]) if function == "loss" else (found[:4], wanted[:4])
    factors = torch.linspace(-1, 2, N, dtype=torch.float64)
    total, of_all = 0.0, 0.0
    for k, (ours, of_one) in enumerate(zip(many, ones, strict=True)):
        rows = factors if reduction == "none" else factors[:1]
        of_all = of_all + (k + 1) * (of_one * rows).sum()
        if reduction == "none":
            of_one, rows = of_one[mine].view(2, -1), rows[mine].view(2, -1)
        torch.testing.assert_close(ours, of_one, rtol=1e-12, atol=1e-12)
        total = total + (k + 1) * (ours * rows).sum()
    wanted_grads = torch.autograd.grad(of_all, leaves)
    grads = torch.autograd.grad(total, own)
    parts = [mine, here, here, mine]
    for a, e, part in zip(grads, wanted_grads, parts[: len(own)], strict=True):
        torch.testing.assert_close(a, e[part].view(a.shape), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", BYTES)
@pytest.mark.parametrize("name", MEMBERS)
def test_hidden_states_may_lie_on_several_processes(ranks, size, name):
    for reduction in ("mean", "sum", "none"):
        ranks.assert_holds(sequence_parallel, reduction, size, name)
    ranks.assert_holds(sequence_parallel, "mean", size, name, "empty")


@pytest.mark.parametrize("size", BYTES)
def test_statistics_of_hidden_states_on_several_processes(ranks, size):
    for reduction in ("mean", "none"):
        ranks.assert_holds(sequence_parallel, reduction, size, "plain", "uneven", "statistics")


class Traffic(TorchDispatchMode):
    """Counts the collectives by kind, and finds the largest that one gives or takes and the most elements of any other tensor."""

    def __init__(self):
        super().__init__()
        self.kinds, self.most, self.largest = collections.Counter(), 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        kind = str(function).split(".")[1]
        if kind in (GATHER, SCATTER, "all_reduce"):
            self.kinds[kind] += 1
            self.most = max(self.most, arguments[0].numel(), result.numel())
        elif isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def sequence_traffic(reduction):
    """Of many features and few classes, what is told and what is held of 60 rows on each process, in blocks of 3 x 4."""
    each, features, classes = 60, 200, 9
    generator = torch.Generator().manual_seed(dist.get_rank())
    h = torch.randn(each, features, generator=generator).requires_grad_()
    y = torch.randint(classes, (each,), generator=generator)
    shard = VocabShard.even(classes, sequence_parallel=True)
    w = torch.randn(3, features, generator=generator).requires_grad_()
    _force_blocks(True)
    need = 4 * 3 * 3 * 2 * (1 + load("eager").workspace)
    told = []
    with Traffic() as forward:
        loss = linear_cross_entropy(
            h, w, y, shard=shard, max_bytes=3 * 4 * need // 3, impl="eager", reduction=reduction
        )
    with Traffic() as backward:
        loss.sum().backward()
    for traffic in (forward, backward):
        told.append(
            (dict(traffic.kinds), traffic.most / (each * 3 * features), traffic.largest / (each * 3 * features))
        )
    return told


def test_sequences_are_gathered_and_scattered_by_block(ranks):
    for forward, backward in ranks(sequence_traffic, "mean"):
        kinds, most, largest = forward
        blocks = kinds[SCATTER]
        assert blocks == 15
        assert kinds == {
            GATHER: 1 + 2 * blocks,
            SCATTER: blocks,
        }  # the labels once; for each block its rows and the numbers about them
        assert most == 1 / blocks
        assert largest <= 1 / 3  # the gradient of a process's own rows
        assert backward[0] == {}
    for forward, backward in ranks(sequence_traffic, "none"):
        blocks = backward[0][SCATTER]
        assert forward[0] == {GATHER: 1 + 2 * blocks}
        assert backward[0] == {
            GATHER: 1 + blocks,
            SCATTER: blocks,
        }  # the gradients of all rows once, and for each block its rows again
        assert max(forward[1], backward[1]) == 1 / blocks
        assert max(forward[2], backward[2]) <= 1 / 3


def unreduced_input_gradient():
    """Without reduce_input_grad each process has its part of the gradient of the hidden states."""
    h, w, _, y, _ = _data()
    _force_blocks(True)
    whole = h.clone().requires_grad_()
    linear_cross_entropy(whole, w, y).backward()
    shard, here = _shard("even", reduce_input_grad=False)
    own = h.clone().requires_grad_()
    with CommDebugMode() as counted:
        linear_cross_entropy(own, w[here], y, shard=shard, max_bytes=BYTES["blocks"]).backward()
    total = own.grad.clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total, whole.grad, rtol=1e-11, atol=1e-12)
    kinds = {str(kind).split(".")[-1]: n for kind, n in counted.get_comm_counts().items()}
    assert not any("reduce" in kind for kind in kinds), kinds
    return (own.grad - whole.grad).abs().max().item()


def test_the_gradient_of_hidden_states_may_be_left_to_the_caller(ranks):
    assert min(ranks(unreduced_input_gradient)) > 1e-4


def twice(size):
    h, w, b, y, _ = _data()
    h = h.nan_to_num()
    _force_blocks(size != "at once")
    shard, here = _shard("uneven")
    found = []
    for part in (slice(None), here):
        leaves = [x.clone().requires_grad_() for x in (h, w[part], b[part])]
        more = {"shard": shard, "max_bytes": BYTES[size]} if part is here else {}
        loss = linear_cross_entropy(leaves[0], leaves[1], y, linear_bias=leaves[2], **more)
        at_h, at_w, at_b = torch.autograd.grad(loss, leaves, create_graph=True)
        total = at_h.square().sum() + at_w.square().sum() + at_b.square().sum()
        found.append(torch.autograd.grad(total, leaves))
    for a, e in zip(found[1], (found[0][0], found[0][1][here], found[0][2][here]), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", BYTES)
def test_second_derivatives_of_a_head_reach_every_process(ranks, size):
    ranks.assert_holds(twice, size)


def confident(sequence_parallel):
    """Rows with margins up to 60 over all other classes, in blocks."""
    margins = torch.tensor([5.0, 16.0, 17.0, 40.0, 60.0, 60.0], dtype=torch.float64)
    at = torch.tensor([1, 6, 12, 0, 4, 9])
    h = margins.unsqueeze(1) * torch.eye(C, dtype=torch.float64)[at]
    _force_blocks(True)
    shard, here = _shard("uneven", sequence_parallel=sequence_parallel)
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2) if sequence_parallel else slice(None)
    w = torch.eye(C, dtype=torch.float64)[here].clone().requires_grad_()
    own = h[mine].clone().requires_grad_()
    loss = linear_cross_entropy(own, w, at[mine], shard=shard, max_bytes=1, reduction="none")
    loss.sum().backward()
    rest = (C - 1) * (-margins).exp()
    wanted = rest.log1p()
    slopes = torch.exp(-margins - wanted)  # p of each of the others, and the true class lacks all of them
    at_h = slopes.unsqueeze(1).repeat(1, C).scatter(1, at.unsqueeze(1), -(C - 1) * slopes.unsqueeze(1))
    errors = [(loss / wanted[mine] - 1).abs().max(), (own.grad / at_h[mine] - 1).abs().max()]
    return max(error.item() for error in errors)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_a_confident_row_of_a_head_keeps_its_relative_accuracy(ranks, sequence_parallel):
    assert max(ranks(confident, sequence_parallel)) <= 1e-13


def in_low_precision(dtype):
    h, w, b, y, _ = _data()
    h = h.nan_to_num()
    _force_blocks(True)
    shard, here = _shard("uneven")
    exact = [x.to(dtype).double().requires_grad_() for x in (h, w, b)]
    wanted = linear_cross_entropy(exact[0], exact[1], y, linear_bias=exact[2], label_smoothing=0.1)
    wanted.backward()
    own = [x.to(dtype).requires_grad_() for x in (h, w[here], b[here])]
    loss = linear_cross_entropy(
        own[0],
        own[1],
        y,
        linear_bias=own[2],
        label_smoothing=0.1,
        shard=shard,
        max_bytes=BYTES["blocks"],
        out_dtype=torch.float64,
    )
    (loss * 8).backward()
    errors = [abs(loss.item() / wanted.item() - 1)]
    for a, e in zip(own, (exact[0].grad, exact[1].grad[here], exact[2].grad[here]), strict=True):
        if a.numel():
            errors.append(((a.grad.double() / 8 - e).norm() / e.norm()).item())
    return errors


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_heads_in_lower_precision(ranks, dtype, bound):
    assert max(map(max, ranks(in_low_precision, dtype))) < bound


WRONG = {
    "a label out of range": (IndexError, lambda h, y, o: (h, y.index_fill(0, torch.tensor([3]), C), o)),
    "another number of rows": (ValueError, lambda h, y, o: (h[:-1], y[:-1], o)),
    "another width": (RuntimeError, lambda h, y, o: (h[:, :-1], y, o)),
    "no reduction": (ValueError, lambda h, y, o: (h, y, {"reduction": "men"})),
    "no tensor": (TypeError, lambda h, y, o: (h.tolist(), y, o)),
    "one number": (RuntimeError, lambda h, y, o: (h[0, 0], y, o)),
    "no bytes": (TypeError, lambda h, y, o: (h, y, {"max_bytes": 0})),
}


def wrong(name, culprit, function):
    h, w, _, y, _ = _data()
    shard, here = _shard("even")
    arguments = (h, y, {})
    if dist.get_rank() == culprit:
        arguments = WRONG[name][1](*arguments)
    hidden, target, options = arguments
    try:
        getattr(crossent, function)(hidden, w[here], target, shard=shard, **options)
    except Exception as error:
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize("function", ["linear_cross_entropy", "linear_cross_entropy_stats"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_on_one_process_raises_on_all(ranks, name, function):
    errors = ranks(wrong, name, 1, function)
    assert all(kind is not None and issubclass(kind, WRONG[name][0]) for kind, _ in errors), errors


def counted(name, soft, reduction, sequence_parallel=False):
    """Count the collectives of a call in blocks of two rows, and those of its backward, by kind."""
    given, (h, w, b, y, t) = _options(name, reduction), _data()
    _force_blocks(True)
    (shard, here), mine = _shard("even", sequence_parallel=sequence_parallel), slice(None)
    y = y.clamp(min=0)
    if sequence_parallel:
        mine = _thirds()
        if "sample_weight" in given:
            given["sample_weight"] = given["sample_weight"][mine]
    own = [x.clone().requires_grad_() for x in (h.nan_to_num()[mine], w[here], b[here])]
    plan = crossent.linear_plan(*own[:2], y[mine], shard=shard, max_bytes=BYTES["blocks"], impl="eager")
    kinds = []
    with Traffic() as forward:
        loss = linear_cross_entropy(
            *own[:2], t if soft else y[mine], linear_bias=own[2], shard=shard, max_bytes=BYTES["blocks"],
            impl="eager", reduction=reduction, **given,
        )  # fmt: skip
    with Traffic() as backward:
        loss.sum().backward()
    for traffic in (forward, backward):
        kinds.append(tuple(traffic.kinds[kind] for kind in (GATHER, SCATTER, "all_reduce")))
    return plan.blocks, *kinds


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_gather_a_block_and_one_reduction(ranks, name, soft):
    if soft and "margin" in MEMBERS[name]:
        return
    smoothed = soft or "label_smoothing" in MEMBERS[name]
    looks = 2 if "penalty" in MEMBERS[name] and smoothed else 1  # at each block
    for reduction in ("mean", "none"):
        for blocks, forward, backward in ranks(counted, name, soft, reduction):
            assert blocks == N / 2
            with_loss = reduction == "mean"  # the gradient is formed, and added up over the processes, with the loss
            assert forward == (looks * blocks, 0, with_loss)
            assert backward == (0, 0, not with_loss)
    if soft:
        return
    for blocks, forward, backward in ranks(counted, name, soft, "mean", True):
        labels = 2 if "sample_weight" in MEMBERS[name] else 1
        assert forward == (labels + (looks + 1) * blocks, blocks, 0)
        assert backward == (0, 0, 0)


def twice_the_same(cut, sequence_parallel):
    """Call every head twice, and return the bits of what all processes have."""
    told = []
    h, w, b, y, t = (x.float() if x.is_floating_point() else x for x in _data())
    _force_blocks(True)
    (shard, here), mine = _shard(cut, sequence_parallel=sequence_parallel), slice(None)
    mine = _thirds() if sequence_parallel else slice(None)
    for name in MEMBERS:
        for soft in (False,) if sequence_parallel or "margin" in MEMBERS[name] else (False, True):
            given = {
                k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                for k, v in _options(name, "mean").items()
            }
            if sequence_parallel and "sample_weight" in given:
                given["sample_weight"] = given["sample_weight"][mine]
            runs = []
            for _ in range(2):
                own = [x.clone().requires_grad_() for x in (h.nan_to_num()[mine], w[here], b[here])]
                loss = linear_cross_entropy(
                    *own[:2],
                    t if soft else y[mine],
                    linear_bias=own[2],
                    shard=shard,
                    max_bytes=BYTES["blocks"],
                    **given,
                )
                runs.append((loss.detach(), *torch.autograd.grad(loss, own)))
            for first, second in zip(*runs, strict=True):
                assert torch.equal(first, second), name
            told.append(runs[0][: 1 if sequence_parallel else 2])
    return told


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_the_same_bits_twice_and_everywhere(ranks, cut, sequence_parallel):
    first, *others = ranks(twice_the_same, cut, sequence_parallel)
    for told in others:
        torch.testing.assert_close(told, first, rtol=0, atol=0)


def kept(reduction):
    """Return the largest tensor that is kept for backward, as a share of the logits of a process."""
    rows, classes = 400, 6000
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, 8, generator=generator).requires_grad_()
    shard = VocabShard.even(classes)
    w = torch.randn(classes, 8, generator=generator).chunk(3)[dist.get_rank()].clone().requires_grad_()
    _force_blocks(True)
    largest = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: largest.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        loss = linear_cross_entropy(
            h, w, torch.arange(rows) * 13, shard=shard, reduction=reduction, max_bytes=1 << 18, label_smoothing=0.1
        )
    loss.sum().backward()
    return max(largest) / (rows * 2000 * 4)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_logits_of_a_shard_are_kept(ranks, reduction):
    assert max(ranks(kept, reduction)) < 0.05


def planned_sequences(size):
    """Compare the plan with the gathers of a call, of which each block has two and the labels one."""
    h, w, _, y, _ = _data()
    y = y.clamp(min=0)  # of other processes' rows a plan takes for granted that they count
    _force_blocks(True)
    (shard, here), mine = _shard("uneven", sequence_parallel=True), _thirds()
    given = {"shard": shard, "max_bytes": BYTES[size], "impl": "eager"}
    plan = crossent.linear_plan(h[mine], w[here], y[mine], **given)
    with CommDebugMode() as counted:
        linear_cross_entropy(h[mine], w[here], y[mine], **given)
    return plan.blocks, (counted.get_total_counts() - 1) / 2, plan.rows


@pytest.mark.parametrize(("size", "rows"), [("blocks", 3), ("one block", N)])
def test_the_plan_of_a_sequence_is_what_happens(ranks, size, rows):
    for blocks, gathered, of_block in ranks(planned_sequences, size):
        assert blocks == gathered == N / rows
        assert of_block == rows


def planned(size):
    """Compare the plan with the gathers of a call."""
    h, w, _, y, _ = _data()
    _force_blocks(True)
    shard, here = _shard("uneven")
    plan = crossent.linear_plan(h, w[here], y, shard=shard, max_bytes=BYTES[size], impl="eager")
    with CommDebugMode() as counted:
        linear_cross_entropy(h, w[here], y, shard=shard, max_bytes=BYTES[size], impl="eager")
    return plan.blocks, counted.get_total_counts(), plan.bytes == plan.rows * w[here].shape[0] * 8


@pytest.mark.parametrize("size", ["blocks", "one block"])
def test_the_plan_is_what_happens(ranks, size):
    for blocks, gathers, right in ranks(planned, size):
        assert blocks == gathers
        assert right
