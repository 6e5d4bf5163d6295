"""ALFWorld's rules, one quirk at a time, in a room written out by hand (see alfworld_room.py)."""

import pytest
from alfworld_room import LIGHT, ONE, TWO, content, problem

from agentrl.envs.alfworld.game import Game
from agentrl.envs.alfworld.official import make_record
from agentrl.envs.alfworld.text_engine import TextEngine
from agentrl.envs.alfworld.texts import HELP
from agentrl.envs.env_errors import DataError


def start(goal="", *, grammar="move"):
    engine = TextEngine(Game(make_record(content(goal), name="train/pick_and_place_simple-x/t"), grammar=grammar))
    return engine


def play(engine, *commands):
    return [engine.step(command) for command in commands][-1]


def test_reset_then_receptacles_by_id_with_numbers_downwards_and_the_task():
    assert start().reset() == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        "a desk 1, a drawer 2, a drawer 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
        "Your task is to: put a pen in desk."
    )


def test_look_when_at_no_receptacle_then_nothing_is_listed():
    assert start().step("look") == "You are in the middle of a room. Looking quickly around you, you see nothing."


def test_admissible_when_at_start_then_sorted_and_complete():
    assert start().admissible == [
        "go to desk 1", "go to drawer 1", "go to drawer 2", "go to fridge 1", "go to microwave 1", "go to sinkbasin 1",
        "help", "inventory", "look",
    ]  # fmt: skip


def test_go_to_when_open_closed_and_without_door_then_view():
    engine = start()
    assert engine.step("go to drawer 2") == "You arrive at drawer 2. The drawer 2 is closed."
    assert engine.step("open drawer 2") == "You open the drawer 2. The drawer 2 is open. In it, you see a pen 2."
    assert engine.step("close drawer 2") == "You close the drawer 2."
    assert play(engine, "go to desk 1") == (
        "You arrive at desk 1. On the desk 1, you see a apple 1, a bowl 1, a desklamp 1, a knife 1, and a mug 1."
    )


def test_receptacles_when_they_share_a_location_then_used_from_there_but_not_gone_to():
    engine = start()
    engine.step("go to drawer 1")
    assert engine.step("go to drawer 2") == "Nothing happens."
    assert engine.step("look") == "You are facing the drawer 2, and drawer 1. Next to it, you see nothing."
    assert engine.step("open drawer 2").startswith("You open the drawer 2.")
    assert engine.step("examine drawer 1") == "On the drawer 1, you see a pen 1."


def test_look_when_object_moved_between_receptacles_here_then_listed_on_the_floor():
    engine = start()
    play(engine, "go to drawer 1", "open drawer 2", "take pen 2 from drawer 2", "move pen 2 to drawer 1")
    assert engine.step("look") == "You are facing the drawer 2, and drawer 1. Next to it, you see a pen 2."
    play(engine, "take pen 2 from drawer 1", "move pen 2 to drawer 1")
    assert engine.step("look").endswith("you see a pen 2.")  # it left drawer 2 and was not put back there
    play(engine, "take pen 2 from drawer 1", "move pen 2 to drawer 2")
    assert engine.step("look").endswith("you see a pen 2.")  # now it has left drawer 1
    play(engine, "go to desk 1", "go to drawer 1")
    assert engine.step("look").endswith("you see a pen 2.")


def test_object_when_in_two_receptacles_then_taken_from_one_and_still_seen_in_the_other():
    engine = start()
    assert play(engine, "go to desk 1", "take mug 1 from desk 1") == "You pick up the mug 1 from the desk 1."
    assert engine.step("go to sinkbasin 1") == "You arrive at sinkbasin 1. On the sinkbasin 1, you see a mug 1."
    assert "take mug 1 from sinkbasin 1" not in engine.admissible  # the hands are full


def test_take_when_hands_are_full_or_container_closed_then_nothing_happens():
    engine = start()
    play(engine, "go to drawer 1")
    assert engine.step("take pen 2 from drawer 2") == "Nothing happens."
    play(engine, "take pen 1 from drawer 1", "open drawer 2")
    assert engine.step("take pen 2 from drawer 2") == "Nothing happens."
    assert engine.step("move pen 1 to drawer 2") == "You move the pen 1 to the drawer 2."
    assert engine.step("examine drawer 2") == "The drawer 2 is open. In it, you see a pen 2, and a pen 1."


def test_inventory_when_empty_and_full():
    engine = start()
    assert engine.step("inventory") == "You are not carrying anything."
    assert play(engine, "go to desk 1", "take apple 1 from desk 1", "inventory") == "You are carrying: a apple 1."


def test_heat_and_cool_when_door_is_closed_then_done_and_exclusive():
    engine = start()
    play(engine, "go to desk 1", "take apple 1 from desk 1", "go to microwave 1")
    assert engine.step("heat apple 1 with microwave 1") == "You heat the apple 1 using the microwave 1."
    assert engine.step("examine apple 1") == "This is a hot apple 1."
    assert play(engine, "go to fridge 1", "cool apple 1 with fridge 1", "examine apple 1") == "This is a cold apple 1."
    assert play(engine, "go to sinkbasin 1", "clean apple 1 with sinkbasin 1") == (
        "You clean the apple 1 using the sinkbasin 1."
    )
    assert engine.step("examine apple 1") == "This is a cool and clean apple 1."


def test_slice_when_knife_is_held_and_object_lies_here_then_sliced_again_and_again():
    engine = start()
    play(engine, "go to desk 1", "take knife 1 from desk 1")
    assert engine.step("slice apple 1 with knife 1") == "You sliced the apple 1 with the knife 1."
    assert engine.step("slice apple 1 with knife 1") == "You sliced the apple 1 with the knife 1."
    assert play(engine, "move knife 1 to desk 1", "take apple 1 from desk 1", "examine apple 1") == (
        "This is a sliced apple 1."
    )
    assert play(engine, "go to microwave 1", "heat apple 1 with microwave 1", "examine apple 1") == (
        "This is a hot sliced apple 1."
    )


def test_use_when_lamp_then_it_stays_on():
    engine = start()
    engine.step("go to desk 1")
    assert [engine.step("use desklamp 1") for _ in range(2)] == ["You turn on the desklamp 1."] * 2
    assert engine.step("take desklamp 1 from desk 1") == "Nothing happens."


def test_examine_when_held_container_then_its_first_contents_for_ever():
    engine = start()
    play(engine, "go to desk 1", "take bowl 1 from desk 1")
    assert engine.step("examine bowl 1") == "This is a normal bowl 1. In it, you see a keychain 1."
    assert play(engine, "move bowl 1 to desk 1", "take mug 1 from desk 1", "examine mug 1") == (
        "There's nothing special about mug 1."
    )


def test_examine_when_state_does_not_fit_the_object_then_only_treatments_name_it():
    # the text grammar asks for `sliceable` with "a sliced X" and for `toggleable` with "is on", nowhere else
    text = problem(ONE.format(item="Pen", place="Desk", more="")).replace(
        "(:init", "(:init (isSliced Mug_bar_1) (isToggled Mug_bar_1)"
    )
    engine = TextEngine(Game(make_record(content(pddl_problem=text), name="train/pick_and_place_simple-x/t")))
    assert play(engine, "go to desk 1", "take mug 1 from desk 1", "examine mug 1") == (
        "There's nothing special about mug 1."
    )
    assert play(engine, "go to sinkbasin 1", "clean mug 1 with sinkbasin 1", "examine mug 1") == (
        "This is a clean sliced mug 1."
    )


def test_examine_when_object_is_not_held_then_nothing_happens():
    engine = start()
    assert play(engine, "go to desk 1", "examine mug 1") == "Nothing happens."


def test_help_when_asked_then_the_verbs():
    assert start().step("help") == HELP
    assert "\n  move (object) to (receptacle):  place an object in or on a receptacle\n" in HELP


@pytest.mark.parametrize("command", ["Look", "look  ", "\tlook\n", "go  to desk 1", "", "go to desk 9"])
def test_step_when_oddly_spelt_then_only_outer_blanks_are_forgiven(command):
    engine = start()
    assert (engine.step(command) == "Nothing happens.") == (command.strip() not in ("look",))


def test_grammar_when_put_then_older_texts_and_no_help():
    engine = start(grammar="put")
    assert "help" not in engine.admissible
    assert engine.step("help") == "Nothing happens."
    # six locations count downwards: loc_bar_0 is loc 6, loc_bar_1 loc 5, loc_bar_2 loc 4
    assert engine.step("go to drawer 1") == "You arrive at loc 5. On the drawer 1, you see a pen 1."
    engine.step("take pen 1 from drawer 1")
    assert engine.step("move pen 1 to drawer 1") == "Nothing happens."
    assert engine.step("put pen 1 in/on drawer 1") == "You put the pen 1 in/on the drawer 1."
    assert engine.game.walkthrough[-1] == "put pen 1 in/on desk 1"


def test_won_when_goal_is_left_again_then_false_again():
    engine = start()
    won = []
    for command in (*engine.game.walkthrough, "take pen 1 from desk 1", "move pen 1 to desk 1"):
        engine.step(command)
        won.append(engine.won)
    assert won == [False, False, False, True, False, True]


def test_won_when_two_objects_then_in_the_same_receptacle_only():
    engine = start(TWO.format(item="Pen", place="Drawer"))
    play(engine, "go to drawer 1", "open drawer 2", "take pen 2 from drawer 2")
    assert not engine.won
    engine.step("move pen 2 to drawer 1")
    assert engine.won


def test_won_when_treated_object_then_property_and_place_are_needed():
    engine = start(ONE.format(item="Apple", place="Desk", more="(coolable ?o) (isCool ?o)"))
    assert not engine.won
    play(engine, "go to desk 1", "take apple 1 from desk 1", "go to fridge 1", "cool apple 1 with fridge 1")
    play(engine, "go to desk 1", "move apple 1 to desk 1")
    assert engine.won


def test_won_when_light_then_in_either_order_at_the_lamp():
    first = start(LIGHT.format(item="Mug", place="DeskLamp"))
    play(first, "go to desk 1", "use desklamp 1", "take mug 1 from desk 1")
    assert first.won
    first.step("go to fridge 1")
    assert not first.won
    second = start(LIGHT.format(item="Mug", place="DeskLamp"))
    play(second, "go to sinkbasin 1", "take mug 1 from sinkbasin 1", "go to desk 1", "use desklamp 1")
    assert second.won


def test_goal_when_of_another_shape_then_data_error():
    with pytest.raises(DataError, match="none of ALFWorld's six task types"):
        start("(forall (?o - object) (isClean ?o))")


def test_anchor_when_same_state_by_other_ways_then_equal():
    one, other = start(), start()
    play(one, "go to desk 1", "look", "take apple 1 from desk 1")
    play(other, "go to fridge 1", "nonsense", "go to desk 1", "take apple 1 from desk 1", "examine apple 1")
    assert one.anchor == other.anchor
    other.step("go to fridge 1")
    assert one.anchor != other.anchor


def test_copy_when_played_on_then_original_is_untouched():
    engine = start()
    engine.step("go to desk 1")
    before = engine.anchor, list(engine.admissible)
    play(engine.copy(), "take apple 1 from desk 1", "go to fridge 1", "open fridge 1", "cool apple 1 with fridge 1")
    assert (engine.anchor, engine.admissible) == before
