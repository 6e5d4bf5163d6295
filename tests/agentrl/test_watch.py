"""The live page: it follows a run that grows, on loopback only, in a real browser and in the terminal."""

import base64
import gzip
import http.client
import io
import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote

import pytest
from rich.console import Console

from agentrl.command.guard import main_guard
from agentrl.report.page import PARTS
from agentrl.report.view import load_runs
from agentrl.watch import WatchServer, follow_in_terminal, longest_episodes, main, terminal_view
from tests.agentrl.toy_runs import HOSTILE, add_hostile_episode, toy_run
from tests.browser import open_browser
from tests.servers import running


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy_run(tmp_path_factory.mktemp("watch") / "run")
    add_hostile_episode(folder)
    return folder


def serving(folder: Path) -> AbstractContextManager[WatchServer]:
    return running(WatchServer(folder, every_s=0.1))


def ask(server: WatchServer, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


def growing_copy(finished: Path, folder: Path, *, num_records: int) -> list[str]:
    """The run as it was after some records; returns the records still to come."""
    (folder / "initial").mkdir(parents=True)
    for name in ("config.json", "versions.json", "initial/tokenizer.json"):
        (folder / name).write_bytes((finished / name).read_bytes())
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:num_records]))
    return lines[num_records:]


@pytest.mark.slow
def test_page_when_the_run_grows_then_it_follows_and_shows_new_episodes(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    rest = growing_copy(finished, folder, num_records=4)
    with serving(folder) as server, open_browser() as browser:
        browser.open(server.url)
        browser.wait_until("return document.body.dataset.state === 'following'")
        assert "running" in browser.run("return document.querySelector('h1').innerText")
        assert "2 of 12 rollout batches" in browser.text()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("".join(rest))
        (folder / "trajectories").mkdir()
        newest = sorted((finished / "trajectories").glob("eval-*.jsonl"))[-1]
        (folder / "trajectories" / newest.name).write_bytes(newest.read_bytes())
        browser.wait_until("return document.body.innerText.includes('12 of 12 rollout batches')")
        assert "running" not in browser.run("return document.querySelector('h1').innerText")
        browser.wait_until("return document.querySelectorAll('.list button').length > 10")
        browser.wait_until("return document.querySelectorAll('.says.model').length > 0")  # its piece has come too
        assert HOSTILE.strip()[:8] in browser.text()  # shown as text, in the table of the longest episodes
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert browser.title() == "growing (live)"


def test_update_when_nothing_is_new_then_204_and_every_stored_episode_comes_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.watch._READING_S", 0.0)  # one file of episodes an answer
    stored = sum(len(path.read_text().splitlines()) for path in (finished / "trajectories").glob("*.jsonl"))
    with serving(finished) as server:
        entries, seen, more = [], "", True
        while more:
            status, text = ask(server, f"/update?seen={seen}")
            update = json.loads(text)
            assert (status, set(update)) == (200, {"version", "parts", "entries", "more"})
            assert update["entries"]
            entries += update["entries"]
            seen, more = update["version"], update["more"]
        assert len(entries) == len({(e["piece"], e["place"]) for e in entries}) == stored
        assert ask(server, f"/update?seen={seen}") == (204, "")
        grown = "0-" + seen.partition("-")[2]  # the same episodes, other records
        update = json.loads(ask(server, f"/update?seen={grown}")[1])
        assert (update["entries"], set(update["parts"])) == ([], {*PARTS, "longest"})


def test_piece_when_asked_for_then_it_is_what_the_file_holds(finished: Path) -> None:
    path = sorted((finished / "trajectories").glob("eval-*.jsonl"))[-1]
    with serving(finished) as server:
        status, script = ask(server, f"/episodes/0/{path.stem}.0.js")
        assert status == 200
        key, text = json.loads(f"[{script.strip().removeprefix('agentrl.piece(').removesuffix(');')}]")
        piece = json.loads(gzip.decompress(base64.b64decode(text)))
        assert key == f"0/{path.stem}.0"
        assert [episode["first"] for episode in piece] == [
            json.loads(line)["first_observation"] for line in path.read_text().splitlines()
        ]
        for name in (f"{path.stem}.9", f"{path.stem}.-1", f"{path.stem}.x", "../config.0", "none.0"):
            assert ask(server, f"/episodes/0/{quote(name, safe='')}.js")[0] == 404


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "127.0.0.1:1", 200),
        ("/", "evil.example", 403),
        ("/update", "evil.example:80", 403),
        ("/x", "localhost", 404),
    ],
)
def test_server_when_asked_from_elsewhere_then_it_refuses(finished: Path, path: str, host: str, status: int) -> None:
    with serving(finished) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert ask(server, path, Host=host)[0] == status


def test_longest_episodes_when_listed_then_most_tokens_first_and_escaped(finished: Path) -> None:
    table = longest_episodes(load_runs([finished])[0])
    tokens = [int(part.split("</td>")[0]) for part in table.split("</th><td>")[1:]]
    assert tokens == sorted(tokens, reverse=True)
    assert "<script" not in table


def test_terminal_when_the_run_is_finished_then_it_draws_once_and_ends(finished: Path) -> None:
    follow_in_terminal(finished, every_s=0.01, wait=lambda _: pytest.fail("waits for a finished run"))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_view(load_runs([finished])[0]))
    text = console.export_text()
    assert "12 of 12" in text
    assert "DGG, tau -1.5" in text
    last = load_runs([finished])[0].evals[-1]
    assert re.search(rf"held-out mean reward +{last['eval/reward']:.3g}", text)


def test_bad_input_when_given_then_one_line_and_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: main([str(tmp_path)])) == 2
    assert "no run folder" in capsys.readouterr().err
