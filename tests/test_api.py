"""The public signatures are those of ``tests/api.txt``, and what changes in them is told in the changelog."""

import runpy
from pathlib import Path

import pytest

import crossent

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "write_api.py"))
FROZEN = SCRIPT["FROZEN"].read_text("utf-8")
BEFORE = {
    "cross_entropy": ["input: Tensor", "*", "margin: float = 0.0", "-> Tensor"],
    "Focal": ["is a crossent.Penalty", "gamma: float = 2.0"],
    "Focal.f": ["log_p: Tensor", "-> Tensor"],
}


def test_the_public_signatures_are_the_agreed_ones():
    signatures = SCRIPT["api"]()
    changes = SCRIPT["changed"](SCRIPT["read"](FROZEN), signatures)
    untold = SCRIPT["untold"](changes, SCRIPT["CHANGELOG"].read_text("utf-8"))
    assert not untold, "name these in backticks under Unreleased in CHANGELOG.md, then run make api"
    assert not changes, "the changelog names these; run make api, and commit tests/api.txt"
    assert SCRIPT["text"](signatures) == FROZEN, "run make api"


def test_every_public_name_and_option_is_in_the_file():
    agreed = SCRIPT["read"](FROZEN)
    assert set(crossent.__all__) - {"__version__"} <= set(agreed)
    assert "label_smoothing: float, optional" in agreed["focal_loss"]
    assert "sample_weight: Tensor | None = None" in agreed["CrossEntropyLoss.forward"]
    assert "is a torch.CrossEntropyLoss" in agreed["CrossEntropyLoss"]
    assert {"Report.to_dict", "Findings.errors", "Debug.off", "Teacher", "models.huggingface.causal_lm_loss"} <= set(
        agreed
    )


def test_a_file_is_read_as_it_is_written():
    assert SCRIPT["read"](SCRIPT["text"](BEFORE)) == BEFORE


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"defer": ["model: Module", "-> None"]}, {"defer": "defer is new"}),
        (
            {"cross_entropy": ["input: Tensor", "*", "boost: float = 1.0", "margin: float = 0.0", "-> Tensor"]},
            {"boost": "cross_entropy now has `boost: float = 1.0`"},
        ),
        ({"cross_entropy": ["*", "margin: float = 0.0", "-> Tensor"]}, {"input": "cross_entropy had `input: Tensor`"}),
        ({"cross_entropy": ["*", "input: Tensor", "margin: float = 0.0", "-> Tensor"]}, {"cross_entropy": "order"}),
        ({"cross_entropy": ["input: Tensor", "*", "margin: float = 0.0", "-> float"]}, {"cross_entropy": "float"}),
        ({"cross_entropy": ["input: Tensor", "margin: float = 0.0", "-> Tensor"]}, {"cross_entropy": "`*`"}),
        ({"Focal": None, "Focal.f": None}, {"Focal": "Focal is gone"}),
        ({"Focal.f": None}, {"f": "Focal.f is gone"}),
        ({}, {}),
    ],
)
def test_every_kind_of_change_is_told(after, told):
    now = {name: lines for name, lines in (BEFORE | after).items() if lines is not None}
    changes = SCRIPT["changed"](BEFORE, now)
    assert changes.keys() == told.keys()
    assert all(told[word] in changes[word] for word in told)


@pytest.mark.parametrize("line", ["`boost`", "`cross_entropy(boost=)`", "`crossent.boost` and `Other`"])
def test_backticks_under_unreleased_tell_a_change(line):
    changelog = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- {}\n\n## [0.1.0] - 2020-01-01\n\n- {}\n"
    words = {"boost": "cross_entropy now has `boost`"}
    assert SCRIPT["untold"](words, changelog.format(line, "")) == {}
    assert SCRIPT["untold"](words, changelog.format("boost, boosted: `booster`", line)) == words
