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


def test_the_numbers_of_several_labels_are_those_of_score():
    t = (RNG.random((N, 3)) < 0.4).astype(int)
    numbers = compare(A, B, t, task="multilabel").numbers
    alone = [crossent.score(each, t, task="multilabel").numbers for each in (A, B)]
    for of_score, key in (("brier", "brier"), ("accuracy", "accuracy"), ("nll_nats_mean", "nll_nats")):
        for run, name in zip(alone, ("first", "second"), strict=True):
            assert numbers[f"{key}_{name}"] == pytest.approx(run[of_score]), key


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


# Each of these files names its rows, and holds predictions and labels.
BOTH = "id," + ",".join(NAMES) + ",label"


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """Write two runs with the labels of both, in different orders of rows and classes."""
    monkeypatch.chdir(tmp_path)
    order, turned = RNG.permutation(N), [2, 0, 1]
    write(tmp_path / "a.csv", BOTH, IDS, A, np.array(NAMES)[Y])
    write(tmp_path / "b.csv", BOTH, IDS, B, np.array(NAMES)[Y])
    names = ",".join(NAMES[k] for k in turned)
    write(tmp_path / "c.csv", f"id,{names},label", IDS[order], B[order][:, turned], np.array(NAMES)[Y[order]])
    write(tmp_path / "other.csv", BOTH, IDS, B, np.array(NAMES)[(Y + 1) % 3])
    write(tmp_path / "plain.csv", "id," + ",".join(NAMES), IDS, B)
    np.save("y.npy", Y)
    np.savez("a.npz", logits=A, labels=Y)
    np.savez("b.npz", logits=B, labels=Y)
    np.savez("other.npz", logits=B, labels=(Y + 1) % 3)
    np.savez("plain.npz", logits=B)
    (tmp_path / "b.jsonl").write_text(
        "\n".join(
            json.dumps({"id": i, "logits": x.tolist(), "label": int(y)}) for i, x, y in zip(IDS, B, Y, strict=True)
        )
    )
    return tmp_path


@pytest.mark.parametrize(
    "files",
    [
        "a.csv b.csv --labels a.csv::label",
        "a.csv b.csv --labels b.csv::label",
        "a.csv b.csv --labels a.csv",
        "a.csv b.csv a.csv",
        "a.csv b.csv a.csv --id id",
        "a.csv c.csv b.csv",
        "a.csv plain.csv --labels a.csv::label",
        "a.csv plain.csv a.csv",
        "a.csv b.csv y.npy",
        "a.csv b.csv",
        "a.csv c.csv",
        "a.npz b.npz",
        "a.npz plain.npz a.npz",
        "a.npz b.jsonl",
        "a.csv b.jsonl",
    ],
)
def test_runs_that_hold_their_labels_are_compared(two_runs, files):
    ran = CliRunner().invoke(main, ["score", *files.split(), "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["schema"] == "crossent.comparison/1"
    for key, value in compare(A, B, Y).numbers.items():
        assert found["numbers"][key] == pytest.approx(value), key


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("a.csv other.csv", "a.csv::label and other.csv::label differ in row 0"),
        ("a.npz other.npz", "a.npz::labels and other.npz::labels differ in row 0"),
        ("a.npz other.npz", f" and {N - 1} more rows"),
        ("a.npz other.npz", "score a.npz alone with the labels of the other, as other.npz::labels"),
        ("a.csv plain.csv", "to compare two runs, say crossent score a.csv plain.csv --labels a.csv::label"),
        ("a.npz plain.npz", "to compare two runs, say crossent score a.npz plain.npz --labels a.npz::labels"),
        ("a.npz b.npz --html x.html", "--html is for one run"),
        ("a.npz b.npz --plot x.png", "--plot is for one run"),
        ("a.npz b.npz --ids y.npy", "--ids is for one run"),
        ("a.npz b.npz --csv", "two runs are printed as text"),
        ("a.npz b.npz --label-smoothing 0.1", "two runs are compared by their plain cross entropy"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(two_runs, files, said):
    ran = CliRunner().invoke(main, ["score", *files.split()])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert said in " ".join(ran.stderr.split())


@pytest.mark.parametrize("command", ["check", "explain --row 0"])
@pytest.mark.parametrize("files", ["a.csv b.csv", "a.csv other.csv", "a.npz other.npz"])
def test_a_second_run_is_not_taken_for_labels_in_silence(two_runs, command, files):
    name, *options = command.split()
    second = files.split()[1]
    ran = CliRunner().invoke(main, [name, *files.split(), *options])
    assert (ran.exit_code, ran.stdout) == (2, "")
    label = "label" if second.endswith("csv") else "labels"
    assert f"both hold predictions and labels: name the labels that are meant, as {second}::{label}" in ran.stderr
    named = CliRunner().invoke(main, [name, files.split()[0], f"{second}::{label}", *options])
    assert named.exit_code in (0, 1), named.stderr


@pytest.mark.parametrize("labels", ["other.npz::labels", "--labels other.npz", "--labels other.npz::labels"])
def test_labels_that_are_named_are_those_of_one_run(two_runs, labels):
    ran = CliRunner().invoke(main, ["score", "a.npz", *labels.split(), "--json"])
    assert ran.exit_code == 0, ran.output
    expected = crossent.score(A, (Y + 1) % 3).numbers["nll_nats_mean"]
    assert json.loads(ran.stdout)["numbers"]["nll_nats_mean"] == pytest.approx(expected)


def test_one_hot_labels_beside_a_label_are_no_run(two_runs):
    write(two_runs / "truth.csv", "id," + ",".join(NAMES), IDS, np.eye(3, dtype=int)[Y])
    ran = CliRunner().invoke(main, ["score", "a.csv", "truth.csv", "--json"])
    assert json.loads(ran.stdout)["numbers"]["accuracy"] == pytest.approx((A.argmax(1) == Y).mean())


def test_frames_of_two_runs_are_refused():
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(x, columns=NAMES, index=IDS).assign(label=np.array(NAMES)[Y]) for x in (A, B)]
    with pytest.raises(ValueError, match=r"logits and labels both hold predictions and labels.*labels\['label'\]"):
        crossent.score(*frames)
    with pytest.raises(ValueError, match="both hold predictions and labels"):
        crossent.check(*frames)
    expected = crossent.score(A, Y).numbers["nll_nats_mean"]
    assert crossent.score(frames[0][list(NAMES)], frames[1]["label"]).numbers["nll_nats_mean"] == pytest.approx(
        expected
    )


def test_a_job_fails_by_a_difference(two_runs):
    def returned(condition):
        return CliRunner().invoke(main, ["score", "a.npz", "b.npz", "--fail-if", condition])

    n = compare(A, B, Y).numbers
    assert returned("nll_nats_difference>0").exit_code == 0
    failed = returned("nll_nats_second<100")
    assert failed.exit_code == 1
    assert failed.stderr.endswith(
        f"Failed: nll_nats_second is {n['nll_nats_second']:.6g}, and --fail-if says nll_nats_second<100\n"
    )
    assert "Differences" in failed.stdout
    refused = returned("nll>0.5")
    assert refused.exit_code == 2
    assert "the comparison of two runs has no nll_nats_mean" in " ".join(refused.stderr.split())


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
    # With as many suspects as another model counts, precision and recall reach the figures that the method is known for.
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
    # A kernel sends what a cell prints whenever a timer asks for it, so that one print may come in two pieces.
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3", coalesce_streams=True).execute()
    outputs = [cell["outputs"] for cell in book.cells]
    assert [len(each) for each in outputs] == [0, 1, 1, 1, 1]
    assert outputs[1][0]["text"] == "True True\n"
    for each in outputs[2:4]:
        assert {"text/html", "text/plain"} <= set(each[0]["data"])
        assert each[0]["data"]["text/plain"].strip()
    assert outputs[4][0]["text"].count("Side by side") == 1
