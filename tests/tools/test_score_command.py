"""``crossent score`` as a person or a script meets it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from crossent import reference
from crossent.tools import cli
from crossent.tools import progress as bar
from crossent.tools.score import fail_if
from crossent.tools.score.scores import DEFINITIONS
from crossent.tools.score.scoring import score

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 60)
LOGITS = np.round(3 * np.eye(3)[LABELS] + RNG.normal(size=(60, 3)), 4)
WRONG = LOGITS[np.arange(60), LABELS].argmax()
LABELS[WRONG] = (LABELS[WRONG] + 1) % 3  # the label error to be suspected
NAMES = ("cat", "dog", "bird")


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("preds.npz", logits=LOGITS, labels=LABELS)
    np.save("logits.npy", LOGITS)
    np.save("labels.npy", LABELS)
    rows = [f"im{i}.png,{','.join(map(str, x))},{y}" for i, (x, y) in enumerate(zip(LOGITS, LABELS, strict=True))]
    (tmp_path / "preds.csv").write_text("\n".join(["id,cat,dog,bird,label", *rows]))


def asked(*args, **environ):
    clean = dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "COLUMNS"))
    return CliRunner().invoke(cli.main, ["score", *args], env={**clean, **environ})


# --- faces ------------------------------------------------------------------------------------------------------------


def test_results_go_to_stdout_and_what_was_chosen_to_stderr():
    ran = asked("preds.npz")
    assert ran.exit_code == 0
    assert ran.stderr == "logits: preds.npz::logits, 60 × 3 float64\nlabels: preds.npz::labels, 60 int64\n"
    found = score(LOGITS, LABELS).numbers
    for line in (
        r"60 rows, 3 classes; the values are read as logits",
        rf"cross entropy +{found['nll_nats_mean']:.4f} ± {found['nll_nats_standard_error']:.4f} ",
        rf"class frequencies, H\(prior\) +{found['prior_nll_nats']:.4f} .* {100 * found['skill_over_prior']:.1f}%",
        rf"accuracy +{100 * found['accuracy']:.2f}% ± ",
        rf"calibration error +{found['calibration_error']:.4f}  most probable class, 15 equal-width bins",
        rf"Temperature {found['temperature']:.3f} ",
    ):
        assert re.search(f"^{line}", ran.stdout, re.MULTILINE), line
    assert "top-5" not in ran.stdout


@pytest.mark.parametrize("options", [(), ("--top", "3", "--label-smoothing", "0.1"), ("--ids", "preds.csv::id")])
def test_output_fits_80_columns_and_has_no_colour_in_a_pipe(options):
    ran = asked("preds.csv", *options)
    assert ran.exit_code == 0
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "…" not in ran.stdout
    assert "\x1b" not in ran.output


def test_no_color_is_honoured_where_colour_is_forced():
    assert "\x1b[" in asked("preds.npz", FORCE_COLOR="1").stdout
    assert not re.search(r"\x1b\[(3|4|9)\d", asked("preds.npz", FORCE_COLOR="1", NO_COLOR="1").stdout)


def test_a_narrow_terminal_loses_no_number():
    def digits(text):
        return sorted(re.findall(r"\d+\.\d+", text))  # columns that do not fit go on below

    assert digits(asked("preds.npz", COLUMNS="40").stdout) == digits(asked("preds.npz").stdout)


def test_names_of_classes_and_rows():
    said = asked("preds.csv", "--ids", "preds.csv::id").stdout
    worst = score(LOGITS, LABELS).worst[0]
    assert re.search(rf"^ *{worst.row}  im{worst.row}\.png +{NAMES[worst.true]} +0\.", said, re.MULTILINE)
    assert asked("preds.npz", "--class-names", "cat, dog,bird", "--ids", "preds.csv::id").stdout == said
    with open("names.txt", "w") as out:
        out.write("cat\ndog\nbird\n")
    with open("ids.txt", "w") as out:
        out.write("".join(f"im{i}.png\n" for i in range(60)))
    assert asked("logits.npy", "labels.npy", "--class-names", "names.txt", "--ids", "ids.txt").stdout == said


def test_weights_come_from_the_command_line_or_a_file():
    np.save("w.npy", np.array([1.0, 2.0, 0.5]))
    options = ("preds.npz", "--json", "--weight")
    typed, read = (json.loads(asked(*options, weight).stdout) for weight in ("1,2,0.5", "w.npy"))
    expected = score(LOGITS, LABELS, weight=(1.0, 2.0, 0.5)).numbers["loss_nats_mean"]
    assert typed["numbers"]["loss_nats_mean"] == read["numbers"]["loss_nats_mean"] == pytest.approx(expected)
    assert "As trained" in asked("preds.npz", "--weight", "1,2,0.5").stdout


SCHEMA = {
    "schema": "crossent.score/1",
    "settings": [
        "logits", "labels", "input", "task", "shift", "class_dim", "ignore_index", "weight", "label_smoothing", "top", "suspects",
        "bytes", "positions",
    ],
    "numbers": [
        "rows", "decisions", "ignored", "classes", "nll_nats_mean", "nll_nats_standard_error", "nll_bits_mean",
        "nll_bits_standard_error", "infinite", "loss_nats_mean", "loss_nats_standard_error", "perplexity",
        "bits_per_token", "bits_per_byte", "uniform_nll_nats", "prior_nll_nats", "skill_over_uniform", "skill_over_prior",
        "accuracy", "accuracy_standard_error", "top5_accuracy", "exact_match", "macro_f1", "brier", "calibration_error",
        "temperature", "decisions_odd_rows", "odd_rows_nll_nats_before", "odd_rows_nll_nats_after",
        "odd_rows_calibration_error_before", "odd_rows_calibration_error_after", "suspected_label_errors",
    ],
    "remarks": list,
    "classes": [
        "name", "label", "decisions", "named", "recall", "precision", "f1", "nll_nats_mean", "loss_share", "p_mean",
        "frequency", "taken_for",
    ],
    "confusion": list,
    "calibration_bins": ["low", "high", "decisions", "confidence", "accuracy"],
    "worst": ["id", "row", "position", "true", "p_true", "predicted", "p_predicted", "loss_nats"],
    "suspected_label_errors": ["id", "row", "position", "true", "p_true", "predicted", "p_predicted", "loss_nats"],
}  # fmt: skip


def test_the_json_is_what_other_programs_rely_on():
    document = json.loads(asked("preds.npz", "--json").stdout)
    assert document.pop("schema") == SCHEMA["schema"]
    assert list(document.pop("definitions")) == list(DEFINITIONS) == SCHEMA["numbers"]
    assert list(document) == [key for key in SCHEMA if key != "schema"]
    for key, value in document.items():
        keys = SCHEMA[key]
        if key == "confusion":
            assert np.sum(value) == 60
        elif keys is list:
            assert value == []
        elif isinstance(value, dict):
            assert list(value) == keys
        else:
            assert value
            assert all(list(item) == keys for item in value)


def test_every_face_has_the_same_numbers():
    document = json.loads(asked("preds.npz", "--json").stdout)
    assert document["numbers"] == score(LOGITS, LABELS).to_dict()["numbers"]
    lines = list(csv.DictReader(io.StringIO(asked("preds.npz", "--csv").stdout)))
    numbers = {line["measure"]: line["value"] for line in lines if line["table"] == "numbers"}
    assert numbers == {key: "" if value is None else str(value) for key, value in document["numbers"].items()}
    worst = {line["measure"]: line["value"] for line in lines if line["table"] == "worst" and line["item"] == "0"}
    assert worst["loss_nats"] == str(document["worst"][0]["loss_nats"])
    written, shown = asked("preds.npz", "--md").stdout, asked("preds.npz").stdout
    assert f"| cross entropy | {document['numbers']['nll_nats_mean']:.4f} ± " in written
    assert re.findall(r"\d+\.\d+", written) == re.findall(r"\d+\.\d+", shown)


def test_only_finite_numbers_and_nothing_else_on_stdout():
    np.save("zero.npy", np.array([[0.0, 1.0], [0.5, 0.5], [0.2, 0.8]]))
    np.save("y.npy", np.array([0, 1, 1]))
    ran = asked("zero.npy", "y.npy", "--input", "probs", "--json")
    document = json.loads(ran.stdout, parse_constant=pytest.fail)
    assert document["numbers"]["nll_nats_mean"] is None
    assert document["numbers"]["infinite"] == 1
    assert "Warning: 1 decisions give their true class probability 0" in ran.stderr
    assert document["remarks"]
    assert " inf " in asked("zero.npy", "y.npy", "--input", "probs").stdout


def test_what_looks_otherwise_is_warned_of():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    np.save("p.npy", p)
    assert "Warning: All values lie in [0, 1] and every row sums to 1" in asked("p.npy", "labels.npy").stderr
    ran = asked("p.npy", "labels.npy", "--input", "probs")
    assert "Warning" not in ran.stderr
    assert "the values are read as probs" in ran.stdout


def test_tokens_and_several_labels():
    np.savez("lm.npz", logits=LOGITS.reshape(6, 10, 3), labels=LABELS.reshape(6, 10))
    said = asked("lm.npz", "--task", "lm", "--shift", "--bytes", "100").stdout
    assert "6 rows, 54 tokens, 3 classes" in said
    for line in ("bits per token", "bits per byte", "row +token +true"):
        assert re.search(f"^{line}", said, re.MULTILINE)
    assert "Suspected" not in said
    np.savez("several.npz", logits=LOGITS, labels=np.eye(3, dtype=int)[LABELS])
    said = asked("several.npz", "--task", "multilabel", "--class-names", ",".join(NAMES)).stdout
    assert re.search(r"^row +class +true +p\(true\) +loss, nats(  \?)?$", said.replace(" \n", "\n"), re.MULTILINE)
    assert re.search(r"^ *\d+ +(cat|dog|bird) +(yes|no) +0\.", said, re.MULTILINE)


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_yes_and_no_in_one_column(shape):
    x, t = LOGITS[:, 0], (LABELS == 0).astype(int)
    np.savez("binary.npz", logits=x.reshape(shape), labels=t)
    number = json.loads(asked("binary.npz", "--task", "binary", "--json").stdout)["numbers"]
    assert number["nll_nats_mean"] == pytest.approx(np.mean(np.logaddexp(0, x) - t * x), rel=1e-6)
    assert number["accuracy"] == pytest.approx(np.mean((x > 0) == t))
    same = json.loads(asked("binary.npz", "--task", "multilabel", "--json").stdout)["numbers"]
    assert same == number


def test_a_small_standard_error_is_not_written_as_0():
    rng = np.random.default_rng(0)
    np.savez("sure.npz", logits=14 * np.eye(3)[LABELS] + rng.normal(size=(60, 3)), labels=LABELS)
    said = asked("sure.npz", "--top", "0").stdout
    assert re.search(r"^cross entropy +\S+e-06 ± \S+e-0\d", said, re.MULTILINE)


def test_ignored_rows_have_no_places():
    ran = asked("preds.npz", "--ignore-index", "2", "--top", "0")
    assert re.match(r"60 rows, \d+ decisions, \d+ ignored, 3 classes", ran.stdout)
    assert "Worst" not in ran.stdout
    assert re.search(r"^row +true +p\(true\)", asked("preds.npz", "--ignore-index", "2").stdout, re.MULTILINE)
    np.savez("masks.npz", logits=LOGITS.reshape(5, 3, 4, 3).transpose(0, 3, 1, 2), labels=LABELS.reshape(5, 3, 4))
    worst = score(LOGITS, LABELS).worst[0].row
    place = f"{worst // 12} +{worst % 12 // 4},{worst % 4} "
    assert re.search(rf"^ *row +at +true .*\n.*\n *{place}", asked("masks.npz").stdout, re.MULTILINE)


@pytest.mark.parametrize("rule", ["self-confidence", "confident-learning"])
@pytest.mark.parametrize("top", [1, 2, 10])
def test_no_row_is_shown_twice_and_suspects_are_marked(rule, top):
    report = score(LOGITS, LABELS, suspects=rule, top=top)
    said = asked("preds.npz", "--suspects", rule, "--top", str(top)).stdout
    _, worst, suspects = re.split(r"^(?:Worst examples|Suspected label errors).*\n", said, flags=re.MULTILINE)
    rows = {
        name: re.findall(r"^ *(\d+)  .*\d\.\d{4}(  \?)? *$", part, re.MULTILINE)
        for name, part in (("w", worst), ("s", suspects))
    }
    assert [int(row) for row, _ in rows["w"]] == [each.row for each in report.worst]
    marked = {int(row) for row, mark in rows["w"] if mark}
    assert marked == {each.row for each in report.suspects} & {each.row for each in report.worst}
    assert [int(row) for row, _ in rows["s"]] == [each.row for each in report.suspects if each.row not in marked]
    assert WRONG in marked
    assert "another class gets at least its usual probability" in " ".join(suspects.split())


def test_a_model_that_knows_nothing_names_no_suspects():
    rng = np.random.default_rng(3)
    np.savez("nothing.npz", logits=3 * rng.normal(size=(200, 3)), labels=rng.integers(0, 3, 200))
    said = asked("nothing.npz").stdout
    assert "Suspected label errors: not shown" in said
    assert "not better than the class frequencies alone" in " ".join(said.split())
    assert "?: a suspected label error." not in said
    # One that is much too sure is right often all the same, and its suspects are worth reading.
    np.savez("sure.npz", logits=40 * LOGITS, labels=LABELS)
    assert score(40 * LOGITS, LABELS).numbers["skill_over_prior"] < 0
    assert "Suspected label errors: not shown" not in asked("sure.npz").stdout
    several = rng.integers(0, 2, (100, 3))
    np.savez("several.npz", logits=rng.normal(size=(100, 3)), labels=several)
    assert "Suspected label errors: not shown" in asked("several.npz", "--task", "multilabel").stdout
    np.savez("several.npz", logits=4.0 * several - 2 + rng.normal(size=(100, 3)), labels=several)
    assert "Suspected label errors: not shown" not in asked("several.npz", "--task", "multilabel").stdout


def test_warnings_stand_in_the_report_too():
    np.savez("p.npz", logits=reference.softmax(LOGITS), labels=LABELS)
    ran = asked("p.npz")
    warnings = [line for line in ran.stderr.splitlines() if line.startswith("Warning: ")]
    assert any("prob" in line for line in warnings)
    flat = " ".join(ran.stdout.split())
    assert all(" ".join(line.split()) in flat for line in warnings)
    assert ran.stdout.index("Warning: ") < ran.stdout.index("Loss\n")
    assert "> " + warnings[0].removeprefix("Warning: ") in asked("p.npz", "--md").stdout
    assert "Warning" not in asked("preds.npz").stdout


def test_of_many_classes_the_costliest_are_shown():
    np.savez("many.npz", logits=RNG.normal(size=(200, 50)), labels=RNG.integers(0, 50, 200))
    said = asked("many.npz", "--top", "4").stdout
    assert "Classes: the 4 of 50 with the largest share of the loss" in said
    assert len(json.loads(asked("many.npz", "--top", "4", "--json").stdout)["classes"]) == 50
    np.savez("more.npz", logits=RNG.normal(size=(20, 1001)), labels=RNG.integers(0, 1001, 20))
    shares = [row["loss_share"] for row in json.loads(asked("more.npz", "--json").stdout)["classes"]]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 1 / 20


def test_long_names_are_shortened_and_numbers_are_not():
    names = [f"{name} of the kind that nobody has ever seen before" for name in NAMES]
    said = asked("preds.npz", "--class-names", ",".join(names)).stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "cat of the kind…" in said
    numbers = re.findall(r"\d+\.\d+", asked("preds.npz").stdout)
    assert re.findall(r"\d+\.\d+", said) == numbers


# --- conditions -------------------------------------------------------------------------------------------------------


def test_a_condition_that_holds_exits_with_1_after_the_results():
    ran = asked("preds.npz", "--json", "--fail-if", "nll > 0.01", "--fail-if", "accuracy<0.1")
    value = json.loads(ran.stdout)["numbers"]["nll_nats_mean"]
    assert ran.exit_code == 1
    assert ran.stderr.endswith(f"Failed: nll_nats_mean is {value:.6g}, and --fail-if says nll > 0.01\n")
    assert "accuracy" not in ran.stderr
    assert asked("preds.npz", "--fail-if", "nll>9", "--fail-if", "ece>=1").exit_code == 0


def test_all_names_are_listed_and_the_short_ones_apart():
    said = re.sub(r"\s+", " ", asked("preds.npz", "--fail-if", "what>1").stderr)
    full, runs, short = re.search(r"compared: (.*); of two runs: (.*); shorter: (.*)", said).groups()
    assert full.split(", ") == list(DEFINITIONS)
    assert "accuracy_difference" in runs.split(", ")
    assert short.strip().split(", ") == [f"{alias} for {name}" for alias, name in fail_if.SHORT.items()]


@pytest.mark.parametrize("name", [*fail_if.SHORT, "brier", "rows"])
def test_conditions_compare_in_every_direction(name):
    report = score(np.tile(LOGITS, (1, 3)), LABELS, label_smoothing=0.1)
    value = report.numbers[fail_if.SHORT.get(name, name)]
    for comparison, holds in {">": (True, False), ">=": (True, True), "<": (False, False), "<=": (False, True)}.items():
        found = tuple(
            fail_if.parse_condition(f"{name}{comparison}{bound!r}").holds(report)
            for bound in (float(value) - 1e-3, float(value))
        )
        assert found == holds


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("nll=0.5", "must read like 'nll>0.5', got 'nll=0.5'; what can be compared: rows, decisions, ignored"),
        ("accuracy<95%", "'accuracy<95%': accuracy is a share, from 0 to 1: write accuracy<0.95"),
        ("ece > 12.5 %", "ece is a share, from 0 to 1: write ece>0.125"),
        ("accuracy<95", "write accuracy<0.95"),
        ("accuracy_difference<-2%", "write accuracy_difference<-0.02"),
        ("nll>5%", "nll is no percentage"),
        ("nll_nats_difference>0", "this report has no nll_nats_difference"),
        ("nothing>0.5", "got 'nothing>0.5'"),
        ("nll>fast", "got 'nll>fast'"),
        ("nll>--1", "got 'nll>--1'"),
        ("top5<0.5", "this report has no top5_accuracy"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(condition, said):
    ran = asked("preds.npz", "--fail-if", condition)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert said in re.sub(r"\s+", " ", ran.stderr)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("none.npz",), "Error: none.npz: no such file\n"),
        (
            ("logits.npy",),
            "Error: logits.npy: holds no labels: name their file as well, or the array as logits.npy::NAME\n",
        ),
        (("logits.npy", "nan.npy"), "Error: nan.npy: every label is missing or ignore_index=-100; nothing to score\n"),
        (("nan.npy", "labels.npy"), "Error: nan.npy: has one logit a row, which is no softmax but a yes or no"),
        (
            ("broken.npy", "labels.npy"),
            "Error: broken.npy: 1 has no softmax (nan, +inf, or only -inf), first in row 4: a mean",
        ),
        (("preds.npz", "--ids", "short.txt"), "Error: short.txt: names 2 rows, but there are 60\n"),
        (("preds.npz", "--ids", "none.txt"), "Error: none.txt: cannot be read: No such file or directory\n"),
        (
            ("preds.npz", "--ids", "preds.csv::name"),
            "Error: preds.csv: has no column 'name', only id, cat, dog, bird, label\n",
        ),
        (
            ("preds.npz", "--class-names", "a,b"),
            "Invalid value for '--class-names': names 2, but preds.npz::logits has 3 classes\n",
        ),
        (
            ("preds.npz", "--weight", "1,x"),
            "Error: '1,x' is neither a file of numbers nor numbers with commas between\n",
        ),
        (("preds.npz", "--weight", "1,-1,1"), "Invalid value for '--weight': must hold finite numbers, none negative"),
        (("preds.npz", "--label-smoothing", "2"), "Invalid value for '--label-smoothing': must lie in [0, 1], got 2.0"),
        (("preds.npz", "--input", "probabilities"), "--input"),
        (("preds.npz", "--shift"), "Invalid value for '--shift': is for tokens: it needs task lm"),
        (("preds.npz", "--fast"), "No such option"),
        ((), "Missing argument 'LOGITS [LOGITS2] [LABELS]'"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(args, said):
    np.save("nan.npy", np.full(60, np.nan))
    np.save("broken.npy", np.where(np.arange(60)[:, None] == 4, np.nan, LOGITS))
    with open("short.txt", "w") as out:
        out.write("a\nb\n")
    ran = asked(*args)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert re.sub(r"\s+", " ", said) in re.sub(r"\s+", " ", ran.stderr)
    assert "Traceback" not in ran.stderr


# --- time and space ---------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom crossent.tools.cli import main\ntry:\n    main(['score', '--help'])\nexcept SystemExit:\n"
        "    print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.endswith("\n[]\n")
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_neither_torch_nor_matplotlib_is_imported():
    script = (
        "import sys\nfrom crossent.tools.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    print(stop.code, sorted({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)), file=sys.stderr)\n"
    )
    for args in (["preds.npz"], ["logits.npy", "labels.npy", "--json"], ["preds.csv", "--md"], ["preds.npz", "--csv"]):
        ran = subprocess.run([sys.executable, "-c", script, "score", *args], capture_output=True, text=True, timeout=60)
        assert ran.stderr.endswith("\n0 []\n")


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts the memory of its own, not the mapped file"
)
def test_a_file_larger_than_the_memory_allowed():
    size, allowed = 256 << 20, 160 << 20
    logits = np.lib.format.open_memmap("large.npy", "w+", np.float32, (size // 4 // 500, 500))
    logits[:, 0] = 1
    logits.flush()
    np.save("large-labels.npy", np.arange(len(logits)) % 500)
    script = (
        f"import resource, sys\nresource.setrlimit(resource.RLIMIT_DATA, ({allowed}, {allowed}))\n"
        "from crossent.tools.cli import main\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "score", "large.npy", "large-labels.npy", "--json"]
    single = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=single)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["numbers"]
    assert os.path.getsize("large.npy") > 1.5 * allowed
    assert found["rows"] == len(logits)
    assert found["nll_nats_mean"] == pytest.approx(np.log(np.e + 499) - (np.arange(len(logits)) % 500 == 0).mean())


def test_a_progress_bar_comes_after_a_while_and_goes(monkeypatch):
    def shown(patience):
        monkeypatch.setattr(bar, "PATIENCE", patience)
        out = io.StringIO()
        with bar.ProgressBar(Console(file=out, force_terminal=True, width=80)) as tell:
            tell("fitting the temperature", 1, 0)
            tell("scoring", 30, 60)
            time.sleep(0.2)
        return out.getvalue()

    assert shown(3600.0) == ""
    drawn = shown(0.0)
    assert "scoring" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
