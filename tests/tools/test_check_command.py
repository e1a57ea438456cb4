"""``crossent check`` and ``crossent rule`` as a person or a script meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from crossent import reference
from crossent.tools import cli
from crossent.tools.check.findings import REMARK
from crossent.tools.check.rules import RULE_DESCRIPTIONS, VALUE_RULES

RUN = (
    "import sys\nfrom crossent.tools.cli import main\n"
    "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code\n"
)


def asked(*args, **environ):
    clean = dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "COLUMNS", "CROSSENT_DEBUG"))
    return CliRunner().invoke(cli.main, list(map(str, args)), env={**clean, **environ})


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Logits of a model, the same after a softmax, labels, and labels that start at 1."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 5)) * 2, random.integers(0, 5, 200)
    x[np.arange(200), y] += 3
    np.savez("good.npz", logits=x.astype(np.float32), labels=y)
    np.savez("soft.npz", predictions=reference.softmax(x).astype(np.float32), label_ids=y)
    np.save("x.npy", x)
    np.save("y.npy", y)
    np.save("from_1.npy", y + 1)
    np.save("missing.npy", np.where(y == 0, 1, y))
    np.savetxt("losses.csv", np.full(50, np.log(5)))
    return tmp_path


def test_nothing_found(files):
    ran = asked("check", "good.npz")
    assert ran.exit_code == 0
    assert ran.stdout == f"Nothing found in 200 rows of 5 classes by {len(VALUE_RULES)} rules.\n{REMARK}\n"
    assert "logits: good.npz::logits, 200 × 5 float32" in ran.stderr


def test_ignored_labels_are_counted(files):
    n = int((np.load("y.npy") == 3).sum())
    assert n > 0
    assert f"200 rows of 5 classes ({n} labels ignored)" in asked("check", "good.npz", "--ignore-index", "3").stdout


def test_a_finding_says_what_was_seen_why_and_what_to_do(files):
    ran = asked("check", "soft.npz")
    assert ran.exit_code == 1
    assert ran.stdout.startswith(
        "CE101  error    softmax before the loss\n  seen  all 200 rows that count lie in [0, 1] "
    )
    assert re.search(r"^  why   The loss applies a softmax of its own\.", ran.stdout, re.MULTILINE)
    assert re.search(r"^  fix   Give the loss the values before the softmax\.", ran.stdout, re.MULTILINE)
    assert ran.stdout.endswith("\n1 error, 0 warnings, 0 notes in 200 rows of 5 classes.\n")


def test_output_fits_80_columns_without_colour_in_a_pipe(files):
    for ran in (
        asked("check", "soft.npz"),
        asked("check", "x.npy", "from_1.npy"),
        asked("rule"),
        asked("rule", "CE109"),
    ):
        assert max(map(len, ran.stdout.splitlines())) <= 80
        assert "\x1b" not in ran.stdout
        assert not re.search(r" $", ran.stdout, re.MULTILINE)


def test_colour_is_forced_and_refused(files):
    assert "\x1b[1;31m" in asked("check", "soft.npz", FORCE_COLOR="1").stdout
    plain = asked("check", "soft.npz", FORCE_COLOR="1", NO_COLOR="1").stdout
    assert not re.search(r"\x1b\[(3|4|9|\d+;3)", plain)
    words = re.sub(r"\x1b\[[\d;]*m", "", asked("check", "soft.npz", FORCE_COLOR="1").stdout)
    assert words == asked("check", "soft.npz").stdout  # nothing is said by colour alone


def test_a_narrow_terminal_loses_nothing(files):
    wide, narrow = (asked("check", "soft.npz", COLUMNS=columns).stdout.split() for columns in ("100", "40"))
    assert wide == narrow


def test_exit_codes(files):
    assert asked("check", "x.npy", "y.npy").exit_code == 0
    assert asked("check", "x.npy", "from_1.npy").exit_code == 1
    warned = asked("check", "x.npy", "y.npy", "--losses", "losses.csv")
    assert "CE118  warning" in warned.stdout
    assert warned.exit_code == 0
    assert asked("check", "x.npy", "y.npy", "--losses", "losses.csv", "--strict").exit_code == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nowhere.npy",), "no such file"),
        (("x.npy", "good.npz::nothing"), "has no column"),
        (("x.npy", "y.npy", "--task", "lm2"), "'lm2'"),
        (("x.npy", "y.npy", "--shift"), "need task='lm'"),
        (("x.npy", "y.npy", "--class-dim", "7"), "dim must lie in"),
        (("x.npy", "y.npy", "--weight", "one,two"), "is neither a file of numbers nor numbers with commas between"),
        (("x.npy", "y.npy", "--weight=-1,1,1,1,1"), "no negative number"),
    ],
)
def test_wrong_use_and_unreadable_files_exit_with_2(files, args, said):
    ran = asked("check", *args)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert said in re.sub(r"\s+", " ", ran.stderr)
    assert "Traceback" not in ran.stderr


def test_settings_are_obeyed(files):
    weights = ("--weight", "1,1,1,1,60", "--label-smoothing", "0.1")
    assert "CE109" in asked("check", "good.npz", *weights).stdout
    np.save("w.npy", np.array([1.0, 1, 1, 1, 60]))
    assert "CE109" in asked("check", "good.npz", "--weight", "w.npy", "--label-smoothing", "0.1").stdout
    np.save("ignored.npy", np.full(200, 7))
    assert "CE106" in asked("check", "x.npy", "ignored.npy", "--ignore-index", "7").stdout
    np.save("t.npy", np.full((200, 5), 255.0))
    assert "CE111" in asked("check", "x.npy", "t.npy", "--task", "binary").stdout
    assert "CE111" in asked("check", "x.npy", "t.npy", "--task", "multilabel").stdout


def test_language_models(files):
    tokens = np.random.default_rng(0).integers(0, 9, (4, 30))
    np.save("lm.npy", np.random.default_rng(1).normal(size=(4, 30, 9)) + 4 * np.eye(9)[np.roll(tokens, -1, 1)])
    np.save("tokens.npy", tokens)
    assert "CE108" in asked("check", "lm.npy", "tokens.npy", "--task", "lm").stdout
    assert asked("check", "lm.npy", "tokens.npy", "--task", "lm", "--shift", "--inputs", "tokens.npy").exit_code == 0
    assert "its own input" in asked("check", "lm.npy", "tokens.npy", "--task", "lm", "--inputs", "tokens.npy").stdout


def test_logits_alone_can_be_checked(files):
    ran = asked("check", "x.npy")
    assert ran.exit_code == 0
    assert "There are no labels" in ran.stderr
    np.save("p.npy", reference.softmax(np.load("x.npy")))
    assert asked("check", "p.npy").exit_code == 1


def test_bfloat16_files(files):
    torch.save(
        {"logits": torch.tensor(np.load("x.npy")).softmax(1).bfloat16(), "labels": torch.tensor(np.load("y.npy"))},
        "b.pt",
    )
    ran = asked("check", "b.pt")
    assert "CE101" in ran.stdout
    assert "CE113" in ran.stdout


def test_json_is_one_object_and_its_schema_is_frozen(files):
    ran = asked("check", "soft.npz", "--json")
    assert ran.exit_code == 1
    document = json.loads(ran.stdout)
    assert list(document) == [
        "schema", "logits", "labels", "task", "rows", "classes", "ignored", "nll_nats_mean", "ln_classes", "prior_entropy",
        "double_softmax_floor", "rules", "counts", "findings", "remark",
    ]  # fmt: skip
    assert document["schema"] == "crossent.check/1"
    assert document["logits"] == {"name": "soft.npz::predictions", "shape": [200, 5], "dtype": "float32"}
    assert document["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert [list(finding) for finding in document["findings"]] == [["rule", "severity", "title", "seen", "why", "fix"]]
    assert document["ln_classes"] == pytest.approx(np.log(5))
    assert document["remark"] == REMARK
    np.save("nan.npy", np.full((200, 5), np.nan))
    broken = json.loads(asked("check", "nan.npy", "y.npy", "--json").stdout)  # json.loads would take NaN, so:
    assert broken["nll_nats_mean"] is None


def test_more_rows_than_fit_into_a_piece(files, monkeypatch):
    monkeypatch.setattr("crossent.tools.check.survey.ELEMENTS", 50)
    assert "all 200 rows" in asked("check", "soft.npz").stdout
    assert asked("check", "good.npz").exit_code == 0


def test_memory_does_not_grow_with_the_file(tmp_path):
    import tracemalloc

    from crossent.tools.check.options import CheckOptions
    from crossent.tools.check.survey import survey
    from crossent.tools.files import open_pair

    shape = (400_000, 20)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    for start in range(0, len(x), 50_000):
        x[start : start + 50_000] = np.random.default_rng(start).normal(size=(50_000, 20))
    np.save(tmp_path / "y.npy", np.zeros(len(x), np.int32))
    del x
    pair = open_pair(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    tracemalloc.start()
    facts = survey(pair.logits, pair.labels, CheckOptions())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert facts.loss.loss.n == 400_000
    assert peak < 0.75 * 8 * 400_000 * 20  # as float64 the whole would not fit


# --- rule -------------------------------------------------------------------------------------------------------------


def test_rule_lists_and_explains():
    listed = asked("rule").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(RULE_DESCRIPTIONS)
    said = re.sub(r"\s+", " ", asked("rule", "ce101").stdout)
    for part in (
        "CE101 error softmax before the loss",
        RULE_DESCRIPTIONS["CE101"].why,
        RULE_DESCRIPTIONS["CE101"].fix,
        RULE_DESCRIPTIONS["CE101"].source,
    ):
        assert part in said


def test_rule_as_json():
    document = json.loads(asked("rule", "--json").stdout)
    assert document["schema"] == "crossent.rule/1"
    assert [description["id"] for description in document["rules"]] == list(RULE_DESCRIPTIONS)


def test_an_unknown_rule_is_refused():
    ran = asked("rule", "CE999")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "CE101" in ran.stderr


# --- what is imported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["check", "--help"], ["rule", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(args):
    script = RUN + "heavy = {'torch', 'numpy', 'rich'} & set(sys.modules)\nsys.exit(str(heavy) if heavy else code)"
    ran = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "args", [["check", "good.npz"], ["check", "x.npy", "y.npy", "--json"], ["rule"], ["rule", "CE201"]]
)
def test_no_torch_is_imported(files, args):
    script = RUN + "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, *args], capture_output=True, timeout=60).returncode == 0
