"""A proposal: a token tree to verify, and the canvases that draft what follows it in the same forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

import torch
from torch import Tensor

from unmask.decoding.candidates import Keys
from unmask.decoding.draft_tree import DraftTree, accept_tree, grow
from unmask.decoding.offer import Offer, law_after, offer_of
from unmask.decoding.options import Options
from unmask.decoding.text_law import TextLaw
from unmask.model.packed import Branch, Part
from unmask.rng import Stream, uniforms


@dataclass(frozen=True)
class Moment:
    """Where and when a request draws: noise is keyed by its seed, the position `base` and the decode forward `step`.

    `base`: the position after the decided tokens. `room`: how many more tokens may come.
    """

    options: Options
    text_law: TextLaw
    base: int
    step: int
    room: int

    def node_noise(self, count: int, stream: Stream) -> Tensor:
        """Return a uniform for each of so many nodes, by their numbers: (count,) float64."""
        noise = uniforms(
            (self.options.seed,), [[self.base] * count], (self.step,), stream, draws=range(count)
        )
        return torch.from_numpy(noise[0])

    def place_noise(self, count: int, stream: Stream) -> Tensor:
        """Return a uniform for each of the next so many positions: (count,) float64."""
        places = range(self.base, self.base + count)
        return Keys.of_one(self.options.seed, places, self.step).noise(stream)[0]


@dataclass(frozen=True)
class PreDraft:
    """A canvas of `length` masks after a node (`None`: the last decided token), should verification stop there.

    Its first place is the verifier's own token's, which it does not see; the others draft what follows that.
    """

    node: int | None
    length: int


@dataclass(frozen=True)
class Settled:
    """What a verification decides: the accepted tokens and one more, `num_stored` of which have been stored.

    `logits`: of each of these tokens, (n, V). `offered`: (L, V) logits of the places after them, where a pre-draft
    stands ready.
    """

    accepted: tuple[int, ...]
    next_token: int
    num_stored: int
    logits: Tensor
    offered: Tensor | None


@dataclass(frozen=True)
class Proposal:
    """A tree with the offer that its candidates come from, and its pre-drafts.

    `next_logits` (V,): the AR law before the tree where a draft forward told it; else the verification does.
    """

    tree: DraftTree
    offer: Offer
    next_logits: Tensor | None
    pre_drafts: tuple[PreDraft, ...]

    @property
    def trunk(self) -> list[int]:
        """The tokens of first candidates, which a verification stores."""
        return self.tree.tokens(self.tree.trunk)

    @property
    def num_beside(self) -> int:
        """How many tokens a verification runs beside the trunk, at most."""
        num_others = len(self.tree.nodes) - len(self.tree.trunk)
        return num_others + sum(pre_draft.length for pre_draft in self.pre_drafts)

    def part(self, row: int, start: int, decided: Sequence[int], mask_token_id: int) -> Part:
        """Return the part that verifies the tree after `decided` tokens from `start` on, which are not stored yet."""
        runs, num_decided = self.tree.runs, len(decided)
        branches = [
            Branch(
                self.tree.tokens(run.nodes),
                run.offset if run.parent else num_decided + run.offset,
                run.parent - 1 if run.parent else None,
            )
            for run in runs[1:]
        ]
        home = {
            node: (number, place + 1)
            for number, run in enumerate(runs)
            for place, node in enumerate(run.nodes)
        }
        for pre_draft in self.pre_drafts:
            run, offset = (0, 0) if pre_draft.node is None else home[pre_draft.node]
            masks = [mask_token_id] * pre_draft.length
            parent = run - 1 if run else None
            places = range(1, pre_draft.length)
            branches.append(Branch(masks, offset if run else num_decided + offset, parent, places))
        num_laws = len(self.tree.trunk) + int(self.next_logits is None)
        return Part(row, start, [*decided, *self.trunk], num_laws=num_laws, branches=branches)

    def settle(self, logits: Tensor, moment: Moment) -> Settled:
        """Accept what follows the AR law, given the logits that `part` asked for."""
        if self.next_logits is not None:
            logits = torch.cat([self.next_logits[None], logits])
        order = [node for run in self.tree.runs for node in run.nodes]
        row_of = {node: row for row, node in enumerate(order, start=1)}

        def rows(nodes: tuple[int, ...]) -> Tensor:
            return logits[[0, *(row_of[node] for node in nodes)]]

        verdict = accept_tree(
            self.tree,
            self.offer,
            lambda nodes: law_after(moment.text_law, rows(nodes), self.tree.tokens(nodes)),
            moment.node_noise(len(self.tree.nodes), Stream.ACCEPT),
            moment.place_noise(self.offer.depth + 1, Stream.RESIDUAL),
        )
        accepted = verdict.accepted
        trunk = self.tree.trunk[: len(accepted)]
        return Settled(
            tuple(self.tree.tokens(accepted)),
            verdict.next_token,
            sum(ours == theirs for ours, theirs in zip(accepted, trunk, strict=True)),
            rows(accepted),
            self._offered(logits[1 + len(order) :], accepted[-1] if accepted else None),
        )

    def _offered(self, logits: Tensor, node: int | None) -> Tensor | None:
        """Return what a pre-draft at a node says of the places after the next token."""
        begin = 0
        for pre_draft in self.pre_drafts:
            if pre_draft.node == node:
                return logits[begin : begin + pre_draft.length - 1]
            begin += pre_draft.length - 1
        return None


def propose(logits: Tensor, next_logits: Tensor | None, moment: Moment) -> Proposal:
    """Grow a tree from what a draft proposes at its places, (L, V) logits, and choose where to draft ahead.

    `next_logits` (V,): the AR law of the first place, where the draft told it; then it is the first of `logits` too.

    A proposal leaves room for the verifier's own token. Pre-drafts go where verification most likely stops.
    """
    options = moment.options
    branches = options.tree_size is not None
    size = options.tree_size or len(logits)
    offer = offer_of(logits, options, moment.text_law, is_exact=next_logits is not None, most=size)
    noise = moment.node_noise(size, Stream.TOKEN)
    tree = grow(offer, noise, depth=moment.room - 1, branches=branches)
    stops: list[tuple[float, PreDraft]] = []
    for node in (None, *range(len(tree.nodes))) if options.num_predrafts else ():
        num_accepted = 0 if node is None else tree.nodes[node].depth + 1
        # The verifier's token comes after the accepted ones, and one more after the next tree.
        length = min(options.block_length or 0, moment.room - num_accepted - 1)
        chance = tree.stop_chance(node)
        if length > 1 and chance > 0:
            stops.append((chance, PreDraft(node, length)))
    likeliest = nlargest(options.num_predrafts or 0, stops, key=lambda stop: stop[0])
    return Proposal(tree, offer, next_logits, tuple(pre_draft for _, pre_draft in likeliest))
