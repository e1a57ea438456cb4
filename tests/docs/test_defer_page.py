"""The page ``docs/defer.md``: its code runs as doctests, and what its tables name exists and is followed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import crossent
from crossent.models.defer import Logits  # which imports what is followed
from crossent.models.logits import FOLLOWED

PAGE = (Path(__file__).parents[2] / "docs" / "defer.md").read_text("utf-8")


def section(title: str) -> str:
    return PAGE[PAGE.index(f"## {title}") :].split("\n## ")[0]


def test_what_the_page_calls_followed_is():
    names = set(re.findall(r"`(?:F\.|x\.)?(\w+)(?:\([^`]*)?`", section("What is computed in blocks")))
    others = {"Logits", "float", "nn", "crossent", "transformers", "log_p", "log_softmax", "exp"}
    assert {"view", "gather", "logsumexp", "argmax", "kl_div", "chunk"} <= names
    missing = [name for name in names - others if name not in FOLLOWED and not hasattr(F, name)]
    assert not missing


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("always", [True, False])
def test_when_it_answers_as_the_table_says(gradients, always):
    head = crossent.defer(torch.nn.Linear(3, 20), always=always)
    with torch.set_grad_enabled(gradients):
        assert isinstance(head(torch.zeros(2, 3)), Logits) == (gradients or always)


def test_blank_line_ends_each_session():
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        if block.startswith("for layer in"):  # test_defer_recipes.py runs it on two processes
            continue
        assert block.startswith(">>> ")
        assert block.endswith("\n\n")
