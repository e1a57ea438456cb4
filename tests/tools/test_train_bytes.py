"""``crossent train bytes``: how bits are counted, that both ways train alike, and what is said of it."""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections import Counter
from dataclasses import replace
from math import log2

import pytest
import torch
from click.testing import CliRunner
from tools.training import CSP, Links

from crossent.tools import cli
from crossent.tools.train.conclusions import QUICK
from crossent.tools.train.figure import svg, together
from crossent.tools.train.language import compressors, heads, model, run, tables, text
from crossent.tools.train.language.conclusions import against_compressors, agreement, learnt, memory, paragraph, time
from crossent.tools.train.language.panels import PANELS
from crossent.tools.train.language.report import command, document, notices, write_page
from crossent.tools.train.language.run import Corpus, LanguageSettings, Point, Step
from crossent.tools.train.language.text import Text, TextError, Vocabulary, read_text, split
from crossent.tools.train.panel import DARK, LIGHT

PROSE = ("The quick brown fox jumps over the lazy dog.\n   Pack my box with five dozen jugs: 12 of é.\n" * 80).encode()


class Silent:
    """Watches and prints nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, doing, done, of):
        pass

    def leave(self, line):
        pass


def trained(bar=None, **changed):
    asked = LanguageSettings(**{"steps": 12, "quick": True, **changed})
    return run.run(asked, split("a text", PROSE), bar or Silent())


def png_of(results):
    return together(PANELS, results).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def results():
    return trained()


@pytest.fixture
def unmeasured(monkeypatch):
    """Leave the memory alone, which takes two processes."""
    monkeypatch.setattr(heads, "measure_peaks", lambda shape: dict.fromkeys(heads.WAYS))


@pytest.fixture(scope="module")
def words():
    return trained(vocab="words")


# --- text -------------------------------------------------------------------------------------------------------------


def test_the_tail_is_the_last_tenth_and_nothing_is_lost():
    cut = split("a text", PROSE)
    assert cut.train + cut.tail == PROSE
    assert len(cut.tail) == round(0.1 * len(PROSE))
    long = split("a text", b"0123456789" * 200_000)
    assert len(long.tail) == text.MOST_HELD_OUT
    assert long.notes == ()


def test_a_long_text_is_cut_and_that_is_said():
    cut = split("a text", PROSE * 3, most=len(PROSE) - 5)
    assert cut.train + cut.tail == PROSE[:-5]
    assert cut.notes == (f"Only the first {(len(PROSE) - 5) >> 10} KiB of a text are used.",)
    # not even in the middle of a letter is that an error
    at = PROSE.rindex("é".encode()) + 1
    assert split("a text", PROSE, most=at).tail.endswith(b"\xc3")


def test_pythons_documentation_is_the_default_and_is_told_by_its_hash():
    import hashlib
    from pydoc_data.topics import topics

    found = read_text(None)
    assert f"Python {sys.version.split()[0]}" in found.name
    assert found.sha256 == hashlib.sha256(found.train + found.tail).hexdigest()
    assert (found.train + found.tail).decode() == "\n".join(topics[name] for name in sorted(topics))


@pytest.mark.parametrize("kind", ["bytes", "words"])
@pytest.mark.parametrize("data", [PROSE, b"unseen words here", bytes(range(256)), "naïve – 日本".encode(), b""])
def test_any_bytes_come_back(kind, data):
    vocab = text.vocabulary(kind, PROSE)
    ids = vocab.encode(data)
    assert vocab.decode(ids) == data
    assert vocab.lengths[ids].sum() == len(data)


def test_words_are_those_that_occur_twice_and_ties_are_broken_by_their_bytes(monkeypatch):
    train = b"bb aa cc aa bb cc cc zz"
    counts = Counter(piece for piece in text.PIECE.findall(train) if len(piece) > 1)
    assert counts == {b"bb": 1, b" aa": 2, b" cc": 3, b" bb": 1, b" zz": 1}
    assert Vocabulary.of_words(train).pieces == (b" aa", b" cc")
    monkeypatch.setattr(text, "MOST_CLASSES", 257)
    assert Vocabulary.of_words(train).pieces == (b" cc",)
    assert Vocabulary.of_words(b" zz yy zz yy").pieces == (b" yy",)


def test_what_is_no_class_is_written_in_bytes():
    vocab = Vocabulary.of_words(b" the the dog")
    assert vocab.encode(b" the dog").tolist() == [256, *b" dog"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "must have at least 4096 bytes to learn from, got 0"),
        (b"short", "must have at least 4096 bytes to learn from, got 5"),
        (b"\x7fELF\0" * 2000, "must be text, got a byte 0: it looks like a binary file"),
        (b"caf\xe9 " * 2000, "must be UTF-8 text, got the byte 0xe9 at 3: convert it to UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(data, said, tmp_path):
    path = tmp_path / "given"
    path.write_bytes(data)
    with pytest.raises(TextError, match=re.escape(f"{path} {said}")):
        read_text(path)


# --- how bits are counted ---------------------------------------------------------------------------------------------


def test_frequencies_by_hand():
    found = compressors.frequencies(Text("", b"abab", b"ab", ""))
    p_a = p_b = (2 + 1) / (4 + 256)
    assert found.uniform == 8
    assert found.unigram == pytest.approx(-(log2(p_a) + log2(p_b)) / 2)
    # a is followed by b twice, b by a once
    b_after_a, a_after_b = (2 + p_b) / (2 + 1), (1 + p_a) / (1 + 1)
    assert found.bigram == pytest.approx(-(log2(a_after_b) + log2(b_after_a)) / 2)


def test_compressors_are_counted_in_bits_of_the_tail():
    cut = split("a text", PROSE)
    found = {each.name: each for each in compressors.compressors(cut)}
    assert list(found) == ["zlib", "bz2", "lzma"]
    alone = 8 * len(zlib.compress(cut.tail, 9)) / len(cut.tail)
    after = 8 * (len(zlib.compress(PROSE, 9)) - len(zlib.compress(cut.train, 9))) / len(cut.tail)
    assert found["zlib"] == ("zlib", alone, after)


class Knowing(torch.nn.Module):
    """Gives a byte the probabilities of a table, whatever came before but the last."""

    def __init__(self, log_p):
        super().__init__()
        self.log_p, self.head = log_p, torch.eye(log_p.shape[1])

    def forward(self, tokens):
        return self.log_p[tokens]


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_the_bits_of_the_tail_are_those_of_its_tokens_one_by_one(kind):
    corpus = Corpus(split("a text", PROSE), kind)
    classes = len(corpus.vocabulary)
    log_p = torch.randn(classes, classes, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    tail = corpus.vocabulary.encode(corpus.text.tail)
    before = [int(corpus.train[-1]), *tail[:-1]]
    by_hand = -sum(float(log_p[a, b]) for a, b in zip(before, tail, strict=True)) / math.log(2) / len(corpus.text.tail)
    assert corpus.score(Knowing(log_p)) == pytest.approx(by_hand, rel=1e-5)


def test_all_classes_alike_cost_8_bits_a_byte_and_log2_of_their_number_a_word():
    corpus = Corpus(split("a text", PROSE), "bytes")
    assert corpus.score(model.build(256, 0)) == pytest.approx(8, rel=1e-6)
    words = Corpus(split("a text", PROSE), "words")
    classes, tokens = len(words.vocabulary), len(words.tail)
    expected = tokens * log2(classes) / len(words.text.tail)
    assert words.score(model.build(classes, 0)) == pytest.approx(expected, rel=1e-6)


def test_words_and_bytes_count_the_same_bytes_of_a_batch():
    for kind in ("bytes", "words"):
        corpus = Corpus(split("a text", PROSE), kind)
        tokens = corpus.batch(torch.Generator().manual_seed(0))
        assert tokens.shape == (run.SEQUENCES, model.CONTEXT)
        size = sum(len(corpus.vocabulary.decode(row)) for row in tokens[:, 1:].tolist())
        nats = 1.5
        assert corpus.bits_per_byte(nats, tokens) == pytest.approx(nats * tokens[:, 1:].numel() / math.log(2) / size)


def test_the_model_sees_nothing_of_what_it_predicts():
    built = model.build(256, 0)
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    tokens = torch.randint(256, (1, model.CONTEXT))
    changed = tokens.clone()
    changed[0, 70:] = (changed[0, 70:] + 1) % 256
    with torch.no_grad():
        one, other = built(tokens), built(changed)
    torch.testing.assert_close(one[:, :70], other[:, :70])
    assert not torch.allclose(one[:, 70], other[:, 70])
    assert not torch.allclose(one[:, 75:], other[:, 75:])


# --- both ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [256, 5000])
def test_both_ways_give_the_same_loss_and_gradients(classes):
    hidden, weight, tokens = torch.randn(4, 64, 32), torch.randn(classes, 32) / 4, torch.randint(classes, (4, 64))
    found = {}
    for name, way in heads.WAYS.items():
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = way(*leaves, tokens)
        found[name] = (loss.detach(), *torch.autograd.grad(loss, leaves))
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", ["results", "words"])
def test_both_ways_train_alike(which, request):
    results = request.getfixturevalue(which)
    torch_way, ours = results.ways
    assert (torch_way.name, ours.name) == ("torch", "crossent")
    assert len(torch_way.steps) == len(ours.steps) == results.settings.compared == run.QUICK_COMPARED
    assert results.steps[: len(ours.steps)] == ours.steps
    assert abs(torch_way.steps[0].bits - ours.steps[0].bits) < 1e-5
    assert results.difference < 1e-5
    assert results.drift < 1e-3
    assert torch_way.steps != ours.steps  # they were timed apart


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of other systems begins elsewhere")
def test_memory_is_that_of_the_logits_that_are_kept():
    shape = heads.Shape(8, 128, 64, 8192)
    peaks = heads.measure_peaks(shape)
    logits, gradients = 4 * 8 * 128 * 8192, 4 * 64 * (8192 + 8 * 128)
    assert peaks["torch"] >= 2 * logits
    assert gradients < peaks["crossent"] < 0.6 * peaks["torch"]


def test_a_seed_fixes_the_training(results, unmeasured):
    again, other = trained(), trained(seed=1)
    assert [step.bits for step in again.steps] == [step.bits for step in results.steps]
    assert (again.bits, again.sample) == (results.bits, results.sample)
    assert [step.bits for step in other.steps] != [step.bits for step in results.steps]


def test_it_learns(results, words):
    for each in (results, words):
        assert each.steps[-1].bits < 0.8 * each.steps[0].bits
        assert each.bits < 0.8 * each.steps[0].bits
        assert each.curve[-1].step == len(each.steps) == 12
        assert all(a.seconds < b.seconds for a, b in zip(each.curve, each.curve[1:], strict=False))
    assert results.steps[0].bits == pytest.approx(8)


def test_minutes_end_the_training(unmeasured):
    ended = trained(minutes=0.001)
    assert ended.complete
    assert len(ended.steps) == run.QUICK_COMPARED
    assert ended.curve[-1].step == len(ended.steps)


def test_one_step_is_enough(unmeasured):
    ended = trained(steps=1)
    assert len(ended.steps) == ended.settings.compared == ended.curve[-1].step == 1
    assert ended.ways[1].median("seconds") == ended.steps[0].seconds
    assert png_of(ended)


def test_an_interrupt_keeps_the_model_as_it_was_and_before_the_comparison_nothing(results, unmeasured):
    class Impatient(Silent):
        def __init__(self, steps):
            self.left = steps

        def __call__(self, doing, done, of):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    assert trained(bar=Impatient(3)) is None
    cut = trained(bar=Impatient(10))
    assert not cut.complete
    assert len(cut.steps) == cut.curve[-1].step == 10
    assert [step.bits for step in cut.steps] == [step.bits for step in results.steps[:10]]
    assert notices(cut)[1] == "Interrupted after 10 steps: the model is scored as it was then."


def test_a_text_that_is_a_single_word_over_and_over_is_refused():
    with pytest.raises(TextError, match="must have more than 256 words to learn from, got 121"):
        Corpus(split("a text", b"a" * 4096), "words")


def test_the_sample_is_made_of_characters_that_move_no_cursor(results, words):
    for each in (results, words):
        assert all(char.isprintable() or char == "\n" for char in each.sample)
        assert len(each.sample) >= run.QUICK_SAMPLE_BYTES / 3


# --- what is said -----------------------------------------------------------------------------------------------------


def told(results, bits=2.0, torch_steps=None, our_steps=None, peaks=(90_000_000, 30_000_000)):
    """Make up a run that is not quick."""
    steps = (Step(8.0, 0.1, 0.02, 8.0),) * 20
    torch_way = results.ways[0]._replace(steps=torch_steps or steps, peak=peaks[0])
    ours = results.ways[1]._replace(steps=our_steps or steps, peak=peaks[1])
    return replace(
        results,
        settings=replace(results.settings, quick=False),
        ways=(torch_way, ours),
        curve=(Point(600, 12.3, bits),),
        frequencies=compressors.Frequencies(8.0, 4.7, 3.3),
        compressed=tuple(
            compressors.Compressed(*each) for each in (("zlib", 2.1, 1.9), ("bz2", 2.0, 1.5), ("lzma", 2.0, 1.4))
        ),
    )


def test_a_quick_run_claims_nothing(results):
    assert paragraph(results) == QUICK


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (2.1, "it has learnt 1.200 bits more than which byte follows which."),
        (3.29, "no clear difference to the pairs."),
        (3.9, "it has not yet learnt which byte follows which."),
    ],
)
def test_what_was_learnt_is_told_as_it_is(results, bits, said):
    assert learnt(told(results, bits)).endswith(said)
    assert f"After 600 steps, 12 s of training, the model needs {bits:.3f} bits" in learnt(told(results, bits))


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (2.1, "zlib (1.900), bz2 (1.500) and lzma (1.400) need fewer."),
        (1.7, "zlib (1.900) needs more and bz2 (1.500) and lzma (1.400) need fewer."),
        (1.2, "zlib (1.900), bz2 (1.500) and lzma (1.400) need more."),
        (1.41, "zlib (1.900) and bz2 (1.500) need more and lzma (1.400) needs about as many."),
    ],
)
def test_compressors_are_ranked_as_they_are(results, bits, said):
    assert against_compressors(told(results, bits)).endswith(said)


def test_agreement_is_only_claimed_where_it_is(results):
    same = told(results, our_steps=(Step(8.0, 0.1, 0.02, 7.99999),) * 19 + (Step(8.003, 0.1, 0.02, 8.003),))
    assert "differ by at most 1e-05 bits per byte in the first 20 steps, rounding; trained each" in agreement(same)
    assert agreement(same).endswith("from the same seed, where rounding grows from step to step, by at most 0.003.")
    off = told(results, our_steps=(Step(8.0, 0.1, 0.02, 8.2),) * 20)
    assert "differ by at most 0.2 bits per byte in the first 20 steps, more than rounding explains;" in agreement(off)


def test_time_and_memory_have_their_ratio(results):
    faster = told(results, our_steps=(Step(8.0, 0.09, 0.01, 8.0),) * 20)
    assert (
        time(faster)
        == "They take 20.0 ms of a step with the logits and 10.0 ms without, 0.50 times as long, which is 11% of that step."
    )
    assert "as long" not in time(told(results))
    assert (
        "by 90.0 MB with the logits of all 1024 tokens and by 30.0 MB with linear_cross_entropy, 0.33 times as much."
        in (memory(faster))
    )
    assert "not measured" in memory(told(results, peaks=(None, None)))


def test_the_tables_hold_the_numbers(results, words):
    table = tables.costs(told(results, 1.7))
    assert [row[0] for row in table.rows] == [
        "all bytes alike", "frequencies of bytes", "frequencies of pairs", "zlib", "the model", "bz2", "lzma"
    ]  # fmt: skip
    assert table.marked == {(4, 2)}
    assert table.rows[4] == ("the model", "", "1.700")
    assert table.rows[3] == ("zlib", "2.100", "1.900")
    assert len(tables.costs(words).notes) == 2
    rows = tables.ways(told(results)).rows
    assert rows[1] == ("linear_cross_entropy", "100.0", "20.0", "30.0")
    assert tables.ways(told(results, peaks=(None, None))).rows[0][3] == "–"


# --- what is written --------------------------------------------------------------------------------------------------


def keys(value):
    """Keep of a document its keys and the types of what they hold."""
    if isinstance(value, dict):
        return {key: keys(each) for key, each in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__


STEP = {"bits": "float", "seconds": "float", "head_seconds": "float", "other_way": "float"}
SCHEMA = {
    "schema": "str", "complete": "bool",
    "settings": {
        "vocab": "str", "text": "NoneType", "steps": "int", "minutes": "NoneType", "seed": "int", "quick": "bool", "threads": "int",
    },
    "versions": {"crossent": "str", "python": "str", "torch": "str", "numpy": "str", "machine": "str"},
    "seconds": "float",
    "text": {
        "name": "str", "sha256": "str", "train_bytes": "int", "tail_bytes": "int", "train_tokens": "int", "tail_tokens": "int",
    },
    "shape": {"sequences": "int", "length": "int", "features": "int", "classes": "int"},
    "parameters": "int", "bits_per_byte": "float",
    "frequencies": {"uniform": "float", "unigram": "float", "bigram": "float"},
    "compressors": [{"name": "str", "alone": "float", "after": "float"}],
    "ways": [
        {"name": "str", "median_step_seconds": "float", "median_head_seconds": "float", "peak_bytes": "int",
            "steps": [{**STEP, "other_way": "NoneType"}],
        }
    ],
    "largest_difference": "float", "largest_drift": "float",
    "curve": [{"step": "int", "seconds": "float", "bits": "float"}],
    "training": [STEP],
    "sample": "str", "findings": "str",
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="no peak is measured there")
def test_the_document_has_its_keys(results):
    written = json.loads(json.dumps(document(results), allow_nan=False))
    assert keys(written) == SCHEMA
    assert written["schema"] == "crossent.bytes/1"
    assert written["bits_per_byte"] == results.bits == written["curve"][-1]["bits"]
    assert len(written["training"]) == 12
    assert json.loads(json.dumps(document(told(results, math.nan)), allow_nan=False))["bits_per_byte"] is None


def test_the_report_asks_for_nothing_and_holds_the_numbers(results, words):
    for each in (told(results), words):
        page = write_page(each)
        links = Links()
        links.feed(page)
        assert CSP.fullmatch(links.meta["Content-Security-Policy"])
        assert len(links.asked) == 2 * len(PANELS)
        assert not {"script", "link", "iframe", "object", "embed"} & set(links.tags)
        for table in (tables.costs(each), tables.ways(each)):
            assert all(f">{cell}<" in page or f">{cell}*<" in page for row in table.rows for cell in row)
        assert each.text.sha256 in page
        assert command(each.settings) in page


def test_pictures_are_drawn_and_differ_by_theme(results):
    for each in (results, told(results, peaks=(None, None))):
        assert png_of(each)
    for panel in PANELS:
        assert svg(panel, results, LIGHT) != svg(panel, results, DARK)


def test_the_command_says_how_to_run_it_again(results):
    assert command(results.settings) == "crossent train bytes --vocab bytes --steps 12 --seed 0 --quick"
    long = LanguageSettings(vocab="words", text="a b.txt", minutes=2.5)
    assert command(long) == "crossent train bytes --vocab words --minutes 2.5 --seed 0 --text 'a b.txt'"


# --- the command ------------------------------------------------------------------------------------------------------


def asked(*args):
    return CliRunner().invoke(cli.main, ["train", "bytes", *args], env={"COLUMNS": "80", "NO_COLOR": "1"})


def test_a_quick_run_prints_its_tables_and_writes_its_files(tmp_path):
    ran = asked("--quick", "--vocab", "words", "--out", str(tmp_path))
    assert ran.exit_code == 0
    assert ran.stdout.endswith(
        "".join(["Written:\n", *(f"  {tmp_path / n}\n" for n in ("report.html", "bytes.png", "results.json"))])
    )
    assert max(map(len, ran.stdout.split("Written:")[0].splitlines())) <= 80
    assert re.search(r"^ the model +\d\.\d{3}\* *$", ran.stdout, re.MULTILINE)
    assert re.search(r"^ linear_cross_entropy +[\d.]+ +[\d.]+ +[\d.]+", ran.stdout, re.MULTILINE)
    assert "held out" in ran.stderr
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written["shape"]["classes"] > 500
    assert written["settings"]["quick"]


def test_json_is_all_that_stands_on_stdout(tmp_path):
    path = tmp_path / "given.txt"
    path.write_bytes(PROSE)
    ran = asked("--quick", "--steps", "9", "--seed", "3", "--text", str(path), "--json", "--out", str(tmp_path / "out"))
    assert ran.exit_code == 0
    written = json.loads(ran.stdout)
    assert written["settings"] == {
        "vocab": "bytes", "text": str(path), "steps": 9, "minutes": None, "seed": 3, "quick": True,
        "threads": 1,
    }  # fmt: skip
    assert written["text"]["train_bytes"] + written["text"]["tail_bytes"] == len(PROSE)


def test_a_file_that_cannot_be_learnt_from_is_one_sentence(tmp_path):
    for name, data in (("empty", b""), ("binary", b"\0\1" * 4096), ("short", b"a few words")):
        (tmp_path / name).write_bytes(data)
    for name in ("missing", "empty", "binary", "short", "."):
        ran = asked("--quick", "--text", str(tmp_path / name), "--out", str(tmp_path / "out"))
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert ran.stderr.startswith("Error: ")
        assert ran.stderr.count("\n") == 1
        assert str(tmp_path / name) in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--steps", "5", "--minutes", "1"], "give --steps or --minutes, not both"),
        (["--steps", "0"], "--steps"),
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "nan"], "--minutes"),
        (["--minutes", "inf"], "--minutes"),
        (["--vocab", "letters"], "--vocab"),
        (["--losses", "ce"], "No such option"),
    ],
)
def test_wrong_use_exits_with_2_and_says_why(args, said):
    ran = asked("--quick", *args)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert said in ran.stderr


def test_help_says_what_it_is_and_takes():
    said = asked("--help").output
    for option in ("--text FILE", "--vocab", "--steps N", "--minutes X", "--seed N", "--json", "--out DIR", "--quick"):
        assert option in said
    assert "[{bytes}; {words} of words]".format(**run.STEPS) in said
    assert (
        "A small language model, with and without its logits." in CliRunner().invoke(cli.main, ["train", "-h"]).output
    )
