"""Extraction, normalisation and exact comparison; the fast path against math-verify on random numbers."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.envs.math import checker
from agentrl.envs.math.answers import (
    ANSWER_FORMATS,
    AnswerTooLongError,
    canonical,
    extract_answers,
    normalise,
)
from agentrl.envs.math.numerals import numerals_equal, parse_numeral
from agentrl.envs.math.verifier import verify

NASTY = {
    "braces": "{" * 1_000_000,
    "open boxes": "\\boxed{" * 150_000,
    "closing braces": "\\boxed{" + "}" * 1_000_000,
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 10_000 + "1" + "}" * 10_000 + "}",
    "blanks in a box": "\\boxed" + " " * 1_000_000,
    "many answers": "answer:" * 140_000,
    "hashes": "#" * 1_000_000,
    "tags": "<answer>" * 100_000 + "</answer>" * 10,
    "control characters": "\x00\x1b\ud800" * 300_000,
    "dots": "\\boxed{" + "." * 1999 + "x}",
    "roots": "\\boxed{" + "√(" * 900 + "}",
    "digits": "\\boxed{" + "9" * 1999 + "}",
    "grouped digits": "\\boxed{1" + ",000" * 480 + "}",
    "overlines": "\\boxed{" + "1." * 500 + "\\overline{3}}",
    "set builders": "\\boxed{\\{x:" + "x" * 1900 + "}",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_extraction_when_given_nasty_text_then_ends_within_half_a_cpu_second(text: str, answer_format: str):
    started = time.process_time()
    verdict = verify("5", text, answer_format=answer_format, use_library=False)
    assert time.process_time() - started < 0.5
    assert not verdict.correct


def test_extraction_when_the_last_box_is_too_long_then_an_earlier_one_does_not_count():
    with pytest.raises(AnswerTooLongError):
        extract_answers(r"\boxed{5} and \boxed{" + "1" * 3000 + "}")


def test_extraction_when_the_format_is_unknown_then_names_the_formats():
    with pytest.raises(ValueError, match="boxed, hashes"):
        extract_answers("5", answer_format="box")


@given(st.text(max_size=200), st.sampled_from(ANSWER_FORMATS))
def test_extraction_when_given_any_text_then_yields_stripped_pieces_of_it(text: str, answer_format: str):
    answers = extract_answers(text, answer_format=answer_format)
    if answers:
        assert answers[0] == answers[0].strip() != ""
        assert answers[0] in text


@given(st.text(alphabet="0123456789.,-+/\\{}()[]$%^_ abefx=<>", max_size=40))
def test_normalise_when_applied_twice_to_a_plain_number_then_changes_nothing_more(text: str):
    once = normalise(text)
    if parse_numeral(once):
        assert normalise(once) == once


@pytest.mark.parametrize(
    ("writings", "key"),
    [
        (["1/2", r"\frac12", "0.5", r"\dfrac{2}{4}", ".50", "½"], "1/2"),
        (["1000", "1,000", "1{,}000", "1e3", r"10^{3}", "1 000", "1000.0"], "1000"),
        (["50%", r"50\%"], "50%"),
        (["-3", "−3", "$-3$", "-3."], "-3"),
        (["0.1\\overline{6}", r"\frac{1}{6}"], "1/6"),
    ],
)
def test_canonical_when_a_number_is_written_differently_then_votes_fall_together(writings: list[str], key: str):
    assert {canonical(writing) for writing in writings} == {key}


def test_numerals_when_decimals_are_within_rounding_then_the_library_has_to_decide():
    third, rounded, rough = parse_numeral(r"\frac{1}{3}"), parse_numeral("0.333333"), parse_numeral("0.333")
    assert third is not None
    assert rounded is not None
    assert rough is not None
    assert numerals_equal(third, rounded) is None
    assert numerals_equal(third, rough) is False
    assert numerals_equal(third, rough, tolerance=1e-3) is True
    assert rounded.value == Fraction(333333, 1000000)


def test_tolerance_when_the_benchmark_allows_an_error_then_near_numbers_count():
    assert verify("4.2", r"\boxed{4.3}", tolerance=0.1).correct
    assert not verify("4.2", r"\boxed{4.31}", tolerance=0.1).correct
    assert verify("4.2", r"\boxed{4.1\%}", tolerance=0.1).correct


integers = st.integers(-100_000, 100_000).map(str)
grouped = st.integers(1_000, 10_000_000).map("{:,}".format)
decimals = st.decimals(-1000, 1000, places=4, allow_nan=False).map(lambda d: f"{d:f}")
short_decimals = st.decimals(-10, 10, places=1, allow_nan=False).map(lambda d: f"{d:f}")
tops, bottoms = st.integers(-30, 30), st.integers(1, 30)
fractions = st.builds(
    lambda a, b, form: form.format(a, b),
    tops,
    bottoms,
    st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}"]),
)
numbers = st.one_of(
    integers, grouped, decimals, short_decimals, fractions, st.sampled_from(["0", "-0", "007", ".5", r"\frac12"])
)


@settings(max_examples=80, deadline=None)
@given(numbers, numbers)
def test_fast_path_when_given_two_numbers_then_never_disagrees_with_the_library(gold: str, answer: str):
    pytest.importorskip("math_verify")
    _compare_with_library(gold, answer)


@settings(max_examples=40, deadline=None)
@given(tops, bottoms, st.integers(0, 8))
def test_fast_path_when_given_a_fraction_and_its_rounding_then_never_disagrees_with_the_library(
    a: int, b: int, places: int
):
    pytest.importorskip("math_verify")
    _compare_with_library(f"{a}/{b}", f"{a / b:.{places}f}")
    _compare_with_library(f"{a / b:.{places}f}", rf"\frac{{{a}}}{{{b}}}")


signs = st.sampled_from(["", "", "", "-", "+", "- "])
digits = st.integers(0, 10_000_000)
separated = st.builds(
    lambda n, mark: f"{n:,}".replace(",", mark), digits, st.sampled_from([",", "{,}", r"\,", " ", r",\!"])
)
rounded = st.builds(lambda n, places: f"{n / 10**places:.{places}f}", digits, st.integers(0, 6))
ratios = st.builds(
    lambda a, b, form: form.replace("A", str(a)).replace("B", str(b)), st.integers(0, 99), st.integers(1, 99),
    st.sampled_from(["A/B", "A / B", r"\frac{A}{B}", r"\dfrac{A}{B}", r"\tfrac {A} {B}", r"\frac{ A }{ B }"]),
)  # fmt: skip
padded = st.builds(lambda zeros, n: zeros + str(n), st.sampled_from(["0", "00"]), digits)
framed = st.builds(
    lambda sign, number, frame: frame.replace("N", sign + number),
    signs, st.one_of(digits.map(str), separated, rounded, ratios, padded),
    st.sampled_from([
        "N", "N", "N", "$N$", r"\(N\)", " N ", "N.", "N,", r"N\\", r"\$N", "€N", "N dollars", r"\text{N}",
        r"\mathbf{N}", r"\textbf{(N)}", "= N", r"\approx N", r"\displaystyle N", r"\text{The answer is } N",
        r"\boxed{N}", "N\n", "N~",
    ]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(framed, framed)
def test_fast_path_when_numbers_stand_in_any_frame_then_never_disagrees_with_the_library(gold: str, answer: str):
    pytest.importorskip("math_verify")
    _compare_framed(gold, answer)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(framed, framed, st.booleans())
def test_fast_path_when_given_thousands_of_framed_numbers_then_never_disagrees_with_the_library(
    gold: str, answer: str, again: bool
):
    pytest.importorskip("math_verify")
    _compare_framed(gold, gold.replace(" ", "") if again else answer)


def _compare_framed(gold: str, answer: str) -> None:
    """The library reads what both were normalised to; a frame it cannot read would say nothing about the arithmetic."""
    gold, answer = normalise(gold), normalise(answer)
    first, second = parse_numeral(gold), parse_numeral(answer)
    if first and second and (equal := numerals_equal(first, second)) is not None:
        assert checker.library_equal(gold, answer) == equal


def _compare_with_library(gold: str, answer: str) -> None:
    first, second = parse_numeral(normalise(gold)), parse_numeral(normalise(answer))
    assert first is not None
    assert second is not None
    equal = numerals_equal(first, second)
    if equal is not None:
        assert checker.library_equal(gold, answer) == equal
