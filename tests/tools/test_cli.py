"""The command line as a person or a script meets it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import requires

import pytest
from click.testing import CliRunner

from crossent import __version__
from crossent.tools import cli
from crossent.tools.train import JOBS

COMMAND = [sys.executable, "-c", "from crossent.tools.cli import main; main(prog_name='crossent')"]
FILES = ("report.html", "digits.png", "results.json")


def asked(*args, **environ):
    """Run the command without a terminal; standard output and error come apart."""
    clean = dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "COLUMNS"))
    return CliRunner().invoke(cli.main, args, env={**clean, **environ})


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run into a directory that is not there yet."""
    out = tmp_path_factory.mktemp("quick") / "new" / "directory"
    return out, asked("train", "digits", "--quick", "--out", str(out))


# --- help and info ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["explain", "-h"],
        ["train", "--help"],
        *(["train", name, "-h"] for name in (*JOBS, "bytes")),
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(args):
    script = (
        "import sys\nfrom crossent.tools.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    heavy = {'torch', 'numpy', 'matplotlib', 'sklearn', 'rich'} & set(sys.modules)\n"
        "    sys.exit(str(heavy) if heavy else stop.code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_help_lists_every_job():
    said = asked("train", "--help").output
    for name, entry in JOBS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.summary)}$", said, re.MULTILINE)


@pytest.mark.parametrize("name", JOBS)
def test_help_names_every_loss_and_option(name):
    said = asked("train", name, "--help").output
    for loss, what in JOBS[name].losses.items():
        assert re.search(rf"^ +{loss} +{re.escape(what)}$", said, re.MULTILINE)
    for option in JOBS[name].options:
        assert re.search(rf"^  --{option.name} X +{re.escape(option.help)}", said, re.MULTILINE)
    assert f"[{JOBS[name].epochs}]" in said
    assert f"[{JOBS[name].seeds}]" in said


def test_version():
    assert asked("--version").output == f"crossent, version {__version__}\n"


def test_info_names_versions_implementations_and_extras(monkeypatch):
    import crossent as package

    monkeypatch.setattr(package, "implementations", lambda: {"eager": None, "triton": "no GPU"})
    ran = asked("info")
    assert ran.exit_code == 0
    for line in (rf"crossent +{__version__}", r"torch +\d", r"numpy +\d", r"threads +\d+ of \d+ CPUs"):
        assert re.search(rf"^{line}", ran.output, re.MULTILINE)
    assert re.search(r"^  eager +available$", ran.output, re.MULTILINE)
    assert re.search(r"^  triton +no: no GPU$", ran.output, re.MULTILINE)
    assert re.search(r"^  demo +installed$", ran.output, re.MULTILINE)


def test_info_says_what_a_plain_call_runs():
    import torch

    import crossent

    output = asked("info").output
    chosen = crossent.choose_implementation(torch.zeros(2, 3))
    assert re.search(rf"^  on the CPU +{chosen}, ", output, re.MULTILINE)
    assert re.search(r"^  elsewhere +torch, its own operator", output, re.MULTILINE)
    on_a_gpu = "triton" if crossent.implementations()["triton"] is None else "torch"
    assert re.search(rf"^  on a GPU +{on_a_gpu}, ", output, re.MULTILINE)


def test_info_says_what_deferred_heads_did():
    import torch

    import crossent

    crossent.Logits.reset()
    assert "  all         none was called; call crossent.Logits.report() in" in asked("info").output
    head = crossent.defer(torch.nn.Linear(3, 5))
    torch.nn.functional.cross_entropy(head(torch.randn(2, 3)), torch.tensor([1, 4]))
    said = "1 result computed in blocks, logits formed 0 times"
    assert re.search(rf"^  Linear\(3, 5\)( \(\d+\))?  {said}$", asked("info").output, re.MULTILINE)
    crossent.Logits.reset()


def test_info_says_what_an_extra_lacks(monkeypatch):
    monkeypatch.setitem(cli.EXTRAS, "demo", ("click", "no-such-package"))
    assert "lacks no-such-package: pip install no-such-package" in asked("info").output


def test_extras_are_those_of_the_package():
    declared = requires("crossent") or []
    for extra, packages in cli.EXTRAS.items():
        lines = [line for line in declared if re.search(rf"extra == ['\"]{extra}['\"]", line)]
        names = {re.match(r"[\w.-]+", line)[0] for line in lines} - {"torch"}
        assert names == set(packages)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_results_go_to_stdout_and_progress_to_stderr(quick):
    ran = quick[1]
    assert ran.exit_code == 0
    for name in JOBS["digits"].losses:
        assert re.search(rf"^ {name} +[\d.]+ +\d+\.\d +[\d.]+ +[\d.]+ +(\d+|never)", ran.stdout, re.MULTILINE)
        assert re.search(
            rf"^{name} +best of 2 learning rates: [\d.]+ +validation [\d.]+% +[\d.]+ s$", ran.stderr, re.MULTILINE
        )
    assert "validation  " not in ran.stdout
    assert "NLL" not in ran.stderr
    assert ran.stderr.startswith(f"{len(JOBS['digits'].losses)} losses, 12 trainings of ")
    assert "are those of all trainings of its loss" in ran.stderr


def test_a_quick_run_says_that_its_figures_mean_nothing(quick):
    assert "not meant to be compared" in quick[1].stdout


def test_every_path_is_written_and_named(quick):
    out, ran = quick
    assert ran.stdout.endswith("".join(["Written:\n", *(f"  {out / name}\n" for name in FILES)]))
    assert all((out / name).stat().st_size > 1000 for name in FILES)


def test_output_has_no_colour_in_a_pipe_and_fits_80_columns(quick):
    _, ran = quick
    assert "\x1b" not in ran.stdout + ran.stderr
    table = ran.stdout.split("Written:")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table


def test_no_color_is_honoured_where_colour_is_forced(tmp_path):
    args = ("train", "digits", "--quick", "--losses", "ce", "--lr", "0.1", "--out", str(tmp_path))
    colour = re.compile(r"\x1b\[(3|4|9|\d+;)")
    forced = asked(*args, FORCE_COLOR="1")
    assert colour.search(forced.stderr)
    plain = asked(*args, FORCE_COLOR="1", NO_COLOR="1")
    assert not colour.search(plain.stderr)
    assert not colour.search(plain.stdout)


def test_json_is_the_only_thing_on_stdout_and_the_file_besides(tmp_path):
    ran = asked("train", "digits", "--quick", "--losses", "bce,ce", "--json", "--out", str(tmp_path))
    assert ran.exit_code == 0
    document = json.loads(ran.stdout)
    assert document == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert document["schema"] == "crossent.digits/1"
    assert [loss["name"] for loss in document["losses"]] == ["bce", "ce"]
    assert str(tmp_path / "report.html") in ran.stderr


def test_the_settings_are_obeyed(tmp_path):
    options = ("--losses", "hinge", "--epochs", "2", "--seeds", "2", "--seed", "5", "--lr", "0.2")
    ran = asked("train", "digits", "--quick", "--json", *options, "--out", str(tmp_path))
    document = json.loads(ran.stdout)
    assert document["settings"] == {
        "losses": ["hinge"], "epochs": 2, "seeds": 2, "seed": 5, "rates": [0.2], "quick": True, "batch_size": 64,
        "momentum": 0.9, "threads": 1,
    }  # fmt: skip
    assert [run["seed"] for run in document["losses"][0]["runs"]] == [5, 6]
    assert document["losses"][0]["sweep"] == []


def test_a_given_rate_shows_no_sweep(tmp_path):
    page = tmp_path / "page.html"
    args = ("train", "digits", "--quick", "--losses", "ce", "--lr", "0.1", "--out", str(tmp_path), "--html", str(page))
    ran = asked(*args)
    assert "learning rate" not in ran.stdout
    assert "Scores on the" in ran.stdout
    assert str(page) in ran.stdout
    assert not (tmp_path / "report.html").exists()
    text = page.read_text(encoding="utf-8")
    assert 'data-scene="digits"' in text
    assert text.count("data:image/png") == 12


def test_a_narrow_terminal_loses_no_number(tmp_path):
    args = ("train", "digits", "--quick", "--losses", "ce-smooth", "--lr", "0.1", "--out", str(tmp_path))
    said = asked(*args, COLUMNS="40").stdout
    assert re.search(r"^ ce-smooth +0\.1 +\d+\.\d +\d\.\d{3} *$", said, re.MULTILINE)  # the columns go on below
    assert re.search(r"^ ce-smooth +\d\.\d{3} +(\d|never)", said, re.MULTILINE)
    assert "…" not in said


@pytest.mark.parametrize("name", [name for name in JOBS if name != "digits"])
def test_every_job_writes_its_files_and_prints_its_tables(name, tmp_path):
    *_, loss = JOBS[name].losses
    options = ("--losses", loss, "--lr", "0.1", "--epochs", "1", "--out", str(tmp_path))
    ran = asked("train", name, *options)
    assert ran.exit_code == 0
    files = ("report.html", f"{name}.png", "results.json")
    assert ran.stdout.endswith("".join(["Written:\n", *(f"  {tmp_path / file}\n" for file in files)]))
    assert all((tmp_path / file).stat().st_size > 1000 for file in files)
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert document["schema"] == f"crossent.{name}/1"
    assert len(document["losses"][0]["runs"]) == JOBS[name].seeds
    # the console breaks the paragraph into lines
    assert re.sub(r"\s+", " ", document["findings"]) in re.sub(r"\s+", " ", ran.stdout)
    table = ran.stdout.split("Written:")[0]
    assert re.search(rf"^ {loss} +0\.1 +\d", table, re.MULTILINE)
    assert max(map(len, table.splitlines())) <= 90
    assert "…" not in table


@pytest.mark.parametrize(
    ("name", "option", "value"), [("digits-noisy", "flipped", 0.2), ("digits-imbalanced", "ratio", 4)]
)
def test_a_jobs_own_option_is_obeyed(name, option, value, tmp_path):
    args = ("--quick", "--json", "--lr", "0.1", "--epochs", "1", f"--{option}", str(value), "--out", str(tmp_path))
    document = json.loads(asked("train", name, *args).stdout)
    assert document["settings"][option] == value
    run = document["losses"][0]["runs"][0]
    if option == "flipped":
        assert run["flipped"] / document["split"]["train"] == pytest.approx(value, abs=0.01)
    else:
        assert run["training_images"][0] / run["training_images"][9] == pytest.approx(value, rel=0.05)
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"crossent train {name} " in report
    assert f"--{option} {value:g} " in report


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("digits-noisy", "--flipped", "1"), "--flipped"),
        (("digits-imbalanced", "--ratio", "0"), "--ratio"),
        (("digits", "--flipped", "0.4"), "No such option"),
        (
            ("digits-multilabel", "--losses", "ce"),
            "no loss is called 'ce'; choose from softmax, softmax-na, bce, focal",
        ),
        (("digits-nosy",), "No such command"),
    ],
)
def test_what_a_job_does_not_take_is_refused(args, said):
    ran = asked("train", *args)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert said in re.sub(r"\s+", " ", ran.stderr)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--losses", "ce,mse"], "no loss is called 'mse'; choose from ce, ce-smooth, bce"),
        (["--losses", " , "], "no loss is named; choose from ce"),
        (["--epochs", "0"], "--epochs"),
        (["--seeds", "0"], "--seeds"),
        (["--seed", "-1"], "--seed"),
        (["--lr", "0"], "a learning rate is a number above 0, got 0"),
        (["--lr", "nan"], "a learning rate is a number above 0, got nan"),
        (["--lr", "fast"], "--lr"),
        (["--out", __file__], "--out"),
        (["--fast"], "No such option"),
    ],
)
def test_wrong_use_exits_with_2_and_says_why(args, said):
    ran = asked("train", "digits", "--quick", *args)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert said in re.sub(r"\s+", " ", ran.stderr)


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setattr("crossent.tools.train.find_spec", lambda name: None if name == "sklearn" else object())
    ran = asked("train", "digits", "--quick")
    assert ran.exit_code == 1
    assert ran.stderr == "Error: this job needs scikit-learn: pip install scikit-learn\n"


def test_a_directory_that_cannot_be_written_is_refused_before_training():
    ran = asked("train", "digits", "--quick", "--out", f"{__file__}/below")
    assert ran.exit_code == 1
    assert ran.stderr.startswith("Error: cannot write into")


def test_an_interrupt_before_the_first_loss_keeps_nothing_and_says_so(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("crossent.tools.train.run.train_loss", stop)
    ran = asked("train", "digits", "--quick", "--out", str(tmp_path / "never"))
    assert ran.exit_code == 1
    assert ran.stdout == ""
    announced, _, error = ran.stderr.strip().rpartition("\n")
    assert announced.startswith("6 losses, 12 trainings of 3 epochs.")
    assert error == "Error: interrupted before the first loss was finished: nothing was kept"
    assert not (tmp_path / "never").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_an_interrupt_keeps_the_finished_losses_and_gives_the_cursor_back(tmp_path):
    import pty

    options = ["--losses", "ce,hinge", "--epochs", "20", "--lr", "0.1", "--seeds", "1", "--out", str(tmp_path)]
    terminal, inner = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [*COMMAND, "train", "digits", *options],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=environ,
        # a background job of a shell has the signal ignored, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(inner)
    shown = b""
    while b"hinge" not in shown:
        shown += os.read(terminal, 65536)
    process.send_signal(signal.SIGINT)
    # Linux says by an error, others by an empty read, that the other end is closed.
    with contextlib.suppress(OSError):
        while more := os.read(terminal, 65536):
            shown += more
    os.close(terminal)
    assert process.wait(timeout=60) == 1
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    said = re.sub(r"\x1b\[[\d;?]*\w", "", shown.decode())
    assert re.search(r"^ ce +0\.1 ", said, re.MULTILINE)
    assert not re.search(r"^ hinge +0\.1 ", said, re.MULTILINE)
    assert "Interrupted: only the finished losses are here. Missing: hinge." in said
    assert "interrupted: what was finished is kept (ce)" in said
    assert "Traceback" not in said
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["complete"] is False
    assert all((tmp_path / name).exists() for name in FILES)
