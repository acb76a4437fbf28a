"""Things found by name: those of this package, and those that other packages offer as entry points."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from unmask.errors import FailureError, UsageError

T = TypeVar("T")


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
