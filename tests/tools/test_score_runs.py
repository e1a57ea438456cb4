"""Run against run, suspected labels, the temperature's cost, pictures, frames, and what a notebook shows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import crossent
from crossent import reference
from crossent.tools.cli import main
from crossent.tools.score import temperature
from crossent.tools.score.comparison import compare
from crossent.tools.score.row_blocks import Reader

RNG = np.random.default_rng(5)
N, NAMES = 150, ("cat", "dog", "bird")
Y = RNG.integers(0, 3, N)
A = np.round(RNG.normal(size=(N, 3)) + 1.5 * np.eye(3)[Y], 5)
B = np.round(A + 0.5 * np.eye(3)[Y] + 0.3 * RNG.normal(size=(N, 3)), 5)
IDS = np.array([f"r{k}" for k in range(N)])


def nll(x):
    return -np.log(reference.softmax(x))[np.arange(N), Y]


def write(path, heading, *columns):
    cells = [np.asarray(column).reshape(N, -1).tolist() for column in columns]
    path.write_text(
        "\n".join([heading, *(",".join(str(c) for part in row for c in part) for row in zip(*cells, strict=True))])
    )


# --- run against run --------------------------------------------------------------------------------------------------


def test_differences_are_paired():
    found = compare(A, B, Y)
    difference = nll(B) - nll(A)
    n = found.numbers
    assert n["nll_nats_difference"] == pytest.approx(difference.mean())
    assert n["nll_nats_difference_standard_error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(N))
    right = (A.argmax(1) == Y, B.argmax(1) == Y)
    assert n["accuracy_difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert found.disagreements == {
        "both": (right[0] & right[1]).sum(), "only_first": (right[0] & ~right[1]).sum(),
        "only_second": (~right[0] & right[1]).sum(), "neither": (~right[0] & ~right[1]).sum(),
    }  # fmt: skip
    assert [each["row"] for each in found.better] == np.argsort(difference, kind="stable")[:10].tolist()
    assert [each["row"] for each in found.worse] == np.argsort(-difference, kind="stable")[:10].tolist()
    same = compare(A, A, Y)
    assert same.numbers["nll_nats_difference"] == 0
    assert "the same" in str(same)
    assert same.better == []


def test_two_files_and_their_truth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    order, turned = RNG.permutation(N), [2, 0, 1]
    write(tmp_path / "a.csv", "id," + ",".join(NAMES), IDS, A)
    write(tmp_path / "b.csv", "id," + ",".join(NAMES[k] for k in turned), IDS[order], B[order][:, turned])
    write(tmp_path / "t.csv", "id,label", IDS[::-1], np.array(NAMES)[Y][::-1])
    ran = CliRunner().invoke(main, ["score", "a.csv", "b.csv", "t.csv", "--json"])
    assert ran.exit_code == 0, ran.output
    found, expected = json.loads(ran.stdout), compare(A, B, Y).to_dict()
    assert found["schema"] == "crossent.comparison/1"
    for key, value in expected["numbers"].items():
        assert found["numbers"][key] == pytest.approx(value), key
    assert found["second_worse"][0]["id"] == IDS[expected["second_worse"][0]["row"]]
    said = CliRunner().invoke(main, ["score", "a.csv", "b.csv", "--labels", "t.csv::label"]).stdout
    assert "2 − 1" in said
    assert "only 2 right" in said
    assert "standard errors" in CliRunner().invoke(main, ["score", "a.csv", "b.csv", "t.csv", "--md"]).stdout
    np.save("short.npy", A[:9])
    refused = CliRunner().invoke(main, ["score", "a.csv", "short.npy", "t.csv"])
    assert (refused.exit_code, "Error: " in refused.stderr) == (2, True)


# --- suspected labels -------------------------------------------------------------------------------------------------


ONE_DRAW = 0.02  # the standard deviation between draws


@pytest.mark.parametrize(
    ("share", "precise", "complete", "counted", "known"),
    [(0.05, 0.89, 0.79, 0.937, (0.888, 0.832)), (0.2, 0.94, 0.82, 0.861, (0.963, 0.829))],
)
def test_the_least_sure_labels_are_the_wrong_ones_more_often(share, precise, complete, counted, known):
    """The recipe of docs/tools.md, one of its five draws."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    x, true = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    flipped = random.random(len(true)) < share
    y = np.where(flipped, (true + random.integers(1, 10, len(true))) % 10, true)
    p = cross_val_predict(LogisticRegression(max_iter=1000), x / 16, y, cv=5, method="predict_proba")
    precision, recall = {}, {}
    for rule in ("self-confidence", "confident-learning"):
        report = crossent.score(p, y, input="probs", suspects=rule, top=len(y))
        rows = [each.row for each in report.suspects]
        assert len(rows) == report.numbers["suspected_label_errors"]
        precision[rule], recall[rule] = flipped[rows].mean(), flipped[rows].sum() / flipped.sum()
    # Among more of them, as many as another model would count, both are what the method is known for.
    count = round(counted * flipped.sum())
    unsure = [each.row for each in report.worst if each.predicted != each.true][:count]
    assert flipped[unsure].mean() > known[0] - ONE_DRAW
    assert flipped[unsure].sum() / flipped.sum() > known[1] - ONE_DRAW
    assert precision["self-confidence"] > precision["confident-learning"]
    assert recall["self-confidence"] > recall["confident-learning"]
    assert precision["self-confidence"] > precise
    assert recall["self-confidence"] > complete


# --- the temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
def test_the_temperature_is_found_on_a_few_rows_and_confirmed_in_three_passes(scale, monkeypatch):
    y = RNG.integers(0, 4, 6000)
    x = scale * (RNG.normal(size=(6000, 4)) + 2 * np.eye(4)[y])
    whole = crossent.score(x, y).numbers["temperature"]
    passes = []
    read = Reader.sample
    monkeypatch.setattr(temperature, "FIRST", 1000)
    monkeypatch.setattr(Reader, "sample", lambda self, chosen: passes.append(1) or read(self, chosen))
    assert crossent.score(x, y).numbers["temperature"] == pytest.approx(whole, rel=1e-5)
    assert len(passes) <= 4  # of which the first reads few rows


@pytest.mark.parametrize(("right", "limit"), [(0.0, 1), (40.0, 0)], ids=["nothing is known", "all is right"])
def test_a_temperature_beyond_its_limit_is_not_crept_up_to(right, limit, monkeypatch):
    random = np.random.default_rng(3)
    y = random.integers(0, 4, 4000)
    x = random.normal(size=(4000, 4)) - 0.1 * np.eye(4)[y] + right * np.eye(4)[y]
    passes = []
    read = Reader.sample
    monkeypatch.setattr(Reader, "sample", lambda self, chosen: passes.append(1) or read(self, chosen))
    assert crossent.score(x, y).numbers["temperature"] == temperature.LIMITS[limit]
    assert len(passes) <= 4


# --- pictures, frames, notebooks --------------------------------------------------------------------------------------


def test_the_confusion_matrix_is_in_the_json_and_in_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", logits=A, labels=Y)
    ran = CliRunner().invoke(main, ["score", "a.npz", "--json", "--plot", "scores.png"])
    document = json.loads(ran.stdout)
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (Y, A.argmax(1)), 1)
    assert document["confusion"] == confusion.tolist()
    assert document["calibration_bins"]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    display = crossent.score(A, Y, class_names=NAMES).plot()
    assert [axes.get_title()[:9] for axes in display.axes_] == ["Reliabili", "Confusion"]
    assert crossent.score(RNG.normal(size=(300, 101)), np.arange(300) % 101).confusion is None


def test_a_report_becomes_a_frame():
    pd = pytest.importorskip("pandas")
    report = crossent.score(A, Y, class_names=NAMES)
    frame = report.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame["name"].tolist() == list(NAMES)
    assert report.to_frame("worst")["row"].tolist() == [each.row for each in report.worst]
    with pytest.raises(ValueError, match="table must be one of classes, worst"):
        report.to_frame("best")


def test_a_report_in_a_notebook_is_static_and_escaped():
    report = crossent.score(A, Y, class_names=("<b>cat", "dog", "bird"))
    html = report._repr_html_()
    assert "&lt;b&gt;cat" in html
    assert "<b>cat" not in html
    assert "<script" not in html
    assert f"{report.numbers['nll_nats_mean']:.4f}" in html


def test_a_real_kernel_shows_everything_once():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "import crossent\ne = crossent.explain([2.0, 1.0, 0.1], 0)\nr = crossent.score([[2.0, 0.0], [0.0, 1.0]] * 4, [0, 1] * 4)",
        "print(len(str(e)) > 500, len(str(r)) > 500)",
        "e",
        "r",
        "print(e)",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    outputs = [cell["outputs"] for cell in book.cells]
    assert [len(each) for each in outputs] == [0, 1, 1, 1, 1]
    assert outputs[1][0]["text"] == "True True\n"
    for each in outputs[2:4]:
        assert {"text/html", "text/plain"} <= set(each[0]["data"])
        assert each[0]["data"]["text/plain"].strip()
    assert outputs[4][0]["text"].count("Side by side") == 1
