"""A registry finds what the package and what other packages offer, and says what is near when it finds nothing."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from unmask.errors import FailureError, UsageError
from unmask.registry import Registry

GROUP = "unmask.test_shapes"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers a circle, a square of its own, and something that cannot be imported."""
    (tmp_path / "round_things.py").write_text("CIRCLE = 'circle from outside'\nSQUARE = 'not ours'\n")
    described = tmp_path / "round_things-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: round-things\nVersion: 1.0\n")
    points = "circle = round_things:CIRCLE\nsquare = round_things:SQUARE\nbroken = round_things:NOTHING\n"
    (described / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "round_things", raising=False)
    return tmp_path


@pytest.fixture
def shapes() -> Registry[str]:
    registry: Registry[str] = Registry("shape", group=GROUP, items={"square": "our square"})
    registry.register("triangle")("our triangle")
    return registry


def test_our_own(shapes: Registry[str]) -> None:
    assert shapes.names() == ("square", "triangle")
    assert shapes.get("triangle") == "our triangle"


def test_a_name_taken_twice(shapes: Registry[str]) -> None:
    with pytest.raises(ValueError, match="'square' is registered twice"):
        shapes.register("square")("another")


@pytest.mark.parametrize(
    ("name", "remedy"), [("sqare", "did you mean 'square'"), ("xyz", "square, triangle")]
)
def test_an_unknown_name(name: str, remedy: str, shapes: Registry[str]) -> None:
    with pytest.raises(UsageError, match=f"unknown shape '{name}'") as caught:
        shapes.get(name)
    assert remedy in str(caught.value)


@pytest.mark.usefixtures("plugin")
def test_other_packages_things_are_imported_when_asked_for(shapes: Registry[str]) -> None:
    assert shapes.names() == ("broken", "circle", "square", "triangle")
    assert "round_things" not in sys.modules
    assert shapes.get("square") == "our square"
    assert "round_things" not in sys.modules
    assert shapes.get("circle") == "circle from outside"


@pytest.mark.usefixtures("plugin")
def test_another_packages_fault_is_its_own(shapes: Registry[str]) -> None:
    with pytest.raises(FailureError, match="'broken' of round-things cannot be imported"):
        shapes.get("broken")


@dataclass(frozen=True)
class Box:
    width: int
    height: float = 2.0


def test_parse_builds_what_the_text_means() -> None:
    boxes = Registry("box", group=GROUP, items={"box": Box})
    assert boxes.parse("box:3") == Box(3)
    assert boxes.parse("box:3,0.5") == Box(3, 0.5)
    with pytest.raises(UsageError, match="box 'box': width must be given"):
        boxes.parse("box")
    with pytest.raises(UsageError, match="is not a whole number"):
        boxes.parse("box:3.5")
