"""``crossent.defer`` inside transformers, PEFT, Trainer, Lightning, TRL, DDP and FSDP: the plain model's numbers, and no logits.

``make test-clients`` runs these, which take minutes; elsewhere they are skipped.
"""

from __future__ import annotations

import copy
import importlib
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
    "MusicFlamingoForConditionalGeneration": "its configuration is of two that only from_dict tells apart",
    "Nemotron3_5TranscribeForConditionalGeneration": "its blank token is a class that a small vocabulary has not",
    "T5Gemma2ForConditionalGeneration": "its two halves take numbers that are not small together",
    "VibeVoiceAsrForConditionalGeneration": "686 million parameters with every number small",
    "VoxtralRealtimeForConditionalGeneration": "it needs sound",
    "LukeForMaskedLM": "129 million parameters with every number small",
    "NeoMMEForMaskedLM": "its rotary table wants wide heads",
    "PerceiverForMaskedLM": "260 million parameters with every number small",
    "ReformerForMaskedLM": "it is the causal model with one number changed",
}
# Those that make logits without a call of a head.
NOT_CALLED = {
    "FSMTForConditionalGeneration": "its output embedding is an Embedding, which defer refuses",
    "MobileBertForMaskedLM": "it multiplies by the weights of two layers, which is counted and told of",
}


def architectures(of):
    from transformers.models.auto import modeling_auto

    found, mapping = {}, getattr(modeling_auto, f"MODEL_FOR_{of}_MAPPING")
    for config in mapping:
        kinds = mapping[config]
        kind = kinds[0] if isinstance(kinds, tuple) else kinds
        found.setdefault((config.__name__, kind.__name__), (config, kind))
    return found


def assert_learns_and_evaluates_the_same(config, kind):
    if kind.__name__ in NOT_BUILT:
        pytest.skip(NOT_BUILT[kind.__name__])
    if kind.__name__ in NOT_CALLED:
        pytest.skip(NOT_CALLED[kind.__name__])
    torch.manual_seed(0)
    model = tiny.tiny(kind, config())
    expected = step(model)
    crossent.defer(model, max_bytes=BLOCK)
    torch.testing.assert_close(step(model), expected, rtol=1e-4, atol=1e-5)
    blocked = Logits.blocked
    assert blocked
    model.eval()
    with torch.no_grad():
        evaluated = model(input_ids=IDS, labels=LABELS)
        torch.testing.assert_close(
            evaluated.loss, crossent.undefer(model)(input_ids=IDS, labels=LABELS).loss, rtol=1e-4, atol=1e-5
        )
    assert Logits.blocked > blocked
    assert Logits.formed == 0, Logits.report()


@pytest.mark.parametrize("names", architectures("CAUSAL_LM"), ids="-".join)
def test_every_causal_language_model(names):
    assert_learns_and_evaluates_the_same(*architectures("CAUSAL_LM")[names])


@pytest.mark.parametrize("names", architectures("SEQ_TO_SEQ_CAUSAL_LM"), ids="-".join)
def test_every_encoder_with_a_decoder(names):
    assert_learns_and_evaluates_the_same(*architectures("SEQ_TO_SEQ_CAUSAL_LM")[names])


@pytest.mark.parametrize("names", architectures("MASKED_LM"), ids="-".join)
def test_every_masked_language_model(names):
    assert_learns_and_evaluates_the_same(*architectures("MASKED_LM")[names])


@pytest.mark.filterwarnings("ignore:.*saves no memory")
def test_models_that_do_not_call_a_head():
    fsmt, mobile = (getattr(transformers, name) for name in NOT_CALLED)
    with pytest.raises(TypeError, match="got Embedding"):
        crossent.defer(tiny.tiny(fsmt, fsmt.config_class()))
    model = crossent.defer(tiny.tiny(mobile, mobile.config_class()))
    with pytest.warns(UserWarning, match="The model never called its head"):
        step(model)
    assert Logits.formed == 1


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


# --- variants of models and of calls ----------------------------------------------------------------------------------------

TINY = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODERS = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "soft-capped": ("Gemma2", {"final_logit_softcapping": 2.0}),
    "scaled": ("Cohere", {"logit_scale": 0.3}),
    "divided": ("Granite", {"logits_scaling": 3.0}),
}  # fmt: skip
OTHERS = {"bart": "BartForConditionalGeneration", "t5": "T5ForConditionalGeneration", "bert": "BertForMaskedLM"}


def variant(name):
    torch.manual_seed(0)
    if name in OTHERS:
        kind = getattr(transformers, OTHERS[name])
        return tiny.tiny(kind, kind.config_class())
    kind, numbers = DECODERS[name]
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**TINY, **numbers))


def learned(model, loss):
    loss.backward()
    return loss.detach()


def of_kept(which, positions):
    """The logits of some positions alone."""

    def ask(model):
        x = model(input_ids=IDS, logits_to_keep=which).logits[:, : len(positions)]
        return learned(model, F.cross_entropy(x.reshape(-1, V), IDS[:, positions].flatten()))

    return ask


def hidden_states(model):
    out = model(input_ids=IDS, labels=LABELS, output_hidden_states=True)
    return [learned(model, out.loss), *(out.get("hidden_states") or out.decoder_hidden_states)]


def of_a_tuple(model):
    out = model(input_ids=IDS, labels=LABELS, return_dict=False)
    own = F.cross_entropy(out[1][:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    return learned(model, out[0] + own)


def resized(model):
    torch.manual_seed(2)
    model.resize_token_embeddings(V + 5, mean_resizing=False)
    return learned(model, model(input_ids=IDS, labels=LABELS).loss)


def checkpointed(model):
    model.gradient_checkpointing_enable()
    return learned(model, model(input_ids=IDS, labels=LABELS).loss)


def evaluated(mode, **more):
    def ask(model):
        with mode():
            out = model.eval()(input_ids=IDS, labels=LABELS, **more)
        return [out[0], out[1].argmax(-1)]

    return ask


def compiled(fullgraph):
    def ask(model):
        torch._dynamo.reset()
        call = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
        return learned(model, call(input_ids=IDS, labels=LABELS).loss)

    return ask


def with_a_term_of_logits(model):
    out = model(input_ids=IDS, labels=LABELS)
    return learned(model, out.loss + 0.1 * out.logits.logsumexp(-1).square().mean())


def of_a_copy(copied):
    def ask(model):
        other = copied(model)
        loss = learned(other, other(input_ids=IDS, labels=LABELS).loss)
        return [loss, *(p.grad for p in other.parameters())]

    return ask


ASKED = {
    "a tuple": (of_a_tuple, [*DECODERS, *OTHERS]),
    "hidden states": (hidden_states, [*DECODERS, *OTHERS]),
    "logits_to_keep": (of_kept(4, [6, 7, 8]), DECODERS),
    "positions to keep": (of_kept(torch.tensor([2, 5, 7]), [3, 6, 8]), DECODERS),
    "shift_labels": (lambda m: learned(m, m(input_ids=IDS, labels=LABELS, shift_labels=LABELS.roll(-1, 1)).loss), DECODERS),
    "resized": (resized, [*DECODERS, *OTHERS]),
    "checkpointed": (checkpointed, [*DECODERS, *OTHERS]),
    "no_grad": (evaluated(torch.no_grad), [*DECODERS, *OTHERS]),
    "no_grad, a tuple": (evaluated(torch.no_grad, return_dict=False), [*DECODERS, *OTHERS]),
    "inference mode": (evaluated(torch.inference_mode), [*DECODERS, *OTHERS]),
    "compiled": (compiled(False), ["llama", *OTHERS]),
    "compiled whole": (compiled(True), DECODERS),  # the others make an nn.CrossEntropyLoss inside: docs/defer.md
    "a term of the logits": (with_a_term_of_logits, [*DECODERS, *OTHERS]),
    "a pickle": (of_a_copy(lambda m: pickle.loads(pickle.dumps(m))), [*DECODERS, *OTHERS]),
    "a copy": (of_a_copy(copy.deepcopy), [*DECODERS, *OTHERS]),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "name"), [(asked, name) for asked, (_, names) in ASKED.items() for name in names])
def test_variants(asked, name):
    results = []
    for deferred in (True, False):
        model = variant(name)
        model = crossent.defer(model, max_bytes=BLOCK) if deferred else model
        torch.manual_seed(1)
        results.append([ASKED[asked][0](model), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert Logits.formed == 0, Logits.report()
    assert Logits.blocked


@pytest.mark.parametrize("name", ["llama", "scaled", "divided"])
def test_a_second_deferred_model_teaches(name):
    results = []
    for deferred in (True, False):
        student, teacher = variant("tied"), variant(name)
        if deferred:
            crossent.defer(student, max_bytes=BLOCK)
            crossent.defer(teacher, always=True, max_bytes=BLOCK)
        with torch.no_grad():
            q = F.softmax(teacher(input_ids=IDS).logits / 2, -1)
        log_p = F.log_softmax(student(input_ids=IDS).logits / 2, -1)
        loss = F.kl_div(log_p.flatten(0, 1), q.flatten(0, 1), reduction="batchmean")
        results.append([learned(student, loss), *(p.grad for p in student.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert Logits.formed == 0, Logits.report()
    assert len(Logits.heads) == 2


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


# --- TRL ------------------------------------------------------------------------------------------------------------------


def words_of(folder):
    """Save a tokenizer and a model, since some trainers load a reference from where the model came from."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[PAD]": 0, "[UNK]": 1, "</s>": 2} | {f"w{k}": k for k in range(3, V)}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", model_max_length=16
    )
    tokenizer.save_pretrained(folder / "model")
    variant("llama").save_pretrained(folder / "model")
    return tokenizer


def said(generator, n):
    return " ".join(f"w{int(k)}" for k in torch.randint(3, V, (n,), generator=generator))


def trained_by(make, folder, order):
    """Train and evaluate; return every number that the trainer logged, but times, and the parameters."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "model")
    if order == "defer first":
        crossent.defer(model, max_bytes=BLOCK)
    trainer = make(model)
    if order == "then defer":
        crossent.defer(trainer.model, max_bytes=BLOCK)
    torch.manual_seed(0)
    trainer.train()
    trainer.evaluate()
    timed = ("runtime", "second", "flos", "time")
    logged = [
        {k: float(v) for k, v in entry.items() if not any(word in k for word in timed)}
        for entry in trainer.state.log_history
    ]
    return logged, {name: p.detach() for name, p in trainer.model.named_parameters()}


def assert_trainer_agrees(make, folder, order, close=1e-4):
    logged, parameters = trained_by(make, folder, order)
    counted = Logits.formed, Logits.blocked, {name: dict(counts) for name, counts in Logits.heads.items()}
    right, theirs = trained_by(make, folder, "never")
    assert logged[0].keys() >= {"loss", "grad_norm"}
    assert [entry.keys() for entry in logged] == [entry.keys() for entry in right]
    for ours, wanted in zip(logged, right, strict=True):
        assert ours == pytest.approx(wanted, rel=close, abs=close)
    torch.testing.assert_close(parameters, theirs, rtol=close, atol=close)
    return counted


SETTINGS = {
    "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 2, "logging_steps": 1, "report_to": [],
    "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True, "learning_rate": 0.05, "optim": "sgd",
    "gradient_checkpointing": False, "max_length": 16,
}  # fmt: skip
orders = pytest.mark.parametrize("order", ["defer first", "then defer"])

# How its SFTTrainer can be asked for a loss: settings, and what of it is computed in blocks.
SFT = {
    "nll": ({}, 0),
    "chunked_nll": ({"loss_type": "chunked_nll"}, 0),
    "dft": ({"loss_type": "dft"}, 0),
    "smoothed": ({"label_smoothing_factor": 0.1}, 2),
    "a loss of one's own": ({"compute_loss_func": own_loss}, 1),
    "accumulated": ({"gradient_accumulation_steps": 2}, 0),
    "bf16": ({"bf16": True}, 0),
    "checkpointed": ({"gradient_checkpointing": True}, 0),
    "predictions": ({"compute_metrics": accuracy, "preprocess_logits_for_metrics": lambda x, _: x.argmax(-1)}, 0),
    "LoRA": ({"peft_config": {"target_modules": ["q_proj"]}}, 0),
    "LoRA, head saved": ({"peft_config": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}}, 0),
}  # fmt: skip


@orders
@pytest.mark.parametrize("name", SFT)
def test_trls_sft_trainer(name, order, tmp_path):
    """It multiplies by the head's weight in blocks of its own, and calls the head where that will not do."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{k: v[: 6 + i % 7].tolist() for k, v in row.items()} for i, row in enumerate(DATA)]
    data, tokenizer = datasets.Dataset.from_list(rows), words_of(tmp_path)
    settings, blocks = SFT[name]
    of_trainer = {
        k: settings[k]
        for k in settings
        if k in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics")
    }
    of_run = {k: v for k, v in settings.items() if k not in of_trainer and k != "peft_config"}

    def make(model):
        if "peft_config" in settings:
            peft = pytest.importorskip("peft")
            of_trainer["peft_config"] = peft.LoraConfig(r=3, init_lora_weights=False, **settings["peft_config"])
        arguments = trl.SFTConfig(str(tmp_path), **(SETTINGS | of_run))
        return trl.SFTTrainer(
            model, args=arguments, train_dataset=data, eval_dataset=data.select(range(6)), processing_class=tokenizer, **of_trainer
        )  # fmt: skip

    formed, blocked, heads = assert_trainer_agrees(make, tmp_path, order, 3e-3 if name == "bf16" else 1e-4)
    assert (formed, blocked) == (0, 2 * blocks), Logits.report()
    evaluations = sum(counts.get("plain", 0) for counts in heads.values())
    assert evaluations == (
        3 if name in ("smoothed", "a loss of one's own", "predictions") else 0
    )  # told, and no labels


PREFERENCES = {
    "DPO": ("DPO", {}, 0),
    "DPO and SFT": ("DPO", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, 0),
    "KTO": ("KTO", {}, 0),
    "CPO": ("experimental.cpo.CPO", {}, 16),
    "ORPO": ("experimental.orpo.ORPO", {}, 16),
}  # fmt: skip


@orders
@pytest.mark.parametrize("name", PREFERENCES)
def test_trls_preference_trainers(name, order, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    path, settings, blocks = PREFERENCES[name]
    module, _, kind = path.rpartition(".")
    home = importlib.import_module(f"trl.{module}") if module else trl
    draw, rows = torch.Generator().manual_seed(2), []
    for k in range(8):
        row = {"prompt": said(draw, 3), "chosen": " " + said(draw, 4), "rejected": " " + said(draw, 4 + k % 2)}
        rows.append(
            {"prompt": row["prompt"], "completion": row["chosen"], "label": k % 2 == 0} if kind == "KTO" else row
        )
    data, tokenizer = datasets.Dataset.from_list(rows), words_of(tmp_path)

    def make(model):
        arguments = getattr(home, f"{kind}Config")(str(tmp_path), **(SETTINGS | settings))
        return getattr(home, f"{kind}Trainer")(
            model, args=arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer
        )

    formed, blocked, _ = assert_trainer_agrees(make, tmp_path, order)
    assert (formed, blocked) == (0, blocks), Logits.report()


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
