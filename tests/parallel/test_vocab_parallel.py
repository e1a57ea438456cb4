"""Losses of classes that lie on several processes: those of one process with all classes, for every member, cut and order."""

import copy
import functools

import cases
import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

import crossent
from crossent import VocabShard
from crossent.impl import implementations
from crossent.parallel import softmax as sharding

native = None
if implementations()["native"] is None:
    from crossent.impl import native

N, C = 9, 13
CUTS = {"even": (5, 5, 3), "uneven": (2, 10, 1), "empty": (6, 0, 7), "of one": (1, 1, 11)}
MEMBERS = {
    "plain": {},
    "weights": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weights and smoothing": {"weight": True, "label_smoothing": 0.2},
    "temperature and cap": {"temperature": 1.5, "softcap": 4.0},
    "bias and margin": {"logit_bias": True, "margin": 0.7},
    "mask": {"class_mask": True},
    "mask and smoothing": {"class_mask": True, "label_smoothing": 0.1, "weight": True, "margin": 0.5},
    "a mask for each row": {"class_mask": "rows", "label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.05, "weight": True},
    "focal": {"penalty": crossent.Focal(2.0), "weight": True},
    "focal and z-loss": {"penalty": crossent.Focal(1.5), "z_loss": 0.02},
    "focal and smoothing": {"penalty": crossent.Focal(2.0), "label_smoothing": 0.1, "z_loss": 0.02},
    "Poly-1 and weights": {"penalty": crossent.Poly1(2.0), "label_smoothing": 0.3, "weight": True},
    "GCE": {"penalty": crossent.GCE(0.7)},
    "MAE": {"penalty": crossent.MAE()},
    "SCE": {"penalty": crossent.SCE()},
    "Taylor": {"penalty": crossent.Taylor(3)},
    "sample weights": {"sample_weight": True},
    "a denominator": {"denominator": 5.5},
}
ranks = pool(3)


@functools.cache
def _data(seed=0, std=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = (std * torch.randn(N, C, dtype=torch.float64, generator=generator)).to(dtype)
    y = torch.randint(C, (N,), generator=generator)
    y[[2, 5]] = -100
    soft = torch.rand(N, C, dtype=torch.float64, generator=generator).to(dtype)
    soft[4] = 0.0
    return x, y, soft


def _options(name):
    """Return the options of a member, with all classes."""
    generator, given = torch.Generator().manual_seed(7), dict(MEMBERS[name])
    if given.get("weight"):
        given["weight"] = torch.rand(C, dtype=torch.float64, generator=generator)
        given["weight"][3] = 0.0
    if given.get("logit_bias"):
        given["logit_bias"] = torch.randn(C, dtype=torch.float64, generator=generator)
    if given.get("class_mask") is True:
        given["class_mask"] = torch.arange(C) % 5 != 2
    if given.get("class_mask") == "rows":
        given["class_mask"] = torch.rand(N, C, generator=generator) < 0.7
        given["class_mask"][6] = False
    if given.get("sample_weight"):
        given["sample_weight"] = torch.rand(N, dtype=torch.float64, generator=generator)
        given["sample_weight"][1] = 0.0
    return given


def _shard(cut):
    sizes = CUTS[cut]
    start = sum(sizes[: dist.get_rank()])
    return VocabShard(None, start, C), slice(start, start + sizes[dist.get_rank()])


def _call(x, target, given, shard=None, **more):
    return crossent.cross_entropy(x, target, shard=shard, **given, **more)


def member(name, cut, reduction, soft, parts, impl):
    """Return how far loss and gradients of a shard are from those of all classes."""
    given, (x, y, t) = _options(name), _data()
    if reduction != "mean":
        given.pop("denominator", None)
    target = t if soft else y
    shard, here = _shard(cut)
    whole = x.clone().requires_grad_()
    wanted = _call(whole, target, given, reduction=reduction)
    rows = torch.linspace(-1, 2, wanted.numel(), dtype=torch.float64).view(wanted.shape)
    (at_x,) = torch.autograd.grad((wanted * rows).sum(), whole)
    own = x[:, here].clone().requires_grad_()
    if parts:  # of everything that has classes
        target = target[:, here] if soft else target
        for key in ("weight", "logit_bias", "class_mask"):
            if key in given:
                given[key] = given[key][..., here]
    loss = _call(own, target, given, shard, reduction=reduction, impl=impl)
    (at_own,) = torch.autograd.grad((loss * rows).sum(), own)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(at_own, at_x[:, here], rtol=1e-11, atol=1e-13, equal_nan=True)
    return loss.detach()


REDUCTIONS = ("mean", "sum", "none")


def members(name, cut, soft):
    """Do so for every reduction, with a shard's part of what has classes and with all of it."""
    return [member(name, cut, reduction, soft, parts, None) for reduction in REDUCTIONS for parts in (False, True)]


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_is_that_of_all_classes(ranks, name, cut, soft):
    if soft and "bias and margin" in name:
        name = "plain"
    first, *others = ranks(members, name, cut, soft)
    assert len(first) == 6
    for losses in others:
        torch.testing.assert_close(losses, first, rtol=0, atol=0)


BESIDE_NUMBERS = ("weight", "sample_weight", "logit_bias", "class_mask", "softcap_after_temperature")


def special(name):
    """Cut a member of tests/cases.py into shards: it is that of all classes, or refused on all of them."""
    case = next(case for case in cases.FAMILY if case.name == name)
    x, target, given = cases.tensors(case, torch.float64)
    wanted = crossent.cross_entropy(x, target, reduction="none", **given)
    rows = torch.linspace(-1, 2, wanted.numel(), dtype=torch.float64)
    (at_x,) = torch.autograd.grad((wanted * rows).sum(), x)
    here = slice(2 * dist.get_rank(), min(5, 2 * dist.get_rank() + 2))
    own = x.detach()[:, here].clone().requires_grad_()
    if not {*given} <= {*sharding._NUMBERS, *BESIDE_NUMBERS}:
        with pytest.raises(NotImplementedError, match="does not work with a shard"):
            crossent.cross_entropy(own, target, shard=VocabShard(None, here.start, 5), **given)
        return
    loss = crossent.cross_entropy(own, target, reduction="none", shard=VocabShard(None, here.start, 5), **given)
    (at_own,) = torch.autograd.grad((loss * rows).sum(), own)
    torch.testing.assert_close(loss, wanted, rtol=1e-11, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(at_own, at_x[:, here], rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", cases.SPECIAL)
@pytest.mark.parametrize("kind", ["weighted", "probabilities, weighted", "probabilities, smoothed"])
def test_every_option_is_right_or_refused(ranks, name, kind):
    """What the record has, so that a new option is put together over shards or says that it is not."""
    case = f"{name}, {kind}"
    if case not in {each.name for each in cases.FAMILY}:
        pytest.skip("a smoothed impossible class")
    ranks.assert_holds(special, case)


def a_number_that_is_not_listed():
    x, y, _ = _data()
    shard, here = _shard("even")
    known = sharding._NUMBERS
    try:
        sharding._NUMBERS = known - {"z_loss"}
        for function in (crossent.cross_entropy, crossent.cross_entropy_stats):
            with pytest.raises(NotImplementedError, match="z_loss does not work with a shard"):
                function(x[:, here], y, z_loss=0.1, shard=shard)
    finally:
        sharding._NUMBERS = known


def test_a_number_that_shards_do_not_list_is_refused(ranks):
    ranks.assert_holds(a_number_that_is_not_listed)


def images(impl):
    """The classes of (N, C, d1, d2), in another dimension too, and of one row."""
    shard, here = _shard("uneven")
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, C, 3, 2, dtype=torch.float64, generator=generator)
    y = torch.randint(C, (4, 3, 2), generator=generator)
    y[0, 0, 0] = -100
    weight = torch.rand(C, dtype=torch.float64, generator=generator)
    for options in ({}, {"weight": weight, "label_smoothing": 0.1}, {"penalty": crossent.Focal(2.0)}, {"z_loss": 0.1}):
        for reduction in ("none", "mean"):
            for axis, whole, target in ((1, x, y), (-1, x.movedim(1, -1), y), (0, x[1, :, 0, 0], y[1, 0, 0])):
                whole = whole.clone().requires_grad_()
                own = whole.detach().narrow(axis, here.start, here.stop - here.start).clone().requires_grad_()
                how = {"reduction": reduction, "dim": axis, **options}
                wanted = crossent.cross_entropy(whole, target, **how)
                loss = crossent.cross_entropy(own, target, shard=shard, impl=impl, **how)
                torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
                loss.sum().backward(), wanted.sum().backward()
                part = whole.grad.narrow(axis, here.start, here.stop - here.start)
                torch.testing.assert_close(own.grad, part, rtol=1e-11, atol=1e-13)


def test_classes_may_lie_in_any_dimension(ranks):
    ranks.assert_holds(images, None)


def twice(name, cut, soft):
    """The gradient of a function of the gradients, which depends on the logits of all processes."""
    given, (x, y, t) = _options(name), _data()
    shard, here = _shard(cut)
    rows = torch.linspace(-1, 2, N, dtype=torch.float64)
    masked = "class_mask" in given  # whose classes have an infinite derivative by t
    if masked:
        t = t * given["class_mask"]
    found = []
    for logits, how in ((x, None), (x[:, here], shard)):
        leaf, labels = logits.clone().requires_grad_(), y
        if soft:
            labels = (t[:, here] if how else t).clone().requires_grad_(not masked)
        loss = _call(leaf, labels, given, how, reduction="none")
        leaves = [leaf, labels] if soft and not masked else [leaf]
        grads = torch.autograd.grad((loss * rows).sum(), leaves, create_graph=True)
        total = sum((g * g).sum() for g in grads)
        found.append((*grads, *torch.autograd.grad(total, leaves)))
    for ours, of_all in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, of_all[:, here], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize(
    "name", ["plain", "weights and smoothing", "temperature and cap", "mask", "z-loss", "focal", "focal and smoothing"]
)
def test_second_derivatives_reach_every_process(ranks, name, soft):
    ranks.assert_holds(twice, name, "uneven", soft)


def confident(dtype, impl):
    """Margins up to 60, where softmax in float32 has a loss of 0 from 17 on."""
    shard, here = _shard("even")
    found = []
    for margin in (5.0, 16.0, 17.0, 40.0, 60.0):
        for at in (1, 6, 12):
            x = torch.zeros(1, C, dtype=dtype)
            x[0, at] = margin
            exact = x.clone().double().requires_grad_()
            wanted = crossent.cross_entropy(exact, torch.tensor([at]))
            wanted.backward()
            own = x[:, here].clone().requires_grad_()
            loss = crossent.cross_entropy(own, torch.tensor([at]), shard=shard, out_dtype=torch.float64, impl=impl)
            loss.backward()
            found.append(abs(loss.item() / wanted.item() - 1))
            error = (own.grad.double() - exact.grad[:, here]).abs() / exact.grad[:, here].abs()
            found.append(error.max().item())
    return max(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_confident_row_keeps_its_relative_accuracy(ranks, dtype):
    bound = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2**-8}[dtype]
    assert max(ranks(confident, dtype, None)) <= bound


def in_float32(impl):
    shard, here = _shard("uneven")
    worst = 0.0
    for seed in range(5):
        x, y, _ = _data(seed, 8.0, torch.float32)
        exact, own = x.double().requires_grad_(), x[:, here].clone().requires_grad_()
        for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}, {"penalty": crossent.Focal(2.0)}):
            wanted = crossent.cross_entropy(exact, y, reduction="none", **options)
            loss = crossent.cross_entropy(own, y, shard=shard, reduction="none", impl=impl, **options)
            (g,) = torch.autograd.grad(wanted.sum(), exact)
            (own_g,) = torch.autograd.grad(loss.sum(), own)
            torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-12)
            worst = max(worst, (own_g.double() - g[:, here]).abs().max().item())
    return worst


def test_float32_is_as_exact_as_it_can_be(ranks):
    assert max(ranks(in_float32, None)) < 1e-6


def counted(name, soft):
    """Count the collectives of forward, and of backward."""
    given, (x, y, t) = _options(name), _data()
    shard, here = _shard("even")
    own = x[:, here].clone().requires_grad_()
    with CommDebugMode() as forward:
        loss = _call(own, t if soft else y, given, shard)
    with CommDebugMode() as backward:
        loss.backward()
    return forward.get_total_counts(), backward.get_total_counts()


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("name", MEMBERS)
def test_one_gather_tells_the_loss_and_none_the_gradient(ranks, name, soft):
    if soft and "margin" in MEMBERS[name]:
        return
    smoothed = soft or "label_smoothing" in MEMBERS[name]
    two = ("penalty" in MEMBERS[name] and smoothed) or (
        "class_mask" in MEMBERS[name] and "label_smoothing" in MEMBERS[name]
    )
    assert set(ranks(counted, name, soft)) == {(1 + two, 0)}


def twice_the_same(soft):
    """Call everything twice, and return the bits of what all processes have."""
    x, y, t = _data(dtype=torch.float32)
    told = []
    for name in MEMBERS:
        given = {
            k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for k, v in _options(name).items()
        }
        if soft and "margin" in given:
            continue
        learned = [given[k].requires_grad_() for k in ("sample_weight",) if k in given]
        if soft and "weight" in given:
            learned.append(given["weight"].requires_grad_())
        for cut in CUTS:
            shard, here = _shard(cut)
            target = t[:, here] if soft else y
            for loss in (_call, _call_statistics):
                runs = []
                for _ in range(2):
                    own = x[:, here].clone().requires_grad_()
                    without = {k: v for k, v in given.items() if k != "denominator"}
                    of_rows = loss(own, target, without, shard, reduction="none")
                    every = (*of_rows,) if isinstance(of_rows, tuple) else (of_rows, loss(own, target, given, shard))
                    total = sum((k + 1.5) * value.sum() for k, value in enumerate(every[:4]) if value.requires_grad)
                    grads = torch.autograd.grad(total, [own, *learned])
                    runs.append((*(value.detach() for value in every), *grads))
                for first, second in zip(*runs, strict=True):
                    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
                own, *of_all = runs[0][len(every) :]
                told.append((*runs[0][: len(every)], *of_all[: 1 if "sample_weight" in given else 0]))
    return told


def _call_statistics(x, target, given, shard=None, reduction="mean"):
    given = {k: v for k, v in given.items() if k != "denominator"}
    return crossent.cross_entropy_stats(x, target, shard=shard, reduction=reduction, **given)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_the_same_bits_twice_and_everywhere(ranks, soft):
    first, *others = ranks(twice_the_same, soft)
    assert len(first) >= 4 * 2 * (len(MEMBERS) - 2)
    for told in others:
        torch.testing.assert_close(told, first, rtol=0, atol=0, equal_nan=True)


WRONG = {
    "a label out of range": (IndexError, lambda x, y, o: (x, y.index_fill(0, torch.tensor([3]), C), o)),
    "another dtype of the target": (RuntimeError, lambda x, y, o: (x, y.bool(), o)),
    "another number of rows": (ValueError, lambda x, y, o: (x, y[:-1], o)),
    "no reduction": (ValueError, lambda x, y, o: (x, y, {**o, "reduction": "men"})),
    "no temperature": (ValueError, lambda x, y, o: (x, y, {**o, "temperature": 0.0})),
    "weights of another size": (RuntimeError, lambda x, y, o: (x, y, {**o, "weight": torch.ones(C + 1).double()})),
    "no such implementation": (ValueError, lambda x, y, o: (x, y, {**o, "impl": "fast"})),
    "a start that leaves a gap": (ValueError, None),
}


def wrong(name, culprit):
    """Return the error of each process where one of them gives something wrong."""
    x, y, _ = _data()
    shard, here = _shard("even")
    arguments = (x[:, here], y, {})
    if dist.get_rank() == culprit:
        if WRONG[name][1] is None:
            shard = VocabShard(None, max(0, shard.start - 1), C)
        else:
            arguments = WRONG[name][1](*arguments)
    logits, target, options = arguments
    try:
        crossent.cross_entropy(logits, target, shard=shard, **options)
    except Exception as error:
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize("culprit", [0, 2])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_on_one_process_raises_on_all(ranks, name, culprit):
    if WRONG[name][1] is None and culprit == 0:
        return
    errors = ranks(wrong, name, culprit)
    assert all(issubclass(kind, WRONG[name][0]) for kind, _ in errors), errors
    if WRONG[name][1] is not None:
        assert all(
            f"process {culprit} of the group" in said for rank, (_, said) in enumerate(errors) if rank != culprit
        )
    ranks.assert_holds(member, "plain", "even", "mean", False, False, None)  # and all of them go on


def no_tensor(function, given):
    """Return the error of each process where one of them gives something that is no tensor of logits."""
    x, y, _ = _data(dtype=torch.float32)
    shard, here = _shard("even")
    logits = x[:, here]
    if dist.get_rank() == 1:
        logits = {"a list": logits.tolist(), "integers": logits.long(), "one number": logits[0, 0], "nothing": None}[
            given
        ]
    try:
        getattr(crossent, function)(logits, y, shard=shard)
    except Exception as error:
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize("function", ["cross_entropy", "cross_entropy_stats"])
@pytest.mark.parametrize("given", ["a list", "integers", "one number", "nothing"])
def test_nobody_waits_for_what_is_no_tensor(ranks, function, given):
    errors = ranks(no_tensor, function, given)
    assert len({kind for kind, _ in errors}) == 1
    assert all("process 1 of the group" in errors[rank][1] for rank in (0, 2)), errors


def no_shard():
    said = []
    for shard, error in ((3, TypeError), ("even", TypeError)):
        with pytest.raises(error, match="VocabShard"):
            crossent.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), shard=shard)
    for arguments in ((-1, 3), (0, 0), (5, 3), (0.5, 3)):
        with pytest.raises((TypeError, ValueError)) as caught:
            VocabShard(None, *arguments)
        said.append(str(caught.value))
    return said


def test_a_shard_that_cannot_be_is_refused(ranks):
    assert all("start" in said or "classes" in said for said in ranks(no_shard)[0])


def test_a_shard_needs_processes():
    with pytest.raises(RuntimeError, match="init_process_group"):
        crossent.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), shard=VocabShard(None, 0, 3))
    with pytest.raises(RuntimeError, match="init_process_group"):
        VocabShard.even(10)


def statistics(name, cut, reduction, soft):
    """Hold the statistics of a shard and their derivatives to those of all classes."""
    given, (x, y, t) = _options(name), _data()
    given.pop("denominator", None)
    if given.get("class_mask") is not None:
        t = t * given["class_mask"]
    x = x.round() if name == "plain" else x  # so that the largest logit stands in more than one shard
    shard, here = _shard(cut)
    found = []
    for logits, how in ((x, None), (x[:, here], shard)):
        leaf = logits.clone().requires_grad_()
        stats = crossent.cross_entropy_stats(leaf, t if soft else y, reduction=reduction, shard=how, **given)
        rows = torch.linspace(-1, 2, stats.loss.numel(), dtype=torch.float64).view(stats.loss.shape)
        total = sum(((k + 1) * rows * value).sum() for k, value in enumerate(stats[:4]))
        (grad,) = torch.autograd.grad(total, leaf)
        found.append((stats, grad if how else grad[:, here]))
    for field, ours, wanted in zip(found[0][0]._fields, found[1][0], found[0][0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12, equal_nan=True, msg=field)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-10, atol=1e-12, equal_nan=True)
    return tuple(value.detach() for value in found[1][0])


def statistics_of_every_reduction(name, cut, soft):
    return [statistics(name, cut, reduction, soft) for reduction in REDUCTIONS]


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("cut", ["uneven", "empty"])
@pytest.mark.parametrize("name", MEMBERS)
def test_statistics_are_those_of_all_classes(ranks, name, cut, soft):
    if soft and "margin" in name:
        name = "plain"
    first, *others = ranks(statistics_of_every_reduction, name, cut, soft)
    for told in others:
        torch.testing.assert_close(told, first, rtol=0, atol=0, equal_nan=True)


def impossible(penalty, kind):
    """A label that a mask forbids: the loss may be infinite, and the gradient is that of one process all the same."""
    x, y, _ = _data()
    y = y.clamp(min=0).masked_fill(torch.arange(N) % 2 == 0, 7)
    shard, here = _shard("uneven")
    given = {"class_mask": torch.arange(C) != 7, "penalty": penalty, "reduction": "none"}
    found = []
    for logits, how in ((x, None), (x[:, here], shard)):
        leaf = logits.clone().requires_grad_()
        if kind == "statistics":
            loss = crossent.cross_entropy_stats(leaf, y, shard=how, **given).loss
        else:
            loss = crossent.cross_entropy(leaf, y, shard=how, **given)
        (grad,) = torch.autograd.grad(loss.sum(), leaf, create_graph=kind == "twice")
        found.append((loss.detach(), grad.detach() if how else grad.detach()[:, here]))
    assert found[0][1].isfinite().all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["loss", "twice", "statistics"])
@pytest.mark.parametrize("name", [name for name in MEMBERS if "penalty" in MEMBERS[name]])
def test_a_label_of_an_impossible_class(ranks, name, kind):
    ranks.assert_holds(impossible, MEMBERS[name]["penalty"], kind)


def one_row():
    """One row, whose numbers may be one number expanded, is told as any other."""
    x, y, _ = _data()
    shard, here = _shard("even")
    for options in ({}, {"class_mask": torch.arange(C) != 7, "label_smoothing": 0.1}):
        wanted = crossent.cross_entropy(x[:1], y[:1], **options)
        loss = crossent.cross_entropy(x[:1, here], y[:1], shard=shard, **options)
        torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)


def test_one_row(ranks):
    ranks.assert_holds(one_row)


def modules():
    """The modules and named losses that take a shard keep it, copy it, and obey it."""
    x, y, t = _data()
    shard, here = _shard("uneven")
    own = x[:, here]
    for module, whole, target in (
        (
            crossent.CrossEntropyLoss(shard=shard, label_smoothing=0.1),
            crossent.CrossEntropyLoss(label_smoothing=0.1),
            y,
        ),
        (crossent.FocalLoss(2.0, shard=shard), crossent.FocalLoss(2.0), y),
    ):
        assert module.shard is shard
        assert "shard=VocabShard" in repr(module)
        for each in (module, copy.deepcopy(module)):
            torch.testing.assert_close(each(own, target), whole(x, target), rtol=1e-12, atol=0)
    focal = crossent.focal_loss(own, y, shard=shard)
    torch.testing.assert_close(focal, crossent.focal_loss(x, y), rtol=1e-12, atol=0)
    torch.manual_seed(0)
    whole = crossent.LinearCrossEntropyLoss(4, C).double()
    head = crossent.LinearCrossEntropyLoss(4, here.stop - here.start, shard=shard).double()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(dict(whole.named_parameters())[name][here])
    h = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(h, y), whole(h, y), rtol=1e-12, atol=0)
    with pytest.raises(TypeError, match="shard"):
        crossent.multilabel_cross_entropy(own, (t[:, here] > 0.5).long(), shard=shard)


def test_modules_keep_their_shard(ranks):
    ranks.assert_holds(modules)


def compiled(soft):
    x, y, t = _data()
    shard, here = _shard("even")
    wanted, own = x.clone().requires_grad_(), x[:, here].clone().requires_grad_()
    target = t if soft else y
    crossent.cross_entropy(wanted, target, label_smoothing=0.1).backward()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x, y):
        return crossent.cross_entropy(x, y, label_smoothing=0.1, shard=shard)

    loss = step(own, t[:, here] if soft else y)
    loss.backward()
    torch.testing.assert_close(own.grad, wanted.grad[:, here], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_a_compiler_takes_shards(ranks, soft):
    ranks.assert_holds(compiled, soft)


def forward_mode():
    x, y, _ = _data()
    shard, here = _shard("uneven")
    tangent = torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = []
    for part, how in ((slice(None), None), (here, shard)):
        try:
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x[:, part].clone(), tangent[:, part].clone())
                loss = crossent.cross_entropy(dual, y, shard=how)
                found.append(torch.autograd.forward_ad.unpack_dual(loss).tangent)
        except (RuntimeError, NotImplementedError) as error:
            found.append(str(error))
    return found


def test_forward_mode_is_right_or_refused(ranks):
    for wanted, found in ranks(forward_mode):
        if isinstance(found, str):
            assert "forward" in found or "jvp" in found, found
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


LONG = (90, 70, 240)  # classes, more than the kernels take as tiles
SOME = {
    "plain": {},
    "weights and smoothing": {"weight": True, "label_smoothing": 0.2},
    "bias, margin and cap": {"bias": True, "margin": 0.7, "softcap": 5.0, "temperature": 0.8},
    "mask": {"mask": True},
    "z-loss": {"z_loss": 0.05, "weight": True},
    "focal": {"penalty": crossent.Focal(2.0), "weight": True},
    "GCE and smoothing": {"penalty": crossent.GCE(0.7), "label_smoothing": 0.1},
}


def long_rows(impl, isa, soft):
    """Rows of many classes, which the kernels take one at a time, on one instruction set."""
    classes, rows = sum(LONG), 7
    start = sum(LONG[: dist.get_rank()])
    shard, here = VocabShard(None, start, classes), slice(start, start + LONG[dist.get_rank()])
    generator = torch.Generator().manual_seed(11)
    x = 4 * torch.randn(rows, classes, dtype=torch.float64, generator=generator)
    x[1, 200] += 60  # nothing else is likely
    y = torch.randint(classes, (rows,), generator=generator)
    y[1], y[4] = 200, -100
    weight, bias = torch.rand(2, classes, dtype=torch.float64, generator=generator)
    t = torch.rand(rows, classes, dtype=torch.float64, generator=generator) / classes
    t[1] = torch.eye(classes)[200]
    if isa:
        native._native.use_isa(isa)
    try:
        for name, options in SOME.items():
            given = {k: v for k, v in options.items() if k not in ("weight", "bias", "mask")}
            given |= {"weight": weight} if "weight" in options else {}
            given |= {"logit_bias": bias} if "bias" in options else {}
            given |= {"class_mask": torch.arange(classes) % 7 != 3} if "mask" in options and not soft else {}
            if soft:
                given.pop("margin", None)
            whole, own = x.clone().requires_grad_(), x[:, here].clone().requires_grad_()
            labels = (t.clone().requires_grad_(), t[:, here].clone().requires_grad_()) if soft else (y, y)
            wanted = crossent.cross_entropy(whole, labels[0], reduction="none", impl="eager", **given)
            loss = crossent.cross_entropy(own, labels[1], reduction="none", shard=shard, impl=impl, **given)
            torch.testing.assert_close(loss, wanted, rtol=1e-11, atol=1e-14, msg=name)
            leaves = ((whole, own), labels) if soft else ((whole, own),)
            for of_all, of_shard in leaves:
                (e,) = torch.autograd.grad(wanted.sum(), of_all, retain_graph=True)
                (a,) = torch.autograd.grad(loss.sum(), of_shard, retain_graph=True)
                torch.testing.assert_close(a, e[:, here], rtol=1e-9, atol=1e-15, msg=name)
    finally:
        if isa:
            native._native.use_isa(native._native.isas()[-1])


KERNELS = [("native", isa) for isa in native._native.isas()] if native else []


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize(("impl", "isa"), [("eager", None), *KERNELS])
def test_every_kernel_knows_a_class_elsewhere(ranks, impl, isa, soft):
    ranks.assert_holds(long_rows, impl, isa, soft)


@pytest.mark.parametrize("impl", ["eager", "native"] if native else ["eager"])
@pytest.mark.parametrize("name", ["plain", "weights and smoothing", "bias and margin", "mask", "focal"])
def test_short_rows_are_the_same_by_every_implementation(ranks, name, impl):
    for cut in ("uneven", "empty"):
        ranks.assert_holds(member, name, cut, "none", False, True, impl)
    ranks.assert_holds(in_float32, impl)


def memory():
    """Count what is kept for backward, and what forward and backward take beside logits and gradient."""
    shard = VocabShard.even(3000)
    x = torch.randn(50, 1000, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = crossent.cross_entropy(x, torch.arange(50) * 60, label_smoothing=0.1, shard=shard)
    return sum(
        t.numel() for t in {t.untyped_storage().data_ptr(): t for t in kept}.values() if t is not x
    ) / x.numel(), loss.item()


def test_nothing_as_large_as_the_logits_is_kept(ranks):
    assert max(share for share, _ in ranks(memory)) < 1.05  # the logits, and a few numbers a row


def in_place(impl):
    """The gradient may be written over the logits, and keeps their layout."""
    x, y, _ = _data()
    shard, here = _shard("uneven")
    leaf = x[:, here].clone().requires_grad_()
    wanted = torch.autograd.grad(crossent.cross_entropy(leaf, y, shard=shard, impl=impl), leaf)[0]
    logits = leaf * 1
    loss = crossent.cross_entropy(logits, y, shard=shard, inplace_backward=True, impl=impl)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], wanted, rtol=0, atol=0)
    images = torch.randn(2, here.stop - here.start, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    loss = crossent.cross_entropy(
        images, torch.randint(C, (2, 3, 4), generator=torch.Generator().manual_seed(0)), shard=shard
    )
    (grad,) = torch.autograd.grad(loss, images)
    assert grad.stride() == images.stride()


def test_gradients_lie_as_logits_do(ranks):
    ranks.assert_holds(in_place, None)
