"""Where tasks come from: named and digested alike whatever file holds them, and never called by another's name."""

import gzip
import hashlib
import json
import lzma
import shutil
import sys
from pathlib import Path

import pytest
from alfworld_room import write_tree

import agentrl
from agentrl.common.data_source import DataSource, content_digest, tasks_of
from agentrl.environment.calls import look
from agentrl.environment.spec import EnvironmentSpec
from agentrl.envs.alfworld.__main__ import main as alfworld
from agentrl.envs.alfworld.env import ALFWorldEnv
from agentrl.envs.math.env import MathEnv
from agentrl.envs.math.known_sets import KNOWN_SETS, source_of
from agentrl.envs.math.problems import Problem
from agentrl.envs.search_qa.env import SearchQAEnv
from agentrl.envs.webshop.__main__ import main as webshop
from agentrl.envs.webshop.env import WebShopEnv
from agentrl.errors import UserError

GAMES = [
    "valid_seen/pick_and_place_simple-Pen-None-Desk-1/trial_a",
    "valid_seen/pick_two_obj_and_place-Pen-None-Desk-2/trial_b",
]


def test_content_digest_is_that_of_the_sorted_digests_of_rows():
    first, second = hashlib.sha256(b"a\0b\0").digest(), hashlib.sha256(b"c\0").digest()
    expected = hashlib.sha256(min(first, second) + max(first, second)).hexdigest()
    assert content_digest([["a", "b"], ["c"]]) == content_digest([["c"], ["a", "b"]]) == expected
    assert content_digest([["ab"], ["c"]]) != expected


def test_alfworld_when_folder_archive_or_pack_then_the_same_games_and_digest(tmp_path):
    write_tree(tmp_path / "games", GAMES)
    archive = Path(shutil.make_archive(str(tmp_path / "json_2.1.3_tw-pddl"), "zip", tmp_path / "games"))
    assert alfworld(["pack", str(archive), str(tmp_path / "packed.zip")]) == 0
    envs = [ALFWorldEnv("valid_seen", data=data) for data in (tmp_path / "games", archive, tmp_path / "packed.zip")]
    assert len({env.data_source for env in envs}) == 1
    assert envs[0].data_source.kind == "files"  # nobody's official ones
    assert envs[0].data_source.count == 2
    assert len({env.reset(options={"task": 1})[0] for env in envs}) == 1
    with pytest.raises(ValueError, match=r"expected the split 'train', found valid_seen"):
        ALFWorldEnv("train", data=archive)


def test_alfworld_when_rooms_are_generated_then_they_are_not_called_valid_seen():
    source = ALFWorldEnv("valid_seen", data="generated", num_games=7).data_source
    assert source == DataSource("generated", 7, about="small rooms, data seed 0")
    record = {"eval/split": source.name_of("valid_seen"), "eval/data": source.record()}
    assert tasks_of(record) == "generated valid_seen (generated, 7 tasks, small rooms, data seed 0)"


def test_webshop_when_files_are_packed_then_the_same_shop(tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    assert webshop(["synthesize", "--num-products", "700", "--out", str(plain)]) == 0
    packed.mkdir()
    (packed / "title_nouns.json").write_bytes((plain / "title_nouns.json").read_bytes())
    for name, ending, compress in (
        ("items_shuffle_1000.json", ".xz", lzma.compress), ("items_ins_v2_1000.json", ".gz", gzip.compress),
    ):  # fmt: skip
        (packed / f"{name}{ending}").write_bytes(compress((plain / name).read_bytes()))
    shops = [WebShopEnv("test", data_dir=str(folder), verify=False) for folder in (plain, packed)]
    assert shops[0].data_source == shops[1].data_source
    assert shops[0].data_source.kind == "files"
    assert shops[0].data_source.sha256 == hashlib.sha256((plain / "items_shuffle_1000.json").read_bytes()).hexdigest()
    assert len({shop.reset(options={"task": 3})[0] for shop in shops}) == 1
    with pytest.raises(ValueError, match=r"items_shuffle_1000.json.xz is not the official file of that name"):
        WebShopEnv("test", data_dir=str(packed)).reset()
    assert WebShopEnv("test", data_dir="synthetic").data_source.kind == "generated"


def test_search_qa_when_only_packed_copies_lie_there_then_they_are_read(tmp_path):
    question = {"id": "1", "question": "who wrote Emma", "golden_answers": ["Jane Austen"]}
    (tmp_path / "nq_test.jsonl.gz").write_bytes(gzip.compress(json.dumps(question).encode()))
    passage = {"id": "0", "contents": '"Emma"\nEmma is a novel by Jane Austen.'}
    (tmp_path / "corpus.jsonl.xz").write_bytes(lzma.compress(json.dumps(passage).encode()))
    corpus = tmp_path / "corpus.jsonl"
    env = SearchQAEnv(split="test", questions={"nq": str(tmp_path / "nq_{split}.jsonl")}, retriever=str(corpus))
    env.reset(seed=0)
    assert "Jane Austen" in env.step("<search>Emma</search>")[0]
    digest = content_digest([["nq/1", "who wrote Emma", "Jane Austen"]])
    assert env.data_source == DataSource("files", 1, digest, f"searching {corpus}")


def test_math_when_problems_are_a_published_set_then_official():
    assert MathEnv("test", num_problems=5).data_source == DataSource("generated", 5)
    assert source_of([Problem("0", "1 + 1?", "2", "mine")], is_generated=False).kind == "files"


def test_math_when_reference_files_are_there_then_known_by_their_content(reference_data):
    folder = reference_data / "math"
    for name in ("math500", "minerva"):
        source = MathEnv("test", data=name, data_dir=folder, use_library=False).data_source
        assert (source.kind, source.sha256) == ("official", KNOWN_SETS[name])


def test_own_environment_may_say_where_its_tasks_are_from(tmp_path, monkeypatch):
    source = """
import gymnasium
class {name}(gymnasium.Env):
    data_source = {told}
    def reset(self, *, seed=None, options=None):
        return "say yes", {{}}
    def step(self, action):
        return "", 1.0, True, False, {{}}
"""
    told = {"Good": {"kind": "official", "count": 3, "sha256": "ab" * 32}, "Bad": {"kind": "found", "count": 3}}
    (tmp_path / "told_env.py").write_text("".join(source.format(name=n, told=t) for n, t in told.items()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "told_env", raising=False)
    offer = look(EnvironmentSpec("told_env:Good", "test"))
    assert (offer.source, offer.has_splits) == (DataSource("official", 3, "ab" * 32), False)
    with pytest.raises(UserError, match="data_source should be a mapping with kind"):
        look(EnvironmentSpec("told_env:Bad", "test"))
    with pytest.raises(UserError, match=r"told_env:Good has no splits .* no 'valid_seen' to play"):
        agentrl.evaluate(None, ["--env.id", "told_env:Good", "--env.eval_split", "valid_seen"], policy="random")


def test_environment_that_says_nothing_has_no_source():
    assert look(EnvironmentSpec("tests.toy:ColourEnv", "train")).source is None
