"""What people save: labels as names or missing, soft labels, masks, logs of runs, samples of other tools, packed texts."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import crossent
from crossent import reference
from crossent.tools.cli import main
from crossent.tools.files import FileError, Selection, open_pair
from crossent.tools.files.losses import read_losses

RNG = np.random.default_rng(1)
N, NAMES = 40, ("cat", "dog", "bird")
Y = RNG.integers(0, 3, N)
X = np.round(RNG.normal(size=(N, 3)) + 2 * np.eye(3)[Y], 6)
RIGHT = crossent.score(X, Y).numbers["nll_nats_mean"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loss(*files):
    pair = open_pair(*files)
    return crossent.score(pair.logits, pair.labels).numbers["nll_nats_mean"]


def rows_of(heading, *columns):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(heading)
    writer.writerows(zip(*columns, strict=True))
    return out.getvalue()


TABLE = rows_of([*NAMES, "label"], *X.T, np.array(NAMES)[Y])
LINES = "\n".join(json.dumps({"logits": x, "label": NAMES[y]}) for x, y in zip(X.tolist(), Y, strict=True))


def test_texts_may_be_packed():
    with gzip.open("a.csv.gz", "wt") as out:
        out.write(TABLE)
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("preds.csv", TABLE)
    with zipfile.ZipFile("a.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("preds.jsonl", LINES)
    assert loss("a.csv.gz") == loss("a.zip") == pytest.approx(RIGHT, abs=1e-9)
    with pytest.raises(FileError, match=r"the labels are names, .* say --class-names"):
        open_pair("a.jsonl.zip")
    with zipfile.ZipFile("b.zip", "w") as archive:
        archive.writestr("a.csv", TABLE)
        archive.writestr("b.csv", TABLE)
    with pytest.raises(FileError, match=r"b\.zip: holds 2 files, and one is wanted"):
        open_pair("b.zip")


def test_what_grows_out_of_all_proportion_is_refused(monkeypatch):
    from crossent.tools.files import spool

    monkeypatch.setattr(spool, "MOST", 1 << 16)
    bomb = b"a,b,label\n" + b"0,0,0\n" * 200_000
    with gzip.open("a.csv.gz", "wb") as out:
        out.write(bomb)
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", bomb)
    np.savez_compressed("a.npz", logits=np.zeros((200_000, 3)), labels=np.zeros(200_000, int))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({name: np.zeros(200_000) for name in ("a", "b", "label")}), "a.parquet")
    for name in ("a.csv.gz", "a.zip", "a.npz", "a.parquet"):
        ran = CliRunner().invoke(main, ["score", name])
        assert (ran.exit_code, "which no honest file does" in ran.stderr) == (2, True), ran.output


@pytest.mark.parametrize("missing", ["", "NA", "nan", "None"])
def test_a_label_that_is_missing_counts_for_nothing(missing):
    for words in (list(np.array(NAMES)[Y]), list(map(str, Y))):
        words[3] = words[7] = missing
        with open("a.csv", "w") as out:
            out.write(rows_of([*NAMES, "label"], *X.T, words))
        keep = np.delete(np.arange(N), [3, 7])
        assert loss("a.csv") == pytest.approx(crossent.score(X[keep], Y[keep]).numbers["nll_nats_mean"], abs=1e-9)
        said = CliRunner().invoke(main, ["check", "a.csv"])
        assert "2 labels ignored" in said.stdout
        assert "Nothing found" in said.stdout


def test_truth_values_are_labels():
    x = X[:, :1]
    with open("a.csv", "w") as out:
        out.write(rows_of(["score", "label"], x[:, 0], Y > 0))
    pair = open_pair("a.csv")
    found = crossent.score(pair.logits, pair.labels, task="binary").numbers["nll_nats_mean"]
    assert found == pytest.approx(reference.sigmoid_cross_entropy(x[:, 0], (Y > 0) * 1.0).loss.mean())
    np.savez("a.npz", logits=x, labels=Y > 0)
    pair = open_pair("a.npz")
    assert crossent.score(pair.logits, pair.labels, task="binary").numbers["nll_nats_mean"] == pytest.approx(found)


def test_soft_labels_are_scored():
    t = reference.softmax(0.6 * X + RNG.normal(size=X.shape))
    expected = -(t * np.log(reference.softmax(X))).sum(1)
    report = crossent.score(X, t)
    assert report.numbers["nll_nats_mean"] == pytest.approx(expected.mean())
    assert report.numbers["accuracy"] == pytest.approx((X.argmax(1) == t.argmax(1)).mean())
    assert report.numbers["brier"] == pytest.approx(((reference.softmax(X) - t) ** 2).sum(1).mean())
    assert report.numbers["prior_nll_nats"] == pytest.approx(-(t.mean(0) * np.log(t.mean(0))).sum())
    assert any("The labels are soft" in remark for remark in report.remarks)
    beta = 1 / report.numbers["temperature"]
    even = np.arange(N) % 2 == 0

    def at(b):
        return -(t[even] * np.log(reference.softmax(X[even] * b))).sum(1).mean()

    assert at(beta) <= min(at(beta * 1.01), at(beta * 0.99))
    weight = np.array([1.0, 2.0, 0.5])
    trained = crossent.score(X, t, weight=weight, label_smoothing=0.1).numbers["loss_nats_mean"]
    assert trained == pytest.approx(
        float(
            torch.nn.functional.cross_entropy(
                torch.tensor(X), torch.tensor(t), torch.tensor(weight), label_smoothing=0.1
            )
        )
    )
    with pytest.raises(FileError, match="row 2 is neither one-hot nor a soft label"):
        crossent.score(X, np.where(np.arange(N)[:, None] == 2, 0.7, t))
    one_hot = np.eye(3)[Y]
    assert crossent.score(X, one_hot).numbers == crossent.score(X, Y).numbers


def test_masks_without_a_channel_belong_to_logits_with_one():
    x, masks = RNG.normal(size=(4, 1, 5, 6)), RNG.integers(0, 2, (4, 5, 6))
    expected = crossent.score(x, masks[:, None], task="binary").numbers
    assert crossent.score(x, masks, task="binary").numbers == expected


def test_masks_are_pictures():
    from PIL import Image

    x, masks = RNG.normal(size=(3, 4, 5, 6)), RNG.integers(0, 4, (3, 5, 6))
    np.save("x.npy", x)
    for folder, mode in (("gray", "L"), ("palette", "P")):
        for k, mask in enumerate(masks):
            os.makedirs(folder, exist_ok=True)
            picture = Image.fromarray(mask.astype(np.uint8), "L" if mode == "L" else None)
            if mode == "P":
                picture = Image.frombytes("P", (6, 5), mask.astype(np.uint8).tobytes())
                picture.putpalette([9, 8, 7] * 256)
            picture.save(f"{folder}/m{k}.png")
        pair = open_pair("x.npy", folder)
        assert crossent.score(pair.logits, pair.labels).numbers == crossent.score(x, masks).numbers
    np.save("one.npy", x[:1])
    assert open_pair("one.npy", "gray/m0.png").labels.shape == (1, 5, 6)
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save("colour.png")
    with pytest.raises(
        FileError, match=r"colour\.png: is a picture of colours \(RGB\), and a mask holds a class a pixel"
    ):
        open_pair("one.npy", "colour.png")


def test_tuples_of_arrays_are_chosen_by_name():
    hidden = torch.randn(N, 8)
    torch.save({"predictions": (torch.tensor(X), hidden), "label_ids": torch.tensor(Y)}, "t.pt")
    with pytest.raises(
        FileError,
        match=r"which array holds the logits\? Name one of predictions\.0 \(40, 3\), predictions\.1 \(40, 8\), as t\.pt::NAME",
    ):
        open_pair("t.pt")
    assert loss("t.pt::predictions.0") == pytest.approx(RIGHT)
    torch.save({"logits": X, "labels": list(map(int, Y)), "config": {"lr": 0.1}}, "n.pt")  # arrays of NumPy, and lists
    assert loss("n.pt") == pytest.approx(RIGHT)
    torch.save({"logits": torch.tensor(X).to("meta"), "labels": torch.tensor(Y)}, "m.pt")
    ran = CliRunner().invoke(main, ["score", "m.pt"])
    assert (ran.exit_code, "without values, on the device meta" in ran.stderr) == (2, True)


def test_predictions_that_name_their_classes():
    by_name = [dict(zip(NAMES, x, strict=True)) for x in X.tolist()]
    turned = [dict(reversed(each.items())) if k % 2 else each for k, each in enumerate(by_name)]
    pipeline = [
        sorted(({"label": k, "score": v} for k, v in each.items()), key=lambda e: -e["score"]) for each in by_name
    ]
    for predictions in (by_name, turned, pipeline):
        with open("a.jsonl", "w") as out:
            for each, y in zip(predictions, Y, strict=True):
                out.write(json.dumps({"predictions": each, "label": NAMES[y]}) + "\n")
        assert loss("a.jsonl") == pytest.approx(RIGHT)
    with open("a.jsonl", "a") as out:
        out.write(json.dumps({"predictions": {"cat": 1, "dog": 2, "cow": 0}, "label": "cat"}))
    with pytest.raises(FileError, match="line 41 has the classes cat, dog, cow, the first line"):
        open_pair("a.jsonl")


def test_json_documents():
    columns = {"logits": X.tolist(), "labels": Y.tolist()}
    frame = {name: {str(i): v for i, v in enumerate(X[:, k])} for k, name in enumerate(NAMES)} | {
        "label": {str(i): NAMES[y] for i, y in enumerate(Y)}
    }
    for document in (
        columns,
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        frame,
    ):
        with open("a.json", "w") as out:
            json.dump(document, out)
        assert loss("a.json") == pytest.approx(RIGHT)


def test_more_ways_to_write_a_table():
    np.savetxt("x.txt", X)
    np.savetxt("y.txt", Y, fmt="%d")
    assert loss("x.txt", "y.txt") == pytest.approx(RIGHT)
    split = {"columns": [*NAMES, "label"], "data": [[*x, NAMES[y]] for x, y in zip(X.tolist(), Y, strict=True)]}
    with open("split.json", "w") as out:
        json.dump(split, out)
    assert loss("split.json") == pytest.approx(RIGHT)
    batches = [{"logits": torch.tensor(X[k : k + 7]), "labels": torch.tensor(Y[k : k + 7])} for k in range(0, N, 7)]
    torch.save(batches, "batches.pt")
    assert loss("batches.pt") == pytest.approx(RIGHT)
    german = ";".join([*NAMES, "label"]) + "\n"
    german += "\n".join(";".join([*(str(v).replace(".", ",") for v in x), NAMES[y]]) for x, y in zip(X, Y, strict=True))
    with open("german.csv", "w") as out:
        out.write(german)
    assert loss("german.csv") == pytest.approx(RIGHT)
    with open("seeds.csv", "w") as out:
        out.write(
            rows_of([f"s{s}_{n}" for s in (0, 1) for n in NAMES] + ["label"], *(X + 1).T, *X.T, np.array(NAMES)[Y])
        )
    pair = open_pair("seeds.csv", None, Selection(classes=("s1_*",)))
    assert pair.logits.columns == NAMES
    assert crossent.score(pair.logits, pair.labels).numbers["nll_nats_mean"] == pytest.approx(RIGHT)
    with open("x.pkl", "wb") as out:
        out.write(b"x")
    with pytest.raises(FileError, match="is a pickle, which can run code and is not read: save it by"):
        open_pair("x.pkl")


def test_texts_of_different_lengths_are_filled_up():
    lengths = RNG.integers(2, 6, 8)
    x, y = [RNG.normal(size=(n, 4)) for n in lengths], [RNG.integers(0, 4, n) for n in lengths]
    with open("a.jsonl", "w") as out:
        for a, b in zip(x, y, strict=True):
            out.write(json.dumps({"logits": a.tolist(), "labels": b.tolist()}) + "\n")
    pair = open_pair("a.jsonl")
    assert pair.labels.shape == (8, max(lengths))
    expected = crossent.score(np.concatenate(x), np.concatenate(y)).numbers["nll_nats_mean"]
    assert crossent.score(pair.logits, pair.labels, task="lm").numbers["nll_nats_mean"] == pytest.approx(expected)


def test_samples_of_lm_evaluation_harness():
    lls = [RNG.normal(size=n) - 10 for n in (4, 4, 3, 4)]
    right = [1, 0, 2, 3]
    with open("samples_arc.jsonl", "w") as out:
        for k, (ll, y) in enumerate(zip(lls, right, strict=True)):
            resps = [[[float(v), False]] for v in ll]
            out.write(json.dumps({
                "doc_id": k, "doc": {"question": "?"}, "target": str(y) if k % 2 else y, "arguments": [["a", "b"]],
                "resps": resps, "filtered_resps": [r[0] for r in resps], "acc": 1.0,
            }) + "\n")  # fmt: skip
    expected = np.mean([-np.log(reference.softmax(ll[None])[0, y]) for ll, y in zip(lls, right, strict=True)])
    assert loss("samples_arc.jsonl") == pytest.approx(expected)


# --- the losses of a run ----------------------------------------------------------------------------------------------

RUN = [round(2.3 * 0.9**k + 0.3, 4) for k in range(20)]

COURSES = {
    "csvlogger.csv": "epoch,step,train_loss_step,train_loss_epoch,val_loss\n"
    + "".join(f"{k // 5},{k},{v},,\n" + (f"{k // 5},{k},,9.9,8.8\n" if k % 5 == 4 else "") for k, v in enumerate(RUN)),
    "tensorboard.csv": "Wall time,Step,Value\n" + "".join(f"{1.7e9 + k},{k},{v}\n" for k, v in enumerate(RUN)),
    "wandb.csv": '"Step","run-1 - train/loss","run-1 - train/loss__MIN","run-1 - train/loss__MAX"\n'
    + "".join(f'"{k}","{v}","{v}","{v}"\n' for k, v in enumerate(RUN)),
    "history.csv": "epoch,loss,val_loss,lr\n" + "".join(f"{k},{v},7,0.1\n" for k, v in enumerate(RUN)),
    "trainer.jsonl": "".join(
        json.dumps({"loss": v, "step": k})
        + "\n"
        + (json.dumps({"eval_loss": 7.0, "step": k}) + "\n" if k % 5 == 4 else "")
        for k, v in enumerate(RUN)
    )
    + json.dumps({"train_runtime": 3.0, "train_loss": 1.0}),
    "trainer_state.json": json.dumps(
        {"log_history": [{"loss": v, "step": k} for k, v in enumerate(RUN)] + [{"eval_loss": 7.0}, {"train_loss": 1.0}]}
    ),
    "tensorboard.json": json.dumps([[1.7e9 + k, k, v] for k, v in enumerate(RUN)]),
    "plain.csv": "\n".join(map(str, RUN)),
}


@pytest.mark.parametrize("name", COURSES)
def test_the_losses_of_a_run_are_one_column_of_its_log(name):
    with open(name, "w") as out:
        out.write(COURSES[name])
    np.testing.assert_array_equal(read_losses(name), RUN)


def test_losses_that_could_be_two_columns_are_refused():
    with open("two.csv", "w") as out:
        out.write("step,loss_ce,loss_kl,loss_val\n0,1,2,3\n")
    with pytest.raises(
        FileError, match=r"which column holds the losses\? Name one of loss_ce, loss_kl, as two.csv::NAME"
    ):
        read_losses("two.csv")
    assert read_losses("two.csv::loss_kl").tolist() == [2.0]
    np.save("two.npy", np.ones((5, 2)))
    with pytest.raises(FileError, match="holds 2 columns, and the losses are one"):
        read_losses("two.npy")


# --- probabilities and logits -----------------------------------------------------------------------------------------


def test_the_three_tools_take_probabilities_and_say_where_they_seem_to_be_some():
    p = reference.softmax(X)
    with open("p.csv", "w") as out:
        out.write(rows_of([*NAMES, "label"], *p.T, np.array(NAMES)[Y]))
    for command in (["score"], ["check"], ["explain", "--row", "0"]):
        plain, said = (CliRunner().invoke(main, [*command, "p.csv", *flag]) for flag in ([], ["--input", "probs"]))
        assert "--input probs" in " ".join(plain.output.split()), command
        assert "--input probs" not in said.output, command
    assert (
        json.loads(CliRunner().invoke(main, ["check", "p.csv", "--json", "--input", "probs"]).stdout)["findings"] == []
    )
    numbers = [
        crossent.check(values, Y, input=kind, losses=[9.0] * 10)[0].seen
        for kind, values in (("logits", X), ("probs", p), ("logprobs", np.log(p)))
    ]
    assert len(set(numbers)) == 1
    sure = crossent.check(np.eye(3)[Y], (Y + (np.arange(N) == 4)) % 3, input="probs")
    assert [finding.rule for finding in sure] == ["CE107"]
    with pytest.raises(ValueError, match="input is probs, but the values of a row go from"):
        crossent.check(X, Y, input="probs")
    assert "if they are probabilities" in crossent.explain([0.1, 0.7, 0.2], 0).notes[0]
    assert not crossent.explain([2.0, 1.0, 0.1], 0).notes
    one_hot = rows_of([*NAMES, *(f"y_{name}" for name in NAMES)], *X.T, *np.eye(3, dtype=int)[Y].T)
    with open("o.csv", "w") as out:
        out.write(one_hot)
    ran = CliRunner().invoke(main, ["check", "o.csv", "o.csv::y_*", "--classes", ",".join(NAMES)])
    assert "Nothing found" in ran.stdout, ran.output


# --- what frames, loops and loggers leave behind ----------------------------------------------------------------------


@pytest.mark.parametrize("separator", [", ", " ", "  "], ids=["pandas", "NumPy", "NumPy, wide"])
def test_lists_that_a_frame_wrote_as_text_are_arrays(separator, tmp_path):
    lines = [f'"some, text","[{separator.join(map(repr, row.tolist()))}]",{y}' for row, y in zip(X, Y, strict=True)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["text,logits,label", *lines]) + "\n")
    assert loss(str(path)) == pytest.approx(RIGHT)
    path.write_text("logits,label\n[0.1 0.2 ... 0.3],0\n[0.1 0.2 ... 0.3],1\n")
    ran = CliRunner().invoke(main, ["score", str(path)])
    assert ran.exit_code == 2
    assert "NumPy left numbers out where it printed them" in ran.stderr


def test_a_list_of_batches_is_one_array(tmp_path):
    batches = [torch.tensor(X[k : k + 7]) for k in range(0, len(X), 7)]
    torch.save(batches, tmp_path / "x.pt")
    np.save(tmp_path / "y.npy", Y)
    assert loss("x.pt", "y.npy") == pytest.approx(RIGHT)
    labels = [torch.tensor(Y[k : k + 7]) for k in range(0, len(Y), 7)]
    torch.save({"logits": batches, "labels": labels}, tmp_path / "both.pt")
    assert loss("both.pt") == pytest.approx(RIGHT)
    torch.save((torch.tensor(X), torch.tensor(X) + 1), tmp_path / "tuple.pt")  # two things, of which one is meant
    ran = CliRunner().invoke(main, ["score", str(tmp_path / "tuple.pt"), str(tmp_path / "y.npy")])
    assert "which array holds the logits? Name one of 0" in ran.stderr


def test_steps_and_times_beside_losses_are_no_losses(tmp_path):
    losses = np.exp(-np.arange(20) / 9) + 0.2
    mlflow, log = tmp_path / "loss.txt", tmp_path / "log.txt"
    mlflow.write_text("\n".join(f"{1700000000000 + 7 * k} {value} {k}" for k, value in enumerate(losses)))
    np.testing.assert_allclose(read_losses(str(mlflow)), losses)
    mlflow.write_text("\n".join(f"{k},{value}" for k, value in enumerate(losses)))
    np.testing.assert_allclose(read_losses(str(mlflow)), losses)
    mlflow.write_text("\n".join(f"{value},{value}" for value in losses))
    with pytest.raises(FileError, match="holds 2 columns, and the losses are one"):
        read_losses(str(mlflow))
    log.write_text("\n".join(f"epoch {k}: loss {value}" for k, value in enumerate(losses)))
    with pytest.raises(FileError, match="'epoch' is not a number"):
        read_losses(str(log))


def test_masks_of_255_are_told_to_be_divided_and_not_to_be_ignored(tmp_path):
    masks = np.where(np.random.default_rng(0).random((3, 6, 6)) < 0.4, 255, 0)
    np.savez(tmp_path / "a.npz", logits=np.zeros((3, 2, 6, 6)), labels=masks)
    said = CliRunner().invoke(main, ["score", str(tmp_path / "a.npz")]).stderr
    assert "labels // 255" in said
    assert "--ignore-index" not in said
