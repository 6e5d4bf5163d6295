"""A Markdown page whose tables are made from results files; above each stands what makes it.

    <!-- study: math.json --stage main -->
    (the table)
    <!-- study: end -->

The words are those of `python -m agentrl.study`, files relative to the page.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from agentrl.errors import UserError

_SECTION = re.compile(r"<!-- study: (?!end -->)(?P<words>[^\n]*?) -->\n.*?<!-- study: end -->", re.DOTALL)


def with_tables(text: str, table: Callable[[list[str]], str]) -> str:
    """A page with every table made anew.

    Args:
        text: of the page.
        table: words of a mark -> Markdown.
    """

    def section(found: re.Match[str]) -> str:
        words = found["words"]
        return f"<!-- study: {words} -->\n\n{table(shlex.split(words))}\n\n<!-- study: end -->"

    return _SECTION.sub(section, text)


def render_page(path: Path, table: Callable[[list[str]], str]) -> None:
    """Write a page anew.

    Raises:
        UserError: it cannot be read, or has no mark.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path} cannot be read as a page: {error}.") from error
    if not _SECTION.search(text):
        raise UserError(
            f"{path} has no lines '<!-- study: RESULTS.json ... -->' and '<!-- study: end -->', between which a table "
            "could go."
        )
    path.write_text(with_tables(text, table), encoding="utf-8")
