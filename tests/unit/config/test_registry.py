"""Options by the class of their settings: functions, names, what is not implemented."""

from dataclasses import dataclass

import pytest

from drift.common.errors import ConfigError
from drift.config.registry import Names, Registry


@dataclass
class Shape:
    pass


@dataclass
class Square(Shape):
    side: int = 2


@dataclass
class Tile(Square):
    """As a plug-in has it: another option's settings, and more."""


@pytest.fixture
def shapes() -> Registry[Shape]:
    registry = Registry[Shape]("shape", {"square": Square})
    registry.implements(Square)(lambda shape: shape.side**2)
    registry.implements(Square, "edge")(lambda shape: 4 * shape.side)
    return registry


def test_a_subclass_is_its_base_until_it_is_an_option_of_its_own(shapes: Registry[Shape]) -> None:
    tile = Tile(side=3)
    assert (shapes.name(tile), shapes.function(tile)(tile)) == ("square", 9)
    shapes.add("tile", Tile)
    shapes.implements(Tile)(lambda tile: -tile.side)
    assert (shapes.name(tile), shapes.function(tile)(tile)) == ("tile", -3)
    assert shapes.function(tile, "edge")(tile) == 12
    assert list(shapes.schemas) == ["square", "tile"]


def test_what_nobody_implements_is_one_line(shapes: Registry[Shape]) -> None:
    with pytest.raises(ConfigError, match=r"^shape: nothing implements Shape; .*: Square$"):
        shapes.function(Shape())
    with pytest.raises(ConfigError, match=r"^shape: nothing implements Tile for area; .*: none$"):
        shapes.function(Tile(), "area")
    with pytest.raises(ConfigError, match=r"^shape: Shape is of none of its options: square$"):
        shapes.name(Shape())


def test_a_choice_by_name_is_refused_until_it_is_entered() -> None:
    names = Names("rollout.confidence", ["margin"])
    assert names.refused("margin") is None
    assert names.refused("sure") == "rollout.confidence=sure must be one of margin"
    names.add("sure")
    assert names.refused("sure") is None
