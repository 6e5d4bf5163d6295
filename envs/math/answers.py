"""From a response to its answer: extraction and normalisation.

Pure text work, linear in bounded pieces, safe on any input; nothing here needs math-verify.
"""

import re
from bisect import bisect_right
from fractions import Fraction
from functools import lru_cache
from typing import Any

from agentrl.envs.math.markup import SIGNS, without_markup
from agentrl.envs.math.numerals import parse_numeral

_WRITTEN = {
    "boxed": r"\boxed{{{}}}", "hashes": "#### {}", "answer": "Answer: {}", "tags": "<answer>{}</answer>", "plain": "{}",
}  # fmt: skip
ANSWER_FORMATS = tuple(_WRITTEN)

_MAX_BOXES = 16  # closed or not, looked at from the end
_BOX = re.compile(r"(?:\\boxed|\\fbox|\\framebox|\x08oxed)(?![a-zA-Z])\s{0,20}")  # \b, where escapes were read
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$,;]*(?:\\text\s*\{)?\s*(?:and|or)?\s*\}?[\s$,;]*")
_ANSWER_MARK = re.compile(r"(?i)answer[ \t*_]{0,8}[:：](?:[ \t*]|\n(?!\s{0,20}\n\s{0,20}\n)){0,40}")
_DISPLAY = re.compile(r"\$\$(.*?)\$\$|\\\[(.*?)\\\]", re.DOTALL)
_TAG_END, _TAG = re.compile(r"(?i)</answer>"), re.compile(r"(?i)<answer>")
_BOX_NAMES = ("\\boxed", "\\fbox", "\\framebox", "\boxed")


class AnswerTooLongError(ValueError):
    """The answer of a response is longer than any sensible answer; it is counted as wrong, unread."""


def write_answer(answer: str, answer_format: str) -> str:
    """A response that is nothing but an answer.

    >>> write_answer("42", "tags")
    '<answer>42</answer>'
    """
    return _WRITTEN[answer_format].format(answer)


def extract_answers(text: str, *, answer_format: str = "boxed", max_chars: int = 2000) -> list[str]:
    """Candidate answers of a response, the preferred one first; empty where there is none.

    Formats: `boxed` takes the last closed `\\boxed{...}` (or `\\fbox{...}`); boxes joined to it by nothing but commas,
    "and" or "or" give a second candidate, the list of all of them. `hashes` takes what follows the last `####` of a
    line (GSM8K), `answer` what follows the last `Answer:` (DAPO), on its line or below it, `tags` what stands in the
    last closed <answer></answer>, `plain` the whole text, less a closed <think> block. Empty ones do not count.

        >>> extract_answers(r"first \\boxed{3}, so the roots are \\boxed{1} and \\boxed{2}")
        ['2', '1, 2']

    Raises `AnswerTooLongError` when the answer exceeds `max_chars`.
    """
    if answer_format == "boxed":
        return _boxed_answers(text, max_chars)
    if answer_format == "hashes":
        found = text[mark + 4 :].lstrip(" \t").partition("\n")[0] if (mark := text.rfind("####")) >= 0 else ""
    elif answer_format == "answer":
        found = _after_mark(text, max_chars)
    elif answer_format == "tags":
        found = _last_tagged(text)
    elif answer_format == "plain":
        found = text[text.rfind("</think>") + 8 :] if "</think>" in text else text
    else:
        raise ValueError(f"answer_format must be one of {', '.join(ANSWER_FORMATS)}, got {answer_format!r}.")
    found = found.strip()
    if len(found) > max_chars:
        raise AnswerTooLongError
    return [found] if found else []


def _after_mark(text: str, max_chars: int) -> str:
    """What the last `Answer:` that has something behind it has: the rest of its line, the next line, or a formula."""
    for mark in reversed(list(_ANSWER_MARK.finditer(text, max(0, len(text) - 4 * max_chars)))[-_MAX_BOXES:]):
        display = _DISPLAY.match(text, mark.end(), mark.end() + max_chars)
        found = (display[1] or display[2] or "") if display else text[mark.end() :].partition("\n")[0]
        if found.strip(" \t\r*_$"):
            return found
    return ""


def _last_tagged(text: str) -> str:
    """What stands in the last closed pair of tags that holds something."""
    starts = [tag.end() for tag in _TAG.finditer(text)]
    for end in [tag.start() for tag in _TAG_END.finditer(text)][: -_MAX_BOXES - 1 : -1]:
        before = bisect_right(starts, end)
        if before and (found := text[starts[before - 1] : end]).strip() and "</answer>" not in found.lower():
            return found
    return ""


def _boxed_answers(text: str, max_chars: int) -> list[str]:
    boxes = _last_boxes(text, max_chars)
    if not boxes:
        return []
    chain = [boxes[0]]
    for box in boxes[1:]:
        gap = text[box[1] : chain[-1][0]]
        if len(gap) > 40 or not _BETWEEN_BOXES.fullmatch(gap):
            break
        chain.append(box)
    answers = [content for _, _, content in chain]
    return answers[:1] if len(answers) == 1 else [answers[0], ", ".join(reversed(answers))]


def _last_boxes(text: str, max_chars: int) -> list[tuple[int, int, str]]:
    """(start, end, content) of closed, non-empty boxes from the end; the innermost of nested ones, no unclosed ones."""
    found: list[tuple[int, int, str]] = []
    end = len(text)
    for _ in range(_MAX_BOXES):
        start = max(text.rfind(name, 0, end) for name in _BOX_NAMES)
        if start < 0:
            break
        end = start
        match = _BOX.match(text, start)
        span = _box_span(text, match.end(), max_chars) if match else None
        if span is None:
            continue
        first, last = span
        if last < 0 and not found:  # what comes last is too long to read: an earlier box is not the answer
            raise AnswerTooLongError
        encloses_later = bool(found) and last > found[-1][0]
        if last > first and not encloses_later and (content := text[first:last].strip()):
            found.append((start, last + 1, content))
    return found


def _box_span(text: str, position: int, max_chars: int) -> tuple[int, int] | None:
    """Span of the box content that starts at `position`; (start, -1) when longer than allowed, None when unclosed."""
    if text[position : position + 1] != "{":  # `\boxed 5$`: TeX's argument without braces, as MATH writes it
        stop = re.compile(r"[$\n]").search(text, position, position + max_chars)
        return (position, stop.start() if stop else min(len(text), position + max_chars))
    depth, limit = 0, position + max_chars + 2
    for token in _BRACE.finditer(text, position, limit):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return position + 1, token.start()
    return (position + 1, -1) if len(text) > limit else None


_TEXT = r"\\(?:text|textbf|textrm|mbox|mathrm|mathbf)\s*"
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_UNIT = r"(?:[kcm]?m|ft|mi|miles?|k?g|mL|L|k?J|erg|N|W|rad|rev|mol|s|sec|min|h|hr|hours?|day|year)"
_REWRITES: tuple[tuple[re.Pattern[str], Any], ...] = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"^\s*\\boxed\s*\{([^{}]*)\}\s*$", r"\1"),
        (r"√\s*\(([^()]*)\)|√\s*([0-9]+|[a-zA-Z])", r"\\sqrt{\1\2}"),
        (r"(?<![\\a-zA-Z])sqrt(?=\s*\{)", r"\\sqrt"),
        (r"\\[bB]igg?[lrm]?(?![a-zA-Z])", ""),
        (r"\\degree(?![a-zA-Z])", r"^\\circ"),
        (r"\\log_(?:e|\{e\})", r"\\ln"),
        (r"(?<!\\)\$", ""),  # dollars of math mode; `\$` is money
        (r"^\s*\\[(\[](.*)\\[)\]]\s*$", r"\1"),
        (r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9]))", ","),
        (r"(?<=[0-9])\\[,!;: ](?=[0-9]{3}(?![0-9]))", ""),
        (r"\\!", ""),
        (r"(?<!\\)\\[,;: ]|\\quad|\\qquad|\\displaystyle|~", " "),
        (r"\\text\{\.\}", ""),
        (r"\\varnothing", r"\\emptyset"),
        (r"\s+", " "),
        (r"^(?:\s|=|\\approx|\\sim)+|(?:(?<!\\right)\.|[,;:\s]|\\\\)+$", ""),
        (r"^(?:\+|(-))\s*(?=[0-9.\\])", r"\1"),  # `+7`, `- 7`
        (r"(?<=[0-9])\.(?=/)", ""),  # `1./3`
        (rf"^{_TEXT}\{{[^{{}}]*[A-Za-z][^{{}}]*\}}[\s:]*(?=-?[0-9.]+$)", ""),  # `\text{The answer is } 5`
        (rf"^{_TEXT}\{{\s*\(?(-?[0-9][0-9.,/]*)\)?\s*\}}$", r"\1"),  # `\textbf{(051)}`
        (rf"^{_TEXT}\{{\s*(-?[0-9][0-9.,/]*\s[^{{}}]*)\}}$", r"\1"),  # `\text{6 cm}`
        (r"^((?:[a-zA-Z]\s*=)?\s*-?\s*[0-9]{1,3})((?: [0-9]{3})+)$", lambda m: m[1] + m[2].replace(" ", "")),
        (r"^(-?[0-9]+) ([0-9]{1,9}/[0-9]{1,9})$", lambda m: rf"{m[1]}\frac{{{m[2].replace('/', '}{')}}}"),  # `3 1/7`
        (rf"(?<=[0-9}}]) {_UNIT} ?/ ?{_UNIT}(?:\^\{{?[23]\}}?)?$", ""),  # `25 m/s`
        (rf"^(-?[0-9][0-9.,]*)\s*({_TEXT}\{{)?\s*({'|'.join(_POWERS)})(?![a-z])",
         lambda m: rf"{m[1]} \times 10^{{{_POWERS[m[3]]}}}{m[2] or ' '}"),
        (r"^\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|:|\|)(.*\1.*)\\\}$",
         r"\2"),  # {x | x > 2}, which is its condition
        (r"(?<![0-9.])([0-9]*)\.([0-9]*)\\overline\s*\{([0-9]+)\}", lambda m: _repeating_decimal(m[1], m[2], m[3])),
        (r"(?<![A-Za-z0-9._\\])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})(?![A-Za-z0-9._])",
         lambda m: rf"{m[1]} \times 10^{{{int(m[2])}}}"),
    )
)  # fmt: skip
_WORDS_AFTER_NUMBER = re.compile(r"(-?[0-9][0-9.,]*(?: \\times 10\^\{[0-9]+\})?) [A-Za-z]{3,}(?: [A-Za-z]+)*")
_NOT_UNITS = {"and", "or", "mod", "sin", "cos", "tan", "log", "exp", "sqrt", "inf", "infty", "infinity", "percent",
              "percentage", "choose", "times", "dozen", "squared", "cubed", "factorial", "plus", "minus", "over",
              "half", "halves", "thirds", "quarters", "fourths", "fifths", "tenths", "hundredths", "thousandths",
              "alpha", "beta", "gamma", "theta", "lambda", "phi", "pi", *_POWERS}  # fmt: skip


@lru_cache(maxsize=1 << 14)
def normalise(answer: str) -> str:
    """One spelling for what differs in writing only, in LaTeX that math-verify reads.

    Dollar signs of math mode, spaces, sentence ends, Unicode signs, `1e3` for `1 \\times 10^{3}`, repeating decimals,
    words after a number and text before one. Applied to gold answers and predictions alike.

        >>> normalise("$ 4.5e33 $.")
        '4.5 \\\\times 10^{33}'
        >>> normalise("1\\\\,000 apples")
        '1000'
    """
    answer = without_markup(answer).translate(SIGNS)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    words = _WORDS_AFTER_NUMBER.fullmatch(answer)
    if words and _NOT_UNITS.isdisjoint(answer.lower().split()):
        answer = words.group(1)
    return answer.strip()


def _repeating_decimal(whole: str, fixed: str, repeated: str) -> str:
    """The fraction of 0.1\\overline{6}, as LaTeX."""
    scale = 10 ** len(fixed)
    period = 10 ** len(repeated) - 1
    value = Fraction(int(whole + fixed or "0") * period + int(repeated), scale * period)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def canonical(answer: str) -> str:
    """One spelling for all writings of one number, the normalised text otherwise: the key of a majority vote."""
    normalised = normalise(answer)
    number = parse_numeral(normalised)
    if number is None:
        return normalised
    return f"{number.value}%" if number.percent else str(number.value)
