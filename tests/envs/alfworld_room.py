"""A room written out by hand, for tests whose expected texts can be checked by reading."""

import json
from pathlib import Path

GRAMMAR = 'action GotoLocation { template :: "move {o} to {r}"; } "task": [{"rhs": "Your task is to: TASK"}]'

# two drawers share a location; one mug lies on the desk and in the sink basin at once; the bowl contains the key
FACTS = """
(atLocation agent1 loc_bar_0)
(receptacleType Drawer_bar_1 DrawerType) (receptacleAtLocation Drawer_bar_1 loc_bar_1) (openable Drawer_bar_1)
(receptacleType Drawer_bar_2 DrawerType) (receptacleAtLocation Drawer_bar_2 loc_bar_1)
(receptacleType Desk_bar_1 DeskType) (receptacleAtLocation Desk_bar_1 loc_bar_2)
(receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType) (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_3)
(receptacleType Fridge_bar_1 FridgeType) (receptacleAtLocation Fridge_bar_1 loc_bar_4) (openable Fridge_bar_1)
(receptacleType Microwave_bar_1 MicrowaveType) (receptacleAtLocation Microwave_bar_1 loc_bar_5)
(openable Microwave_bar_1)

(objectType Mug_bar_1 MugType) (pickupable Mug_bar_1) (cleanable Mug_bar_1)
(objectAtLocation Mug_bar_1 loc_bar_2) (inReceptacle Mug_bar_1 Desk_bar_1)
(inReceptacle Mug_bar_1 Sink_bar_1_bar_SinkBasin)
(objectType Apple_bar_1 AppleType) (pickupable Apple_bar_1) (cleanable Apple_bar_1) (heatable Apple_bar_1)
(coolable Apple_bar_1) (sliceable Apple_bar_1)
(objectAtLocation Apple_bar_1 loc_bar_2) (inReceptacle Apple_bar_1 Desk_bar_1)
(objectType Knife_bar_1 KnifeType) (pickupable Knife_bar_1) (objectAtLocation Knife_bar_1 loc_bar_2)
(inReceptacle Knife_bar_1 Desk_bar_1)
(objectType DeskLamp_bar_1 DeskLampType) (toggleable DeskLamp_bar_1) (objectAtLocation DeskLamp_bar_1 loc_bar_2)
(inReceptacle DeskLamp_bar_1 Desk_bar_1)
(objectType Pen_bar_1 PenType) (pickupable Pen_bar_1) (objectAtLocation Pen_bar_1 loc_bar_1)
(inReceptacle Pen_bar_1 Drawer_bar_1)
(objectType Pen_bar_2 PenType) (pickupable Pen_bar_2) (objectAtLocation Pen_bar_2 loc_bar_1)
(inReceptacle Pen_bar_2 Drawer_bar_2)
(objectType Bowl_bar_1 BowlType) (pickupable Bowl_bar_1) (isReceptacleObject Bowl_bar_1)
(objectAtLocation Bowl_bar_1 loc_bar_2) (inReceptacle Bowl_bar_1 Desk_bar_1)
(objectType KeyChain_bar_1 KeyChainType) (pickupable KeyChain_bar_1) (inReceptacleObject KeyChain_bar_1 Bowl_bar_1)

(canContain DeskType MugType) (canContain DeskType AppleType) (canContain DeskType KnifeType)
(canContain DeskType PenType) (canContain DeskType BowlType)
(canContain DrawerType PenType) (canContain DrawerType KnifeType) (canContain FridgeType AppleType)
"""

PLACE = "(inReceptacle ?o ?r) (objectType ?o {item}Type) (receptacleType ?r {place}Type)"
ONE = f"(exists (?r - receptacle) (exists (?o - object) (and {{more}} {PLACE})))"
TWO = (
    "(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {item}Type) (receptacleType ?r {place}Type) "
    "(inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 {item}Type) "
    "(receptacleType ?r {place}Type) (inReceptacle ?o2 ?r))))))"
)
LIGHT = (
    "(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot {place}Type) "
    "(toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r))) "
    "(exists (?o - object ?a - agent) (and (objectType ?o {item}Type) (holds ?a ?o)))"
)


def problem(goal: str) -> str:
    """The room with a goal."""
    return f"(define (problem room) (:domain alfred) (:init {FACTS}) (:goal (and {goal})))"


def content(goal: str = "", task: str = "put a pen in desk.", **changes) -> dict:
    """A game file's content."""
    goal = goal or ONE.format(item="Pen", place="Desk", more="")
    data = {
        "pddl_domain": "(define (domain alfred))",
        "grammar": GRAMMAR.replace("TASK", task),
        "pddl_problem": problem(goal),
        "solvable": True,
        "walkthrough": ["go to drawer 1", "take pen 1 from drawer 1", "go to desk 1", "move pen 1 to desk 1"],
    }
    return data | changes


def write_tree(root: Path, names: list[str], **changes) -> list[Path]:
    """Game files under `root`/json_2.1.1, one per name `<split>/<task folder>/<trial>`."""
    files = []
    for name in names:
        file = root / "json_2.1.1" / name / "game.tw-pddl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content(**changes)))
        files.append(file)
    return files
