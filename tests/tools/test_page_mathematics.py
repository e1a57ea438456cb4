"""The page's own mathematics, held to ``crossent.reference`` in Node."""

import json
import math
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import crossent.tools.page
from crossent.tools.explain.catalogue import LOSSES
from crossent.tools.explain.loss_terms import compute, objection, probabilities
from crossent.tools.explain.row_target import RowTarget

NODE = shutil.which("node")
MATHEMATICS = Path(crossent.tools.page.__file__).with_name("mathematics.js")
EVALUATE = Path(__file__).with_name("evaluate_page.mjs")
INF = math.inf

pytestmark = pytest.mark.skipif(NODE is None, reason="the page's mathematics runs in Node, which is not installed")


def logits():
    """Rows that are flat, peaky, enormous, with impossible classes, and without a softmax."""
    rng = np.random.default_rng(0)
    yield from ([-6.0, 6.0, 0.0], [-10.0, 10.0, 0.0], [0.0, 0.0], [50.0, 0.0, 0.0], [1e4, -1e4], [-1e4, 1e4, 0.0])
    yield from ([-INF, 0.0, 1.0], [INF, 0.0, 1.0], [-INF, -INF, 2.0], [INF, INF], [-INF, -INF], [1e-300, 0.0, -1e-300])
    for count in (2, 3, 10, 27, 1000):
        for scale in (0.1, 3.0, 300.0):
            yield (scale * rng.normal(size=count)).tolist()


def targets(count):
    """One label, the last, two, none, soft, and weights of another mass."""
    rng = np.random.default_rng(count)
    hard = np.eye(count)
    yield from ((hard[0], (0,)), (hard[-1], (count - 1,)), (hard[0] + hard[1], (0, 1)), (0 * hard[0], ()))
    soft = rng.dirichlet(np.ones(count))
    yield from ((soft, None), (3 * soft, None))


@cache
def corpus():
    rows = []
    for x in logits():
        for weights, labels in targets(len(x)):
            target = RowTarget(weights, labels)
            rows += [
                (description, np.array(x), target)
                for description in LOSSES.values()
                if objection(description, np.array(x), target) is None
            ]
    return rows


RUNS = [
    ("ce", [-6.0, 6.0, 0.0], 7),
    ("bce", [-6.0, 6.0, 0.0], 7),
    ("sigmoid-difference", [-6.0, 6.0, 0.0], 418),
    ("ce-after-softmax", [-6.0, 6.0, 0.0], 9854),
    ("ce", [-10.0, 10.0, 0.0], 11),
    ("sigmoid-difference", [-10.0, 10.0, 0.0], 22051),
    ("ce-after-softmax", [-10.0, 10.0, 0.0], None),
    ("mae", [-40.0, 40.0], None),
]


@cache
def evaluated():
    rows = [
        {
            "loss": description.name,
            "x": [value if math.isfinite(value) else str(value).replace("inf", "Infinity") for value in x.tolist()],
            "t": target.weights.tolist(),
            "labels": target.labels is not None,
        }
        for description, x, target in corpus()
    ]
    runs = [{"loss": loss, "x": x, "label": 0, "limit": 100_000} for loss, x, _ in RUNS]
    text = json.dumps({"rows": rows, "runs": runs})
    done = subprocess.run([NODE, EVALUATE, MATHEMATICS], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def numbers(values):
    return np.array([float(value) for value in values])


@pytest.mark.parametrize("name", LOSSES)
def test_every_number_is_the_references(name):
    compared = 0
    with np.errstate(all="ignore"):
        for (description, x, target), found in zip(corpus(), evaluated()["evaluated"], strict=True):
            if description.name == name:
                t, terms, gradient = compute(description, x, target)
                wanted = {"t": t, "terms": terms, "gradient": gradient, "p": probabilities(description, x)}
                for key, value in wanted.items():
                    said = f"{key} of {name} at {x[:4]}, target {target.weights[:4]}"
                    np.testing.assert_allclose(numbers(found[key]), value, rtol=1e-12, atol=1e-12, err_msg=said)
                compared += 1
    assert compared > 10


def test_steps_are_counted_as_the_documentation_says():
    assert evaluated()["counted"] == [steps for _, _, steps in RUNS]
