"""The search-augmented question-answering environment, `agentrl/SearchQA-v0`."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium

from agentrl.common.data_source import DataSource
from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError
from agentrl.envs.options import check_at_least, check_choice, choose_task
from agentrl.envs.search_qa import scoring
from agentrl.envs.search_qa.encyclopaedia import KINDS, NUM_WORLDS, compact_world, full_encyclopaedia
from agentrl.envs.search_qa.experts import EXPERTS, SearchExpert, VisibleNames
from agentrl.envs.search_qa.questions import Question, load_questions, source_of
from agentrl.envs.search_qa.text import INVALID_ACTION, clean_query, cut_turn, information, parse_action
from agentrl.envs.spaces import FreeText
from agentrl.retriever.client import Client, Hit
from agentrl.retriever.retrieval_errors import QueryError

Reward = Literal["em", "f1", "format", "verl"]
_MAX_QUERY_CHARACTERS = 4096
_GENERATED = ("generated", "compact")


class SearchQAEnv(gymnasium.Env[str, str]):
    """Answer a question with the help of a search engine, turn by turn, in Search-R1's text protocol.

    The first observation is the question as the data set has it. An action is what the model wrote, up to and including
    `</search>` or `</answer>`; anything behind the first of them (searching wins) is cut off. A search is answered with
    `\\n\\n<information>Doc 1(Title: ...) ...</information>\\n\\n`, an action without either tag with a fixed text. An
    answer ends the episode (terminated); so does step `max_steps` (truncated), whose search is not carried out. The
    reward comes with the end. How prompts and histories are shown is up to the wrappers in `protocols.py`.

    Where it differs from Search-R1: an empty query is an invalid action; a search that finds nothing says so; the
    model's own text alone is scored. A retriever that does not answer raises
    `agentrl.retriever.retrieval_errors.RetrieverUnavailable` (`fatal = True`), never an empty observation.

    Args:
        split: "train", or the name of an evaluation split ("test" for generated questions).
        questions: "generated" (an encyclopaedia of 880 passages), "compact" (many tiny ones, for tiny models), one
            path, or a table data set -> path; `{split}` in a path stands for the split's name.
        retriever: a server's URL (a list is asked in turn), the folder of an index ("FOLDER#bm25" names one of
            several), a corpus file (BM25 in this process), or None: BM25 over the generated encyclopaedia.
        topk: passages per search.
        max_steps: actions per episode, the last of which cannot search. Search-R1: 4 turns and a last one make 5.
        reward: "em", "f1", "format" (Search-R1 v0.3), or "verl" (its `search_r1_like_qa_em`).
        retrieval_score: "format" only: what a gold answer in a passage adds.
        kinds: only generated questions of these kinds (bridge, compositional, comparison); None for all.
        holdout: share of a question file without `{split}` that is kept from training.
        max_observation_tokens: tokens of an observation that are kept (500 in Search-R1); needs `tokenizer`.
        tokenizer: folder or name of the model's tokenizer.
        seed: of the generated encyclopaedia.
        expert: "default" adds `info["expert_action"]`, "thinking" with `<think>` blocks; generated questions only.
        timeout_s: for one attempt at a search.
        patience_s: for one search, attempts and pauses together.
    """

    metadata = {"render_modes": [], "eval_split": "test"}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        *,
        split: str = "train",
        questions: str | Mapping[str, str] = "generated",
        retriever: str | Path | Sequence[str] | None = None,
        topk: int = 3,
        max_steps: int = 5,
        reward: Reward = "em",
        retrieval_score: float = 0.0,
        kinds: Sequence[str] | None = None,
        holdout: float = 0.0,
        max_observation_tokens: int | None = None,
        tokenizer: str | None = None,
        seed: int = 0,
        expert: str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 120.0,
    ) -> None:
        self.split, self.topk, self.max_steps = split, topk, max_steps
        self.is_generated = isinstance(questions, str) and questions in _GENERATED
        self.seed, self.expert, self.reward, self.retrieval_score = seed, expert, reward, retrieval_score
        self.max_observation_tokens, self.tokenizer = max_observation_tokens, tokenizer
        _check_options(self, questions, retriever, kinds)
        files = {"questions": questions} if isinstance(questions, str) else dict(questions)
        self._questions_key = (tuple(files.items()), split, holdout, tuple(kinds or ()), seed)
        self._retriever_key = tuple(retriever) if isinstance(retriever, list | tuple) else retriever
        self._searched = ", ".join(retriever) if isinstance(retriever, list | tuple) else str(retriever)
        self._limits = (timeout_s, patience_s)
        self.observation_space, self.action_space = FreeText(), FreeText()
        first = retriever[0] if isinstance(retriever, list | tuple) else retriever
        # Other episodes go on while a server searches.
        self.metadata = {**self.metadata, "blocking": str(first).startswith(("http://", "https://"))}
        self._question: Question | None = None
        self._client: Client
        self._turns: list[str] = []
        self._response = ""
        self._names: VisibleNames | None = None
        self._expert: SearchExpert | None = None

    @property
    def num_tasks(self) -> int:
        """Questions of the split; `reset(options={"task": i})` asks the i-th."""
        return len(_questions(*self._questions_key))

    @property
    def data_source(self) -> DataSource:
        """Where the questions come from, and what is searched for their answers."""
        questions = _questions(*self._questions_key)
        return DataSource("generated", len(questions)) if self.is_generated else source_of(questions, self._searched)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask a question.

        Raises:
            RetrieverUnavailable: the retriever does not answer within its patience; found out before the first turn.
        """
        super().reset(seed=seed)
        questions = _questions(*self._questions_key)
        self._question = questions[choose_task(self.np_random, options, len(questions))]
        self._client = _client(self._retriever_key or _world_of(self._question), *self._limits)
        if self.is_generated and self._retriever_key is not None:
            _check_serves_generated(self._client, str(self._retriever_key), self.seed)
        self._turns, self._response = [], ""
        self._names = VisibleNames(self._question.text) if self.is_generated else None
        self._expert = SearchExpert(self._question, thinks=self.expert == "thinking") if self.expert else None
        return self._question.text, self._info(self._question.text)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out what the model wrote."""
        if self._question is None:
            raise RuntimeError("step() before reset(): there is no question yet")
        turn = cut_turn(action)
        tag, content = parse_action(turn)
        self._turns.append(turn)
        self._response += turn
        terminated = tag == "answer"
        truncated = not terminated and len(self._turns) >= self.max_steps
        observation, found = "", None
        if tag == "search" and not truncated:
            found = self._search(content)
            if found is None:
                tag = None
        if not (terminated or truncated):
            observation = INVALID_ACTION if found is None else self._shorten(information(found))
            self._response += observation
        info = self._info(observation.strip()) | {"is_valid_action": tag is not None}
        if found is not None:
            info |= {"query": content, "passages": [hit._asdict() for hit in found]}
        reward = 0.0
        if terminated or truncated:
            reward = self._score(info)
        return observation, reward, terminated, truncated, info

    def task_content(self) -> list[Any]:
        """What determines the score of the present task besides the corpus: question and accepted answers."""
        assert self._question is not None, "reset comes first"
        return [self._question.text, sorted(self._question.golden_answers)]

    def data_digests(self) -> dict[str, str]:
        """What answers to questions from files are looked up in: see `Client.served`."""
        return {} if self.is_generated else _client(self._retriever_key, *self._limits).served()

    def _search(self, content: str) -> list[Hit] | None:
        """Passages; None where the text of the query is at fault."""
        query = clean_query(content, _MAX_QUERY_CHARACTERS)
        if not query:
            return None
        try:
            hits = self._client.search([query], topk=self.topk)[0]
        except QueryError:
            return None
        if self._names is not None:
            self._names.observe(hits)
        if self._expert is not None:
            self._expert.observe(hits)
        return hits

    def _shorten(self, observation: str) -> str:
        if self.max_observation_tokens is None or self.tokenizer is None:
            return observation
        encoded = _tokenizer(self.tokenizer)(observation, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        if len(ends) <= self.max_observation_tokens:
            return observation
        return observation[: ends[self.max_observation_tokens - 1]]

    def _info(self, anchor: str) -> dict[str, Any]:
        question = self._question
        assert question is not None
        category = question.kind if self.is_generated else question.dataset
        info: dict[str, Any] = {"task": question.task, "category": category, "anchor": anchor}
        if self._names is not None:
            info["admissible_actions"] = self._names.actions()
        if self._expert is not None:
            info["expert_action"] = self._expert.act()
        return info

    def _score(self, info: dict[str, Any]) -> float:
        """Put the scores into `info`; returns the reward."""
        assert self._question is not None
        gold = self._question.golden_answers
        prediction = scoring.last_answer(self._turns)
        info["success"] = scoring.exact_match(prediction, gold)
        info["score"] = scoring.f1_score(prediction, gold)
        info["prediction"] = prediction
        info["folded_em"] = scoring.folded_exact_match(prediction, gold)
        rewards: dict[str, Callable[[], float]] = {
            "em": lambda: float(info["success"]),
            "f1": lambda: float(info["score"]),
            "verl": lambda: scoring.verl_reward(self._turns, gold),
            "format": lambda: scoring.format_reward(
                self._response, prediction, gold, retrieval_score=self.retrieval_score
            ),
        }
        return rewards[self.reward]()


def _check_options(
    env: SearchQAEnv,
    questions: str | Mapping[str, str],
    retriever: str | Path | Sequence[str] | None,
    kinds: Sequence[str] | None,
) -> None:
    check_at_least("topk", env.topk)
    check_at_least("max_steps", env.max_steps)
    if not questions:
        raise DataError("questions names no file: give one, or a table of data set names and files")
    check_choice("reward", env.reward, get_args(Reward))
    check_choice("expert", env.expert, (None, *EXPERTS))
    if env.max_observation_tokens is not None and not env.tokenizer:
        raise DataError("max_observation_tokens needs tokenizer: the folder or name of the model's tokenizer")
    for kind in kinds or ():
        check_choice("kinds", kind, KINDS)
    if env.is_generated:
        check_choice("split", env.split, NUM_WORLDS)
        if questions == "compact" and retriever is not None:
            raise DataError(
                "the compact encyclopaedias are searched in this process, one corpus each: leave retriever out"
            )
        return
    if retriever is None:
        raise DataError(
            "questions from a file need a retriever: the URL of python -m agentrl.retriever.serve, the folder of an "
            "index, or a corpus file"
        )
    if env.expert is not None or kinds:
        raise DataError("expert and kinds need generated questions: nobody knows the way to an answer in a file")


@lru_cache(maxsize=16)
def _questions(
    files: tuple[tuple[str, str], ...], split: str, holdout: float, kinds: tuple[str, ...], seed: int
) -> tuple[Question, ...]:
    path = files[0][1]
    if path == "generated":
        found = full_encyclopaedia(seed).questions[split]
    elif path == "compact":
        worlds = [compact_world(split, world, seed) for world in range(NUM_WORLDS[split])]
        found = tuple(question for world in worlds for question in world.questions[split])
    else:
        found = load_questions(dict(files), split=split, holdout=holdout)
    found = tuple(question for question in found if not kinds or question.kind in kinds)
    if not found:
        raise DataError(f"no questions of the kinds {', '.join(kinds)} in split {split!r}")
    return found


def _world_of(question: Question) -> tuple[str, ...]:
    """What identifies the generated corpus that a question is about."""
    style, *place, _ = question.task.split("/")
    return (style, *place) if style.startswith("compact") else (style,)


@lru_cache(maxsize=512)
def _client(source: str | Path | tuple[str, ...], timeout_s: float, patience_s: float) -> Client:
    """One client per source and process; a server's health is asked for once."""
    if not isinstance(source, tuple) or source[0].startswith("http"):
        urls = list(source) if isinstance(source, tuple) else source
        client = Client(urls, timeout_s=timeout_s, patience_s=patience_s)
        client.check()
        return client
    style, _, seed = source[0].partition("-")
    made = (
        full_encyclopaedia(int(seed)) if style == "generated" else compact_world(source[1], int(source[2]), int(seed))
    )
    return Client.over_passages(made.passages)


@lru_cache(maxsize=16)
def _check_serves_generated(client: Client, name: str, seed: int) -> None:
    """A retriever over another corpus would make every generated question unanswerable, without a word."""
    titles = [contents.split("\n", 1)[0] for _, contents in full_encyclopaedia(seed).passages[:5]]
    found = {hit.title for hits in client.search([title.strip('"') for title in titles], topk=3) for hit in hits}
    if not found & set(titles):
        raise DataError(
            f"the retriever {name} does not hold the generated encyclopaedia with seed {seed}. Write its corpus with "
            "python -m agentrl.envs.search_qa.encyclopaedia OUT and index that, or leave the option retriever out."
        )


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError("transformers", "search", "max_observation_tokens") from None
    return AutoTokenizer.from_pretrained(name)
