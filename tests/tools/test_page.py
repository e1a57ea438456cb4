"""The pages, without a browser: what is allowed in them, what is in them, and that nothing in them can break out."""

import base64
import hashlib
import json
import math
import pickle
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import crossent
from crossent.tools import cli
from crossent.tools.explain.catalogue import LOSSES
from crossent.tools.explore.scenes import explore_page
from crossent.tools.page import numbers
from crossent.tools.page.document import MODULES, as_json, bundle
from crossent.tools.page.words import OFFERED, WORDS

NODE = shutil.which("node")
HERE = Path(numbers.__file__).parent
HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'\" onload=alert(1)"]


class Elements(HTMLParser):
    """The tags, attributes and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.inside, self.open = [], [], {"script": [], "style": []}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.open = tag if tag in self.inside else None
        if self.open:
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open:
            self.inside[self.open][-1] += data


@pytest.fixture(scope="module")
def explore_text():
    return explore_page()


@pytest.fixture(scope="module")
def pages(explore_text):
    x = np.random.default_rng(0).normal(size=(40, 3))
    report = crossent.score(x, x.argmax(1) * 0, class_names=HOSTILE)
    soft = crossent.explain([0.5, -math.inf, 1.0], [0.5, 0.0, 0.5], class_names=HOSTILE)
    return explore_text, report.to_html(), soft.to_html(), crossent.explain([1.0, 2.0], 0, "all").to_html()


def digest(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_only_the_pages_own_style_and_script_are_allowed(pages):
    for text in pages:
        page = Elements(text)
        (policy,) = [value for _, value in page.attributes if value and value.startswith("default-src")]
        data, script = page.inside["script"]
        assert policy.split("; ") == [
            "default-src 'none'", f"style-src {digest(page.inside['style'][0])}", "img-src data:", "base-uri 'none'",
            "form-action 'none'", f"script-src {digest(script)}",
        ]  # fmt: skip
        json.loads(data)
        # A style in an attribute would be refused, and a handler in one too.
        assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]


def test_a_page_asks_for_nothing(pages):
    for text in pages:
        page = Elements(text)
        assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
        assert all(
            value.startswith("data:image/png;base64,") for name, value in page.attributes if name in ("src", "href")
        )
        assert not re.search(
            r"(url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\()", "".join(map(str, page.inside.values()))
        )


def test_the_page_is_no_larger_than_promised(explore_text):
    assert len(explore_text.encode()) <= 150_000


def test_names_are_text(pages):
    for text in pages[1:3]:
        page = Elements(text)
        assert page.tags.count("script") == 2
        assert ("src", "x") not in page.attributes
    assert as_json("</script>\u2028<!--") == '"\\u003c/script>\u2028\\u003c!--"'


def test_the_first_frame_says_the_answer(explore_text):
    for said in ("The push is the mistake: cat up by what it lacks, dog down by what it has.", "98 % of it hits fox.", "7 steps",
                 "418 steps", "▼ down 0.998", "per unit of learning rate", "right in 418 steps"):  # fmt: skip
        assert said in explore_text


def test_every_loss_has_words():
    assert set(WORDS) == set(LOSSES)
    assert set(OFFERED) < set(WORDS)
    assert {name for name, words in WORDS.items() if words.sigmoid} == {
        n for n, d in LOSSES.items() if d.link == "sigmoid"
    }


def test_modules_share_one_scope_without_a_name_twice():
    top = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", bundle(MODULES), flags=re.MULTILINE)
    assert sorted(top) == sorted(set(top))
    assert not re.search(r"^(import|export)\b", bundle(MODULES), flags=re.MULTILINE)
    assert {path.name for path in HERE.glob("*.js")} == set(MODULES)


@pytest.mark.skipif(NODE is None, reason="the page's numbers are written in Node, which is not installed")
def test_numbers_are_written_alike_in_both_languages():
    values = [
        0.0,
        -0.0,
        1.0,
        0.0625,
        -0.0625,
        0.5,
        0.99951,
        0.9995,
        1e-9,
        4.9e-4,
        -6.1e-6,
        123456.75,
        -1e4,
        1e22,
        2.5,
        -2.5,
        0.1 + 0.2,
    ]
    values += np.random.default_rng(0).normal(size=200).tolist() + np.random.default_rng(1).random(200).tolist()
    program = (
        f"const {{ fixed, amount, percent, logit, at, counted }} = await import('data:text/javascript,' + encodeURIComponent("
        f"{json.dumps((HERE / 'numbers.js').read_text(encoding='utf-8'))}));"
        f"const write = v => [fixed(v, 3), fixed(v, 0), amount(v), percent(v), logit(v), at(v)];"
        f"console.log(JSON.stringify({json.dumps(values)}.map(write)));"
        "console.log(JSON.stringify([0, 1, 7, 9854, 100000, null].map(n => counted(n, 100000))));"
    )
    done = subprocess.run([NODE, "--input-type=module", "-"], input=program, capture_output=True, text=True, check=True)
    written, counts = map(json.loads, done.stdout.splitlines())
    for value, found in zip(values, written, strict=True):
        wanted = [numbers.fixed(value, 3), numbers.fixed(value, 0), numbers.amount(value), numbers.percent(value)]
        assert found == [*wanted, numbers.logit(value), numbers.at(value)], value
    assert counts == [numbers.counted(n, 100_000) for n in (0, 1, 7, 9854, 100_000, None)]


def test_explore_writes_a_file_and_says_where(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("click.launch", opened.append)
    out = tmp_path / "page.html"
    ran = CliRunner().invoke(cli.main, ["explore", "--out", str(out), "--no-open"])
    assert ran.output == f"{out}\n"
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert opened == []
    CliRunner().invoke(cli.main, ["explore", "--out", str(out)])
    assert opened == [str(out)]
    ran = CliRunner().invoke(cli.main, ["explore", "--out", str(tmp_path / "no" / "page.html"), "--no-open"])
    assert ran.exit_code == 2
    assert "cannot be written" in ran.output


def test_score_writes_a_page(tmp_path):
    file = tmp_path / "preds.csv"
    file.write_text("id,cat,dog,label\na,0.9,0.1,0\nb,0.2,0.8,1\nc,0.6,0.4,1\n", encoding="utf-8")
    out = tmp_path / "scores.html"
    ran = CliRunner().invoke(cli.main, ["score", str(file), "--html", str(out), "--json"])
    assert ran.exit_code == 0, ran.output
    text = out.read_text(encoding="utf-8")
    assert "CE101" in text  # rows that are probabilities: the finding stands on the page
    assert text.index("CE101") < text.index("cross entropy")
    assert "row 2, c" in text
    ran = CliRunner().invoke(cli.main, ["score", str(file), "--html", str(tmp_path / "no" / "scores.html")])
    assert ran.exit_code == 2
    assert "--html" in ran.output


def test_a_report_from_a_pickle_has_a_page_without_rows():
    report = crossent.score([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1])
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert again.source is None
    page = again.to_html()
    assert "Worst examples" in page
    assert 'data-scene="reliability"' not in page


@pytest.mark.parametrize("task", ["multilabel", "lm"])
def test_other_tasks_have_pages_too(task):
    rng = np.random.default_rng(0)
    if task == "multilabel":
        x, y = rng.normal(size=(20, 3)), rng.integers(0, 2, (20, 3))
    else:
        x, y = rng.normal(size=(4, 5, 7)), rng.integers(0, 7, (4, 5))
    text = crossent.score(x, y, task=task).to_html()
    data = json.loads(Elements(text).inside["script"][0])
    assert data["rows"]["rows"][0]["x"]
    assert len(data["reliability"]["temperatures"]) == 33


def test_the_page_of_many_classes_shows_few():
    x = np.random.default_rng(0).normal(size=1000)
    text = crossent.explain(x, 17, "ce,sigmoid-difference").to_html()
    still = text[: text.index('<script type="application/json"')]
    assert still.count('class="class" data-class') == 2 * 10
    assert "991 others" in still
