"""What terminals and files of other systems can hold, and what must never reach them."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import crossent
from crossent.tools.cli import main

CROSSENT = [sys.executable, "-c", "from crossent.tools.cli import main; main()"]
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 20)
X = RNG.normal(size=(20, 2)) + 2 * np.eye(2)[Y]
EVIL = "cat\x1b[2J\x1b]0;x\x07\u202e"


def process(args, encoding="utf-8", **options):
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    return subprocess.run(args, env=environ, timeout=60, check=False, **options)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_signs_that_an_encoding_lacks_have_another(encoding):
    ran = process([*CROSSENT, "explain", "--logits", "-6,6,0", "--target", "0"], encoding, capture_output=True)
    said = ran.stdout.decode(encoding)
    assert ran.returncode == 0
    assert "?" not in said.replace("how?", "")
    for sign in ("^^^", "vvv", "-0.9975", "dL/dx", "S t log p"):
        assert sign in said
    script = (
        "import crossent; print(crossent.explain([1.0, -2.0], 1)); print(crossent.score([[1.0, 2.0]] * 9, [0] * 9)); "
    )
    script += "print(crossent.check([[float('-inf'), 1.0]] * 3, [0, 0, 1]))"
    ran = process([sys.executable, "-c", script], encoding, capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"^^^" in ran.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_disk_is_one_sentence(tmp_path):
    np.savez(tmp_path / "a.npz", logits=X, labels=Y)
    for args in (("score", "a.npz"), ("check", "a.npz"), ("explain", "a.npz", "--row", "1"), ("rule",)):
        with open("/dev/full", "wb") as full:
            ran = process([*CROSSENT, *args], stdout=full, stderr=subprocess.PIPE, cwd=tmp_path)
        last = ran.stderr.decode().strip().splitlines()[-1]
        assert (ran.returncode, last) == (2, "Error: the output cannot be written: No space left on device")
        assert "Traceback" not in ran.stderr.decode()


def test_a_reader_that_stops_is_no_error(tmp_path):
    ran = process(
        f"{' '.join(map(repr, CROSSENT[:2]))} '{CROSSENT[2]}' rule | head -1", shell=True, capture_output=True
    )
    assert ran.stderr == b""


def test_escape_sequences_never_reach_a_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{EVIL}{k},{a},{b},{y}" for k, ((a, b), y) in enumerate(zip(X, Y, strict=True))]
    (tmp_path / "a.csv").write_text("\n".join([f"id,{EVIL},dog,label", *rows]), encoding="utf-8")
    np.savez("a.npz", **{EVIL: X, "other": X})
    broken = rows[0].replace(",", "")
    (tmp_path / "b.csv").write_text("\n".join([f"{EVIL},dog,label", "1,2,0", f"{broken},3,1"]), encoding="utf-8")
    runs = [["score", "a.csv", *flag] for flag in ((), ("--md",), ("--csv",), ("--json",))]
    runs += [
        ["check", "a.csv", "--class-names", f"{EVIL},wolf"],
        ["explain", "a.csv", "--row", "1"],
        ["score", "a.npz"],
        ["score", "b.csv"],
    ]
    runs += [
        ["score", "a.csv", "--classes", EVIL],
        ["score", f"{EVIL}.csv"],
        ["score", "a.csv", "--drop", "dog", "--task", "binary"],
    ]
    for args in runs:
        said = CliRunner().invoke(main, args).output
        assert not {"\x1b", "\x07", "\u202e"} & set(said), args
        assert said


def test_names_that_are_formulas_stay_names_in_a_spreadsheet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1", "@sum(a)"]
    np.savez("a.npz", logits=X, labels=Y)
    (tmp_path / "ids.txt").write_text("\n".join(f"-x{k}" for k in range(20)))
    ran = CliRunner().invoke(main, ["score", "a.npz", "--csv", "--class-names", ",".join(names), "--ids", "ids.txt"])
    values = [row[3] for row in csv.reader(io.StringIO(ran.stdout))]
    assert "'=1+1" in values
    assert "'-x1" in values or any(value.startswith("'-x") for value in values)
    for value in values[1:]:
        assert not value.startswith(("=", "@")), value
        if value.startswith(("-", "+")):
            float(value)


def test_long_class_names_are_shortened_and_prose_wraps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", logits=X, labels=Y)
    long = ",".join(["a very long name of a class that nobody reads to its end", "dog"])
    said = CliRunner().invoke(main, ["score", "a.npz", "--class-names", long]).stdout
    assert "a very long nam…" in said
    assert max(map(len, said.splitlines())) <= 100
    alike = ",".join(f"customers who complain about {what}" for what in ("the bill", "the delivery"))
    said = " ".join(CliRunner().invoke(main, ["score", "a.npz", "--class-names", alike]).stdout.split())
    assert "bill" in said
    assert "delivery" in said
    narrow = CliRunner().invoke(main, ["check", "a.npz", "--losses", "9,9,9"], env={"COLUMNS": "40"}).stdout
    assert max(map(len, narrow.splitlines())) <= 60
    assert str(crossent.explain([1.0, 2.0], 0))


NUMBER = re.compile(r"[+\-−]?\d[\d,]*(?:\.\d+)?(?:e[+\-−]?\d+)?%?")


@pytest.mark.parametrize(
    "args",
    [
        ("score", "a.npz", "--class-names", "a long name of a class,dog"),
        ("score", "a.npz", "b.npz"),
        ("score", "a.npz", "--task", "multilabel", "--labels", "many.npy"),
        ("explain", "a.npz", "--row", "3", "--losses", "all"),
        ("explain", "--logits", "-6,6,0", "--target", "0", "--class-names", "a very long name indeed,dog,fish"),
        ("check", "a.npz", "--losses", "9,9,9"),
        ("check", "p.npz", "--weight", "1,60"),
        ("rule",),
        ("rule", "CE101"),
        ("scale", "--rows", "4096", "--classes", "128256", "--width", "4096", "--ranks", "8", "--bandwidth", "360"),
    ],
    ids=" ".join,
)
def test_nothing_is_wider_than_40_columns_and_no_number_is_cut(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", logits=X, labels=Y)
    np.savez("b.npz", logits=2 * X, labels=Y)
    np.savez("p.npz", logits=np.exp(X) / np.exp(X).sum(1, keepdims=True), labels=Y)
    np.save("many.npy", (X > 0).astype(int))
    wide, narrow = (CliRunner().invoke(main, args, env={"COLUMNS": columns}) for columns in ("100", "40"))
    assert wide.exit_code == narrow.exit_code < 2, narrow.output
    assert max(map(len, narrow.stdout.splitlines())) <= 40, narrow.stdout
    # A table that is divided has its first column again: no number is missing, and none is another.
    assert set(NUMBER.findall(wide.stdout)) == set(NUMBER.findall(narrow.stdout))


def test_a_warning_of_debug_is_as_wide_as_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with warnings.catch_warnings(record=True) as told, crossent.debug():
        warnings.simplefilter("always")
        crossent.cross_entropy(torch.tensor(X).softmax(1), torch.tensor(Y))
    said = str(told[0].message)
    assert "softmax before the loss" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 40
