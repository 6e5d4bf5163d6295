"""Scores of an answer: exact match, token F1, and the rewards of Search-R1 v0.3 and verl.

Every function scores the model's own text only. Search-R1 searches prompt and response together and so counts its
prompt's example, "Beijing", as the answer of a rollout that gives none; that fault is not repeated here.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_INFORMATION = re.compile(r"<information>(.*?)</information>", re.DOTALL)
_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")
# Tag -> {state before: state after}; Search-R1 v0.3: think, then (search, information, think)*, then answer.
_TRANSITIONS = {
    "<think>": {"start": "in think", "after information": "in think"},
    "</think>": {"in think": "after think"},
    "<search>": {"after think": "in search"},
    "</search>": {"in search": "after search"},
    "<information>": {"after search": "in information"},
    "</information>": {"in information": "after information"},
    "<answer>": {"after think": "in answer"},
    "</answer>": {"in answer": "end"},
}


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without the words a, an, the, single spaces (SQuAD, Search-R1).

    >>> normalize_answer("The  U.S. Senate!")
    'us senate'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str | None, golden_answers: Sequence[str]) -> bool:
    """Whether the normalised prediction equals a normalised gold answer; no prediction never does."""
    if prediction is None:
        return False
    normalized = normalize_answer(prediction)
    return any(normalize_answer(answer) == normalized for answer in golden_answers)


def folded_exact_match(prediction: str | None, golden_answers: Sequence[str]) -> bool:
    """Exact match after compatibility folding (NFKD), without accents and without punctuation of any script.

    >>> folded_exact_match("Brăila’s post–war", ["brailas postwar"])
    True
    """
    return prediction is not None and exact_match(_fold(prediction), [_fold(answer) for answer in golden_answers])


def _fold(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c)[0] not in "MP")


def f1_score(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """SQuAD's token F1 after normalisation, the best over the gold answers.

    >>> f1_score("King George III", ["George III of Britain"])
    0.5714285714285714
    """
    if prediction is None:
        return 0.0
    tokens = normalize_answer(prediction).split()
    return max((_token_f1(tokens, normalize_answer(answer).split()) for answer in golden_answers), default=0.0)


def _token_f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * common / (len(prediction) + len(gold)) if common else 0.0


def last_answer(turns: Sequence[str]) -> str | None:
    """The content of the last `<answer>...</answer>` in the model's own turns, stripped; None without one.

    Args:
        turns: what the model wrote, turn by turn, without the environment's text between.
    """
    for turn in reversed(turns):
        matches = _ANSWER.findall(turn)
        if matches:
            return str(matches[-1]).strip()
    return None


def own_turns(transcript: str) -> list[str]:
    """The model's turns of a response in which the environment's `<information>` blocks are spliced in."""
    return _INFORMATION.split(transcript)[::2]


def has_valid_format(response: str) -> bool:
    """Whether a response (model's and environment's text together) keeps Search-R1 v0.3's order of tags.

    `think (search information think)* answer`, nothing but white space between the tags.
    """
    state = "start"
    for part in _TAG.split(response):
        if _TAG.fullmatch(part):
            if state not in _TRANSITIONS[part]:
                return False
            state = _TRANSITIONS[part][state]
        elif part.strip() and not state.startswith("in "):
            return False
    return state == "end"


def format_reward(
    response: str, prediction: str | None, golden_answers: Sequence[str], *, retrieval_score: float = 0.0
) -> float:
    """Search-R1 v0.3's reward.

    Correct: 1 in valid format, else 0.8. Not correct: 0.2 in valid format, plus `retrieval_score` (at most 0.1 there)
    if a gold answer occurs in a passage; else 0.1 for any answer; else 0.
    """
    is_valid = has_valid_format(response)
    if exact_match(prediction, golden_answers):
        return 1.0 if is_valid else 0.8
    if is_valid:
        passages = [normalize_answer(block) for block in _INFORMATION.findall(response)]
        found = any(normalize_answer(answer) in passage for answer in golden_answers for passage in passages)
        return 0.2 + retrieval_score * found
    return 0.0 if prediction is None else 0.1


def verl_reward(turns: Sequence[str], golden_answers: Sequence[str]) -> float:
    """verl's `search_r1_like_qa_em`: exact match, a quarter of it with more than 10 opening or closing answer tags."""
    text = "".join(turns)
    crowded = text.count("<answer>") > 10 or text.count("</answer>") > 10
    return float(exact_match(last_answer(turns), golden_answers)) * (0.25 if crowded else 1.0)
