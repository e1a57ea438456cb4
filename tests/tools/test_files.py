"""Every kind of file: read right, in blocks; and a broken or hostile one gives one sentence that names it."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from crossent.tools.files import FileError, open_pair
from crossent.tools.files.row_array import BLOCK

N, C = 23, 4
LOGITS = np.random.default_rng(0).normal(size=(N, C)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, C, N)
BOTH = {"logits": LOGITS, "labels": LABELS}
NAMES = ("cat", "dog", "bird", "cow")


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


def write_csv(path, delimiter=","):
    lines = [
        [f"im{i}.png", *map(repr, map(float, row)), str(y)]
        for i, (row, y) in enumerate(zip(LOGITS, LABELS, strict=True))
    ]
    path.write_text("\n".join(delimiter.join(line) for line in [["id", *NAMES, "label"], *lines]))


def write_bare_csv(path):
    path.write_text("\n".join(",".join(map(repr, map(float, row))) for row in LOGITS))


def write_jsonl(path):
    lines = zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    path.write_text("\n".join(json.dumps({"name": "x", "predictions": x, "target": y}) for x, y in lines))


def write_wide_parquet(path):
    columns = {name: LOGITS[:, k] for k, name in enumerate(NAMES)}
    pq.write_table(pa.table({"id": np.arange(N), **columns, "note": ["x"] * N, "label": LABELS}), path)


WRITERS = {
    "both.npz": lambda path: np.savez(path, **BOTH),
    "compressed.npz": lambda path: np.savez_compressed(path, **BOTH),
    "columns.npz": lambda path: np.savez(path, logits=np.asfortranarray(LOGITS), labels=LABELS),
    "pets.csv": write_csv,
    "pets.tsv": lambda path: write_csv(path, "\t"),
    "lines.jsonl": write_jsonl,
    "both.safetensors": lambda path: safetensors.numpy.save_file(BOTH, path),
    "both.pt": lambda path: torch.save({"epoch": 3, **{k: torch.tensor(v) for k, v in BOTH.items()}}, path),
    "lists.parquet": lambda path: pq.write_table(pa.table({"logits": list(LOGITS), "label": LABELS}), path),
    "wide.parquet": write_wide_parquet,
}
LOGITS_ONLY = {
    "x.npy": lambda path: np.save(path, LOGITS),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(LOGITS)),
    "big-endian.npy": lambda path: np.save(path, LOGITS.astype(">f8")),
    "bare.csv": write_bare_csv,
    "tensor.pt": lambda path: torch.save(torch.tensor(LOGITS, requires_grad=True), path),
    "old.pth": lambda path: torch.save(torch.tensor(LOGITS), path, _use_new_zipfile_serialization=False),
    "lists.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, LOGITS.tolist()))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_both_are_found_in_one_file(name, tmp_path):
    WRITERS[name](tmp_path / name)
    logits, labels, notes = open_pair(str(tmp_path / name))
    assert (logits.shape, labels.shape, len(logits), labels.dtype) == ((N, C), (N,), N, "int64")
    np.testing.assert_array_equal(logits.rows(0, N), LOGITS)
    np.testing.assert_array_equal(labels.rows(0, N), LABELS)
    np.testing.assert_array_equal(logits.rows(5, 9), LOGITS[5:9])
    np.testing.assert_array_equal(logits.rows(20, 99), LOGITS[20:])
    assert (notes[0].removesuffix(": cat, dog, bird, cow"), notes[1]) == (f"logits: {logits}", f"labels: {labels}")
    assert str(logits).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", LOGITS_ONLY)
def test_one_array_needs_no_name(name, tmp_path):
    LOGITS_ONLY[name](tmp_path / name)
    np.save(tmp_path / "y.npy", LABELS)
    logits, labels, _ = open_pair(str(tmp_path / name))
    assert labels is None
    assert logits.name == str(tmp_path / name)
    np.testing.assert_array_equal(logits.rows(3, 17), LOGITS[3:17])
    _, labels, _ = open_pair(str(tmp_path / name), str(tmp_path / "y.npy"))
    np.testing.assert_array_equal(labels.rows(0, N), LABELS)


def test_arrays_can_be_named(tmp_path):
    np.savez(tmp_path / "odd.npz", a=LOGITS, b=LABELS)
    path = str(tmp_path / "odd.npz")
    logits, labels, _ = open_pair(f"{path}::a", f"{path}::b")
    assert (logits.name, labels.shape) == (f"{path}::a", (N,))
    with pytest.raises(
        FileError,
        match=r"odd\.npz: which array holds the logits\? Name one of a \(23, 4\), b \(23,\), as .*odd\.npz::NAME",
    ):
        open_pair(path)
    with pytest.raises(FileError, match=r"has no column 'c' for logits, only a, b"):
        open_pair(f"{path}::c")


def test_what_may_be_labels_under_another_name_is_pointed_at(tmp_path):
    path = str(tmp_path / "masks.npz")
    np.savez(path, logits=LOGITS, masks=LABELS)
    pair = open_pair(path)
    assert pair.labels is None
    assert pair.notes[1] == f"{path}: nothing is called labels; if masks holds them, say {path}::masks as well"
    assert len(open_pair(path, f"{path}::masks").notes) == 2


def test_columns_have_names_and_what_is_left_out_is_said(tmp_path):
    write_csv(tmp_path / "pets.csv")
    path = str(tmp_path / "pets.csv")
    logits, _, _ = open_pair(path)
    assert logits.columns == NAMES
    assert logits.ids[3] == "im3.png"
    np.testing.assert_array_equal(open_pair(f"{path}::dog").logits.rows(0, N), LOGITS[:, 1])


def test_bfloat16_is_read_as_float32(tmp_path):
    half = torch.tensor(LOGITS).bfloat16()
    safetensors.torch.save_file({"logits": half}, tmp_path / "half.safetensors")
    torch.save([half], tmp_path / "half.pt")
    for name in ("half.safetensors", "half.pt"):
        logits = open_pair(str(tmp_path / name)).logits
        assert logits.dtype == "bfloat16"
        assert logits.rows(0, 3).dtype == np.float32
        np.testing.assert_array_equal(logits.rows(2, 9), half[2:9].float().numpy())


def test_eight_bits_are_read_as_float32(tmp_path):
    tiny = torch.tensor(LOGITS).to(torch.float8_e4m3fn)
    safetensors.torch.save_file({"logits": tiny}, tmp_path / "tiny.safetensors")
    torch.save(tiny, tmp_path / "tiny.pt")
    for name, dtype in (("tiny.safetensors", "f8_e4m3"), ("tiny.pt", "float8_e4m3fn")):
        logits = open_pair(str(tmp_path / name)).logits
        assert logits.dtype == dtype
        np.testing.assert_array_equal(logits.rows(0, N), tiny.float().numpy())


def test_whole_numbers_of_a_text_are_integers_wherever_the_first_fraction_comes(tmp_path):
    whole = ["1"] * (BLOCK + 3)
    (tmp_path / "y.csv").write_text("\n".join(whole))
    assert open_pair(str(tmp_path / "y.csv")).logits.dtype == "int64"
    (tmp_path / "y.csv").write_text("\n".join([*whole, "0.5"]))
    assert open_pair(str(tmp_path / "y.csv")).logits.dtype == "float64"


def test_text_keeps_infinities_and_nan(tmp_path):
    (tmp_path / "x.csv").write_text("1,-inf\nnan,2\n")
    np.testing.assert_array_equal(open_pair(str(tmp_path / "x.csv")).logits.rows(0, 2), [[1, -np.inf], [np.nan, 2]])


def test_classes_may_come_first(tmp_path):
    np.save(tmp_path / "x.npy", LOGITS.T)
    np.save(tmp_path / "y.npy", LABELS)
    assert len(open_pair(str(tmp_path / "x.npy"), str(tmp_path / "y.npy")).labels) == N


def test_numpy_and_text_need_neither_torch_nor_extras(tmp_path):
    names = ("both.npz", "pets.csv", "lines.jsonl")
    for name in names:
        WRITERS[name](tmp_path / name)
    script = (
        "import sys\nfrom crossent.tools.files import open_pair\nfor path in sys.argv[1:]:\n    open_pair(path)\n"
        "print(sorted({'torch', 'pyarrow', 'safetensors'} & set(sys.modules)))"
    )
    paths = [str(tmp_path / name) for name in names]
    ran = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    WRITERS["both.safetensors"](tmp_path / "both.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(FileError, match=r"reading \.safetensors needs safetensors: pip install safetensors"):
        open_pair(str(tmp_path / "both.safetensors"))


def test_a_missing_package_is_called_as_it_is_installed(tmp_path, monkeypatch):
    PIL = pytest.importorskip("PIL.Image")
    PIL.new("L", (2, 2)).save(tmp_path / "mask.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(FileError, match=r"reading \.png needs pillow: pip install pillow"):
        open_pair(str(tmp_path / "mask.png"))


# --- broken and hostile -----------------------------------------------------------------------------------------------


def saved(save, *args, **kwargs):
    stream = io.BytesIO()
    save(stream, *args, **kwargs)
    return stream.getvalue()


NPY, NPZ = saved(np.save, LOGITS), saved(np.savez, **BOTH)
PACKED = saved(np.savez_compressed, logits=np.zeros((500, 4)))
OBJECTS = np.array([{}, 1], object)
PARQUET = saved(lambda stream: pq.write_table(pa.table({"logits": list(LOGITS)}), stream))


def zipped(name, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def torch_saved(value):
    return saved(lambda stream: torch.save(value, stream))


BROKEN = {
    "empty.npy": (b"", "the file is empty"),
    "cut.npy": (NPY[:200], r"is cut short: \(23, 4\) float32 needs 368 bytes, 72 are there"),
    "cut-header.npy": (NPY[:30], "is damaged or not a .npy file"),
    "more.npy": (NPY.replace(b"(23, 4)", b"(99,99)"), "is cut short"),
    "negative.npy": (NPY.replace(b"(23, 4)", b"(-3, 4)"), "is cut short"),
    "huge.npy": (NPY.replace(b"(23, 4), }", b"(9**9,4),}"), "is damaged"),
    "code.npy": (NPY.replace(b"'<f4'", b"exit()"), "is damaged"),
    "pickle.npy": (pickle.dumps(Evil()), "is not a NumPy array: a pickle, which can run code"),
    "objects.npy": (saved(np.save, OBJECTS, allow_pickle=True), "holds Python objects, a pickle, which can run code"),
    "words.npy": (saved(np.save, np.array(["a"])), r"holds no logits, only \(nameless\) \(1,\) of words"),
    "complex.npy": (saved(np.save, LOGITS * 1j), "holds complex64, not real numbers"),
    "records.npy": (saved(np.save, np.zeros(3, "f4,i4")), "not real numbers"),
    "no-rows.npy": (saved(np.save, LOGITS[:0]), r"has no values, its shape is \(0, 4\)"),
    "one.npy": (saved(np.save, np.float64(3)), "holds a single number, not rows"),
    "text.npy": (b"1,2,3\n", "is not a NumPy array: it starts with b'1,2,3"),
    "not.npz": (NPY, "is not a NumPy archive"),
    "cut.npz": (NPZ[:300], "is damaged or not a .npz file"),
    "no-arrays.npz": (zipped("readme.txt", b"hello"), "holds no arrays"),
    "objects.npz": (saved(np.savez, logits=OBJECTS, allow_pickle=True), "a pickle, which can run code"),
    "pickle.npz": (zipped("logits.npy", pickle.dumps(Evil())), "is damaged"),
    "cut-member.npz": (zipped("logits.npy", NPY[:200]), "is cut short"),
    "cut-packed.npz": (PACKED[:60] + bytes(20) + PACKED[80:], "is damaged|is cut short"),
    "empty.csv": (b"\n\n", "holds no rows"),
    "header-only.csv": (b"cat,dog\n", "holds no rows"),
    "ragged.csv": (b"1,2,3\n4,5\n", "line 2 has 2 columns, the first line 3"),
    "word.csv": (b"1,2\n3,cat\n", "line 2: 'cat' is not a number"),
    "tildes.csv": (b"cat~dog\n1~2\n", r"holds no logits, only \(nameless\) \(words\)"),
    "blank.csv": (b"1,2\n3,\n", "line 2: '' is not a number"),
    "binary.csv": (b"\xfd\xfe\x00\x81" * 9, "is not text in UTF-8: save it as UTF-8"),
    "marked.csv": (b"\xff\xfe\x00\xd8" * 9, "is damaged or not|is not text|holds no rows"),
    "twice.csv": (b"a,a\n1,2\n", "has several columns called 'a'"),
    "ragged.jsonl": (
        b'{"logits": [1, 2]}\n{"logits": [1, 2, 3]}\n',
        r"line 2 has shape \(3,\), the lines before it \(2,\)",
    ),
    "ragged-line.jsonl": (b"[[1, 2], [3]]\n", "line 1 does not hold numbers"),
    "other-key.jsonl": (b'{"logits": [1]}\n{"logit": [1]}\n', "line 2 has no 'logits'"),
    "deep.jsonl": (b"[" * 100_000, "line 1 is not JSON"),
    "prose.jsonl": (b"hello\n", "line 1 is not JSON: 'hello'"),
    "nothing.jsonl": (b'{"a": "b"}\n', r"holds no logits, only a \(words\)"),
    "cut.safetensors": (safetensors.numpy.save(BOTH)[:200], "is damaged or not a .safetensors file"),
    "junk.safetensors": (b"\xff" * 99, "is damaged or not a .safetensors file"),
    "evil.pt": (pickle.dumps(Evil()), "holds more than tensors: other Python objects can run code"),
    "evil-archive.pt": (torch_saved(Evil()), "holds more than tensors: other Python objects can run code"),
    "cut.pt": (torch_saved(BOTH)[:400], "is damaged or not a .pt file"),
    "junk.pt": (b"hello world", "is damaged or not a .pt file"),
    "names.csv": (
        b"cat,dog,label\n1,2,cat\n3,4,cow\n",
        "row 1 has the label 'cow', and the classes are cat, dog",
    ),
    "number.pt": (torch_saved({"epoch": 3}), "holds no tensors, only epoch: save"),
    "sparse.pt": (torch_saved(torch.eye(3).to_sparse()), "not plain real numbers"),
    "cut.parquet": (PARQUET[:300], "is damaged or not a .parquet file"),
    "junk.parquet": (b"hello world", "is not a parquet file"),
    "ragged.parquet": (
        saved(lambda stream: pq.write_table(pa.table({"logits": [[1.0, 2.0], [1.0]]}), stream)),
        "is damaged|shape",
    ),
    "words.parquet": (
        saved(lambda stream: pq.write_table(pa.table({"logits": ["a"]}), stream)),
        r"holds no logits, only logits \(words\)",
    ),
    "kind.unknown": (b"1", "what kind of file is .unknown"),
    "no-kind": (b"1", "what kind of file is this"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_gives_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, said = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=said) as caught:
        open_pair(name)
    assert str(caught.value).startswith((f"{name}: ", f"{name}::"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert not (tmp_path / "hacked").exists()


def test_what_is_no_file_gives_one_sentence(tmp_path):
    (tmp_path / "d.npy").mkdir()
    for name, said in {"d.npy": "is a directory", "none.npy": "no such file"}.items():
        with pytest.raises(FileError, match=f"{name}: {said}"):
            open_pair(str(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "x.npy").write_bytes(NPY)
    (tmp_path / "x.npy").chmod(0)
    with pytest.raises(FileError, match="cannot be read: Permission denied"):
        open_pair(str(tmp_path / "x.npy"))


def test_labels_that_do_not_belong_to_the_logits(tmp_path):
    np.save(tmp_path / "x.npy", LOGITS)
    np.save(tmp_path / "y.npy", LABELS[:7])
    with pytest.raises(FileError, match=r"y\.npy: has 7 rows, but .*x\.npy has 23; both need the same rows"):
        open_pair(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))


@pytest.mark.parametrize(
    "name", ["x.npy", "both.npz", "both.safetensors", "both.pt", "lists.parquet", "compressed.npz"]
)
def test_any_byte_may_be_wrong(name, tmp_path):
    """A flipped byte or a cut changes numbers or gives a sentence, and nothing else."""
    path = tmp_path / name
    (WRITERS | LOGITS_ONLY)[name](path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(60):
        at = int(rng.integers(len(good)))
        path.write_bytes(
            good[:at] if trial % 4 == 0 else good[:at] + bytes([good[at] ^ 1 << trial % 8]) + good[at + 1 :]
        )
        assert read_or_refused(str(path)).startswith(str(path))


def read_or_refused(path):
    try:
        logits = open_pair(path).logits
        logits.rows(0, 3)
    except FileError as error:
        return str(error)
    return logits.name
