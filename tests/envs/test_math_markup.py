"""What stands around an answer, and what is the same answer in another writing; exact rational numbers of any size."""

import pytest

from agentrl.envs.math import checker
from agentrl.envs.math.markup import without_markup
from agentrl.envs.math.verifier import verify


@pytest.mark.parametrize(
    "written",
    [
        "**58**", "***58***", "__58__", "`58`", "**58", "58**", "<b>58</b>", '<span style="color:red">58</span>',
        "\x1b[31m58\x1b[0m", "==58==", "# 58", "58<|im_end|>", "58</s>", "58<|eot_id|><|end_of_text|>", "５８",
        r"\color{red}{58}", r"{\color{red}58}", r"\textcolor{blue}{58}", r"\color[HTML]{FF0000}{58}",
        r"\colorbox{yellow}{58}", r"\fcolorbox{red}{white}{58}", r"\underline{58}", r"\bm{58}", r"\boldsymbol{58}",
        r"\emph{58}", r"\text{**58**}", r"\text{58.}", r"{\large 58}", "The answer is 58.", "**Answer:** 58",
        "so the final answer is: $58$. I hope it is correct.", r"\textcolor{red}{\mathbf{58}}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("answer_format", ["boxed", "answer", "hashes", "tags", "plain"])
def test_verifier_when_a_right_answer_is_dressed_then_it_is_right_and_a_wrong_one_wrong(
    written: str, answer_format: str
) -> None:
    frame = {"boxed": r"\boxed{%s}", "answer": "so\nAnswer: %s", "hashes": "#### %s", "tags": "<answer>%s</answer>"}
    response = frame.get(answer_format, "%s") % written
    assert verify("58", response, answer_format=answer_format, use_library=False).correct
    assert not verify("59", response, answer_format=answer_format, use_library=False).correct


@pytest.mark.parametrize(
    ("answer_format", "response", "found"),
    [
        ("answer", "**Final Answer:**\n\n58", True),
        ("answer", "## Answer:\n**58**\n\nCheck: 59", True),
        ("answer", "Answer:\n$$\n58\n$$", True),
        ("answer", "Answer:\n\\[\n58\n\\]\nas was to be shown", True),
        ("answer", "Answer: 58\n\nAnswer:", True),
        ("answer", "ANSWER：58", True),
        ("answer", "Answer: 58\nAnswer: 59", False),
        ("answer", "The answer is 58", False),
        ("tags", "<Answer>58</ANSWER>", True),
        ("tags", "<answer>58</answer> not <answer></answer>", True),
        ("tags", "<answer>58</answer><answer>59</answer>", False),
        ("tags", "<answer>58", False),
        ("plain", "<think>59</think>\n58", True),
        ("boxed", "\boxed{58}", True),
        ("boxed", r"\framebox{58}", True),
        ("boxed", r"\boxed{58} and \framebox{59}", False),
    ],
)
def test_verifier_when_the_answer_stands_elsewhere_then_the_last_one_given_counts(
    answer_format: str, response: str, found: bool
) -> None:
    assert verify("58", response, answer_format=answer_format, use_library=False).correct == found


@pytest.mark.parametrize("text", ["2**3", "x^*", "2**3 + 3**2", r"\{1, 2\}", "{1,2}", "a_b", "x>3", "f'(x)", "5!"])
def test_without_markup_when_a_sign_means_something_then_it_stays(text: str) -> None:
    assert without_markup(text) == text


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("B", "B. 7", True), ("B", r"\text{B: } 7", True), ("B", r"\text{Option B}", True), ("B", "(B) 7", True),
        ("B", "C. 7", False), (r"\text{C}", "C", True), ("B", "B+C", False),
        ("101_2", "101_3", False), ("101_2", "101_{2}", True), ("2A_{16}", "2B_{16}", False),
        ("101_2", "5_{10}", False), (r"3 \pmod{7}", "3", True), (r"3 \pmod{7}", "4", False),
        (r"\text{Alice and Bob}", r"\text{Bob and Alice}", True), ("Red, Blue and Tan", "tan, red, blue", True),
        ("0.25", "0,25", True), ("0.25", "0,26", False), ("25", "0,25", False), ("1.234", "1,234", False),
        (r"\frac{1}{4}", "0,25", True), (r"\frac{1}{2}", r"\nicefrac{1}{2}", True),
    ],
)  # fmt: skip
def test_verifier_when_an_answer_is_written_by_another_convention_then_it_is_the_same(
    gold: str, answer: str, equal: bool
) -> None:
    assert verify(gold, rf"\boxed{{{answer}}}", use_library=False).correct == equal


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"\frac{1}{1200!}", r"\frac{1}{1201!}", False),
        (r"\frac{1201}{1201!}", r"\frac{1}{1200!}", True),
        (r"\frac{3^{400}+1}{7 \cdot 3^{401}}", r"\frac{3^{400}+2}{7 \cdot 3^{401}}", False),
        (r"\frac{3^{400}+1}{7 \cdot 3^{401}}", r"\frac{2 \cdot 3^{400}+2}{14 \cdot 3^{401}}", True),
        (r"1-\frac{1}{900!}", "1", False),
        (r"\binom{90}{40} 2^{-300}", r"\binom{90}{50} 2^{-300}", True),
        (r"\binom{90}{40} 2^{-300}", r"\binom{90}{41} 2^{-300}", False),
        (r"\frac{50000!}{49999!}", "50000", True),
        ("(2, 1+10^{-40})", "(2, 1)", False),
        (r"\{10^{-30}, 3\}", r"\{10^{-31}, 3\}", False),
        ("x=2^{-70}", "x=2^{-71}", False),
        (r"\frac{\pi}{1200!}", r"\frac{\pi}{1201!}", False),
        ("0.333333", r"\frac{1}{3}", True),
        ("x=5", "y=5", False),
        ("x=5", "5", True),
        ("(1, 2)", "(2, 1, 2)", False),
    ],
)
def test_checker_when_both_sides_are_rational_then_compares_them_exactly(gold: str, answer: str, equal: bool) -> None:
    pytest.importorskip("math_verify")
    assert checker.check(gold, answer) == equal
