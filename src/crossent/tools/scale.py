"""``crossent scale``: what a head over several processes sends, by its sizes: when to shard it, and when to gather it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from crossent.tools.table import Table

WIDE = (
    4  # bytes of a number of a gradient that is summed over processes, and of a number that a shard sends about a row
)
TOLD = 6  # numbers that each shard sends about a row
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
MOST_RANKS = 64


class Way(NamedTuple):
    """One way to compute the loss of a head over processes.

    Attributes:
        name: of the way.
        sent: bytes that a process sends in a step, forward and backward, with a ring.
        held: bytes of the largest tensors that a process has beside its own parts.
    """

    name: str
    sent: float
    held: float


class Head(NamedTuple):
    """The sizes of a head: all rows of the group, classes, features, processes, and bytes of a number."""

    rows: int
    classes: int
    width: int
    ranks: int
    size: int = 2

    def ways(self) -> tuple[Way, Way, Way]:
        """Compute what each way sends and holds.

        In a ring every process sends ``(P - 1) / P`` of what is gathered, and as much of what is reduced and scattered. An
        all-reduce does both. Gradients are sent as float32.

        >>> [round(way.sent / 2**30, 2) for way in Head(8192, 262144, 4096, 8).ways()]
        [0.17, 5.25, 3.5]
        """
        n, v, d, p, size = self
        ring = (p - 1) / p
        statistics = n * p * TOLD * WIDE
        return (
            Way(
                "shard: the rows go to the classes", ring * (n * d * (size + WIDE) + statistics), n * d * (size + WIDE)
            ),
            Way("gather the head: the classes go to the rows", ring * v * d * (size + WIDE), v * d * (size + WIDE)),
            Way("gather the logits, as column-parallel layers do", ring * n * v * size, n * v * (size + WIDE)),
        )

    def break_even(self) -> int:
        """Compute for how many rows sharding and gathering send the same."""
        _, v, d, p, size = self
        return round(v * d * (size + WIDE) / (d * (size + WIDE) + p * TOLD * WIDE))

    def products(self) -> float:
        """Count the flops of a process in the three products of a step, ``2 N V D / P`` each."""
        return 6.0 * self.rows * self.classes * self.width / self.ranks


def tables(head: Head, bandwidth: float, tflops: float | None) -> Iterator[Table]:
    """Write the ways, and what they send as there are more processes, as tables."""
    from crossent.tools.table import Table

    ways, even = head.ways(), head.break_even()
    best = 0 if head.rows < even else 1
    n, v, d, p, _ = head
    verdict = (
        f"Shard the classes: {n:,} rows are fewer than {even:,}, where both send the same."
        if best == 0
        else f"Gather the head: {n:,} rows are not fewer than {even:,}, where both send the same."
    )
    notes = [verdict]
    if tflops:
        notes.append(
            f"The matrix products take {1e3 * head.products() / (tflops * 1e12):,.3g} ms. Sending can overlap with them."
        )
    notes.append("Computed from the sizes, not measured, for rings and for gradients that are summed in float32.")
    yield Table(
        f"{n:,} rows, {v:,} classes, {d:,} features on {p} processes, {bandwidth:g} GB/s",
        ("a step", "GiB sent", "ms", "GiB held"),
        [(way.name, _gib(way.sent), f"{way.sent / bandwidth / 1e6:,.3g}", _gib(way.held)) for way in ways],
        tuple(notes),
        frozenset({(best, 1)}),
    )
    counts = [2**i for i in range(1, MOST_RANKS.bit_length())]
    rows = []
    for count in counts:
        at = head._replace(ranks=count).ways()
        rows.append((str(count), *(_gib(way.sent) for way in at)))
    yield Table(
        "GiB that a process sends in a step, computed",
        ("processes", "shard", "gather the head", "gather the logits"),
        rows,
        text_columns=(),
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:,.3g}"


@click.command(
    "scale", epilog="\b\nExample:\n  crossent scale --rows 8192 --classes 262144 --width 4096 --ranks 8 --bandwidth 360"
)
@click.option(
    "--rows", type=click.IntRange(1), required=True, metavar="N", help="Rows of a step, of all processes together."
)
@click.option("--classes", type=click.IntRange(1), required=True, metavar="V", help="Classes: the vocabulary.")
@click.option("--width", type=click.IntRange(1), required=True, metavar="D", help="Features of a hidden state.")
@click.option("--ranks", type=click.IntRange(2), required=True, metavar="P", help="Processes that share the head.")
@click.option(
    "--bandwidth",
    type=click.FloatRange(0, min_open=True),
    required=True,
    metavar="GB/S",
    help="What a process sends in a second, in GB.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="bfloat16",
    help="The dtype of hidden states and head.  [bfloat16]",
)
@click.option(
    "--tflops", type=click.FloatRange(0, min_open=True), metavar="T", help="What a process computes, in TFLOP/s."
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of tables.")
def scale(
    rows: int, classes: int, width: int, ranks: int, bandwidth: float, dtype: str, tflops: float | None, as_json: bool
) -> None:
    """Compute when to shard the head of a language model over processes, and when to gather it.

    A sharded head moves the hidden states and their gradient, N · D numbers each. A gathered head moves itself and its gradient,
    V · D numbers each. So the rule is to move the smaller of the two.
    """
    head = Head(rows, classes, width, ranks, DTYPES[dtype])
    if as_json:
        import json

        costs = {way.name.split(":")[0]: {"sent": way.sent, "held": way.held} for way in head.ways()}
        click.echo(
            json.dumps({"ways": costs, "break_even_rows": head.break_even(), "flops": head.products()}, indent=2)
        )
        return
    from crossent.tools.terminal import draw, print_table, readable

    console = readable()
    for table in tables(head, bandwidth, tflops):
        console.print(f"\n{table.title}\n")
        print_table(table, console, draw)
        for note in table.notes:
            console.print(note)
