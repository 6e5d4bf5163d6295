"""What is looked at once runs are there: a page that compares them, the live page's command, the bound's constants."""

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from agentrl import structure, watch
from agentrl.command.guard import main_guard
from agentrl.errors import CheckpointError
from agentrl.report.arm_sections import compare_runs
from agentrl.report.page import render, render_page
from agentrl.report.view import RunView, load_runs
from agentrl.runs.folder import read_recorded_config
from tests.agentrl.toy_runs import toy_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("after") / "first")


@pytest.mark.slow
def test_page_of_several_runs_shows_each_with_its_own_numbers(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["gate"]["tau"] = -9.5
    (other / "config.json").write_text(json.dumps(config))
    records = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    records[-1]["eval/success"] = 0.4321
    for batch in (record for record in records if record["kind"] == "train"):
        batch["time/rollout_cpu_s"] = 3600.0
    (other / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = render_page(load_runs([run, other])).html
    rows = dict(re.findall(r"<tr><th>(DGG[^<]*)</th>(.*?)</tr>", page, re.S))
    assert len(rows) == 2, "labelled by what differs"
    first, second = (next(row for label, row in rows.items() if tau in label) for tau in ("-1.5", "-9.5"))
    assert "43.2 %" in second
    assert "43.2 %" not in first
    assert "12.0 h" in second
    assert page.count('<div class="panel"') == page.count('role="tab"') == 2


def test_sections_of_a_run_that_has_only_begun_say_so(run: Path) -> None:
    begun = RunView(run, read_recorded_config(run), {}, [])
    assert "no gradient yet" in render("gate.html", run=begun)
    assert "no evaluation yet" in render("categories.html", run=begun)
    tables = compare_runs([begun, RunView(run, begun.config, {}, [])]).tables
    assert tables[0].rows[0][2:] == ["-"] * 6
    assert tables[3].rows[0][1:4] == ["-"] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "it has no config.json"), ("{", "cannot be read"), ("[]", "is not a run's"), ("{}", "is not a run's")],
)
def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_runs([tmp_path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learner.lr", "1"], "watch takes no config keys, got --learner.lr"),
        (["--every", "0"], "--every must be > 0, got 0"),
        (["--port", "99999"], "--port 99999 cannot be used"),
    ],
)
def test_watch_with_words_it_cannot_use_says_so(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main_guard(lambda: watch.main([str(run), *words])) == 2
    assert message in capsys.readouterr().err


def test_watch_in_the_terminal_waits_until_the_last_evaluation_is_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = tmp_path / "growing"
    shutil.copytree(run, growing)
    lines = (growing / "metrics.jsonl").read_text().splitlines(keepends=True)
    (growing / "metrics.jsonl").write_text("".join(lines[:-1]))
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        (growing / "metrics.jsonl").write_text("".join(lines))

    watch.follow_in_terminal(growing, every_s=7.0, wait=wait)
    assert waited == [7.0]
    capsys.readouterr()
    assert watch.main([str(run), "--terminal"]) == 0
    assert capsys.readouterr().out


def test_watch_serves_until_ctrl_c(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pages: list[str] = []

    def visit() -> None:
        deadline = time.monotonic() + 20
        while not pages and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    pages.append(answer.read().decode())
            except urllib.error.URLError:
                time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell would ignore it
    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        assert main_guard(lambda: watch.main([str(run), "--port", str(port)])) == 130
    finally:
        visitor.join()
        signal.signal(signal.SIGINT, before)
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out
    assert "<html" in pages[0]


def test_structure_of_a_model_on_a_text_is_a_row_and_a_drawing(run: Path, tmp_path: Path) -> None:
    text, out, drawing = (tmp_path / name for name in ("text.txt", "numbers.json", "constants.svg"))
    text.write_text("You see red. Now green. Which came first?")
    words = [str(run / "initial"), "--text", str(text), "--tokens", "2", "--samples", "2"]
    assert structure.main([*words, "--json", str(out), "--out", str(drawing)]) == 0
    (numbers,) = json.loads(out.read_text()).values()
    assert numbers["pairs"] == 2 * 14  # two tokens, two blocks of seven matrices
    assert 0 < numbers["C_struct_median"] <= numbers["C_struct_p95"]
    assert all(f">{name}<" in drawing.read_text() for name in ("initial", "median", "95th percentile"))


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [("trajectories", "x y z", "is neither a run folder"), ("initial", "", "--text must hold at least two tokens")],
)
def test_structure_without_something_to_measure_says_what_it_needs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, text: str, message: str
) -> None:
    (tmp_path / "text.txt").write_text(text)
    assert main_guard(lambda: structure.main([str(run / folder), "--text", str(tmp_path / "text.txt")])) == 2
    assert message in capsys.readouterr().err
