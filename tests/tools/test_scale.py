"""crossent scale: the bytes of a ring, and what the command says of them."""

import json

import pytest
from click.testing import CliRunner

from crossent.tools.cli import main
from crossent.tools.scale import TOLD, WIDE, Head

SIZES = ["--classes", "262144", "--width", "4096", "--ranks", "8", "--bandwidth", "360"]


def _asked(*arguments):
    result = CliRunner(env={"COLUMNS": "100"}).invoke(main, ["scale", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def _ring(size, ranks):
    """Gather in a ring, chunk after chunk: what the first process sends."""
    holds, sent = [{rank} for rank in range(ranks)], 0.0
    newest = list(range(ranks))
    while any(len(each) < ranks for each in holds):
        sent += size / ranks
        newest = [newest[rank - 1] for rank in range(ranks)]
        for rank in range(ranks):
            holds[rank].add(newest[rank])
    return sent


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_bytes_are_those_of_rings(ranks):
    head = Head(640, 1920, 48, ranks, 2)
    shard, gather, logits = (way.sent for way in head.ways())
    n, v, d = head[:3]
    rows = _ring(n * d * 2, ranks) + _ring(n * d * WIDE, ranks) + _ring(n * ranks * TOLD * WIDE, ranks)
    assert shard == pytest.approx(rows)
    assert gather == pytest.approx(_ring(v * d * 2, ranks) + _ring(v * d * WIDE, ranks))
    assert logits == pytest.approx(_ring(n * v * 2, ranks))


def test_break_even():
    head = Head(1, 262144, 4096, 8)
    even = head.break_even()
    assert 0.95 * 262144 < even < 262144  # N = V, except for the few numbers a row
    for rows, better in ((even - 50, 0), (even + 50, 1)):
        shard, gather, _ = (way.sent for way in head._replace(rows=rows).ways())
        assert (shard < gather) == (better == 0)


def test_what_a_shard_tells_of_a_row_is_what_it_tells():
    pytest.importorskip("torch.distributed._functional_collectives")
    from crossent.parallel.softmax import Columns

    assert len(Columns._fields) == TOLD


def test_the_command_says_which():
    assert "Shard the classes: 8,192 rows are fewer than 260,112" in _asked("--rows", "8192", *SIZES)
    output = _asked("--rows", "524288", *SIZES, "--tflops", "600")
    assert "Gather the head: 524,288 rows are not fewer than" in output
    assert "The matrix products take 704 ms" in output
    assert "not measured" in output
    found = json.loads(_asked("--rows", "8192", *SIZES, "--json"))
    assert found["ways"]["gather the head"]["sent"] == Head(8192, 262144, 4096, 8).ways()[1].sent
    more = json.loads(_asked("--rows", "8192", *SIZES, "--dtype", "float32", "--json"))
    assert more["ways"]["gather the logits, as column-parallel layers do"]["sent"] == pytest.approx(
        2 * found["ways"]["gather the logits, as column-parallel layers do"]["sent"]
    )


def test_wrong_sizes():
    result = CliRunner().invoke(main, ["scale", "--rows", "0", *SIZES])
    assert result.exit_code == 2
    assert "--rows" in result.output
