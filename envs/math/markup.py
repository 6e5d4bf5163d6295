"""What stands around an answer: Markdown, HTML, colours, fonts, end-of-turn tokens, a sentence, full-width signs.

Pure text work, linear in pieces of bounded length. What is taken away changes the looks of an answer, never its value.
"""

import re
from typing import Any

SIGNS = str.maketrans(
    {
        "\u2212": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "∗": "*",
        "⁄": "/", "∕": "/", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "λ": r"\lambda ", "°": r"^\circ ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "²": "^2", "³": "^3", "％": "%", "，": ", ",
        "∙": r"\cdot ", "⩽": r"\le ", "⩾": r"\ge ", "（": "(", "）": ")", "€": r"\$", "£": r"\$", "¥": r"\$",
        "₹": r"\$",
    }
)  # fmt: skip
"""Unicode signs -> LaTeX, for `str.translate`."""
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in (*range(0xFF08, 0xFF1B), 0xFF1D, *range(0xFF21, 0xFF5F))}
_TOKENS = r"<\|[^|<>]{1,40}\|>|</?s>|<eos>|<end_of_turn>|<｜[^<>｜]{1,40}｜>"
_SENTENCE = (
    r"^(?i:(?:so|thus|hence|therefore)[, ]\s{0,3})?(?i:(?:the|my|our)\s{1,3})?(?i:(?:final|correct)\s{1,3})?"
    r"(?i:answer)\s{0,5}(?i:is|=|:)\s{0,5}:?\s{0,5}(?=\S)"
)
_MARKUP: tuple[tuple[re.Pattern[str], Any], ...] = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (rf"(?:{_TOKENS})\s{{0,20}}$", ""),
        (rf"(?:{_TOKENS})\s{{0,20}}$", ""),
        (r"\x08(?=oxed|inom)", r"\\b"),  # `\boxed` in a text whose backslashes were read as escapes
        (r"\x0c(?=rac|box)", r"\\f"),
        (r"\x1b\[[0-9;]{0,20}m", ""),  # a terminal's colours
        (r"</?(?:b|i|u|em|strong|span|font|mark|code|p|div|big|center)(?:\s[^<>]{0,200})?>|<br ?/?>", ""),
        (r"^==([^=]{1,200})==$", r"\1"),
        (r"^#{1,6}\s{1,5}(?=\S)", ""),
        (r"(?<![0-9A-Za-z)\]}*])(\*{2,3}|_{2,3})(?=[^\s*_])([^*_]{1,200})(?<=\S)\1(?![0-9A-Za-z(*_])", r"\2"),  # **58**
        (r"^(?:[\s*`]|__)+(?=\S)|(?<![\^_*`\s])(?:[\s*`]|__)+$", ""),  # half of it, of a line cut out
        (r"[.;]?\s{0,5}(?i:I hope (?:it|this) is correct)[.! ]{0,3}$", ""),
        (_SENTENCE, ""),
        (r"\\(?:textcolor|mathcolor|colorbox|color)\s{0,5}(?:\[[a-zA-Z]{0,20}\])?\s{0,5}\{[^{}]{0,60}\}", ""),
        (r"\\fcolorbox\s{0,5}\{[^{}]{0,60}\}\s{0,5}\{[^{}]{0,60}\}", ""),
        (r"\\bbox\s{0,5}\[[^\[\]]{0,60}\]|\\hl(?=\s{0,5}\{)", ""),
        (r"\\(?:underline|uline|emph|textit|textsf|texttt|textsc)\s{0,5}(?=\{)", r"\\text"),
        (r"\\(?:bm|boldsymbol|pmb|mathsf|mathtt|mathit)\s{0,5}(?=\{)", ""),
        (r"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it|sf|tt|bfseries|mathstrut)(?![a-zA-Z])", ""),
        (r"\\(?:sfrac|nicefrac|xfrac|flatfrac)(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:mathrm|textrm|operatorname|text)\s{0,5}\{\s{0,5}([ei])\s{0,5}\}(?![a-zA-Z])", r"\1"),
        (r"^(\\(?:text|textbf|textrm|mbox|mathrm|mathbf)\s{0,5}\{[^{}]*[^.!{}\s])[.!]\s{0,5}\}$", r"\1}"),
    )
)  # fmt: skip
_CASES = re.compile(
    r"\\begin\{(?:cases|array|aligned)\}(?:\{[lcr|]{0,9}\})?(.*)\\end\{(?:cases|array|aligned)\}", re.DOTALL
)
_ASSIGNMENT = re.compile(r"[a-zA-Z]\s{0,5}=[^=<>]+")


def without_markup(answer: str) -> str:
    r"""The answer without what only dresses it.

    >>> without_markup("**58**"), without_markup(r"{\color{red}58}"), without_markup("The final answer is $58$.")
    ('58', '58', '$58$.')
    """
    answer = answer.translate(_FULL_WIDTH).strip()
    for pattern, replacement in _MARKUP:
        answer = pattern.sub(replacement, answer)
    return _one_line(_without_braces(answer.strip()))


def _without_braces(answer: str) -> str:
    """`{58}` as `58`: a group around the whole answer, when it holds no list (a set, in careless LaTeX)."""
    while answer.startswith("{") and answer.endswith("}") and not answer.endswith("\\}") and "," not in answer:
        depth = 0
        for token in re.finditer(r"\\.|[{}]", answer, re.DOTALL):
            depth += {"{": 1, "}": -1}.get(token.group(), 0)
            if depth == 0:
                break
        if depth or token.end() != len(answer):
            break
        answer = answer[1:-1].strip()
    return answer


def _one_line(answer: str) -> str:
    r"""`\begin{cases} x=3 \\ y=4 \end{cases}` as `x=3, y=4`: a system that is solved."""
    match = _CASES.fullmatch(answer)
    if not match:
        return answer
    parts = [part.replace("&", "").strip(" ,;\n\t") for part in match[1].split(r"\\")]
    parts = [part for part in parts if part]
    return ", ".join(parts) if parts and all(map(_ASSIGNMENT.fullmatch, parts)) else answer
