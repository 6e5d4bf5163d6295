"""An expert for the generated encyclopaedia, and the names that an agent has seen of it."""

import re
from collections.abc import Sequence

from agentrl.envs.search_qa.questions import Question
from agentrl.retriever.client import Hit

EXPERTS = ("default", "thinking")
_MAX_TRIES = 2  # searches for one title before the expert gives up on it


class SearchExpert:
    """Looks up one title after the other and answers when it has read them all.

    It acts on what has been seen: a title is searched for only when it stands in the question or in a passage found so
    far, and the answer is given only after its passages were found. Where a search does not find its passage, the
    expert asks once more with the question's words, and then answers "unknown".

    Args:
        question: with `supporting_titles` in the order in which they become known.
        thinks: put a short `<think>` block before every action.
    """

    def __init__(self, question: Question, *, thinks: bool = False) -> None:
        self.question, self.thinks = question, thinks
        self._seen_titles: set[str] = set()
        self._seen_text = question.text
        self._tries: dict[str, int] = {}
        self._wanted = ""

    def observe(self, hits: Sequence[Hit]) -> None:
        """Read the passages of the last search."""
        self._seen_titles |= {hit.title.strip('"') for hit in hits}
        self._seen_text = "\n".join([self._seen_text, *(hit.contents for hit in hits)])
        self._tries[self._wanted] = self._tries.get(self._wanted, 0) + 1

    def act(self) -> str:
        """The next action; calling it again without `observe` gives the same one."""
        missing = [title for title in self.question.supporting_titles if title not in self._seen_titles]
        self._wanted = missing[0] if missing else ""
        if not missing:
            return self._say("I have read enough to answer.", "answer", self.question.golden_answers[0])
        tries = self._tries.get(self._wanted, 0)
        if tries >= _MAX_TRIES or self._wanted not in self._seen_text:
            return self._say("I cannot find it.", "answer", "unknown")
        query = self._wanted if tries == 0 else f"{self._wanted} {self.question.text}"
        return self._say(f"I need to know about {self._wanted}.", "search", query)

    def _say(self, thought: str, tag: str, content: str) -> str:
        action = f"<{tag}> {content} </{tag}>"
        return f"<think> {thought} </think>\n{action}" if self.thinks else action


class VisibleNames:
    """The names an agent has seen: capitalised words and numbers of the question and the passages."""

    _NAME = re.compile(r"[A-Z]\w+(?: [A-Z]\w+)?|\d{4}")

    def __init__(self, question: str) -> None:
        words = self._NAME.findall(question.partition(" ")[2])  # the first word is capitalised as such
        self._names: dict[str, None] = dict.fromkeys(words)

    def observe(self, hits: Sequence[Hit]) -> None:
        """Add the names of passages."""
        for hit in hits:
            self._names.update(dict.fromkeys(self._NAME.findall(hit.contents)))

    def actions(self) -> list[str]:
        """Searching for and answering with each name, and the answers yes and no."""
        names = list(self._names)
        searches = [f"<search> {name} </search>" for name in names]
        return searches + [f"<answer> {name} </answer>" for name in [*names, "yes", "no"]]
