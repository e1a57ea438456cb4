"""``crossent.defer`` inside transformers, PEFT, Trainer, Lightning, TRL, DDP and FSDP: the plain model's numbers, and no logits.

``make test-clients`` runs these, which take minutes; elsewhere they are skipped.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import crossent
from crossent import Logits

if not os.environ.get("CROSSENT_CLIENTS"):
    pytest.skip("make test-clients runs these", allow_module_level=True)
transformers = pytest.importorskip("transformers", minversion="5.0")
os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = pytest.mark.filterwarnings("default", "error:.*saves no memory")
HERE = Path(__file__).parent


def beside(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = beside("tiny")
V = tiny.VOCABULARY
BLOCK = 5 * V * 4  # bytes of five rows of logits
g = torch.Generator().manual_seed(5)
IDS = torch.randint(10, V, (2, 9), generator=g)
LABELS = IDS.masked_fill(torch.arange(9) < torch.tensor([[3], [0]]), -100)


@pytest.fixture(autouse=True)
def _counted():
    Logits.reset()


def llama(tied=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def step(model, **more):
    model.zero_grad()
    torch.manual_seed(3)
    loss = model(input_ids=IDS, labels=LABELS, **more).loss
    loss.backward()
    return {"loss": loss.detach(), **{k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}}


def assert_trains_the_same(model, plain, **more):
    before = Logits.blocked
    torch.testing.assert_close(step(model, **more), step(plain, **more), rtol=1e-4, atol=1e-5)
    assert Logits.formed == 0, Logits.report()
    assert Logits.blocked > before


# --- architectures ------------------------------------------------------------------------------------------------------

# Those of which a tiny model cannot be made of a configuration and input ids alone, and why.
NOT_BUILT = {
    "BltForCausalLM": "48 million parameters with every number small",
    "CohereCompassForCausalLM": "its rotary table asks for parameters a layer type that the default lacks",
    "DbrxForCausalLM": "its configuration is of two that only from_dict tells apart",
    "Dots3NoteForCausalLM": "its numbers differ from layer to layer",
    "Gemma3nForConditionalGeneration": "it needs timm",
    "Gemma4AssistantForCausalLM": "it runs inside of another model",
    "Gemma4UnifiedAssistantForCausalLM": "it runs inside of another model",
    "GitForCausalLM": "its loss takes off as many positions as an image has",
    "MptForCausalLM": "its configuration takes no dropout of 0.0",
    "MusicgenForCausalLM": "its input has a dimension of codebooks",
    "MusicgenMelodyForCausalLM": "its input has a dimension of codebooks",
    "ZambaForCausalLM": "its layers come in a pattern that is too long",
    "Zamba2ForCausalLM": "its layers come in a pattern that is too long",
}


def architectures():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as mapping

    found = {}
    for config in mapping:
        kinds = mapping[config]
        kind = kinds[0] if isinstance(kinds, tuple) else kinds
        found.setdefault((config.__name__, kind.__name__), (config, kind))
    return found


@pytest.mark.parametrize("names", architectures(), ids="-".join)
def test_every_causal_language_model(names):
    config, kind = architectures()[names]
    if kind.__name__ in NOT_BUILT:
        pytest.skip(NOT_BUILT[kind.__name__])
    torch.manual_seed(0)
    model = tiny.tiny(kind, config())
    expected = step(model)
    crossent.defer(model, max_bytes=BLOCK)
    torch.testing.assert_close(step(model), expected, rtol=1e-4, atol=1e-5)
    assert Logits.formed == 0, Logits.report()
    assert Logits.blocked


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "BertForTokenClassification"])
def test_classifiers_are_left_alone(name):
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": V,
    }
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**small, pad_token_id=0))
    with pytest.warns(UserWarning, match="no output embedding, and nothing was deferred"):
        assert crossent.defer(model) is model
    assert type(model) is kind
    labels = IDS[:, 0] % 2 if "Sequence" in name else IDS % 2
    model(input_ids=IDS, labels=labels).loss.backward()
    assert Logits.blocked == 0


# --- what is done with a model of transformers ----------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_life_of_a_model(tied, tmp_path):
    model, plain = crossent.defer(llama(tied), max_bytes=BLOCK), llama(tied)
    assert_trains_the_same(model, plain)
    assert_trains_the_same(model, plain, num_items_in_batch=torch.tensor(31))
    assert_trains_the_same(copy.deepcopy(model), plain)
    assert_trains_the_same(pickle.loads(pickle.dumps(model)), plain)
    for each in (model, plain):
        torch.manual_seed(0)
        each.resize_token_embeddings(V + 6, mean_resizing=False)
    plain.load_state_dict(model.state_dict())
    assert_trains_the_same(model, plain)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is transformers.LlamaForCausalLM
    assert_trains_the_same(crossent.defer(loaded), plain)
    texts = [each.generate(IDS, max_new_tokens=4, do_sample=False) for each in (model, plain)]
    assert torch.equal(*texts)
    model.gradient_checkpointing_enable()
    assert_trains_the_same(model, plain)
    crossent.undefer(model)
    assert type(model) is transformers.LlamaForCausalLM
    assert type(model.lm_head) is torch.nn.Linear


def test_labels_without_gradients():
    model, plain = crossent.defer(llama(), max_bytes=BLOCK), llama()
    with torch.no_grad():
        out = model(input_ids=IDS, labels=LABELS)
        by_position = model(IDS, None, None, None, None, LABELS)
        torch.testing.assert_close(out.loss, plain(input_ids=IDS, labels=LABELS).loss)
        assert isinstance(out.logits, Logits)
        assert isinstance(by_position.logits, Logits)
        assert type(model(input_ids=IDS).logits) is torch.Tensor
    assert Logits.formed == 0


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled(fullgraph):
    torch._dynamo.reset()
    model = crossent.defer(llama(), max_bytes=BLOCK)
    compiled = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
    got, right = step(compiled), step(llama())
    torch.testing.assert_close({k.removeprefix("_orig_mod."): t for k, t in got.items()}, right, rtol=1e-4, atol=1e-5)
    assert Logits.formed == 0
    assert Logits.blocked


ADAPTERS = {
    "LoRA on the head": {"target_modules": ["lm_head", "q_proj"]},
    "LoRA around it": {"target_modules": ["q_proj"]},
    "dropout": {"target_modules": ["lm_head"], "lora_dropout": 0.3},
    "DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "DoRA with dropout": {"target_modules": ["lm_head"], "use_dora": True, "lora_dropout": 0.3},
    "modules to save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("order", ["defer first", "PEFT first"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name, order):
    peft = pytest.importorskip("peft")
    models = []
    for deferred in (True, False):
        model = llama()
        if deferred and order == "defer first":
            crossent.defer(model, max_bytes=BLOCK)
        torch.manual_seed(1)
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, **ADAPTERS[name])
        )
        if deferred and order == "PEFT first":
            assert crossent.defer(model, max_bytes=BLOCK) is model
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    assert_trains_the_same(*models)


# --- trainers -----------------------------------------------------------------------------------------------------------

DATA = [
    {"input_ids": x, "labels": x.masked_fill(torch.rand(12, generator=g) < 0.3, -100)}
    for x in torch.randint(V, (16, 12), generator=g)
]


def own_loss(outputs, labels, num_items_in_batch=None):
    rows = outputs.logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(rows, labels[:, 1:].flatten(), reduction="sum") / (num_items_in_batch or 1)


def accuracy(evaluated):
    predicted = evaluated.predictions
    predicted = predicted.argmax(-1) if predicted.ndim == 3 else predicted
    return {"accuracy": float((predicted[:, :-1] == evaluated.label_ids[:, 1:]).mean())}


def train(model, folder, loss=None, metrics=None, before_metrics=None, **settings):
    arguments = transformers.TrainingArguments(
        folder, per_device_train_batch_size=2, per_device_eval_batch_size=4, max_steps=3, logging_steps=1, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=0.05, optim="sgd", **settings,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=DATA, eval_dataset=DATA[:6], compute_loss_func=loss, compute_metrics=metrics,
        preprocess_logits_for_metrics=before_metrics,
    )  # fmt: skip
    trainer.train()
    evaluated = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor([*losses, evaluated["eval_loss"], evaluated.get("eval_accuracy", 0.0)])


RUNS = {
    "accumulation 1": {},
    "accumulation 2": {"gradient_accumulation_steps": 2},
    "accumulation 4": {"gradient_accumulation_steps": 4},
    "smoothing": {"label_smoothing_factor": 0.1},
    "bf16": {"bf16": True},
    "compute_loss_func": {"loss": own_loss},
    "loss only": {"prediction_loss_only": True},
    "predictions": {"metrics": accuracy, "before_metrics": lambda logits, labels: logits.argmax(-1)},
}


@pytest.mark.parametrize("name", RUNS)
def test_trainer(name, tmp_path):
    losses = [train(m, tmp_path, **RUNS[name]) for m in (crossent.defer(llama(), max_bytes=BLOCK), llama())]
    close = {"rtol": 2e-3, "atol": 2e-3} if name == "bf16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(*losses, **close)
    assert Logits.formed == 0, Logits.report()
    assert Logits.blocked >= 3


@pytest.mark.filterwarnings("ignore:.*saves no memory")
def test_trainer_that_is_asked_for_all_logits(tmp_path):
    """Then they are formed where the trainer writes them to NumPy."""
    with pytest.warns(UserWarning, match="numpy formed the logits of a deferred head"):
        losses = [train(m, tmp_path, metrics=accuracy) for m in (crossent.defer(llama(), max_bytes=BLOCK), llama())]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    assert Logits.formed >= 1


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Wrapped(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch, index):
            loss = self.model(**batch).loss
            self.losses.append(loss.detach())
            return loss

        def validation_step(self, batch, index):
            self.losses.append(self.model(**batch).loss)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    runs = []
    for model in (Wrapped(llama()), crossent.defer(Wrapped(llama()), max_bytes=BLOCK)):
        trainer = lightning.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            default_root_dir=tmp_path, enable_model_summary=False,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(DATA, batch_size=4)
        trainer.fit(model, loader, loader)
        runs.append(torch.stack(model.losses))
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-5)
    assert Logits.formed == 0
    assert Logits.blocked >= 8


def test_trls_log_probabilities_and_entropies():
    """What its preference and policy-gradient trainers compute of logits."""
    utils = pytest.importorskip("trl.trainer.utils")
    results = []
    for model in (crossent.defer(llama(), max_bytes=BLOCK), llama()):
        model.zero_grad()
        logits = model(input_ids=IDS).logits[:, :-1] / 0.7
        log_p = utils.selective_log_softmax(logits, IDS[:, 1:])
        entropy = utils.entropy_from_logits(logits)
        (log_p.mean() + 0.1 * entropy.mean()).backward()
        results.append([log_p.detach(), entropy.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert Logits.formed == 0


# --- processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["ddp", "fsdp", "tp"])
def test_two_processes(layout):
    """``defer_processes.py`` compares losses and gradients with a model that saw both processes' data, which differ."""
    run = subprocess.run(
        [sys.executable, str(HERE / "defer_processes.py"), layout], capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stdout.count("right") >= 1
