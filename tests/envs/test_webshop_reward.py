"""The reward and its fuzzy comparison, by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.envs.webshop.fuzzy import token_set_ratio
from agentrl.envs.webshop.purchase_reward import COLORS, normalize_color, purchase_reward, type_reward
from tests.envs.webshop_data import goal_for, three_products

LAMP, STAND, MUG = three_products()


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("large", "x-large", 100),  # a subset
        ("8", "8.5", 100),
        ("32w x 30l", "32w x 32l", 89),
        ("multicolor", "color multicolored", 71),
        ("Black!", "black", 100),
        ("", "black", 0),
        ("!!!", "!!!", 0),
        ("café", "caf", 100),  # é is deleted, as thefuzz does
        ("İx ΑΣ", "ix ασ", 100),  # lower-cased one by one
        # no common word: 2 of 3 + 4 letters differ in "red", "rede" -> 100 - 100 / 7
        ("red", "rede", 86),
        ("a b", "a c", 67),
    ],
)
def test_token_set_ratio_when_given_known_pairs_then_is_thefuzzs(left, right, expected):
    assert token_set_ratio(left, right) == token_set_ratio(right, left) == expected


@given(st.text(alphabet="abc é-", max_size=12), st.text(alphabet="abc é-", max_size=12))
def test_token_set_ratio_when_any_then_is_symmetric_and_between_0_and_100(left, right):
    assert token_set_ratio(left, right) == token_set_ratio(right, left)
    assert 0 <= token_set_ratio(left, right) <= 100


@given(st.text(alphabet="abc", min_size=1, max_size=12), st.text(alphabet="abc", min_size=1, max_size=12))
def test_token_set_ratio_of_two_words_then_is_the_textbooks_share_of_common_letters(left, right):
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    length = len(left) + len(right)
    assert token_set_ratio(left, right) == round(100 - 100 * (length - 2 * table[-1][-1]) / length)


def test_normalize_color_when_several_match_then_takes_the_first_of_the_list():
    assert normalize_color("navy blue") == "blue"
    assert normalize_color("washed") == "ash"
    assert normalize_color("plaid") == "plaid"
    # of a pair, a color must be a whole item
    assert normalize_color(("color", "navy")) == "navy"
    assert normalize_color(("color", "dark navy")) == ("color", "dark navy")
    assert len(COLORS) == 102
    assert sorted(COLORS) == COLORS


def test_purchase_reward_when_everything_is_met_then_is_one_with_all_parts():
    goal = goal_for(LAMP, options={"color": "red", "size": "small"})
    score, parts = purchase_reward(LAMP, goal, price=25.5, chosen={"color": "red", "size": "small"})
    assert score == 1.0
    assert parts == {
        "r_type": 1.0, "r_att": 1.0, "w_att": 0.25, "query_match": True, "category_match": True, "title_score": 1.0,
        "r_option": 1.0, "w_option": 0.5, "r_price": True, "w_price": 0.25,
    }  # fmt: skip


def test_purchase_reward_when_parts_are_missed_then_they_are_subtracted():
    goal = goal_for(LAMP, attributes=("easy clean", "unbreakable"), options={"size": "small"}, price_upper=20.0)
    # one attribute of two, the option, not the price: 2 of 4
    score, parts = purchase_reward(LAMP, goal, price=25.5, chosen={"size": "small"})
    assert score == 0.5
    assert (parts["r_att"], parts["r_option"], parts["r_price"]) == (0.5, 1.0, False)
    # no options wanted: no such parts
    assert "r_option" not in purchase_reward(LAMP, goal_for(LAMP), price=1.0, chosen={})[1]


@pytest.mark.parametrize("text", ["lamp", "bright light", "warm"])
def test_purchase_reward_when_an_attribute_stands_in_title_bullets_or_description_then_it_counts(text):
    assert purchase_reward(LAMP, goal_for(LAMP, attributes=(text,)), price=1.0, chosen={})[0] == 1.0


def test_type_reward_when_products_differ_then_steps_down():
    assert type_reward(STAND, LAMP)["r_type"] == 1.0  # same query
    assert type_reward(STAND, LAMP)["title_score"] == 0.5  # lamp of red, lamp
    assert type_reward(MUG, LAMP) == {
        "r_type": 0.0, "query_match": False, "category_match": False, "title_score": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nouns", "r_type"),
    [
        (("lamp",) + ("x",) * 3, 1.0),  # 1 of 4: alike
        (("lamp",) + ("x",) * 4, 0.5),  # 1 of 5: not more than 0.2
        (("lamp",) + ("x",) * 10, 0.1),  # 1 of 11, repeated nouns counted each time
        (("x",), 0.0),
        ((), 0.5),  # no nouns at all: 0.2
    ],
)
def test_type_reward_when_only_titles_can_match_then_depends_on_common_nouns(nouns, r_type):
    target = replace(MUG, nouns=nouns)
    assert type_reward(LAMP, target)["r_type"] == r_type
    # a title without common nouns overrides even the same query
    assert type_reward(LAMP, replace(LAMP, nouns=("x",)))["r_type"] == 0.0


@pytest.mark.parametrize(
    ("wanted", "chosen", "compat", "fixed"),
    [
        ({"size": "x-large"}, {"size": "large"}, 1, 0),  # compat takes a part for the whole
        ({"color": "multicolored"}, {"color": "multicolored"}, 0, 1),  # compat reduces one side only
        ({"color": "dark navy"}, {"color": "navy stripes"}, 1, 0),  # the wanted color reduces to dark
        ({"color": "navy"}, {"color": "navy stripes"}, 1, 1),
        ({"color": "red", "size": "s"}, {"style": "red", "size": "s"}, 2, 1),  # fixed: chosen for that name
        ({"size": "8"}, {}, 0, 0),
        (("Navy",), {"color": "navy blue"}, 0, 0),  # blue comes before navy, and people's spelling counts in compat
        (("navy",), {"color": "navy"}, 1, 1),
        (("8.5",), {"size": "8"}, 1, 0),
    ],
)
def test_purchase_reward_when_options_differ_then_modes_count_as_documented(wanted, chosen, compat, fixed):
    goal = goal_for(LAMP, options=wanted)
    counts = [
        purchase_reward(LAMP, goal, price=1.0, chosen=chosen, mode=mode)[1]["r_option"] * len(wanted)
        for mode in ("compat", "fixed")
    ]
    assert counts == [compat, fixed]
