"""Things found by name: those of this package, and those that other packages offer as entry points."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from unmask.errors import FailureError, UsageError

T = TypeVar("T")
Named = TypeVar("Named")


class Registry(Generic[T]):
    """Named things of one kind, say rules or model families.

    `kind` is the word errors use. `group` is the entry-point group in which other packages offer more; theirs
    are imported when asked for by name, and never replace one of ours.
    """

    def __init__(self, kind: str, *, group: str, items: Mapping[str, T] | None = None) -> None:
        self.kind, self.group = kind, group
        self._items: dict[str, T] = dict(items or {})

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds what it decorates under `name`; ValueError for a name taken twice."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def names(self) -> tuple[str, ...]:
        """Return every name that `get` knows, sorted; nothing is imported for it."""
        return tuple(sorted({*self._items, *self._offered}))

    def get(self, name: str) -> T:
        """Return the thing called `name`; raise UsageError, with the nearest name, when there is none."""
        if name not in self._items:
            if name not in self._offered:
                raise unknown_name(self.kind, name, self.names())
            self._items[name] = self._load(self._offered[name])
        return self._items[name]

    def parse(self: "Registry[type[Named]]", text: str) -> Named:
        """Build what a text such as ``threshold:0.9`` or ``random`` means; commas part numbers.

        The registered classes are dataclasses of numbers, taken in the order of their fields. Raises UsageError for an
        unknown name, and for numbers that are malformed, missing, too many or out of range.
        """
        name, colon, rest = text.partition(":")
        kind = self.get(name)
        parameters = fields(kind)  # type: ignore[arg-type]
        numbers = rest.split(",") if colon else []
        if len(numbers) > len(parameters):
            raise UsageError(
                f"{self.kind} {text!r}: {name!r} takes at most {len(parameters)} number(s), {len(numbers)} were given"
            )
        values: list[int | float] = []
        for parameter, number in zip(parameters, numbers, strict=False):
            wanted = int if parameter.type is int else float
            try:
                values.append(wanted(number))
            except ValueError:
                meant = "a whole number" if wanted is int else "a number"
                raise UsageError(
                    f"{self.kind} {text!r}: {parameter.name}={number!r} is not {meant}",
                    None if parameter.default is MISSING else f"the default is {name}:{parameter.default}",
                ) from None
        missing = [parameter.name for parameter in parameters[len(values) :] if parameter.default is MISSING]
        if missing:
            raise UsageError(
                f"{self.kind} {text!r}: {', '.join(missing)} must be given", f"write {name}:NUMBER"
            )
        return kind(*values)

    def spell(self: "Registry[type[Named]]", item: Named) -> str:
        """Return the text that `parse` reads as `item`, whose class is one of the registered."""
        name = next(name for name, kind in self._items.items() if kind is type(item))
        numbers = [str(getattr(item, field.name)) for field in fields(item)]  # type: ignore[arg-type]
        return ":".join([name, ",".join(numbers)]) if numbers else name

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _load(self, point: EntryPoint) -> T:
        try:
            item: T = point.load()
        except Exception as error:  # whatever another package's import may raise
            origin = point.dist.name if point.dist else "an installed package"
            raise FailureError(
                f"{self.kind} {point.name!r} of {origin} cannot be imported from {point.value}: {error}",
                f"update or uninstall {origin}",
            ) from error
        return item


def unknown_name(kind: str, name: str, known: tuple[str, ...]) -> UsageError:
    """Return the error for a name nobody knows: the nearest known one, or all of them."""
    near = get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    return UsageError(f"unknown {kind} {name!r}", remedy)
