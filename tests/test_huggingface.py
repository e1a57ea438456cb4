"""The losses in the places of transformers': its signatures, values, gradients and a training run; skipped without it."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from crossent.models import huggingface as ours

MAPPED = list(ours.LOSS_MAPPING)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
# What a trainer may have counted: nothing, an int, a tensor, and one of one element, as under DataParallel.
COUNTS = [None, 7, torch.tensor(7), torch.tensor([7])]


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("transformers", minversion="5.0")
    from transformers.loss import loss_utils

    return loss_utils.LOSS_MAPPING


def test_importing_ours_does_not_import_theirs():
    check = "import sys, crossent.models.huggingface; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


@pytest.mark.parametrize("name", MAPPED)
def test_the_signature_is_theirs(theirs, name):
    a, b = (inspect.signature(losses[name]).parameters.values() for losses in (ours.LOSS_MAPPING, theirs))
    assert [(p.name, p.kind, p.default) for p in a] == [(p.name, p.kind, p.default) for p in b]


def logits_of(shape, dtype, seed=0):
    torch.manual_seed(seed)
    return (torch.randn(shape) * 3).to(dtype)


def config_of(labels, problem=None):
    return SimpleNamespace(num_labels=labels, problem_type=problem)


TOKENS = torch.tensor([[1, 5, 9, 26, 3], [3, 7, -100, -100, 0]])
CALLS = {
    "causal": ("ForCausalLM", (2, 5, 27), lambda x, **k: {"logits": x, "labels": TOKENS, "vocab_size": 27, **k}),
    "causal, ignoring 0": (
        "ForCausalLM",
        (2, 5, 27),
        lambda x, **k: {"logits": x, "labels": TOKENS.clamp_min(0), "vocab_size": 27, "ignore_index": 0, **k},
    ),
    "causal, shifted already": (
        "ForCausalLM",
        (2, 5, 27),
        lambda x, **k: {"logits": x, "labels": None, "shift_labels": TOKENS, "vocab_size": 27, "use_cache": False, **k},
    ),
    "causal, one sequence": (
        "ForCausalLM",
        (5, 27),
        lambda x, **k: {"logits": x, "labels": TOKENS[0], "vocab_size": 27, **k},
    ),
    "conditional": (
        "ForConditionalGeneration",
        (2, 5, 27),
        lambda x, **k: {"logits": x, "labels": TOKENS, "vocab_size": 27, **k},
    ),
    "masked": ("ForMaskedLM", (2, 5, 27), lambda x, **k: {"logits": x, "labels": TOKENS, "vocab_size": 27, **k}),
    "masked, nothing counts": (
        "ForMaskedLM",
        (2, 5, 27),
        lambda x, **k: {"logits": x, "labels": torch.full((2, 5), -100), "vocab_size": 27, **k},
    ),
    "tokens": (
        "ForTokenClassification",
        (2, 5, 27),
        lambda x, **k: {"logits": x, "labels": TOKENS, "config": config_of(27), **k},
    ),
    "one class": (
        "ForSequenceClassification",
        (4, 5),
        lambda x, **k: {"labels": torch.tensor([0, 4, -100, 2]), "pooled_logits": x, "config": config_of(5), **k},
    ),
    "a picture's class": (
        "ForImageClassification",
        (4, 5),
        lambda x, **k: {"labels": torch.tensor([0, 4, 1, 2]), "pooled_logits": x, "config": config_of(5), **k},
    ),
    "several classes": (
        "ForSequenceClassification",
        (4, 5),
        lambda x, **k: {"labels": (x > 1).to(x.dtype), "pooled_logits": x, "config": config_of(5), **k},
    ),
    "a number": (
        "ForSequenceClassification",
        (4, 1),
        lambda x, **k: {"labels": torch.arange(4).to(x.dtype), "pooled_logits": x, "config": config_of(1), **k},
    ),
    "numbers": (
        "ForSequenceClassification",
        (4, 3),
        lambda x, **k: {
            "labels": torch.ones(4, 3).to(x.dtype),
            "pooled_logits": x,
            "config": config_of(3, "regression"),
            **k,
        },
    ),
    "pixels": (
        "ForSemanticSegmentation",
        (2, 4, 3, 3),
        lambda x, **k: {
            "logits": x,
            "labels": (torch.arange(2 * 6 * 6) % 4).view(2, 6, 6).masked_fill(torch.eye(6) > 0, 255),
            **k,
        },
    ),
    "pixels, twice": (
        "ForSemanticSegmentation",
        (2, 4, 3, 3),
        lambda x, **k: {"logits": x, "labels": (torch.arange(72) % 4).view(2, 6, 6), "auxiliary_logits": 2 * x, **k},
    ),
}


def run(loss, make, x, **more):
    leaf = x.clone().requires_grad_()
    value = loss(**make(leaf, **more))
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value, grad


def assert_close(got, exact):
    """Hold a result to the exact one: three roundings to its dtype, of numbers of both signs that are added up."""
    eps = torch.finfo(got.dtype).eps
    largest = exact.nan_to_num().abs().max().item()
    torch.testing.assert_close(got.float(), exact, rtol=3 * eps + 1e-6, atol=(3 * eps + 1e-6) * largest, equal_nan=True)


@pytest.mark.parametrize("count", COUNTS, ids=["mean", "int", "tensor", "one element"])
@pytest.mark.parametrize("call", CALLS)
@dtypes
def test_values_dtypes_and_gradients_are_theirs(theirs, call, dtype, count):
    name, shape, make = CALLS[call]
    x = logits_of(shape, dtype)
    more = {} if count is None else {"num_items_in_batch": count}
    (a, on_a), (b, on_b) = (run(losses[name], make, x, **more) for losses in (ours.LOSS_MAPPING, theirs))
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert on_a.dtype == on_b.dtype
    # theirs rounds on the way where it computes in half precision, so it is asked in float32
    exact, on_exact = run(theirs[name], make, x.float(), **more)
    assert_close(a, exact)
    assert_close(on_a, on_exact)


@dtypes
def test_question_answering(theirs, dtype):
    x = logits_of((2, 3, 6), dtype)
    positions = [torch.tensor([0, 5, 99]), torch.tensor([[1], [2], [-3]])]
    results = []
    for losses, kind in ((ours.LOSS_MAPPING, dtype), (theirs, torch.float32)):
        loss, leaf = losses["ForQuestionAnswering"], x.to(kind, copy=True).requires_grad_()
        assert loss(leaf[0], leaf[1], None, positions[0]) is None
        value = loss(leaf[0], leaf[1], *positions)
        assert value.dtype == kind
        results.append((value, torch.autograd.grad(value, leaf)[0]))
    for got, exact in zip(*results, strict=True):
        assert_close(got, exact)


def test_what_is_found_out_is_written_down(theirs):
    for labels, num_labels in ((torch.ones(2), 1), (torch.ones(2, 3), 3), (torch.tensor([0, 1]), 3)):
        configs = [config_of(num_labels), config_of(num_labels)]
        for losses, config in zip((ours.LOSS_MAPPING, theirs), configs, strict=True):
            losses["ForSequenceClassification"](
                labels.long() if labels.dtype == torch.int32 else labels, torch.randn(2, num_labels), config
            )
        assert configs[0].problem_type == configs[1].problem_type
    with pytest.raises(RuntimeError, match=r"problem_type must be 'regression'.*got 'other'"):
        ours.sequence_classification_loss(torch.ones(2), torch.ones(2, 1), config_of(1, "other"))


SMALL = {"vocab_size": 61, "num_labels": 2}


def model_of(name):
    import transformers

    torch.manual_seed(0)
    gpt2 = {
        "n_positions": 16,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 16}
    if name.startswith("GPT2"):
        config = transformers.GPT2Config(**SMALL, **gpt2, **dropout)
    elif name.startswith("Llama"):
        config = transformers.LlamaConfig(
            **SMALL, **bert, max_position_embeddings=16, bos_token_id=0, eos_token_id=0, pad_token_id=0
        )
    else:
        config = transformers.BertConfig(**SMALL, **bert, **still)
    return getattr(transformers, name)(config)


LABELS = {
    "ForMaskedLM": lambda tokens: {"labels": tokens.masked_fill(torch.rand(tokens.shape) < 0.7, -100)},
    "ForSequenceClassification": lambda tokens: {"labels": tokens[:, 0] % 2},
    "ForTokenClassification": lambda tokens: {"labels": tokens % 2},
    "ForQuestionAnswering": lambda tokens: {"start_positions": tokens[:, 0] % 12, "end_positions": tokens[:, 1] % 12},
}


@pytest.mark.parametrize(
    "name",
    [
        "GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering",
        "LlamaForSequenceClassification", "LlamaForTokenClassification",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.filterwarnings("default")
def test_a_model_trains_to_the_same_numbers(theirs, name, dtype):
    first = model_of(name).to(dtype)
    second = copy.deepcopy(first)
    second.loss_function = ours.LOSS_MAPPING[second.loss_type] if second.loss_type else ours.causal_lm_loss
    losses = []
    for model in (first, second):
        torch.manual_seed(1)
        optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), []
        for _ in range(5):
            tokens = torch.randint(1, 61, (4, 12))
            labels = next((make for kind, make in LABELS.items() if name.endswith(kind)), lambda t: {"labels": t})(
                tokens
            )
            loss = model(input_ids=tokens, **labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.detach())
        losses.append(torch.stack(seen))
    assert losses[0].isfinite().all()
    assert losses[0][0] != losses[0][-1]
    close = {} if dtype == torch.float32 else {"rtol": 4e-2, "atol": 4e-2}
    torch.testing.assert_close(losses[1], losses[0], **close)
    for a, b in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(a, b, **close)


@pytest.mark.filterwarnings("default")
def test_a_trainers_count_reaches_it(theirs):
    model, tokens = model_of("LlamaForCausalLM"), torch.randint(1, 61, (4, 12))
    expected = model(input_ids=tokens, labels=tokens, num_items_in_batch=torch.tensor(100)).loss
    model.loss_function = ours.causal_lm_loss
    torch.testing.assert_close(
        model(input_ids=tokens, labels=tokens, num_items_in_batch=torch.tensor(100)).loss, expected
    )
