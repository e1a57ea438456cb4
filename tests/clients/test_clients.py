"""The code of ``docs/clients.md`` beside the libraries themselves: it trains to the numbers that torch's losses give.

Each piece runs twice, once with this library and once with torch's functions and modules under its name. ``make test-clients``
installs the libraries; without one its tests are skipped.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import crossent
from crossent.core import watch

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when keras is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = pytest.mark.filterwarnings("default")  # of other libraries

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text("utf-8")
TORCH = SimpleNamespace(
    CrossEntropyLoss=nn.CrossEntropyLoss, cross_entropy=F.cross_entropy, patch=contextlib.nullcontext
)


def code_of(client: str) -> str:
    (section,) = re.findall(rf"^## {re.escape(client)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


class Seen:
    """Count the losses that this library computes."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1


@pytest.fixture
def run(monkeypatch):
    """Run a client's code with what a program of its kind has, and say how often this library was asked."""

    def run(client, losses, **names):
        seen = Seen()
        monkeypatch.setattr(watch, "watcher", seen)
        torch.manual_seed(1)
        scope = {"torch": torch, "crossent": losses, "itertools": itertools, "__name__": "clients", **names}
        exec(code_of(client), scope)
        monkeypatch.setattr(watch, "watcher", None)
        return scope, seen.calls

    return run


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return self.net(x)


def data(ignored=False):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 6, generator=generator), torch.randint(4, (32,), generator=generator)
    return x, torch.where(torch.arange(32) % 5 < 2, -100, y) if ignored else y


def program(**more):
    """Make a model, its optimizer and its data, the same every time."""
    torch.manual_seed(0)
    model = Net()
    x, y = data(**more)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    return {"Net": Net, "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "loader": loader}


def assert_trained_alike(ours, theirs, start):
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), start.parameters(), strict=True))


def test_the_table_names_every_section():
    rows = [line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| ")][1:]
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [row.lower() for row in rows] == [section.lower() for section in sections]


def test_any_program():
    def train(model, loader):
        loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader:
            (loss(model(x), y) + F.cross_entropy(model(x), y, label_smoothing=0.1)).backward()
            optimizer.step()
            optimizer.zero_grad()

    results = []
    for losses in (crossent, TORCH):
        names = program()
        code = code_of("Any program that calls torch").replace("import crossent\n", "")
        seen = Seen()
        watch.watcher = seen
        try:
            exec(code, {"crossent": losses, "train": train, **names})
        finally:
            watch.watcher = None
        results.append(names["model"])
        assert seen.calls == (8 if losses is crossent else 0)
    assert_trained_alike(*results, program()["model"])


def test_lightning(run):
    lightning = pytest.importorskip("lightning")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    models = []
    for losses in (crossent, TORCH):
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet)
        scope, calls = run("Lightning", losses, **(program() | {"lightning": lightning, "trainer": trainer}))
        assert calls == (8 if losses is crossent else 0)
        models.append(scope["model"].net)
    torch.manual_seed(1)
    assert_trained_alike(*models, Net())


def test_accelerate(run):
    """Micro-batches of 8 with different counts of labels train as batches of 16 do."""
    accelerate = pytest.importorskip("accelerate")
    names = program(ignored=True)
    if not hasattr(itertools, "batched"):  # Python 3.11 and before

        def batched(iterable, n):
            iterator = iter(iterable)
            while batch := tuple(itertools.islice(iterator, n)):
                yield batch

        names["itertools"] = SimpleNamespace(batched=batched)
    scope, calls = run("accelerate", crossent, **names, accelerate=accelerate)
    assert calls == 4
    names = program(ignored=True)
    model, optimizer = names["model"], names["optimizer"]
    for x, y in DataLoader(names["loader"].dataset, batch_size=16):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_trained_alike(scope["accelerator"].unwrap_model(scope["model"]), model, program()["model"])


def test_ignite(run):
    pytest.importorskip("ignite")
    models, means = [], []
    for losses in (crossent, TORCH):
        names = program(ignored=True)
        scope, calls = run("Ignite", losses, **names)
        assert calls == (8 if losses is crossent else 0)
        models.append(names["model"])
        means.append(scope["state"].metrics["loss"])
    assert_trained_alike(*models, program()["model"])
    x, y = data(ignored=True)
    assert means[0] == pytest.approx(F.cross_entropy(models[0](x), y).item(), rel=1e-5)


def test_skorch(run):
    skorch = pytest.importorskip("skorch")
    from sklearn.base import clone

    x, y = data()
    nets = []
    for losses in (crossent, TORCH):
        scope, calls = run("skorch", losses, Net=Net, skorch=skorch, X=x.numpy(), y=y.numpy())
        assert calls == (10 if losses is crossent else 0)
        np.testing.assert_allclose(scope["probabilities"].sum(1), 1, rtol=1e-6)
        nets.append(scope["net"])
    torch.manual_seed(1)
    assert_trained_alike(nets[0].module_, nets[1].module_, Net())
    again = clone(nets[0]).set_params(criterion__label_smoothing=0.3).initialize()
    assert isinstance(again.criterion_, crossent.CrossEntropyLoss)
    assert again.criterion_.label_smoothing == 0.3


def test_keras(run, tmp_path):
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("keras was imported with another backend than torch")
    x, y = data()
    weights, logged = [], []
    for losses in (crossent, None):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(4)])
        if losses is None:
            model.compile(
                optimizer=keras.optimizers.SGD(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            )
            history = model.fit(x, y, epochs=2, shuffle=False, verbose=0)
        else:
            scope, calls = run("Keras 3 on torch", losses, keras=keras, model=model, X=x, y=y)
            history = scope["history"]
            assert calls >= 2  # and once to see the shapes
            model.save(tmp_path / "model.keras")
            loaded = keras.saving.load_model(tmp_path / "model.keras")
            assert loaded.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))
        weights.append(model.get_weights())
        logged.append(history.history["loss"])
    np.testing.assert_allclose(*logged, rtol=1e-5)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_fastai(run):
    basics = pytest.importorskip("fastai.basics")
    from fastai.losses import CrossEntropyLossFlat

    models, kept = [], []
    for losses in (crossent, SimpleNamespace(CrossEntropyLoss=CrossEntropyLossFlat)):
        names = program()
        loader = basics.DataLoader(names["loader"].dataset, bs=8, shuffle=False, num_workers=0)
        dls = basics.DataLoaders(loader, loader)
        scope, calls = run("fastai", losses, model=names["model"], dls=dls, Learner=basics.Learner, SGD=basics.SGD)
        assert (calls > 8) == (losses is crossent)
        models.append(names["model"])
        kept.append([scope[name] for name in ("probabilities", "classes", "each")])
    assert_trained_alike(*models, program()["model"])
    for ours, theirs in zip(*kept, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-4, atol=1e-5)


# --- language models --------------------------------------------------------------------------------------------------


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]", *(f"w{i}" for i in range(40))]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", eos_token="[EOS]", model_max_length=16,
    )  # fmt: skip


SIZES = {"vocab_size": 46, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def language_model(transformers):
    torch.manual_seed(0)
    special = {"max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 5, "pad_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **special))


def ragged():
    """Make sequences whose counts of labels differ, so that a mean of means is another number."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for length in (12, 3, 7, 5, 11, 2, 9, 4):
        tokens = torch.randint(6, 46, (12,), generator=generator)
        labels = torch.where(torch.arange(12) < length, tokens, -100)
        examples.append({"input_ids": tokens, "labels": labels})
    return examples


def training(kind, tmp_path, **more):
    return kind(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1,
        optim="sgd", use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, seed=0, disable_tqdm=True, **more,
    )  # fmt: skip


def test_trainer(run, tmp_path):
    transformers, _ = pytest.importorskip("transformers", minversion="5.0"), pytest.importorskip("accelerate")
    models, logged = [], []
    for losses in (crossent, TORCH):
        model = language_model(transformers)
        arguments = training(transformers.TrainingArguments, tmp_path)
        names = {"transformers": transformers, "model": model, "arguments": arguments, "data": ragged()}
        scope, calls = run("transformers' Trainer", losses, **names)
        assert calls == (4 if losses is crossent else 0)
        models.append(model)
        logged.append([step["loss"] for step in scope["trainer"].state.log_history if "loss" in step])
    assert len(logged[0]) == 2
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert_trained_alike(*models, language_model(transformers))


def test_language_models_of_transformers(run):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model, plain = language_model(transformers), language_model(transformers)
    batch = {name: torch.stack([row[name] for row in ragged()]) for name in ("input_ids", "labels")}
    crossent.Logits.reset()
    scope, _ = run("transformers, language models", crossent, model=model, batch=batch)
    assert (crossent.Logits.formed, crossent.Logits.blocked) == (0, 1)
    loss = plain(**batch).loss
    loss.backward()
    torch.testing.assert_close(scope["loss"], loss)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_transformers(run):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model, batch = language_model(transformers), ragged()
    inputs = {name: torch.stack([row[name] for row in batch]) for name in ("input_ids", "labels")}
    theirs = model(**inputs).loss
    run("transformers", crossent, model=model)
    assert model.loss_function is crossent.models.huggingface.causal_lm_loss
    torch.testing.assert_close(model(**inputs).loss, theirs)


def test_trl(run, tmp_path):
    pytest.importorskip("accelerate")
    trl, datasets, transformers = (pytest.importorskip(name) for name in ("trl", "datasets", "transformers"))
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist()} for row in ragged()]
    models, logged = [], []
    for losses in (crossent, TORCH):
        model, arguments = language_model(transformers), training(trl.SFTConfig, tmp_path, bf16=False, max_length=16)
        names = {"trl": trl, "model": model, "arguments": arguments, "tokenizer": tokenizer()}
        scope, calls = run("TRL", losses, **names, data=datasets.Dataset.from_list(rows))
        assert calls == 0  # it computes head and loss itself
        models.append(model)
        logged.append([step["loss"] for step in scope["trainer"].state.log_history if "loss" in step])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert_trained_alike(*models, language_model(transformers))


def test_sentence_transformers(run, tmp_path):
    library, transformers = pytest.importorskip("sentence_transformers"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 16}
    transformers.BertModel(transformers.BertConfig(**SIZES, **still)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    sentences = [["w1 w2 w3", "w4 w5", "w6 w7 w8 w9"], ["w2 w3", "w5 w10 w11", "w7 w9"]]
    values, gradients = [], []
    for losses in (crossent, TORCH):
        again = copy.deepcopy(model)
        features = [dict(again.preprocess(side)) for side in sentences]
        scope, calls = run("sentence-transformers", losses, model=again, pairs=features, labels=torch.tensor([0, 2, 1]))
        assert calls == (1 if losses is crossent else 0)
        loss = scope["loss"]
        loss.backward()
        values.append(loss.detach())
        gradients.append([p.grad for p in again.parameters() if p.grad is not None])
    torch.testing.assert_close(*values)
    assert gradients[0]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
