"""Token trees: several candidates at a place, and the verdict of a verifier that judges all of them in one forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import count

from torch import Tensor

from unmask.decoding.candidates import draw
from unmask.decoding.constraint import NO_TOKEN
from unmask.decoding.offer import Offer, Path
from unmask.decoding.speculation import residual
from unmask.errors import FailureError


@dataclass(frozen=True)
class Node:
    """A candidate `depth` places after the first one; `parent`: the node before it, `None` for the last decided token.

    `reach`: how likely the drafter holds it that verification accepts this node and all before it.
    """

    token: int
    parent: int | None
    depth: int
    reach: float


@dataclass(frozen=True)
class Run:
    """Nodes in a row, each the first candidate after the one before; `offset` of the parent run's stand before it."""

    nodes: tuple[int, ...]
    parent: int | None
    offset: int


@dataclass(frozen=True)
class DraftTree:
    """Nodes in the order in which they were added, a parent before its children and candidates of a place in order."""

    nodes: tuple[Node, ...]

    @cached_property
    def children(self) -> dict[int | None, list[int]]:
        """The candidates after each node, first offered first."""
        children: dict[int | None, list[int]] = {number: [] for number in (None, *range(len(self.nodes)))}
        for number, node in enumerate(self.nodes):
            children[node.parent].append(number)
        return children

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The trunk, which is the path of first candidates, and the side branches, each after the run it leaves."""
        runs = [Run(self._first_path(self.children[None][0]), None, 0)]
        runs += [Run(self._first_path(other), 0, 0) for other in self.children[None][1:]]
        for number, run in enumerate(runs):  # grows while it is walked
            for place, node in enumerate(run.nodes):
                runs += [Run(self._first_path(other), number, place + 1) for other in self.children[node][1:]]
        return tuple(runs)

    @property
    def trunk(self) -> tuple[int, ...]:
        return self.runs[0].nodes

    def path(self, node: int | None) -> Path:
        """Return the tokens up to a node."""
        if node is None:
            return ()
        return (*self.path(self.nodes[node].parent), self.nodes[node].token)

    def stop_chance(self, node: int | None) -> float:
        """Return how likely it is that verification accepts this node and none after it."""
        here = 1.0 if node is None else self.nodes[node].reach
        return here - sum(self.nodes[child].reach for child in self.children[node])

    def tokens(self, nodes: Sequence[int]) -> list[int]:
        return [self.nodes[node].token for node in nodes]

    def _first_path(self, node: int) -> tuple[int, ...]:
        path = [node]
        while self.children[path[-1]]:
            path.append(self.children[path[-1]][0])
        return tuple(path)


def grow(offer: Offer, noise: Tensor, *, depth: int, branches: bool) -> DraftTree:
    """Grow a tree of as many nodes as there are uniforms (N,), or fewer, at most `depth` deep, likeliest slots first.

    Without `branches` it is a chain. A slot is the next candidate at a place; its worth, how likely the verifier is to
    accept the path to it and its likeliest candidate, is known before the candidate is drawn. A drawn candidate that
    decided whether it is offered would no longer have the law that it is verified by.
    """
    nodes: list[Node] = []
    slots: list[tuple[float, int, int | None, Path, list[int]]] = []
    order = count()
    depth = min(depth, offer.depth)

    def open_slot(parent: int | None, path: Path, taken: list[int]) -> None:
        reach = 1.0 if parent is None else nodes[parent].reach
        chance = reach * offer.chance(path, taken) if len(path) < depth else 0.0
        if chance > 0:
            heappush(slots, (-chance, next(order), parent, path, taken))

    open_slot(None, (), [])
    while slots and len(nodes) < len(noise):
        worth, _, parent, path, taken = heappop(slots)
        token = offer.candidate(path, taken, noise[len(nodes)])
        nodes.append(Node(token, parent, len(path), -worth))
        open_slot(len(nodes) - 1, (*path, token), [])
        if branches:
            open_slot(parent, path, [*taken, token])
    return DraftTree(tuple(nodes))


@dataclass(frozen=True)
class TreeVerdict:
    """The accepted nodes from the first place on, and the verifier's own token after them."""

    accepted: tuple[int, ...]
    next_token: int


def accept_tree(
    tree: DraftTree,
    offer: Offer,
    verifier_law: Callable[[tuple[int, ...]], Tensor],
    accept_noise: Tensor,
    next_noise: Tensor,
) -> TreeVerdict:
    """Walk down from candidate to accepted candidate, then draw one more token; they follow the verifier's law.

    At a place the candidates are judged in turn, each against what the rejections before it left of the verifier's law:
    accepted with probability min(1, p/q), else p becomes max(p - q, 0), renormalised (recursive rejection, SpecInfer,
    Miao et al. 2023, arXiv 2305.09781; without replacement, Jeon et al. 2024, arXiv 2402.14160). `verifier_law`: (V,)
    after some accepted nodes. `accept_noise` (N,): a uniform for each node. `next_noise`: one for each number of
    accepted nodes. Raises FailureError where the verifier's law is zero: a constraint leaves no token.
    """
    accepted: tuple[int, ...] = ()
    while True:
        law, taken = verifier_law(accepted), list[int]()
        if not law.any():
            raise FailureError(NO_TOKEN)
        path = tuple(tree.tokens(accepted))
        for node in tree.children[accepted[-1] if accepted else None]:
            token, offered = tree.nodes[node].token, offer.law(path, taken)
            if accept_noise[node] < law[token] / offered[token]:
                accepted = (*accepted, node)
                break
            law = residual(law, offered)
            taken.append(token)
        else:
            return TreeVerdict(accepted, int(draw(law, next_noise[len(accepted)].to(law.device))))
