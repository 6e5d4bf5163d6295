"""Pages, transitions and goals: by hand on three products, and against episodes of the original."""

import json
import lzma
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.envs.webshop.env import WebShopEnv
from agentrl.envs.webshop.goals import SPLITS, combine, draw_bound, draw_prices
from agentrl.envs.webshop.loading import open_shop
from agentrl.envs.webshop.session import Rules, Session, parse_action
from tests.envs.webshop_data import goal_for, official_folder, read_packed, small_shop  # noqa: F401

SHOP = small_shop()
LAMP_PAGE = (
    "Instruction: [SEP] {} [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] navy | blue [SEP] size [SEP] "
    "small [SEP] large [SEP] Red Lamp [SEP] Price: $25.5 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] "
    "Reviews [SEP] Buy Now"
)


def visit(*actions: str, **rules) -> Session:
    session = Session(SHOP, goal_for(SHOP.products[0]), rules=Rules(**rules), session_id="7")
    for action in actions:
        session.act(action)
    return session


def test_goals_when_drawn_then_hold_every_combination_once_below_a_price_bound():
    goals = [SHOP.goal(index) for index in range(len(SHOP.goals))]
    assert {tuple(goal.options.items()) for goal in goals} == {
        (("color", color), ("size", size)) for color in ("red", "navy | blue") for size in ("small", "large")
    }
    bound = goals[0].price_upper
    assert bound in (40.0, 50.0, 60.0)  # the larger of two of 30, 40, 50, 60
    for goal in goals:
        color, size = goal.options.values()
        assert goal.text == (
            f"Find me easy clean lamps with color: {color}, and size: {size}, and price lower than {bound:.2f} dollars"
        )


def test_goals_when_human_then_have_values_without_names_and_skip_requests_without_attributes():
    shop = small_shop("human")
    assert len(shop.goals) == 1
    goal = shop.goal(0)
    assert re.fullmatch(r"i want a lamp stand, and price lower than \d\d.00 dollars", goal.text)
    assert goal.options == ("Navy",)


def test_prices_when_listed_as_a_range_then_lie_in_it_and_follow_the_seed():
    first, second, third = SHOP.prices
    assert (first, third) == (25.5, 100.0)
    assert second == random.Random(0).uniform(9.0, 12.5)
    assert draw_prices([(5.0, 2.0)], random.Random(1)) == pytest.approx(5.0 - 3.0 * random.Random(1).random())


@pytest.mark.parametrize(
    ("price", "bounds"), [(5.0, {20, 30, 40}), (10.0, {30, 40, 50}), (975.0, {990}), (980.0, {1e6}), (2000.0, {1e6})]
)
def test_draw_bound_when_drawn_often_then_is_the_larger_of_two_of_the_next_four_tens(price, bounds):
    generator = random.Random(0)
    assert {draw_bound(price, generator) for _ in range(200)} == bounds


def test_combine_when_counting_up_then_goes_through_the_product_of_the_sorted_names():
    values = {"size": ["s", "m", "l"], "color": ["x", "y"]}
    combinations = [tuple(combine(values, number).items()) for number in range(6)]
    assert combinations == [(("color", color), ("size", size)) for color in "xy" for size in "sml"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search[red lamp]", ("search", "red lamp")),
        ("click[a]b] and more", ("click", "a]b")),
        ("click[x[1]]", ("click[x", "1]")),
        ("search[]", None), ("[x]", None), ("click", None), ("", None), ("a\nclick[b]", None),
        ("click[b\n]", None),
    ],
)  # fmt: skip
def test_parse_action_when_given_corners_then_splits_at_the_last_bracket(text, expected):
    assert parse_action(text) == expected


@given(st.text(alphabet="a[]\n ", max_size=20))
def test_parse_action_when_any_text_then_is_the_originals_expression(text):
    match = re.match(r"(.+)\[(.+)\]", text)
    assert parse_action(text) == (match and match.groups())


def test_index_page_when_shown_then_has_a_search_bar():
    session = visit()
    assert session.text() == "WebShop [SEP] Instruction: [SEP] Find me easy clean lamps [SEP] Search"
    assert (session.has_search_bar, session.clickables) == (True, ["search"])
    assert session.admissible_actions() == ["search[<your query>]"]
    assert session.url == "http://127.0.0.1:3000/7"


def test_results_page_when_searched_then_lists_products_in_order():
    session = visit("search[Red LAMP]")
    assert session.text() == (
        "Instruction: [SEP] Find me easy clean lamps [SEP] Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > "
        "[SEP] B000000001 [SEP] Red Lamp [SEP] $25.5 [SEP] B000000002 [SEP] Blue lamp stand [SEP] $9.0 to $12.5"
    )
    assert session.clickables == ["back to search", "next >", "b000000001", "b000000002"]
    assert session.url == "http://127.0.0.1:3000/search_results/7/red+lamp/1"


def test_results_when_paging_beyond_the_end_then_are_empty_and_prev_leads_back():
    session = visit("search[lamp]", "click[next >]")
    assert "Page 2 (Total results: 2) [SEP] < Prev [SEP] Next >" in session.text()
    assert session.clickables == ["back to search", "< prev", "next >"]
    session.act("click[< prev]")
    assert session.text() == visit("search[lamp]").text()


def test_item_page_when_options_are_clicked_then_text_stays_and_rich_text_tells():
    session = visit("search[lamp]", "click[b000000001]")
    assert session.text() == LAMP_PAGE.format("Find me easy clean lamps")
    assert session.clickables == [
        "back to search", "< prev", "description", "features", "reviews", "buy now",
        "red", "navy | blue", "small", "large",
    ]  # fmt: skip
    plain, anchor = session.text(), session.anchor()
    for action in ("click[navy | blue]", "click[red]", "click[large]"):
        assert session.act(action).is_valid
    assert session.options == {"color": "red", "size": "large"}
    assert session.text() == plain
    assert session.anchor() != anchor
    assert session.rich_text().startswith("You have clicked large.\nYou have clicked red.\nInstruction:\n")
    assert "\n  [clicked button] red [clicked button_]\n  [button] navy | blue [button_]\n" in session.rich_text()
    assert (
        "\n\n[clicked button] B000000001 [clicked button_]\n"
        in visit("search[lamp]", "click[b000000001]", "click[< prev]").rich_text()
    )


def test_rich_text_when_a_product_was_visited_then_marks_it_on_the_results_page():
    session = visit("search[lamp]", "click[b000000001]", "click[< prev]")
    assert "\n\n[clicked button] B000000001 [clicked button_]\nRed Lamp\n$25.5\n" in session.rich_text()
    assert "\n\n[button] B000000002 [button_]\n" in session.rich_text()


def test_options_when_going_to_a_sub_page_then_stay_and_when_going_to_the_results_then_are_lost():
    session = visit("search[lamp]", "click[b000000001]", "click[red]", "click[features]")
    assert session.text() == (
        "Instruction: [SEP] Find me easy clean lamps [SEP] Back to Search [SEP] < Prev [SEP] Bright light [SEP] "
        "Easy clean"
    )
    session.act("click[< prev]")
    assert session.options == {"color": "red"}
    session.act("click[< prev]")
    session.act("click[b000000001]")
    assert session.options == {}


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        ("description", ["A warm lamp."]), ("reviews", []),
        ("attributes", ["easy clean", "warm light", "garden", "lamps", "A › B › C"]),
    ],
)  # fmt: skip
def test_sub_page_when_opened_then_shows_its_lines(page, lines):
    session = visit("search[lamp]", "click[b000000001]", f"click[{page}]", show_attributes=True)
    assert session.text().split(" [SEP] ")[4:] == lines


def test_purchase_when_made_then_ends_with_the_score_hidden_or_shown():
    actions = ("search[lamp]", "click[b000000001]", "click[navy | blue]")
    session = visit(*actions)
    outcome = session.act("click[Buy Now]")
    assert (outcome.reward, outcome.done, session.score) == (1.0, True, 1.0)
    assert 'options [SEP] {"color": "navy | blue"} [SEP]' in session.text()
    assert session.text().endswith("Your score (min 0.0, max 1.0) [SEP] None [SEP] Reward Details [SEP] None")
    shown = visit(*actions, "click[buy now]", show_score=True)
    assert shown.text().endswith("Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None")
    assert session.clickables == session.admissible_actions() == []
    # as in the original, a search opens the shop again
    assert session.act("click[back to search]").is_valid is False
    assert session.act("search[lamp]").is_valid
    assert session.name == "results"


@pytest.mark.parametrize(
    "action", ["foo", "", "CLICK[back to search]", "click[ red]", "click[search]", "search[]", "click[]"]
)
def test_act_when_not_understood_or_not_on_the_page_then_changes_nothing(action):
    session = visit("search[lamp]", "click[b000000001]")
    before = session.text(), session.anchor()
    outcome = session.act(action)
    assert (outcome.is_valid, outcome.reward, outcome.done) == (False, 0.0, False)
    assert (session.text(), session.anchor()) == before


def test_queries_when_they_look_like_addresses_then_confuse_prev_as_in_the_original():
    session = visit("search[lamp item_page]", "click[b000000001]", "click[features]", "click[< prev]")
    assert session.name == "results"
    session = visit("search[lamp search_results]", "click[b000000001]", "click[< prev]")
    assert session.text().count("Page 0 (Total results: 2)") == 1


def test_back_door_queries_when_not_asked_for_then_are_plain_words():
    assert visit("search[<c> grocery]").hits == []
    assert [visit(f"search[{query}]", operators=True).hits for query in ("<q> mugs", "<c> grocery", "<c> x")] == [
        [2],
        [2],
        [],
    ]
    assert sorted(visit("search[<r>]", operators=True).hits) == [0, 1, 2]
    # the original crashes on these two
    assert visit("search[<a> x]", "search[<c>]", operators=True).name == "index"


TEXTS = st.one_of(
    st.text(max_size=50),
    st.sampled_from(["lamp", "red", "<r>", "<c>", "a" * 1_000_000, "[" * 1000, "]" * 1000, "é" * 300, "\x00\ud800"]),
)
ACTIONS = st.one_of(
    TEXTS,
    TEXTS.map("search[{}]".format),
    TEXTS.map("click[{}]".format),
    st.sampled_from(
        [f"click[{label}]" for label in ("b000000001", "b000000002", "red", "buy now", "features", "< prev")]
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=8), st.booleans())
def test_session_when_given_any_text_then_never_raises_and_stays_consistent(actions, operators):
    session = visit(operators=operators)
    for action in actions:
        outcome = session.act(action)
        assert 0.0 <= outcome.reward <= 1.0
        assert outcome.done == (outcome.is_valid and session.name == "done")
        assert all(isinstance(text, str) for text in (session.text(), session.rich_text(), session.anchor()))
        for offered in session.admissible_actions():
            assert parse_action(offered)[1] in session.clickables or offered.startswith("search[")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=15))
def test_admissible_actions_when_taken_then_are_valid(choices):
    session = visit()
    for choice in choices:
        admissible = session.admissible_actions()
        if not admissible:
            return
        assert session.act(admissible[choice % len(admissible)]).is_valid


def test_goals_when_compared_with_the_originals_then_all_6910_agree(reference_data, official_folder):  # noqa: F811
    shop = open_shop(data_dir=str(official_folder))
    goals = read_packed(reference_data / "webshop" / "goals_synthetic_shuffled233.json.xz")
    assert len(shop.goals) == len(goals) == 6910
    for index, expected in enumerate(goals):
        goal = shop.goal(index)
        assert (goal.target.asin, list(goal.options.items())) == (
            expected["asin"],
            list(expected["goal_options"].items()),
        )
        assert list(goal.attributes) == expected["attributes"]
        assert shop.goals.weight[shop.goals.request[index]] == expected["weight"]
        # price bounds are random in the original: the texts agree up to them
        assert goal.text.split(", and price lower")[0] == expected["instruction_text"].split(", and price lower")[0]


def test_splits_when_compared_with_the_originals_then_are_its_positions(official_folder):  # noqa: F811
    table = open_shop(data_dir=str(official_folder)).goals
    parts = [table.split(name) for name in SPLITS]
    assert [(part.begin, part.end) for part in parts] == [(0, 500), (500, 1500), (1500, 6910)]


def test_episodes_of_the_original_when_replayed_then_every_state_agrees(reference_data, official_folder, subtests):  # noqa: F811
    with lzma.open(reference_data / "webshop" / "golden_traces.jsonl.xz", "rt") as file:
        episodes = [json.loads(line) for line in file]
    assert len(episodes) >= 41
    env = WebShopEnv("train", data_dir=str(official_folder), compat_observation=True)
    for episode in episodes:
        with subtests.test(episode=episode["episode"]):
            replay(env, episode)


def replay(env: WebShopEnv, episode: dict) -> None:
    """Play a recorded episode and compare every state."""
    bought = [state["url"].split("/")[5] for state in episode["trace"] if state["done"]]
    # prices of ranges are random in the original
    prices = {bought[0]: episode["price"]} if bought else {}
    observation, info = env.reset(options={"goal": episode["goal"], "prices": prices})
    env.session.session_id = str(episode["goal_idx"])
    reward, done = 0.0, False
    for state in episode["trace"]:
        if state["action"] is not None:
            observation, reward, done, _, info = env.step(state["action"])
        assert observation == state["obs"]
        assert env.available_actions() == state["avail"]
        assert (reward, done) == (state["reward"], state["done"])
        assert env.session.url == state["url"]
    if done:
        assert info["reward_parts"] == episode["verbose"]


def test_draw_when_repeated_then_follows_the_weights():
    split = SHOP.goals.split("test")
    positions = [split.draw(uniform) for uniform in np.linspace(0, 1, 400, endpoint=False)]
    assert np.bincount(positions).tolist() == [100] * 4  # four goals of one request weigh alike
    assert split.draw(np.nextafter(1.0, 0.0)) == 3
