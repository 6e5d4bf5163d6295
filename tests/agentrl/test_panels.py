"""Panels: frozen, whole, verified against data; what differs is named and the score loses its name."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from agentrl import evaluate
from agentrl.command.guard import main_guard
from agentrl.config.read import load_config
from agentrl.envs.alfworld.protocols import drawn_tasks
from agentrl.errors import UserError
from agentrl.panels import __main__ as panels
from agentrl.panels.check import check_panel, settings_tree
from agentrl.panels.digests import digest_of
from agentrl.panels.panel import LISTS, find_panel, read_panel, shipped_panels, write_panel
from agentrl.retriever.bm25_search import build_bm25
from agentrl.retriever.build import prepare_corpus
from agentrl.retriever.search import Retriever

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GENERATED = sorted(name for name in shipped_panels() if "generated" in name and "gym" not in name)


def test_every_shipped_panel_makes_a_config_and_keeps_no_text() -> None:
    for panel in shipped_panels().values():
        config = load_config(settings_tree({}, panel))
        assert config.env.eval_split == panel.settings["env"]["eval_split"]
        assert len(panel.tasks()) == panel.num_tasks
        assert panel.version == 0 or panel.digests or panel.files, panel.id
        assert not any(" " in name for name in panel.names or []), panel.id
    sizes = {panel.name: panel.num_tasks for panel in shipped_panels().values()}
    known = {"alfworld-seen": 140, "alfworld-unseen": 134, "webshop-test": 500, "math500": 500, "hotpotqa-dev": 7405}
    assert known.items() <= sizes.items()


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_panel_is_what_its_generator_makes_today(name: str) -> None:
    panel = find_panel(name)
    assert check_panel(panel, load_config(settings_tree({}, panel))) == []


def test_other_data_and_another_protocol_are_named_and_cost_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", "math-generated@1", "--env.options.data_seed", "1", "--rollout.max_new_tokens", "8"]
    assert main_guard(lambda: panels.main(words)) == 1
    printed = capsys.readouterr().out
    assert "rollout.max_new_tokens is 8, the panel's is 256" in printed
    assert "task 0" in printed
    out = ["--out", str(tmp_path)]
    played = ["--policy", "expert", "--panel", "math-generated", "--env.options.data_seed", "1", *out]
    assert main_guard(lambda: evaluate.main(played)) == 0
    panel = json.loads((tmp_path / "result.json").read_text())["panel"]
    assert panel["name"] == "math-generated@1+other"
    assert len(panel["differences"]) == 128


def test_a_panel_is_played_whole(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policy", "expert", "--panel", "math-generated", "--eval.tasks", "3"]
    assert main_guard(lambda: evaluate.main(words)) == 2
    assert "played whole" in capsys.readouterr().err


def test_a_panel_is_made_from_data_and_then_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.json"
    seeded = ["--env.options.data_seed", "1"]
    assert (
        main_guard(lambda: panels.main(["make", "math-generated", "--out", str(file), "--version", "7", *seeded])) == 0
    )
    made, shipped = read_panel(file), find_panel("math-generated")
    assert made.id == "math-generated@7"
    assert made.content != shipped.content
    assert main_guard(lambda: panels.main(["verify", str(file), *seeded])) == 0
    assert "the same" in capsys.readouterr().out


def qa_panel(folder: Path) -> tuple[Path, list[str]]:
    """A panel of version 0 over two questions of one's own, and the words that say where its data lie."""
    questions = [{"id": f"q{i}", "question": f"who wrote book {i}", "golden_answers": [f"author {i}"]} for i in (1, 2)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    corpus = [{"id": str(i), "contents": f'"Book {i}"\nBook {i} was written by author {i}.'} for i in (1, 2)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    whole = find_panel("bamboogle-test@0")
    mine = whole.model_copy(update={"num_tasks": 2, "name": "mine"})
    write_panel(mine, folder / "mine.json")
    words = ["--env.options.questions.bamboogle", str(folder / "questions.jsonl")]
    return folder / "mine.json", [*words, "--env.options.retriever", str(folder / "corpus.jsonl")]


def test_a_panel_of_version_0_is_frozen_with_its_corpus_and_another_corpus_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, words = qa_panel(tmp_path)
    frozen = tmp_path / "frozen.json"
    assert main_guard(lambda: panels.main(["make", str(file), "--version", "1", "--out", str(frozen), *words])) == 0
    made = read_panel(frozen)
    assert (made.unknown, made.version, sorted(made.files), made.files["index"]) == ([], 1, ["corpus", "index"], "bm25")
    assert "author" not in frozen.read_text()
    assert main_guard(lambda: panels.main(["verify", str(frozen), *words])) == 0
    folder = tmp_path / "index"
    prepare_corpus(tmp_path / "corpus.jsonl", folder)
    build_bm25(folder)
    assert (
        main_guard(lambda: panels.main(["verify", str(frozen), *words[:-1], f"{folder}#bm25"])) == 0
    )  # the same passages
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "corpus.jsonl").read_text().replace("written", "printed"))
    capsys.readouterr()
    assert main_guard(lambda: panels.main(["verify", str(frozen), *words[:-1], str(other)])) == 1
    assert f"the panel's is {made.files['corpus']}" in capsys.readouterr().out


def test_a_retriever_that_does_not_tell_its_corpus_freezes_no_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, words = qa_panel(tmp_path)
    monkeypatch.delattr(Retriever, "corpus_sha256")
    out = ["--out", str(tmp_path / "frozen.json")]
    assert main_guard(lambda: panels.main(["make", str(file), "--version", "1", *out, *words])) == 2
    assert "does not tell the digest of its corpus" in capsys.readouterr().err


def test_every_panel_of_version_0_says_how_it_is_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "ALFWORLD_DATA=FOLDER python -m agentrl.panels make alfworld-unseen@0" in find_panel("alfworld-unseen").freezing
    )
    assert main_guard(lambda: panels.main(["list"])) == 0
    printed = capsys.readouterr().out
    for panel in shipped_panels().values():
        assert (panel.freezing in printed) == (panel.version == 0)


def test_fewer_tasks_than_a_panel_has_freeze_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, words = qa_panel(tmp_path)
    out = ["--out", str(tmp_path / "frozen.json")]
    assert main_guard(lambda: panels.main(["make", "bamboogle-test", "--version", "1", *out, *words])) == 2
    assert "needs 125 tasks of agentrl/SearchQA-v0 test, the data have 2" in capsys.readouterr().err


def test_an_unknown_panel_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean alfworld-unseen@0"):
        find_panel("alfworld-unsen")
    damaged = tmp_path / "bad.json"
    told = json.loads((LISTS / "math-generated.json").read_text())
    damaged.write_text(json.dumps({**told, "digests": told["digests"][1:]}))
    with pytest.raises(UserError, match="digests must have 128 entries, has 127"):
        read_panel(damaged)


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": [1, 2.5], "b": "ü"}) == digest_of({"b": "ü", "a": [1, 2.5]})
    assert digest_of("a") != digest_of("b")


def test_panels_are_listed_with_what_they_do_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: panels.main([])) == 0
    printed = capsys.readouterr().out
    assert "alfworld-seen@1" in printed
    assert "hotpotqa-dev@0" in printed


@pytest.mark.skipif(not (DATA / "math").is_dir(), reason="needs the math data")
@pytest.mark.parametrize("name", ["math500@1", "aime25@1", "minerva@1", "olympiadbench@1"])
def test_a_math_panel_is_the_data_at_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify", reason="needs the extra math")
    monkeypatch.setenv("MATH_DATA", str(DATA / "math"))
    panel = find_panel(name)
    assert check_panel(panel, load_config(settings_tree({}, panel))) == []


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "alfworld").is_dir(), reason="needs the games")
def test_the_seen_games_are_the_panels_and_a_changed_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(DATA / "alfworld" / "games.tar.xz") as archive:
        members = [member for member in archive if "/valid_seen/" in member.name]
        archive.extractall(tmp_path, members, filter="data")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    panel = find_panel("alfworld-seen@1")
    config = load_config(settings_tree({}, panel))
    assert check_panel(panel, config) == []
    drawn = find_panel("alfworld-verl-seen@1")
    assert [panel.names[i] for i in drawn_tasks(140)] == drawn.names if panel.names else False
    game = sorted(tmp_path.rglob("game.tw-pddl"))[3]
    told = json.loads(game.read_text())
    game.write_text(json.dumps({**told, "walkthrough": ["look", *told["walkthrough"]]}))
    os.utime(game)
    from agentrl.envs.alfworld import sources

    sources._from_files.cache_clear()
    sources.load_game.cache_clear()
    changed = check_panel(panel, config)
    assert changed == [f"task 3 ({game.parent.relative_to(tmp_path / 'json_2.1.1')}): other content"]
