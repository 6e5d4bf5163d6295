"""What the tables of a config are made of, and tables whose `kind` decides which keys they have."""

import re
from collections.abc import Iterator
from inspect import get_annotations
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Tag

OWN_NAME = re.compile(r"[\w.]+:[\w.]+")
"""`module:Class` or `module:function` of one's own."""


class Section(BaseModel):
    """A table of the TOML file; field docstrings become the help text."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


def union_of_kinds(base: type[Section], *, default: str) -> Any:
    """The field type of a table that is one of `base`'s kinds, told apart by its `kind`.

    Args:
        base: has a subclass for every kind, each with `kind: Literal["name"] = "name"`; the one whose `kind` is a plain
            string takes names of one's own.
        default: the kind of a table that names none.
    """

    def tag(value: Any) -> str:
        return tag_of(value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default))

    members = tuple(Annotated[cls, Tag(kind)] for kind, cls in kinds(base).items())
    return Annotated[Union[members], Discriminator(tag)]  # noqa: UP007 (made of a tuple)


def tag_of(kind: Any) -> str:
    """What a kind is called among the classes: its name, or `own` for `module:Name`."""
    return "own" if OWN_NAME.fullmatch(str(kind)) else str(kind)


def kinds(base: type[Section]) -> dict[str, type[Section]]:
    """Kind -> its class, in the order in which they are written."""
    return {name: cls for cls in _subclasses(base) for name in _names(cls)}


def kinds_in(annotation: Any) -> dict[str, type[Section]]:
    """Kind -> class of a field made by `union_of_kinds`; empty for any other."""
    if get_origin(annotation) is not Union:
        return {}
    tagged = [get_args(member) for member in get_args(annotation)]
    return {tag.tag: cls for cls, *tags in (t for t in tagged if t) for tag in tags if isinstance(tag, Tag)}


def shared_keys(old: type[Section], new: type[Section]) -> set[str]:
    """Keys that mean the same in two kinds: those that both have from one class."""
    return {name for name in old.model_fields if _owner(old, name) is _owner(new, name) is not None}


def _owner(cls: type[Section], name: str) -> type | None:
    return next((c for c in cls.__mro__ if name in get_annotations(c)), None)


def _subclasses(base: type[Section]) -> Iterator[type[Section]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _names(cls: type[Section]) -> tuple[str, ...]:
    """The kind that a class names itself; nothing where it only holds what several kinds share."""
    if "kind" not in get_annotations(cls):
        return ()
    annotation = cls.model_fields["kind"].annotation
    return ("own",) if annotation is str else get_args(annotation) if get_origin(annotation) is Literal else ()
