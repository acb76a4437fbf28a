"""Trees of candidates: their shape, and the law of what a verifier makes of them, by sums over every outcome."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from unmask.decoding import draft_tree, offer
from unmask.decoding.draft_tree import DraftTree, Node, Run, accept_tree, grow
from unmask.decoding.offer import DrawnOffer, Offer, offer_of
from unmask.decoding.options import Options
from unmask.decoding.text_law import TextLaw

Law = dict[tuple[int, ...], float]
VOCAB_SIZE = 3


@dataclass
class Fate:
    """Takes every random choice of a program once, in all combinations: a script of choices, and what they weigh."""

    script: list[int]
    options: list[int] = field(default_factory=list)
    weight: float = 1.0

    def choose(self, chances: Sequence[float]) -> int:
        """Return the next choice of the script, or the first one beyond its end; impossible ones are left out."""
        possible = [choice for choice, chance in enumerate(chances) if chance > 0]
        place = len(self.options)
        picked = self.script[place] if place < len(self.script) else 0
        self.options.append(len(possible))
        self.weight *= chances[possible[picked]]
        return possible[picked]


def outcomes(program: Callable[[Fate], tuple[int, ...]]) -> Law:
    """Return the law of what a program returns, by running it under every fate."""
    law: defaultdict[tuple[int, ...], float] = defaultdict(float)
    script: list[int] | None = []
    while script is not None:
        fate = Fate(script)
        law[program(fate)] += fate.weight
        script = _following([*script, *[0] * (len(fate.options) - len(script))], fate.options)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-9)
    return law


def _following(script: list[int], options: list[int]) -> list[int] | None:
    for place in reversed(range(len(script))):
        if script[place] + 1 < options[place]:
            return [*script[:place], script[place] + 1]
    return None


@dataclass
class Coin:
    """A uniform whose comparison with a chance is a choice of fate."""

    fate: Fate

    def to(self, device: torch.device) -> "Coin":
        return self

    def __lt__(self, chance: Tensor) -> bool:
        heads = min(1.0, float(chance))
        return self.fate.choose([1 - heads, heads]) == 1


def let_fate_decide(patch: pytest.MonkeyPatch, fate: Fate) -> None:
    def drawn(law: Tensor, noise: Tensor) -> Tensor:
        return torch.tensor(fate.choose((law / law.sum()).tolist()))

    patch.setattr(draft_tree, "draw", drawn)
    patch.setattr(offer, "draw", drawn)


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5


@dataclass
class World:
    """A canvas's logits (L, V), the verifier's after every text, and options."""

    seed: int
    length: int
    options: Options
    is_exact: bool = False

    def __post_init__(self) -> None:
        self.canvas = random_logits(self.seed, self.length, VOCAB_SIZE)
        texts = [t for n in range(self.length + 1) for t in itertools.product(range(VOCAB_SIZE), repeat=n)]
        self.verifier = {text: random_logits(100 * self.seed + i, VOCAB_SIZE) for i, text in enumerate(texts)}

    def law_after(self, text: tuple[int, ...]) -> Tensor:
        rows = torch.stack([self.verifier[text[:count]] for count in range(len(text) + 1)])
        return TextLaw(self.options, [0]).laws(rows, text)[-1]

    def offer(self, size: int) -> Offer:
        next_logits = self.verifier[()] if self.is_exact else None
        law = TextLaw(self.options, [0])
        canvas = self.canvas if next_logits is None else torch.cat([next_logits[None], self.canvas[1:]])
        return offer_of(canvas, self.options, law, is_exact=next_logits is not None, most=size)

    def cycle(self, fate: Fate, size: int, *, branches: bool = True) -> tuple[int, ...]:
        """Return what one cycle of drafting and verification writes."""
        offered = self.offer(size)
        tree = grow(offered, torch.zeros(size), depth=self.length, branches=branches)
        coins = cast(Any, [Coin(fate)] * size)
        verdict = accept_tree(
            tree,
            offered,
            lambda nodes: self.law_after(tuple(tree.tokens(nodes))),
            coins,
            torch.zeros(self.length + 1),
        )
        return (*tree.tokens(verdict.accepted), verdict.next_token)

    def written(self, first: Law) -> Law:
        """Return the law of `length` + 1 tokens when the verifier itself goes on after a cycle's."""
        law = dict(first)
        while any(len(text) <= self.length for text in law):
            longer: defaultdict[tuple[int, ...], float] = defaultdict(float)
            for text, mass in law.items():
                if len(text) > self.length:
                    longer[text] += mass
                    continue
                for token, chance in enumerate(self.law_after(text).tolist()):
                    longer[*text, token] += mass * chance
            law = dict(longer)
        return law


def gap(world: World, patch: pytest.MonkeyPatch, size: int, *, branches: bool = True) -> float:
    def program(fate: Fate) -> tuple[int, ...]:
        let_fate_decide(patch, fate)
        return world.cycle(fate, size, branches=branches)

    found, wanted = world.written(outcomes(program)), world.written({(): 1.0})
    return max(abs(found.get(text, 0.0) - wanted.get(text, 0.0)) for text in {*found, *wanted})


DRAWN = [
    Options("speculative", temperature=1.0),
    Options("speculative", temperature=0.7, top_k=2),
    Options("speculative", temperature=1.3, min_p=0.2, presence_penalty=0.8),
]


@pytest.mark.parametrize("options", DRAWN, ids=["plain", "top-k", "penalties"])
@pytest.mark.parametrize(("length", "size"), [(1, 2), (1, 3), (2, 3), (2, 4)])
@pytest.mark.parametrize("is_exact", [True, False])
def test_what_is_drawn_follows_the_verifiers_law(
    monkeypatch: pytest.MonkeyPatch, options: Options, length: int, size: int, is_exact: bool
) -> None:
    for seed in range(2):
        assert gap(World(seed, length, options, is_exact), monkeypatch, size) < 1e-12


def test_a_chain_follows_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gap(World(3, 2, DRAWN[0]), monkeypatch, 2, branches=False) < 1e-12


@pytest.mark.parametrize("options", [Options("speculative"), Options("speculative", presence_penalty=2.0)])
def test_greedy_trees_write_the_greedy_text(monkeypatch: pytest.MonkeyPatch, options: Options) -> None:
    for seed in range(8):
        for is_exact in (True, False):
            assert gap(World(seed, 2, options, is_exact), monkeypatch, 4) == 0.0


def _with_replacement(patch: pytest.MonkeyPatch) -> None:
    """The second candidate is drawn as if there had been no first, and judged as if there had."""
    patch.setattr(
        DrawnOffer,
        "candidate",
        lambda self, path, taken, noise: int(vars(offer)["draw"](self._left(path, ()), noise)),
    )


def _forget_rejections(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(draft_tree, "residual", lambda law, offered: law)


def _offer_by_value(patch: pytest.MonkeyPatch) -> None:
    """A place keeps only candidates of token 0, which the drafter would like to be right."""
    reached = grow

    def wrong(offered: Offer, noise: Tensor, *, depth: int, branches: bool) -> DraftTree:
        tree = reached(offered, noise, depth=depth, branches=branches)
        return DraftTree(tuple(node for node in tree.nodes if node.token == 0 and node.parent is None)[:1])

    patch.setitem(globals(), "grow", wrong)


@pytest.mark.parametrize("fault", [_with_replacement, _forget_rejections, _offer_by_value])
def test_the_sums_find_a_wrong_law(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)
    assert max(gap(World(seed, 1, DRAWN[0]), monkeypatch, 2) for seed in range(4)) > 0.01


def test_more_candidates_are_accepted_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all there are always."""
    world = World(1, 1, DRAWN[0])
    shares = []
    for size in (1, 2, 3):

        def program(fate: Fate, size: int = size) -> tuple[int, ...]:
            let_fate_decide(monkeypatch, fate)
            return (len(world.cycle(fate, size)) - 1,)

        shares.append(outcomes(program)[1,])
    assert shares == sorted(shares)
    assert shares[0] < shares[1]
    assert shares[2] == pytest.approx(1.0, abs=1e-9)
    rivals = torch.stack([world.canvas[0].softmax(-1), world.law_after(())])
    assert shares[0] == pytest.approx(float(rivals.amin(0).sum()))


def test_the_likeliest_paths_are_in_the_tree() -> None:
    """A greedy tree holds the nodes whose paths have the highest products of probabilities."""
    world = World(5, 3, Options("speculative"))
    laws = world.canvas.softmax(-1)
    every = {
        path: math.prod(float(laws[place, token]) for place, token in enumerate(path))
        for n in range(1, 4)
        for path in itertools.product(range(VOCAB_SIZE), repeat=n)
    }
    for size in (1, 4, 9, 39):
        tree = grow(world.offer(size), torch.zeros(size), depth=3, branches=True)
        paths = [tree.path(number) for number in range(len(tree.nodes))]
        best = sorted(every, key=lambda path: -every[path])[:size]
        assert set(paths) == set(best)
        assert [node.reach for node in tree.nodes] == pytest.approx([every[path] for path in paths])
        stops = sum(tree.stop_chance(node) for node in (None, *range(len(tree.nodes))))
        assert stops == pytest.approx(1.0)


def test_an_exact_first_place_has_one_candidate() -> None:
    world = World(2, 2, Options("speculative"), is_exact=True)
    tree = grow(world.offer(4), torch.zeros(4), depth=2, branches=True)
    (only,) = tree.children[None]
    assert (tree.nodes[only].token, tree.nodes[only].reach) == (int(world.verifier[()].argmax()), 1.0)
    assert len(grow(world.offer(9), torch.zeros(9), depth=1, branches=True).nodes) == 1


def test_runs_cover_a_tree_parents_first() -> None:
    parents = [None, 0, 0, 1, None, 2, 1, 5]
    depths = [0, 1, 1, 2, 0, 2, 2, 3]
    tree = DraftTree(
        tuple(
            Node(10 + n, parent, depth, 0.5)
            for n, (parent, depth) in enumerate(zip(parents, depths, strict=True))
        )
    )
    assert tree.trunk == (0, 1, 3)
    assert tree.runs == (
        Run((0, 1, 3), None, 0),
        Run((4,), 0, 0),
        Run((2, 5, 7), 0, 1),
        Run((6,), 0, 2),
    )
    assert tree.path(7) == (10, 12, 15, 17)
