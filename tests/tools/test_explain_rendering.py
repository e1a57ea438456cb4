"""The faces of an explanation: terminal, notebook and picture say the same, lose nothing, and are safe from class names."""

from __future__ import annotations

import builtins
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import crossent
from crossent.tools.explain import tables

ASKED = np.log([0.1, 0.7, 0.2])
HOSTILE = ("</script><img src=x onerror=alert(1)>", "\x1b[31mred\x1b[0m\r\n\u202e", "[bold]$x^2$[/bold] & <b>")


# --- in the terminal --------------------------------------------------------------------------------------------------


def many(count=1000, **arguments):
    x = 3 * np.random.default_rng(0).normal(size=count)
    return crossent.explain(x, **{"target": 17, "losses": "all", **arguments})


@pytest.mark.parametrize(
    "e",
    [
        crossent.explain(ASKED, 0, "all", class_names=HOSTILE),
        crossent.explain([1e4, -1e4, 123.456], {1, 2}, "all"),
        crossent.explain([-math.inf, 0.0], 0, "all"),
        crossent.explain([1e308, -1e308], 1, "all", step=1e300),
        crossent.explain([-1e-7], 0),
        crossent.explain([0.0, 0.0], []),
        many(),
        many(target=set(range(50))),
        many(100_000, losses="ce,bce"),
    ],
    ids=["hostile", "wild", "impossible", "overflowing", "one class", "no label", "many", "many labels", "100 000"],
)
def test_text_fits_80_columns_and_loses_nothing(e):
    text = str(e)
    assert repr(e) == text
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\u202e" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    side_by_side = tables.comparisons(e) if len(e.losses) > 1 else []
    for table in [*(tables.loss_table(e, loss) for loss in e.losses), *side_by_side]:
        for first, *numbers in table.rows:  # only a class name may be cut
            end = " ".join(filter(None, numbers))
            assert any(line.startswith(first[:13]) and line.endswith(end) for line in lines), first


def test_tables_hold_the_numbers():
    text = str(crossent.explain(ASKED, 0, "ce"))
    assert re.search(r"^0 +−2\.303 +0\.1000 +1 +2\.3026 +−0\.9000 +▲{12} +0\.3248$", text, re.MULTILINE)
    assert re.search(r"^1 +−0\.3567 +0\.7000 +0 +0 +\+0\.7000 +▼{9} +0\.4590$", text, re.MULTILINE)
    assert re.search(r"^Σ +1\.0000 +1 +2\.3026 +0 +1\.0000$", text, re.MULTILINE)
    assert "L = 2.3026 nats = 3.3219 bits = −Σ t log p\n" in text
    assert "Side by side" not in text
    assert "ln C = 1.0986 nats" in text
    assert "H(prior)" not in text
    assert "H(prior) = 0.8018" in str(crossent.explain(ASKED, 0, "ce", prior=[7, 1, 2]))


def test_bars_of_all_losses_have_one_scale():
    text = str(crossent.explain([-6.0, 6.0, 0.0], 0, "bce,mnist"))
    side = text[text.index("Side by side") :]
    assert re.search(r"^bce +12\.6981 +−0\.9975 +▲{12} ", side, re.MULTILINE)
    assert re.search(r"^sigmoid-difference +2\.4951 +−0\.0025 +△ ", side, re.MULTILINE)


def test_of_many_classes_those_that_matter_are_shown_and_the_others_added_up():
    e = many()
    classes = tables.shown(e)
    assert len(classes) == 8
    assert classes == sorted(classes)
    assert set(classes) == {17, *np.argsort(e.logits)[-7:].tolist()}
    for loss in e.losses:
        *rows, others, total = tables.loss_table(e, loss).rows
        assert (len(rows), others[0], total[0]) == (8, "992 others", "Σ")
        rest = np.delete(loss.p, classes).sum()
        assert others[2] == tables.number(rest)
        assert total[4] == tables.number(loss.loss)
    text = str(many(losses=None))
    assert len(text.splitlines()) <= len(str(many(12, target=1, losses=None)).splitlines())
    assert text.count("992 others") == 6


def test_labels_and_rivals_are_both_among_the_classes_shown():
    e = many(target=set(range(50)), losses="ce")
    labels = [k for k in tables.shown(e) if k < 50]
    assert len(labels) >= 5
    assert len(tables.shown(e)) == 8
    assert set(tables.shown(e)) - set(labels)
    assert "class 0, class 1, class 2, class 3, class 4 and 45 more (t = 1/50 each" in " ".join(str(e).split())


def test_lines_of_a_table_have_the_colour_of_the_text():
    text = crossent.explain(ASKED, 0)._repr_html_()
    coloured = [tag for tag in re.findall("<[^>]*>", text) if ";color:" in tag or '"color:' in tag]
    assert any(tag.startswith("<span") for tag in coloured)
    assert not any("border" in tag for tag in coloured)


def test_rich_shows_pushes_in_colour_and_by_sign():
    from rich.console import Console

    console = Console(force_terminal=True, color_system="standard", width=80, legacy_windows=False, record=True)
    with console.capture() as captured:
        console.print(crossent.explain(ASKED, 0, "ce", class_names=HOSTILE))
    shown = captured.get()
    assert "\x1b[36m▲▲▲" in shown
    assert "\x1b[31m▼▼▼" in shown
    assert "\x1b[31mred" not in shown
    assert "[bold]$x^2$[/…" in shown


def test_a_narrow_terminal_loses_no_number():
    from rich.console import Console

    from crossent.tools.explain.terminal import show

    console = Console(width=40, color_system=None)
    with console.capture() as captured:
        show(crossent.explain(ASKED, 0, "ce"), console)
    said = captured.get()
    assert re.search(r"^0 +−2\.303 +0\.1000 +1 +2\.3026$", said, re.MULTILINE)  # the columns go on below
    assert re.search(r"^0 +−0\.9000 +▲{12} +0\.3248$", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 40
    assert console.width == 40


# --- in a notebook ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collect tags, attributes, and the text of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.open = set(), set(), [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in ("td", "th"):
            self.open = ""

    def handle_data(self, data):
        if self.open is not None:
            self.open += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cells.append(self.open)
            self.open = None


def test_html_is_static_and_escapes_everything():
    page = Page(crossent.explain(ASKED, 0, "all", class_names=HOSTILE)._repr_html_())
    assert page.tags == {"div", "p", "table", "caption", "b", "br", "tr", "th", "td", "span", "iframe"}
    assert page.attributes == {"style", "scope", "sandbox", "srcdoc", "title", "loading"}
    assert HOSTILE[0] in page.cells
    assert HOSTILE[2] in page.cells
    assert r"\x1b[31mred\x1b[0m\r\n\u202e" in page.cells


def test_html_says_what_the_terminal_says():
    e = crossent.explain([-6.0, 6.0, 0.0], 0, prior=[1, 2, 3])
    html = e._repr_html_()
    cells = Page(html).cells
    shown = [*(tables.loss_table(e, loss) for loss in e.losses), *tables.comparisons(e)]
    assert cells == [cell for table in shown for row in (table.columns, *table.rows) for cell in row]
    plain = " ".join(
        re.sub(r"<[^>]*>", " ", html).replace("&lt;", "<").replace("&gt;", ">").replace("&#x27;", "'").split()
    )
    for said in (tables.heading(e), tables.legend(e), tables.references(e), *(n for g in shown for n in g.notes)):
        assert " ".join(said.split()) in plain
    assert len(many(losses=None)._repr_html_()) < 250_000


# --- as a picture -----------------------------------------------------------------------------------------------------


def test_plot_draws_the_push_of_each_loss_on_each_class():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    e = crossent.explain(ASKED, 0, "ce,bce", class_names=HOSTILE)
    display = e.plot()
    assert display.figure_ is display.ax_.get_figure()
    assert [bars.get_label() for bars in display.bars_] == ["ce", "bce"]
    for bars, loss in zip(display.bars_, e.losses, strict=True):
        np.testing.assert_allclose([bar.get_height() for bar in bars], np.negative(loss.gradient))
    names = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert names == ["</script><img…\nx = −2.303", r"\x1b[31mred\x…" + "\nx = −0.3567", "[bold]$x^2$[/…\nx = −1.609"]
    display.figure_.canvas.draw()
    pyplot.close("all")


def test_plot_draws_on_the_axes_it_is_given_and_says_what_it_leaves_out():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, ax = pyplot.subplots()
    display = many(losses="ce").plot(ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert len(display.bars_[0]) == 8
    assert ax.get_title().endswith("992 not shown")
    assert pyplot.get_fignums() == [figure.number]
    assert display.plot(ax) is display
    pyplot.close("all")


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape("plot needs matplotlib: pip install matplotlib")):
        crossent.explain(ASKED, 0).plot()
