"""Search-R1's turn, text to text: cut, parse, and what the environment writes back.

Literal strings and rules are those of Search-R1 (llm_agent/generation.py at commit a14dc3a).
"""

import re
from collections.abc import Sequence
from typing import Literal

from agentrl.retriever.client import Hit

INVALID_ACTION = (
    "\nMy previous action is invalid. "
    "If I want to search, I should put the query between <search> and </search>. "
    "If I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)
# What a search that finds nothing reads as, where the references would write an empty pair of tags.
NOTHING_FOUND = "No search results found."
_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)


def cut_turn(text: str) -> str:
    """The text up to and including the first `</search>`; without one, up to the first `</answer>`.

    >>> cut_turn("<answer>a</answer> or <search>b</search> c")
    '<answer>a</answer> or <search>b</search>'
    """
    for tag in ("</search>", "</answer>"):
        head, found, _ = text.partition(tag)
        if found:
            return head + found
    return text


def parse_action(text: str) -> tuple[Literal["search", "answer"] | None, str]:
    """The first complete search or answer block and its stripped content; `(None, "")` without one."""
    match = _ACTION.search(text)
    if match is None:
        return None, ""
    return match.group(1), match.group(2).strip()  # type: ignore[return-value]


def format_passages(hits: Sequence[Hit]) -> str:
    """`Doc 1(Title: "...") text`, one passage a line; the title keeps its quotes."""
    return "".join(f"Doc {i}(Title: {hit.title}) {hit.text}\n" for i, hit in enumerate(hits, start=1))


def information(hits: Sequence[Hit]) -> str:
    """The observation after a search."""
    return f"\n\n<information>{format_passages(hits).strip() or NOTHING_FOUND}</information>\n\n"


def clean_query(text: str, max_characters: int) -> str:
    """What is sent to the retriever: valid Unicode, bounded. Encoders read the first 256 tokens at most."""
    return text[:max_characters].encode("utf-8", "replace").decode("utf-8").strip()
