"""``crossent explain`` as a person or a script meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import crossent
from crossent.tools import cli
from crossent.tools.explain.catalogue import ALIASES, LOSSES


def asked(*args, **environ):
    """Run the command without a terminal; standard output and error come apart."""
    clean = dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "COLUMNS"))
    return CliRunner().invoke(cli.main, ["explain", *args], env={**clean, **environ})


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write logits and labels in several ways, and go there."""
    monkeypatch.chdir(tmp_path)
    x = np.arange(12, dtype=np.float32).reshape(4, 3) ** 2 % 7
    np.savez("preds.npz", logits=x, labels=np.array([0, 2, -100, 0]))
    np.save("x.npy", x)
    np.save("y.npy", np.array([0.0, 2.0, 1.0, np.nan]))
    np.save("soft.npy", np.array([[0.5, 0.5, 0.0]] * 4))
    np.save("pixels.npy", x[:, :, None])
    (tmp_path / "x.csv").write_text("cat,dog,fish\n0,1,4\n2,2,4\n")
    rows = "img0,0,1,4,cat\nimg1,2,2,4,dog\ntwice,1,0,0,cat\ntwice,0,0,1,fish\n17,1,2,3,dog\n"
    (tmp_path / "ids.csv").write_text("id,cat,dog,fish,label\n" + rows)
    return x


@pytest.mark.parametrize(("id", "row"), [("img0", 0), ("img1", 1), ("17", 4)])
def test_a_row_is_found_by_its_id(files, id, row):
    ran = asked("ids.csv", "--row", id, "--json")
    assert ran.exit_code == 0, ran.stderr
    assert json.loads(ran.stdout) == json.loads(asked("ids.csv", "--row", str(row), "--json").stdout)


def test_a_row_is_explained():
    ran = asked("--logits", "2,1,.1", "--target", "0")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.startswith("3 classes, target: class 0\n")
    said = "\n".join(line.rstrip() for line in ran.stdout.splitlines())
    assert said == str(crossent.explain([2, 1, 0.1], 0))


@pytest.mark.parametrize(
    ("args", "call"),
    [
        (["--logits", "-6,6,0", "--target", "0", "--losses", "ce,bce"], ([-6, 6, 0], 0, "ce,bce")),
        (["--logits=-6, 6,0", "--target", "0,2", "--losses=all"], ([-6, 6, 0], {0, 2}, "all")),
        (["--logits", "-inf,1", "--target", "1,0", "--losses=ce"], ([-np.inf, 1], {0}, "ce")),
        (["--logits", "1,2", "--target", ".5,.5"], ([1, 2], [0.5, 0.5])),
        (["--logits", "1,2", "--target", ""], ([1, 2], [])),
    ],
)
def test_json_is_that_of_the_function(args, call):
    ran = asked(*args, "--json", "--step", "0.5", "--prior", "3,1,1" if len(call[0]) == 3 else "3,1")
    assert (ran.exit_code, ran.stderr) == (0, "")
    expected = crossent.explain(*call, step=0.5, prior=[3, 1, 1][: len(call[0])])
    assert json.loads(ran.stdout) == expected.to_dict()


def test_classes_have_names():
    ran = asked("--logits", "-1,6,0", "--target", "cat", "--class-names", "cat, dog,fish", "--losses", "ce")
    assert ran.stdout.startswith("3 classes, target: cat\n")
    assert re.search(r"^dog +6 +0\.99\d\d ", ran.stdout, re.MULTILINE)


@pytest.mark.parametrize("args", [("preds.npz",), ("x.npy", "preds.npz"), ("x.npy", "y.npy")])
def test_a_row_of_a_file(files, args):
    ran = asked(*args, "--row", "1", "--json")
    assert ran.exit_code == 0
    document = json.loads(ran.stdout)
    assert document["logits"] == files[1].tolist()
    assert document["target"]["labels"] == [2]
    assert ran.stderr.startswith("logits: ")
    prior = document["references"]["prior_entropy"]
    # 0, 2 and 0; a label of nan is none, so that its column is not counted
    assert prior == (None if "y.npy" in args else pytest.approx(crossent.reference.prior_entropy([2, 0, 1])))


def test_options_stand_above_the_file(files):
    given = ("--target", "1", "--prior", "1,1,1", "--class-names", "a,b,c")
    document = json.loads(asked("preds.npz", "--row", "2", "--json", *given).stdout)
    assert document["target"]["labels"] == [1]
    assert document["class_names"] == ["a", "b", "c"]
    assert document["references"]["prior_entropy"] == pytest.approx(np.log(3))


def test_names_and_counts_of_classes_may_be_files(files, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\nfish\n")
    np.save("counts.npy", [1, 1, 2])
    given = ("--class-names", "names.txt", "--prior", "counts.npy")
    document = json.loads(asked("preds.npz", "--row", "1", "--json", *given).stdout)
    assert document["class_names"] == ["cat", "dog", "fish"]
    assert document["references"]["prior_entropy"] == pytest.approx(1.5 * np.log(2))


def test_soft_labels_and_columns_of_a_file(files):
    document = json.loads(asked("x.npy", "soft.npy", "--row", "0", "--json").stdout)
    assert document["target"] == {"labels": None, "weights": [0.5, 0.5, 0.0]}
    assert document["references"]["prior_entropy"] is None
    document = json.loads(asked("x.csv", "--row", "1", "--target", "dog", "--json").stdout)
    assert document["class_names"] == ["cat", "dog", "fish"]
    assert document["target"]["labels"] == [1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "give either --logits, --probs or a FILE"),
        (["x.npy", "--logits", "1,2"], "give either --logits, --probs or a FILE, not a FILE and --logits"),
        (["--logits", "1,2"], "which class is true? Give --target"),
        (["--logits", "1,2", "--target", "0", "--row", "1"], "--row is the row of a FILE"),
        (["--logits", "1,x", "--target", "0"], "'1,x' is neither a file of numbers nor numbers with commas between"),
        (["--logits", "1,2", "--target", "2"], "target must lie in [0, 2), got 2: labels start at 0"),
        (["--logits", "1,2,3", "--target", ".5,.5"], "one weight for each of the 3 classes"),
        (["--logits", "1,2", "--target", "0", "--losses", "cee"], "no loss is called 'cee': did you mean 'ce'?"),
        (["--logits", "1,2", "--target", "0", "--step", "nan"], "step must be a finite number"),
        (["--logits", "1,nan", "--target", "0"], "got nan for class 1"),
        (["x.npy", "--row", "1"], "which class is true? Give --target, or a file with labels"),
        (["preds.npz"], "--row must name one of the 4 rows of preds.npz::logits, counted from 0, got none"),
        (["preds.npz", "--row", "4"], "one of the 4 rows of preds.npz::logits, counted from 0, got 4"),
        (["preds.npz", "--row", "-1"], "--row"),
        (["preds.npz", "--row", "img1"], "counted from 0, got img1"),
        (["ids.csv", "--row", "img9"], "rows of ids.csv, counted from 0, or by an id such as img0, got img9"),
        (["ids.csv", "--row", "twice"], "2 rows of ids.csv have this id: give the number of one, as 2"),
        (["ids.csv"], "or by an id such as img0, got none: say --row 0 for the first"),
        (["preds.npz", "--row", "2"], "got -100: an ignored row has no loss"),
        (["x.npy", "y.npy", "--row", "3"], "target must be a class index"),
        (["pixels.npy", "y.npy", "--row", "0"], "pixels.npy must have shape (N, C) to be explained, got (4, 3, 1)"),
        (["nothing.npy", "--row", "0"], "nothing.npy"),
    ],
)
def test_what_cannot_be_explained_is_one_sentence_and_exit_code_2(files, args, said):
    ran = asked(*args)
    assert (ran.exit_code, ran.stdout) == (2, "")
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert said in error


def test_help_names_every_loss():
    said = asked("--help").output
    for name, description in LOSSES.items():
        assert re.search(rf"^ +{name} +{re.escape(description.about)}$", said, re.MULTILINE)
    for alias, name in ALIASES.items():
        assert re.search(rf"^ +{re.escape(alias)} +{name}$", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 80


def test_output_has_colour_only_where_it_is_wanted():
    args = ("--logits", "2,1,.1", "--target", "0", "--losses", "ce")
    assert "\x1b" not in asked(*args).output
    assert "\x1b[36m▲" in asked(*args, FORCE_COLOR="1", TERM="xterm").output
    assert not re.search(r"\x1b\[3\d", asked(*args, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm").output)


def test_no_torch_is_imported(files):
    code = (
        "import sys\nfrom crossent.tools.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    heavy = {'torch', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "    sys.exit(str(heavy) if heavy else stop.code)\n"
    )
    for args in (["--logits", "2,1", "--target", "0"], ["preds.npz", "--row", "0"], ["x.csv", "--row=0", "--target=1"]):
        ran = subprocess.run([sys.executable, "-c", code, "explain", *args], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr


# --- the askers' own numbers ------------------------------------------------------------------------------------------


def test_probabilities_have_an_option_of_their_own():
    options = ("--target", "0", "--losses", "ce", "--json")
    (ce,) = json.loads(asked("--probs", ".1,.7,.2", *options).stdout)["losses"]
    assert ce["gradient"] == pytest.approx([-0.9, 0.7, 0.2])
    assert ce["p"] == pytest.approx([0.1, 0.7, 0.2])
    refused = asked("--probs", ".1,.9", "--logits", "1,2", "--target", "0")
    assert (refused.exit_code, "not --logits and --probs" in refused.stderr) == (2, True)
    assert "if they are probabilities, say --input probs" in " ".join(
        asked("--logits", ".1,.7,.2", *options[:2]).stdout.split()
    )


@pytest.mark.parametrize("text", ["[2, 1]", "2 1", "2,1", "(2.0, 1.0)", "[2 1]"])
def test_numbers_are_read_as_people_paste_them(text):
    document = json.loads(asked("--logits", text, "--target", "0", "--losses", "ce", "--json").stdout)
    assert document["logits"] == [2.0, 1.0]


def test_the_losses_side_by_side_show_the_culprit_too():
    said = asked("--logits", "-6,6,0", "--target", "0", "--losses", "ce,mnist,bce").stdout
    true, culprit = said.split("Side by side, for the ")[1:]
    assert true.startswith("true class: 0")
    assert culprit.startswith("class that is likeliest instead: 1")
    assert "+0.9975" in culprit
    assert "▽" in culprit
    assert asked("--logits", "6,-6,0", "--target", "0", "--losses", "ce,mnist").stdout.count("Side by side") == 1
