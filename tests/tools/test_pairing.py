"""Rows and classes of two tables are paired by what they are called, and what is no class is not taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

import crossent
from crossent.tools.cli import main
from crossent.tools.files import FileError, Selection, open_pair

RNG = np.random.default_rng(1)
N, NAMES = 60, ("cat", "dog", "bird", "fish")
Y = RNG.integers(0, 4, N)
X = np.round(RNG.normal(size=(N, 4)) + 2 * np.eye(4)[Y], 6)
ORDER = np.random.default_rng(2).permutation(N)
RIGHT = crossent.score(X, Y).numbers["nll_nats_mean"]


def write(path, heading, *columns):
    """Write columns, of which one with two axes is several."""
    cells = [np.asarray(column).reshape(N, -1).tolist() for column in columns]
    lines = [",".join(str(cell) for part in row for cell in part) for row in zip(*cells, strict=True)]
    path.write_text("\n".join([heading, *lines]) + "\n")
    return str(path)


def loss(*files, **selected):
    pair = (
        open_pair(*files, Selection(**selected))
        if len(files) == 2
        else open_pair(files[0], None, Selection(**selected))
    )
    return crossent.score(pair.logits, pair.labels).numbers["nll_nats_mean"], pair


@pytest.fixture
def preds(tmp_path):
    return write(tmp_path / "a.csv", "id," + ",".join(NAMES), np.arange(N), X)


# --- rows -------------------------------------------------------------------------------------------------------------


KEYS = {
    "number": np.arange(100, 100 + N),
    "text": np.array([f"im{k:03}.png" for k in range(N)]),
    "guid": np.array([f"{k * 7919 % 997:04x}-{k}" for k in range(N)]),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize(
    "names", [("id", "id"), ("guid", "GUID"), ("image_name", "image_name"), ("", ""), ("Unnamed: 0", "index")]
)
def test_rows_are_paired_by_their_keys(kind, names, tmp_path):
    key = KEYS[kind]
    a = write(tmp_path / "a.csv", f"{names[0]}," + ",".join(NAMES), key, X)
    t = write(tmp_path / "t.csv", f"{names[1]},label", key[ORDER], Y[ORDER])
    found, pair = loss(a, t)
    assert found == pytest.approx(RIGHT, abs=1e-9)
    assert any("another order" in note for note in pair.notes)
    assert pair.logits.ids[3] == str(key[3])
    same = write(tmp_path / "s.csv", f"{names[1]},label", key, Y)
    assert not any("order" in note for note in loss(a, same)[1].notes)


def test_keys_of_other_names_pair_rows_if_they_are_the_same(tmp_path):
    a = write(tmp_path / "a.csv", "image," + ",".join(NAMES), KEYS["text"], X)
    t = write(tmp_path / "t.csv", "file_name,label", KEYS["text"][ORDER], Y[ORDER])
    assert loss(a, t)[0] == pytest.approx(RIGHT, abs=1e-9)
    other = write(tmp_path / "o.csv", "file_name,label", [f"z{k}" for k in range(N)], Y)
    with pytest.raises(
        FileError, match=r"o\.csv: its rows are called by 'file_name' and those of .*a\.csv by 'image', which differ"
    ):
        open_pair(a, other)
    assert loss(a, other, drop=("file_name",))[0] == pytest.approx(RIGHT, abs=1e-9)
    named = write(tmp_path / "n.csv", "stem,label,site", KEYS["text"][ORDER], Y[ORDER], ["x"] * N)
    assert loss(a, named, id="image,stem")[0] == pytest.approx(RIGHT, abs=1e-9)


def test_a_key_that_is_missing_or_there_twice_is_named(preds, tmp_path):
    key = np.arange(N)
    key[7] = 999
    missing = write(tmp_path / "m.csv", "id,label", key, Y)
    with pytest.raises(FileError, match=r"a\.csv: has no row '999'|m\.csv: has no row '7'"):
        open_pair(preds, missing)
    key[7] = 8
    with pytest.raises(FileError, match=r"t\.csv: the row '8' is there twice: rows are paired by 'id'"):
        open_pair(preds, write(tmp_path / "t.csv", "id,label", key, Y))


def test_rows_without_keys_on_one_side_are_paired_by_their_order(preds, tmp_path):
    np.save(tmp_path / "y.npy", Y)
    assert loss(preds, str(tmp_path / "y.npy"))[0] == pytest.approx(RIGHT, abs=1e-9)
    counted = write(tmp_path / "t.csv", "image_name,label", KEYS["text"], Y)
    found, pair = loss(preds, counted)
    assert found == pytest.approx(RIGHT, abs=1e-9)
    assert any("paired by their order" in note for note in pair.notes)


def test_a_text_that_both_have_pairs_rows(tmp_path):
    text = [f"a sentence with the number {k}" for k in range(N)]
    a = write(tmp_path / "a.csv", "text," + ",".join(NAMES), text, X)
    t = write(tmp_path / "t.csv", "text,label", np.array(text)[ORDER], Y[ORDER])
    assert loss(a, t)[0] == pytest.approx(RIGHT, abs=1e-9)


def test_ids_of_arrays_pair_rows_too(tmp_path):
    np.savez(tmp_path / "a.npz", logits=X, ids=KEYS["text"])
    t = write(tmp_path / "t.csv", "id,label", KEYS["text"][ORDER], Y[ORDER])
    assert loss(str(tmp_path / "a.npz"), t)[0] == pytest.approx(RIGHT, abs=1e-9)


def test_ids_are_in_every_list_of_worst_rows(tmp_path):
    a = write(tmp_path / "a.csv", "guid,label," + ",".join(NAMES), KEYS["guid"], Y, X)
    pair = open_pair(a)
    report = crossent.score(pair.logits, pair.labels)
    for examples in (report.to_dict()["worst"], report.to_dict()["suspected_label_errors"]):
        assert examples
        assert all(each["id"] == KEYS["guid"][each["row"]] for each in examples)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_the_two_rows_of_the_notes(tmp_path):
    (tmp_path / "p.csv").write_text("id,cat,dog\na,.9,.1\nb,.2,.8\n")
    (tmp_path / "t.csv").write_text("id,dog,cat\na,0,1\nb,1,0\n")
    pair = open_pair(str(tmp_path / "p.csv"), str(tmp_path / "t.csv"))
    assert crossent.score(pair.logits, pair.labels, input="probs").numbers["nll_nats_mean"] == pytest.approx(
        0.1643, abs=1e-4
    )


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (1, 0, 3, 2)])
def test_one_hot_truth_is_matched_by_name(order, preds, tmp_path):
    one_hot = np.eye(4, dtype=int)[Y][:, order]
    t = write(tmp_path / "t.csv", "id," + ",".join(NAMES[k] for k in order), np.arange(N)[ORDER], one_hot[ORDER])
    assert loss(preds, t)[0] == pytest.approx(RIGHT, abs=1e-9)
    true = write(
        tmp_path / "b.csv", "id," + ",".join(f"y_{NAMES[k]}" for k in order), np.arange(N), one_hot.astype(bool)
    )
    assert loss(preds, true)[0] == pytest.approx(RIGHT, abs=1e-9)


def test_columns_of_the_truth_are_not_taken_for_predictions(tmp_path):
    truth = ",".join(f"y_{name}" for name in NAMES)
    a = write(tmp_path / "a.csv", f"{truth}," + ",".join(f"p_{name}" for name in NAMES), np.eye(4, dtype=int)[Y], X)
    np.save(tmp_path / "y.npy", Y)
    assert loss(a, str(tmp_path / "y.npy"))[0] == pytest.approx(RIGHT, abs=1e-9)
    assert loss(a, f"{a}::y_*")[0] == pytest.approx(RIGHT, abs=1e-9)


def test_classes_that_do_not_match_are_shown_on_both_sides(preds, tmp_path):
    t = write(tmp_path / "t.csv", "id,cat,dog,bird,wolf", np.arange(N), np.eye(4)[Y])
    with pytest.raises(
        FileError, match=r"t\.csv: has the columns cat, dog, bird, wolf, and .*a\.csv the classes cat, dog, bird, fish"
    ):
        open_pair(preds, t)
    with pytest.raises(
        FileError, match=r"has the classes cat, dog, bird, fish, and --class-names says cat, cow, bird, fish"
    ):
        open_pair(preds, None, Selection(class_names=("cat", "cow", "bird", "fish")))


def test_labels_are_names_of_classes(preds, tmp_path):
    words = np.array(NAMES)[Y]
    assert loss(preds, write(tmp_path / "t.csv", "id,species", np.arange(N)[ORDER], words[ORDER]))[0] == pytest.approx(
        RIGHT
    )
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", words)
    with pytest.raises(
        FileError, match=r"the labels are names, bird, cat, dog, fish, and the logits have none: say --class-names"
    ):
        open_pair(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    assert loss(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), class_names=NAMES)[0] == pytest.approx(RIGHT)
    bad = write(tmp_path / "w.csv", "id,label", np.arange(N), ["wolf", *words[1:]])
    with pytest.raises(
        FileError, match=r"w\.csv::label: row 0 has the label 'wolf', and the classes are cat, dog, bird, fish"
    ):
        open_pair(preds, bad)


def test_columns_in_the_order_of_their_digits_as_text_are_matched_by_number(tmp_path):
    c = 12
    y = RNG.integers(0, c, N)
    x = np.round(RNG.normal(size=(N, c)) + 3 * np.eye(c)[y], 6)
    order = sorted(range(c), key=str)
    right = crossent.score(x, y).numbers["nll_nats_mean"]
    for prefix in ("", "p_", "class_"):
        a = write(
            tmp_path / "a.csv", "id,label," + ",".join(f"{prefix}{k}" for k in order), np.arange(N), y, x[:, order]
        )
        assert loss(a)[0] == pytest.approx(right, abs=1e-9)
    from_1 = write(tmp_path / "b.csv", "id,label," + ",".join(str(k + 1) for k in range(c)), np.arange(N), y + 1, x)
    assert loss(from_1)[0] == pytest.approx(right, abs=1e-9)


def test_names_for_columns_of_numbers_go_by_the_numbers(tmp_path):
    c = 12
    y, named = RNG.integers(0, c, N), [f"c{k}" for k in range(c)]
    x = np.round(RNG.normal(size=(N, c)) + 3 * np.eye(c)[y], 6)
    right = crossent.score(x, y).numbers["nll_nats_mean"]
    order = sorted(range(c), key=str)
    for first in (0, 1):
        for labels in (y + first, np.array(named)[y]):
            heading = "id,label," + ",".join(str(k + first) for k in order)
            a = write(tmp_path / "a.csv", heading, np.arange(N), labels, x[:, order])
            found, pair = loss(a, class_names=named)
            assert (found, pair.logits.columns) == (pytest.approx(right, abs=1e-9), tuple(named))


def test_class_names_in_another_order_are_matched(preds, tmp_path):
    order = [3, 1, 0, 2]
    place = np.argsort(order)
    np.save(tmp_path / "y.npy", place[Y])
    found, pair = loss(preds, str(tmp_path / "y.npy"), class_names=[NAMES[k] for k in order])
    assert found == pytest.approx(RIGHT, abs=1e-9)
    assert pair.logits.columns == tuple(NAMES[k] for k in order)


def test_classes_may_be_called_as_keys_and_labels_are(tmp_path):
    for names in (
        ("normal", "covid", "hybrid", "acid"),
        ("image", "name", "file", "text"),
        ("true", "false", "class", "y"),
    ):
        a = write(tmp_path / "a.csv", "image_name," + ",".join(names), KEYS["text"], X)
        t = write(tmp_path / "t.csv", "image_name,label", KEYS["text"][ORDER], np.array(names)[Y][ORDER])
        found, pair = loss(a, t)
        assert (found, pair.logits.columns) == (pytest.approx(RIGHT, abs=1e-9), names)


# --- what is a class --------------------------------------------------------------------------------------------------

BESIDES = {
    "gold": Y, "__index_level_0__": ORDER, "Unnamed: 0": ORDER, "sample_id": ORDER + 1000, "pred": X.argmax(1),
    "fold": ORDER % 5, "loss": np.round(RNG.random(N), 4), "weight": np.round(RNG.random(N), 4), "Usage": ["Public"] * N,
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDES)
def test_what_stands_beside_the_classes_is_none(name, tmp_path):
    beside = BESIDES[name]
    file = write(tmp_path / "b.csv", ",".join(["id", *NAMES, name, "label"]), np.arange(N), X, beside, Y)
    found, pair = loss(file)
    assert (found, pair.logits.columns) == (pytest.approx(RIGHT, abs=1e-9), NAMES)
    if name != "gold":
        assert any(f"left out {name!r}" in note for note in pair.notes)
    if name == "gold":
        assert loss(file, f"{file}::gold")[0] == pytest.approx(RIGHT, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("age", RNG.integers(20, 60, N), "It holds whole numbers, and others do not"),
        ("salary", np.round(RNG.random(N) * 1e5, 2), "Its values reach"),
    ],
)
def test_a_doubtful_column_is_refused(name, values, why, tmp_path):
    file = write(tmp_path / "b.csv", ",".join([*NAMES, name, "label"]), X, values, Y)
    with pytest.raises(FileError, match=rf"is the column {name!r} a class\? {why}.* Say --drop {name}, or --classes"):
        open_pair(file)
    for said in ({"drop": (name,)}, {"classes": NAMES}, {"classes": ("cat", "dog", "?i*")}, {"class_names": NAMES}):
        assert loss(file, **said)[0] == pytest.approx(RIGHT, abs=1e-9)
    words = write(tmp_path / "w.csv", ",".join([*NAMES, name, "label"]), X, values, np.array(NAMES)[Y])
    assert loss(words)[0] == pytest.approx(RIGHT, abs=1e-9)


def test_a_column_without_which_the_others_sum_to_1_is_none(tmp_path):
    p = np.exp(X) / np.exp(X).sum(1, keepdims=True)
    file = write(tmp_path / "b.csv", ",".join([*NAMES, "area", "label"]), p, RNG.random(N), Y)
    with pytest.raises(FileError, match=r"is the column 'area' a class\? The others of a row sum to 1 without it"):
        open_pair(file)


def test_a_heading_of_numbers_is_a_heading(tmp_path):
    for heading in ("0,1,2,3", "1,2,3,4"):
        file = write(tmp_path / "b.csv", heading, X)
        assert open_pair(file).logits.shape == (N, 4)
    one_hot = write(tmp_path / "t.csv", "0,1,2,3", np.eye(4, dtype=int)[Y])
    assert open_pair(one_hot).logits.shape == (N, 4)
    plain = write(tmp_path / "n.csv", "0,1,2,3", np.arange(4 * N).reshape(N, 4))
    assert open_pair(plain).logits.shape == (N + 1, 4)
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "y.csv").write_text("\n".join(["0", *map(str, Y)]))
    with pytest.raises(FileError, match="if its first line, 0, is the name of the column"):
        open_pair(str(tmp_path / "x.npy"), str(tmp_path / "y.csv"))


def test_an_array_is_never_scored_against_itself(tmp_path):
    file = write(tmp_path / "t.csv", "id,label", np.arange(N), Y)
    with pytest.raises(FileError, match="holds no logits, only id, label"):
        open_pair(file)
    np.save(tmp_path / "y.npy", X)
    with pytest.raises(FileError, match="is taken for the logits and for their labels"):
        open_pair(str(tmp_path / "y.npy"), str(tmp_path / "y.npy"))
    np.savez(tmp_path / "a.npz", logits=X)
    with pytest.raises(FileError, match="is taken for the logits and for their labels"):
        open_pair(f"{tmp_path}/a.npz", f"{tmp_path}/a.npz::logits")


def test_the_command_says_which_were_taken(preds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.csv", "id,label", np.arange(N)[ORDER], Y[ORDER])
    ran = CliRunner().invoke(main, ["score", "a.csv", "t.csv", "--json"])
    assert ran.exit_code == 0
    assert "logits: a.csv, 60 × 4 float64: cat, dog, bird, fish\n" in ran.stderr
    assert "t.csv: its rows are in another order, and were paired by 'id'" in ran.stderr
    for tool in ("check", "explain"):
        options = ["--row", "3"] if tool == "explain" else []
        assert CliRunner().invoke(main, [tool, "a.csv", "t.csv", *options]).exit_code == 0


def test_a_wide_table_is_read_at_once(tmp_path):
    c = 20_000
    (tmp_path / "w.csv").write_text(
        ",".join(["id", "label", *(f"tok{k}" for k in range(c))]) + ("\n1,2" + ",0.5" * c) * 2
    )
    assert open_pair(str(tmp_path / "w.csv"), None).logits.shape == (2, c)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_frames_of_pandas_are_paired_by_their_index():
    pd = pytest.importorskip("pandas")
    frame, truth = pd.DataFrame(X, columns=NAMES), pd.Series(np.array(NAMES)[Y])
    expected = crossent.score(X, Y, class_names=NAMES).to_dict()["numbers"]
    for labels in (truth, truth.iloc[ORDER], truth.iloc[ORDER].to_frame("species"), pd.get_dummies(truth).iloc[ORDER]):
        with pytest.warns(UserWarning, match="order") if labels.index[0] != 0 else _quiet():
            assert crossent.score(frame, labels).to_dict()["numbers"] == expected
    with _quiet():
        assert str(crossent.check(frame, truth)) == str(crossent.check(X, Y))
    with pytest.raises(FileError, match="has no row"):
        crossent.score(frame, truth.iloc[5:])


def test_frames_of_polars_are_paired_by_their_keys():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"id": KEYS["text"], **{name: X[:, k] for k, name in enumerate(NAMES)}})
    truth = pl.DataFrame({"id": KEYS["text"][ORDER], "label": np.array(NAMES)[Y][ORDER]})
    with pytest.warns(UserWarning, match="another order"):
        assert crossent.score(frame, truth).numbers["nll_nats_mean"] == pytest.approx(RIGHT)


def _quiet():
    import contextlib

    return contextlib.nullcontext()
