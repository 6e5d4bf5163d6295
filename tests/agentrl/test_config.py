import argparse
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.command.guard import parse_command_line
from agentrl.config.defaults import dependent_defaults
from agentrl.config.describe import content_hash, describe_fields, diff_configs, leaves
from agentrl.config.read import config_without_file, load_config, parse_overrides, read_toml
from agentrl.config.schema import Config
from agentrl.config.shipped import shipped_configs
from agentrl.errors import ConfigError, UserError
from agentrl.learner.gates import GateConfig
from agentrl.learner.losses import LossConfig

ROOT = Path(__file__).resolve().parents[2]


def test_load_config_without_a_file_gives_the_defaults() -> None:
    assert load_config(None) == Config()


def test_load_config_with_overrides_puts_them_on_top_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[train]\nsteps = 5\nseed = 1\n[env]\noptions = { room_size = 'small' }\n")
    config = load_config(file, ["--train.steps", "7", "--env.options.num_games=3", "--gate.kind=none"])
    assert (config.train.steps, config.train.seed, config.gate.kind) == (7, 1, "none")
    assert config.env.options == {"room_size": "small", "num_games": 3}


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        ([], 1e-3),
        (["--model.path", "Qwen/Qwen3-0.6B"], 1e-6),
        (["--learner.lr", "1e-6"], 1e-6),
        (["--learner.eps", "1e-4"], 1e-3),
    ],
)
def test_load_config_without_a_learning_rate_takes_one_that_suits_the_model(words: list[str], lr: float) -> None:
    assert load_config(None, words).learner.lr == lr


def test_load_config_for_another_environment_drops_the_options_of_the_first_with_a_notice(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[env]\nid = 'a:A'\neval_split = 'test'\nformat = 'a:Tags'\noptions = { size = 3 }\n")
    notes: list[str] = []
    config = load_config(file, ["--env.id", "b:B", "--env.options.colour", "red"], notify=notes.append)
    assert (config.env.options, config.env.format, config.env.eval_split) == ({"colour": "red"}, "plain", "test")
    assert notes == [
        'env.options = {"size": 3} is for a:A, not for b:B: dropped',
        'env.format = "a:Tags" is for a:A, not for b:B: dropped',
    ]
    same = load_config(file, ["--env.id", "a:A", "--env.options.colour", "red"], notify=notes.append)
    assert same.env.options == {"size": 3, "colour": "red"}
    assert len(notes) == 2


def test_load_config_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    load_config({"env": {"options": {"size": 3}}}, ["--env.id", "b:B"])
    assert capsys.readouterr().err.startswith('note: env.options = {"size": 3} is for agentrl/ALFWorld-v0, not for b:B')


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learner.lrr", "1"], "unknown key learner.lrr (command line). Did you mean learner.lr?"),
        (
            ["--rollout.max_turns", "0"],
            "rollout.max_turns must be >= 1, got 0 (command line). Its default is 20.",
        ),
        (["--gate.kind", "dg"], "gate.kind must be one of dgg, total_norm_z"),
        (["--learner.lr", "fast"], "learner.lr must be a valid number"),
        (["--train.steps"], "--train.steps needs a value"),
        (["steps", "3"], "expected an override such as --learner.lr 1e-3, got 'steps'"),
        (["--nonsense.x", "3"], "unknown key nonsense"),
    ],
)
def test_load_config_when_an_override_is_wrong_says_key_place_and_remedy(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_config_when_the_file_is_wrong_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text("[rollout]\nmax_turns = 0\n")
    with pytest.raises(ConfigError, match=r"rollout.max_turns must be >= 1, got 0 \(.*search.toml\)"):
        load_config(tmp_path / "search.toml")
    with pytest.raises(ConfigError, match=r"Did you mean .*search.toml"):
        load_config(tmp_path / "serch.toml")
    (tmp_path / "bad.toml").write_text("[rollout\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="cannot read the config file"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"--rollout\.max_turns\.x: max_turns is a value, not a table"):
        load_config({"rollout": {"max_turns": 3}}, ["--rollout.max_turns.x", "1"])


def test_load_config_with_two_mistakes_reports_both() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["--train.steps", "-1", "--learner.lr", "0"])
    assert len(str(caught.value).splitlines()) == 2


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_parse_overrides_of_toml_values_round_trips(i: int, f: float, b: bool) -> None:
    words = ["--a.i", str(i), f"--a.f={f!r}", "--a.b", str(b).lower(), "--a.t", "plain words", "--a.n", "null"]
    assert parse_overrides(words) == [("a.i", i), ("a.f", f), ("a.b", b), ("a.t", "plain words"), ("a.n", None)]


def test_describe_fields_gives_every_field_a_meaning_and_stays_small() -> None:
    fields = list(describe_fields())
    assert all(meaning for _, _, meaning in fields)
    apart = ("model.tiny.", "rollout.end", "rollout.engine_", "rollout.turn_timeout_s", "rollout.sync_tolerance")
    of_a_kind = {key for key, _, _ in fields if key.startswith(apart)}  # the tiny model's shape, vLLM's own
    # a mixture's, GiGPO's, of adapters
    of_a_kind |= {"env.weight", "advantage.step_weight", "advantage.discount", "model.lora_targets"}
    for base in (GateConfig, LossConfig):
        table = base.__name__.removesuffix("Config").lower()
        of_a_kind |= {
            key for key, _, _ in fields if key.startswith(table) and key.split(".")[1] not in base.model_fields
        }
    assert len({key for key, _, _ in fields} - of_a_kind) <= 75


def test_every_key_is_turned_by_a_shipped_config_a_study_or_the_example_script() -> None:
    """`train.seed` by every study's seeds; what names things of one's own by `tests/examples/my_script.py`."""
    turned = {"train.seed"}
    for path in shipped_configs().values():
        tree = read_toml(path)
        turned |= {re.sub(r"^env\.\d+\.", "env.", key) for key, _ in leaves(tree)}
        for arm in tree.get("arms", {}).values():
            turned |= set(arm.get("set", {}))
        for stage in tree.get("stages", {}).values():
            turned |= set(stage.get("axes", {}))
        turned |= set(tree.get("set", {}))
    script = (ROOT / "tests" / "examples" / "my_script.py").read_text()
    idle = {key for key, _, _ in describe_fields() if key not in turned and f'"{key}' not in script}
    tables = {key.rpartition(".")[0] for key in turned}  # options, given as tables
    assert idle - tables == set()


def test_diff_configs_names_exactly_what_changed() -> None:
    new = load_config(None, ["--learner.lr", "0.5", "--env.options.data", "generated"])
    assert sorted(diff_configs(Config(), new)) == [
        "env.options.data: None -> 'generated'",
        "learner.lr: 0.001 -> 0.5",
    ]


def test_content_hash_depends_on_values_and_not_on_key_order() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 3})


def test_a_default_that_depends_on_another_key_holds_where_nobody_sets_it() -> None:
    config = load_config(None, ["--model.path", "some/model", "--rollout.engine", "vllm", "--env.id", "mine:Env"])
    assert (config.learner.lr, config.loss.tis_cap, config.rollout.env_workers) == (1e-6, 2.0, 2)
    config = load_config(None, ["--learner.lr", "0.5", "--loss.tis_cap", "0", "--rollout.engine", "vllm"])
    assert (config.learner.lr, config.loss.tis_cap, config.rollout.env_workers) == (0.5, 0.0, 0)
    for dtype, tolerance in (("float32", 0.025), ("mixed", 0.1), ("bfloat16", 0.1)):
        config = load_config({"model": {"dtype": dtype}}, ["--rollout.engine", "vllm"])
        assert config.rollout.sync_tolerance == tolerance
    held = {default.key: default.value for default in dependent_defaults({"warmstart": {"episodes": 1}})}
    assert held == {"learner.lr": 1e-3, "loss.tis_cap": 0.0, "rollout.env_workers": 0}


def test_a_model_from_scratch_has_defaults_of_its_own_and_gives_them_up_with_a_warm_start() -> None:
    def settled(config: Config) -> tuple[object, ...]:
        loss = (config.loss.kl_coef, config.loss.kl_kind, config.loss.normalization)
        return (*loss, config.learner.schedule, config.rollout.max_new_tokens, config.train.steps)

    scratch = load_config(None, ["--rollout.max_new_tokens", "7"])
    assert settled(scratch) == (0.02, "k2", "sequence_mean", "linear", 7, 200)
    others = (0.0, "k3", "token_mean", "constant", 7, 100)
    assert settled(load_config(scratch, ["--warmstart.episodes", "10"])) == others
    assert settled(load_config(scratch.model_dump(), ["--model.path", "some/model"])) == others


def test_a_command_without_a_config_begins_with_the_quickstart_unless_it_names_an_environment_or_a_model() -> None:
    assert config_without_file([]) == config_without_file(["--train.steps=3"]) == Path("quickstart")
    assert config_without_file(["--env.id", "mine:Env"]) is config_without_file(["--model.path=a/b"]) is None


def test_a_key_of_another_kind_is_answered_and_one_of_the_source_is_dropped() -> None:
    notes: list[str] = []
    source = {
        "gate": {"kind": "dgg", "tau": 0.7, "window": 5},
        "loss": {"kind": "clip", "clip_high": 0.3, "kl_coef": 0.1},
    }
    config = load_config(
        Config.model_validate(source), {"gate.kind": "none", "loss.kind": "cispo"}, notify=notes.append
    )
    assert (config.gate.kind, config.loss.kind, config.loss.kl_coef) == ("none", "cispo", 0.1)
    assert [note.split(" = ")[0] for note in notes] == ["gate.tau", "gate.window", "loss.clip_high"]
    kept = load_config(Config.model_validate(source), {"gate.kind": "total_norm_z"}, notify=notes.append)
    assert kept.gate.model_dump(include={"tau", "window"}) == {"tau": 0.7, "window": 5}
    with pytest.raises(ConfigError, match=r'gate.tau is no key of gate.kind = "none" .*belongs to dgg, total_norm_z'):
        load_config(None, {"gate.kind": "none", "gate.tau": 0.5})


@pytest.mark.parametrize(
    ("word", "hint"),
    [("--steps=5", r"Did you mean --train\.steps\?"), ("--kind", r"--loss\.kind or --gate\.kind"), ("--zzz", "--help")],
)
def test_command_line_when_a_word_is_unknown_then_the_full_key_is_told(word: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        parse_command_line(argparse.ArgumentParser(prog="x"), [word])
