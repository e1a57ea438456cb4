"""Files as other programs export them: each gives the right number, or a refusal that is safe to follow."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest
from click.testing import CliRunner

import crossent
from crossent import reference
from crossent.tools.cli import main
from crossent.tools.files import FileError, Selection, open_pair

RNG = np.random.default_rng(5)
N, NAMES = 60, ("cat", "dog", "bird", "fish")
Y = RNG.integers(0, 4, N)
X = np.round(RNG.normal(size=(N, 4)) + 2 * np.eye(4)[Y], 5)
P = reference.softmax(X)
ORDER = np.random.default_rng(3).permutation(N)
RIGHT = crossent.score(X, Y).numbers["nll_nats_mean"]
WORDS = np.array(NAMES)[Y]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loss(*files, task="multiclass", **selected):
    first, second = (*files, None)[:2]
    pair = open_pair(first, second, Selection(**selected))
    return crossent.score(pair.logits, pair.labels, task=task).numbers["nll_nats_mean"]


def text(heading, rows, separator=",", end="\n"):
    return end.join(separator.join(map(str, row)) for row in [heading, *rows]) + end


def write(name, content, encoding="utf-8"):
    with open(name, "wb") as out:
        out.write(content.encode(encoding))
    return name


TABLE = text([*NAMES, "label"], [[*x, w] for x, w in zip(X.tolist(), WORDS, strict=True)])


# --- classes that are called by numbers -------------------------------------------------------------------------------

TWELVE = 12
Y12 = RNG.integers(0, TWELVE, N)
Y12[:TWELVE] = np.arange(TWELVE)
X12 = np.round(RNG.normal(size=(N, TWELVE)) + 3 * np.eye(TWELVE)[Y12], 5)
RIGHT12 = crossent.score(X12, Y12).numbers["nll_nats_mean"]
AS_TEXT = sorted(range(TWELVE), key=str)


@pytest.mark.parametrize(
    "called",
    ["LABEL_{}", "tok{}", "class{}", "c{}", "head.{}", "prob_class_{}", "digit-{}", "p({})", "{}_prob", "{}.0"],
)
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_in_the_names_of_columns_say_which_class_is_which(called, first):
    heading = [*(called.format(k + first) for k in AS_TEXT), "label"]
    a = write("a.csv", text(heading, np.column_stack([X12[:, AS_TEXT], Y12 + first])))
    assert loss(a) == pytest.approx(RIGHT12)
    named = tuple(f"name {k}" for k in range(TWELVE))
    b = write("b.csv", text(heading, [[*x, named[y]] for x, y in zip(X12[:, AS_TEXT].tolist(), Y12, strict=True)]))
    assert loss(b, class_names=named) == pytest.approx(RIGHT12)
    if first:
        zero = write("z.csv", text(heading, np.column_stack([X12[:, AS_TEXT], Y12])))
        if called in ("LABEL_{}", "{}.0"):  # called by numbers alone, once a usual prefix is off
            with pytest.raises(FileError, match=r"has the label 0, .* if 0 is the first of them, add 1 to the labels"):
                open_pair(zero)
        else:
            assert loss(zero) == pytest.approx(RIGHT12)


def test_classes_may_be_called_by_numbers_below_0():
    a = write("a.csv", text([-1, 0, 1, 2, "label"], np.column_stack([X, Y - 1])))
    assert loss(a) == pytest.approx(RIGHT)


@pytest.mark.parametrize("lines", [False, True], ids=["json", "jsonl"])
def test_a_pipeline_that_sorts_by_score_does_not_number_its_classes(lines):
    for called, numbers in (("LABEL_{}", range(4)), ("{}", NAMES)):
        rows = [[{"label": called.format(numbers[k]), "score": x[k]} for k in np.argsort(-x)] for x in X]
        a = write("a.jsonl", "\n".join(map(json.dumps, rows))) if lines else write("a.json", json.dumps(rows))
        y = write("y.txt", "\n".join(map(str, Y)))
        if called == "{}":
            with pytest.raises(FileError, match=r"in a different order in each row.* say --class-names"):
                open_pair(a, y)
            assert loss(a, y, class_names=NAMES) == pytest.approx(RIGHT)
            assert loss(a, write("w.txt", "\n".join(WORDS))) == pytest.approx(RIGHT)
        else:
            assert loss(a, y) == pytest.approx(RIGHT)


def test_predictions_whose_names_come_in_another_order_each_time_have_none():
    rows = [
        {"predictions": {name: x[k] for k, name in sorted(enumerate(NAMES), key=lambda _: RNG.random())}} for x in X
    ]
    a = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    y = write("y.txt", "\n".join(map(str, Y)))
    with pytest.raises(FileError, match="in a different order in each row"):
        open_pair(a, y)
    assert loss(a, y, class_names=NAMES) == pytest.approx(RIGHT)


# --- columns that are no classes --------------------------------------------------------------------------------------


def test_a_column_of_numbers_with_a_word_in_it_is_not_left_out():
    rows = [[*x, y] for x, y in zip(X.tolist(), Y % 3, strict=True)]
    rows[17][0] = "n.v."
    with pytest.raises(FileError, match=r"a\.csv: line 19: 'n\.v\.' in the column 'cat' is not a number"):
        open_pair(write("a.csv", text([*NAMES, "label"], rows)))
    rows[17][0] = ""
    with pytest.raises(FileError, match=r"line 19: '' in the column 'cat' is not a number"):
        open_pair(write("a.csv", text([*NAMES, "label"], rows)))


BESIDES = {
    "a measure": {"uncertain": RNG.random(N)},
    "places": {"lat": RNG.random(N) * 5, "lon": RNG.random(N) * 5},
    "features": {f"f{k}": RNG.random(N) for k in range(3)},
    "the largest logit": {"largest": X.max(1)},
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("labels", ["numbers", "names"])
@pytest.mark.parametrize("name", BESIDES)
def test_columns_that_no_label_names_are_doubtful(name, labels, first):
    classes, beside = dict(zip(NAMES, X.T, strict=True)), BESIDES[name]
    columns = {**(beside | classes if first else classes | beside), "label": Y if labels == "numbers" else WORDS}
    a = write("a.csv", text(columns, zip(*columns.values(), strict=True)))
    with pytest.raises(FileError, match=r"The labels of 60 rows name 4 classes, and these are [567]\. Say --classes"):
        open_pair(a)
    assert loss(a, drop=tuple(beside)) == pytest.approx(RIGHT)
    assert loss(a, classes=NAMES) == pytest.approx(RIGHT)


def test_classes_without_a_label_are_classes_where_there_are_few_rows():
    y = np.arange(8) % 3
    a = write("a.csv", text([*NAMES, "label"], np.column_stack([X[:8], y])))
    assert loss(a) == pytest.approx(crossent.score(X[:8], y).numbers["nll_nats_mean"])


@pytest.mark.parametrize("called", ["true_label", "Actual", "y_test", "true_class", "gt"])
def test_labels_have_many_names(called):
    rows = [[y, x.argmax(), x.max(), *x] for x, y in zip(X, Y, strict=True)]
    assert loss(write("a.csv", text([called, "predicted_class", "confidence", *NAMES], rows))) == pytest.approx(RIGHT)


def test_what_was_predicted_is_not_taken_for_logits():
    rows = np.column_stack([Y == 1, P[:, 1] > 0.5, P[:, 1]]) * 1.0
    a = write("a.csv", text(["true_label", "pred_label", "confidence"], rows))
    with pytest.raises(FileError, match=r"are pred_label, confidence classes\? Such names are those of predictions"):
        open_pair(a)
    expected = crossent.score(P[:, 1:2], (Y == 1)[:, None] * 1.0, task="binary", input="probs").numbers["nll_nats_mean"]
    pair = open_pair(f"{a}::confidence", f"{a}::true_label")
    report = crossent.score(pair.logits, pair.labels, task="binary", input="probs")
    assert report.numbers["nll_nats_mean"] == pytest.approx(expected)


def test_what_was_predicted_is_not_advised_as_labels():
    rows = [[*x, NAMES[int(np.argmax(x))], w] for x, w in zip(X.tolist(), WORDS, strict=True)]
    pair = open_pair(write("a.csv", text([*NAMES, "predicted_species", "species"], rows)))
    assert pair.labels is None
    assert "if species holds them, say a.csv::species as well" in " ".join(pair.notes)


def test_tables_of_r_have_names_of_rows_without_a_heading():
    rows = [[k + 1, *x, y] for k, (x, y) in enumerate(zip(X.tolist(), Y, strict=True))]
    assert loss(write("a.txt", text([f'"{name}"' for name in (*NAMES, "label")], rows, " "))) == pytest.approx(RIGHT)
    with pytest.raises(FileError, match="line 2 has 6 columns, the first line 5"):  # a separator at the end is none
        open_pair(write("b.csv", TABLE.replace("\n", ",\n").replace("label,", "label", 1)))


def test_a_column_that_pandas_renamed_is_doubtful():
    a = write("a.csv", text([*NAMES, "cat.1", "label"], np.column_stack([X, X[:, 0], Y])))
    with pytest.raises(
        FileError, match=r"is the column 'cat\.1' a class\? pandas gives this name to a second 'cat'. Say --drop"
    ):
        open_pair(a)
    assert loss(a, drop=("cat.1",)) == pytest.approx(RIGHT)


# --- keys of any kind -------------------------------------------------------------------------------------------------

DAYS = [date(2024, 1, 1) + timedelta(days=k) for k in range(N)]
KEYS = {
    "days": DAYS,
    "times": [datetime(2024, 1, 1, 10) + timedelta(minutes=k) for k in range(N)],
    "times of a zone": [datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(hours=k) for k in range(N)],
    "hours": [time(k // 10, k % 10) for k in range(N)],
    "lengths": [timedelta(seconds=k) for k in range(N)],
    "bytes": [f"{k * 7919:08x}".encode() for k in range(N)],
    "decimals": [Decimal(k) for k in range(N)],
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("name", ["id", "date"])
def test_rows_of_parquet_are_paired_by_keys_of_any_kind(kind, name):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    key = pa.array(KEYS[kind])
    if (kind, name) == ("decimals", "date"):
        return  # a number that is called otherwise than keys are
    pq.write_table(pa.table({**dict(zip(NAMES, X.T, strict=True)), name: key}), "a.parquet")
    pq.write_table(pa.table({name: key, "label": Y}).take(pa.array(ORDER)), "t.parquet")
    assert loss("a.parquet", "t.parquet") == pytest.approx(RIGHT)


@pytest.mark.parametrize("kind", ["days", "times"])
def test_dates_are_the_same_however_a_library_writes_them(kind):
    pd, pq = pytest.importorskip("pandas"), pytest.importorskip("pyarrow.parquet")
    frame = pd.DataFrame({**dict(zip(NAMES, X.T, strict=True)), "date": pd.to_datetime(KEYS[kind])})
    truth = pd.DataFrame({"date": pd.to_datetime(KEYS[kind]), "label": Y}).iloc[ORDER]
    frame.to_parquet("a.parquet")
    frame.to_csv("a.csv", index=False)
    truth.to_csv("t.csv", index=False)
    truth.to_parquet("t.parquet", index=False)
    for a in ("a.parquet", "a.csv"):
        for t in ("t.csv", "t.parquet"):
            assert loss(a, t) == pytest.approx(RIGHT), (a, t)
    assert pq.read_table("a.parquet").num_rows == N


def test_frames_are_paired_by_an_index_of_any_kind():
    pd = pytest.importorskip("pandas")
    indices = [
        pd.DatetimeIndex(KEYS["days"]),
        pd.date_range("2024-01-01", periods=N, tz="UTC"),
        pd.period_range("2024-01", periods=N, freq="M"),
        pd.timedelta_range("1s", periods=N),
        pd.MultiIndex.from_arrays([np.arange(N) // 10, np.arange(N) % 10]),
        pd.CategoricalIndex([f"c{k}" for k in range(N)]),
        pd.Index(np.arange(N) / 2),
        pd.interval_range(0, N),
    ]
    for index in indices:
        frame = pd.DataFrame(X, columns=list(NAMES), index=index)
        for truth in (pd.Series(Y, index=index, name="label"), pd.DataFrame({"label": WORDS}, index=index)):
            with pytest.warns(UserWarning, match="paired by 'index'"):
                report = crossent.score(frame, truth.iloc[ORDER])
            assert report.numbers["nll_nats_mean"] == pytest.approx(RIGHT), type(index)
            assert crossent.score(frame, truth).numbers["nll_nats_mean"] == pytest.approx(RIGHT)


def test_an_index_of_two_levels_is_no_class_in_a_file():
    pd = pytest.importorskip("pandas")
    index = pd.MultiIndex.from_arrays([np.arange(N) // 10, np.arange(N) % 10])
    frame = pd.DataFrame(X, columns=list(NAMES), index=index).assign(label=Y)
    frame.to_parquet("a.parquet")
    frame.to_csv("a.csv")
    for name in ("a.parquet", "a.csv"):
        assert loss(name) == pytest.approx(RIGHT)


def test_frames_of_polars_are_paired_by_dates():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({**dict(zip(NAMES, X.T, strict=True)), "date": DAYS})
    truth = pl.DataFrame({"date": [DAYS[k] for k in ORDER], "label": Y[ORDER]})
    with pytest.warns(UserWarning, match="paired by 'date'"):
        assert crossent.score(frame, truth).numbers["nll_nats_mean"] == pytest.approx(RIGHT)


# --- numbers as people write them -------------------------------------------------------------------------------------


def test_percentages_are_told_to_be_divided_by_100():
    rows = [[*np.round(100 * p, 3), y] for p, y in zip(P, Y, strict=True)]
    write("a.csv", text([*NAMES, "label"], rows))
    for flag in ([], ["--input", "probs"]):
        said = " ".join(CliRunner().invoke(main, ["score", "a.csv", *flag]).stderr.split())
        assert "percentages" in said, flag
        assert "divide them by 100" in said
        assert "leave out" not in said
    said = CliRunner().invoke(main, ["explain", "a.csv", "--row", "3", "--input", "probs"])
    assert "percentages" in " ".join(said.output.split())


def test_a_comma_that_could_be_either_is_refused():
    big = np.round(1000 * np.abs(X) + 1000).astype(int)
    rows = [[*(f"{v:,}" for v in x), w] for x, w in zip(big, WORDS, strict=True)]
    with pytest.raises(FileError, match=r"may be 1234 or 1\.234|may be a thousand|thousands"):
        open_pair(write("a.csv", text([*NAMES, "label"], rows, ";")))
    rows = [[*(f"{v:.3f}".replace(".", ",") for v in x), w] for x, w in zip(X, WORDS, strict=True)]
    three = crossent.score([[float(f"{v:.3f}") for v in x] for x in X], Y).numbers["nll_nats_mean"]
    assert loss(write("b.csv", text([*NAMES, "label"], rows, ";"))) == pytest.approx(three)


@pytest.mark.parametrize("cell", ["{:,.2f}", "{:.2f}%", "{:.2f} €", "≈{:.2f}"])
def test_numbers_that_are_no_plain_numbers_are_shown(cell):
    rows = [[*(f'"{cell.format(1000 * v + 5000)}"' for v in x), w] for x, w in zip(X, WORDS, strict=True)]
    with pytest.raises(
        FileError, match=r"line 2: .* in the column 'cat' is not a number: write numbers plainly, 1234\.5 for 1,234\.5"
    ):
        open_pair(write("a.csv", text([*NAMES, "label"], rows)))


# --- texts of spreadsheets --------------------------------------------------------------------------------------------


def german(value):
    return str(value).replace(".", ",")


EXCEL = text(
    ["Id", *NAMES, "Label"],
    [[k, *map(german, x), w] for k, (x, w) in enumerate(zip(X.tolist(), WORDS, strict=True))],
    ";",
    "\r\n",
)
READ = {
    "a byte order mark": EXCEL.encode("utf-8-sig"),
    "sep=;": b"sep=;\r\n" + EXCEL.encode(),
    "UTF-16": EXCEL.encode("utf-16"),
    "UTF-16, tabs": text(
        ["Id", *NAMES, "Label"], [[k, *x, w] for k, (x, w) in enumerate(zip(X.tolist(), WORDS, strict=True))], "\t"
    ).encode("utf-16"),
    "bars": TABLE.replace(",", "|").encode(),
    "a comment": b"# of the run of last night\n" + TABLE.encode(),
    "a heading behind #": b"# " + TABLE.encode(),
    "quotes": ",".join(f"'{name}'" for name in TABLE.split("\n")[0].split(",")).encode()
    + TABLE[TABLE.index("\n") :].encode(),
    "a comma at the end": TABLE.replace("\n", ",\n").encode(),
    "blanks": TABLE.replace(",", " , ").encode(),
    "carriage returns": TABLE.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("name", READ)
def test_texts_of_other_programs_are_read(name):
    for ending in ("csv", "txt"):
        with open(f"a.{ending}", "wb") as out:
            out.write(READ[name])
        if (name, ending) not in {("blanks", "txt")}:
            assert loss(f"a.{ending}") == pytest.approx(RIGHT), ending


def test_labels_with_bars_are_no_table():
    np.save("x.npy", X)
    y = write("y.txt", "\n".join(["cat|dog", "cat", *["bird|fish"] * (N - 2)]))
    labels = open_pair("x.npy", y, Selection(class_names=NAMES)).labels
    assert labels.rows(0, 2).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "latin-1"])
def test_texts_in_other_encodings_are_refused_with_what_to_do(encoding):
    with pytest.raises(FileError, match=r"a\.csv: is not text in UTF-8: save it as UTF-8"):
        open_pair(write("a.csv", TABLE.replace("fish", "Fisch mit Ä"), encoding))


# --- JSON of pandas, and nested JSON ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orient", ["records", "index", "columns", "split", "table"])
@pytest.mark.parametrize("ids", [False, True], ids=["numbers", "names"])
def test_every_json_of_pandas_is_read(orient, ids):
    pd = pytest.importorskip("pandas")
    index = [f"im{k}" for k in range(N)] if ids else range(N)
    frame = pd.DataFrame(X, columns=list(NAMES), index=index)
    frame.assign(label=WORDS).iloc[ORDER].to_json("both.json", orient=orient)
    assert loss("both.json") == pytest.approx(RIGHT)
    if orient != "records":  # which leaves the index out
        frame.to_csv("a.csv")
        pd.DataFrame({"label": Y}, index=index).iloc[ORDER].to_json("t.json", orient=orient)
        assert loss("a.csv", "t.json") == pytest.approx(RIGHT)


def test_nested_rows_are_called_by_where_they_are():
    rows = [
        {
            "example": {"id": f"im{k}", "text": "a"},
            "output": {"logits": x, "took": {"ms": 3}},
            "gold": {"label": int(y)},
        }
        for k, (x, y) in enumerate(zip(X.tolist(), Y, strict=True))
    ]
    a = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    assert loss(a) == pytest.approx(RIGHT)
    assert loss(f"{a}::output.logits", f"{a}::gold.label") == pytest.approx(RIGHT)
    assert open_pair(a).logits.ids[7] == "im7"
    named = [
        {"prediction": {"probs": dict(zip(NAMES, x, strict=True)), "label": "cat"}, "label": w}
        for x, w in zip(X.tolist(), WORDS, strict=True)
    ]
    assert loss(write("b.jsonl", "\n".join(map(json.dumps, named)))) == pytest.approx(RIGHT)
    assert loss(write("b.json", json.dumps(named))) == pytest.approx(RIGHT)


# --- several labels a row ---------------------------------------------------------------------------------------------

MANY = RNG.random((N, 4)) < 0.4
MANY[0], MANY[1] = 0, 1
SEVERAL = crossent.score(X, MANY.astype(int), task="multilabel").numbers["nll_nats_mean"]


def names_of(row):
    return [name for name, there in zip(NAMES, row, strict=True) if there]


@pytest.mark.parametrize("separator", ["|", ";", ",", ", ", " "])
def test_several_names_in_a_cell_are_several_labels(separator):
    rows = [[*x, f'"{separator.join(names_of(m))}"'] for x, m in zip(X.tolist(), MANY, strict=True)]
    a = write("a.csv", text([*NAMES, "label"], rows))
    assert loss(a, task="multilabel") == pytest.approx(SEVERAL)
    said = CliRunner().invoke(main, ["score", a])
    assert (said.exit_code, "--task multilabel scores several labels a row" in said.stderr) == (2, True)


def test_a_list_of_names_is_several_labels():
    rows = [{"logits": x, "labels": names_of(m)} for x, m in zip(X.tolist(), MANY, strict=True)]
    a = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    assert loss(a, task="multilabel", class_names=NAMES) == pytest.approx(SEVERAL)
    with pytest.raises(FileError, match="say --class-names in the order of their classes"):
        open_pair(a)
    cells = [[*x, f'"{names_of(m)}"'] for x, m in zip(X.tolist(), MANY, strict=True)]
    assert loss(write("a.csv", text([*NAMES, "label"], cells)), task="multilabel") == pytest.approx(SEVERAL)
    rows[3]["labels"] = ["wolf"]
    with pytest.raises(FileError, match="row 3 has the label 'wolf', and the classes are cat, dog, bird, fish"):
        open_pair(write("b.jsonl", "\n".join(map(json.dumps, rows))), None, Selection(class_names=NAMES))


def test_labels_that_name_no_rows_are_said_to_be_paired_by_their_order():
    a = write("a.csv", text(["image", *NAMES], [[f"im{k}", *x] for k, x in enumerate(X.tolist())]))
    y = write("y.txt", "\n".join(map(str, Y)))
    assert f"{y}: has no column that names its rows, which are paired by their order" in open_pair(a, y).notes
    b = write("b.csv", text(["", *NAMES], [[k, *x] for k, x in enumerate(X.tolist())]))  # an index only counts
    assert not any("paired" in note for note in open_pair(b, y).notes)


# --- what a refusal advises -------------------------------------------------------------------------------------------


def test_a_submission_of_one_probability_is_told_how_to_name_it():
    with pytest.raises(
        FileError, match=r"holds no logits, only id \(words\), target; if target holds them, say a\.csv::target"
    ):
        open_pair(write("a.csv", text(["id", "target"], [[f"im{k}", p] for k, p in enumerate(P[:, 1])])))
    with pytest.raises(FileError, match=r"holds no logits, only id \(words\), target$"):
        open_pair(write("b.csv", text(["id", "target"], [[f"im{k}", y] for k, y in enumerate(Y)])))


def test_columns_that_are_not_there_are_not_dropped_in_silence():
    a = write("a.csv", TABLE)
    with pytest.raises(FileError, match=r"a\.csv: has no column 'agee' to drop, only cat, dog, bird, fish, label"):
        open_pair(a, None, Selection(drop=("agee",)))
    with pytest.raises(FileError, match=r"a\.csv: has no column 'key', which --id says, only cat"):
        open_pair(a, None, Selection(id="key"))
    b = write("b.csv", text(NAMES, X))
    assert open_pair(b, None, Selection(drop=("f*",))).logits.columns == ("cat", "dog", "bird")


def test_arrays_of_a_part_have_the_labels_of_that_part():
    other = RNG.permutation(Y)
    np.savez("a.npz", train_logits=X, val_logits=X + RNG.normal(size=X.shape), train_labels=Y, val_labels=other)
    expected = crossent.score(np.load("a.npz")["val_logits"], other).numbers["nll_nats_mean"]
    assert loss("a.npz::val_logits") == pytest.approx(expected)
    assert loss("a.npz::train_logits") == pytest.approx(RIGHT)
    np.savez("b.npz", my_logits=X, other_logits=X, mine=Y)
    pair = open_pair("b.npz::my_logits")
    assert pair.labels is None
    assert "if mine holds them, say b.npz::mine as well" in pair.notes[-1]  # other_logits could not be labels


def test_the_column_whose_words_are_classes_holds_the_labels():
    a = write("a.csv", text(["image", *NAMES], [[f"im{k}", *x] for k, x in enumerate(X.tolist())]))
    rows = [[f"im{k}", WORDS[k], "Public" if k % 2 else "Private", "x y z"] for k in ORDER]
    t = write("t.csv", text(["image", "species", "Usage", "note"], rows))
    assert loss(a, t) == pytest.approx(RIGHT)
    rows = [[f"im{k}", WORDS[k], WORDS[0]] for k in ORDER]
    with pytest.raises(FileError, match=r"which column holds the labels\? Name one of species, other"):
        open_pair(a, write("u.csv", text(["image", "species", "other"], rows)))
