"""How much of what a canvas drafts its verifier keeps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.decoding.generation import Generation
from unmask.evaluation.average import Average, average


@dataclass(frozen=True)
class Cycle:
    """One draft-verify cycle: the tokens drafted, those of them that were kept, and all that it wrote.

    What lies beyond the end of the text is neither kept nor written, whether the verifier agreed with it or not.
    """

    num_drafted: int
    num_kept: int
    num_written: int


def cycles_of(generation: Generation, block_length: int, room: int) -> tuple[Cycle, ...]:
    """Return the cycles of a speculative generation that could write `room` tokens at most."""
    # A cycle takes two forwards, and its second one decides its tokens. The prefill decides the first token.
    written_by = Counter(generation.decided_at)
    cycles, num_written = [], 1
    for number, num_accepted in enumerate(generation.accepted_lengths):
        written = written_by[2 * (number + 1)]
        drafted = min(block_length, room - num_written - 1)
        cycles.append(Cycle(drafted, min(num_accepted, written), written))
        num_written += written
    return tuple(cycles)


@dataclass(frozen=True)
class Acceptance:
    """Averages over the cycles that had a whole canvas; the samples are prompts.

    `tokens_per_cycle` counts the verifier's own token. `kept_by_place`: the share of cycles that kept the draft at each
    place of the canvas, and so all before it.
    """

    block_length: int
    num_cycles: int
    tokens_per_cycle: Average
    kept_by_place: tuple[Average, ...]


def measure_acceptance(cycles: Sequence[Sequence[Cycle]], block_length: int) -> Acceptance | None:
    """Average over the cycles of each prompt; None where no canvas was whole.

    Cycles near the end of the room draft less and are left out: that says nothing about the drafter.
    """
    whole = [[cycle for cycle in some if cycle.num_drafted == block_length] for some in cycles]
    counts = [len(some) for some in whole]
    per_cycle = average([sum(cycle.num_written for cycle in some) for some in whole], counts)
    if per_cycle is None:
        return None
    kept = [
        average([sum(cycle.num_kept >= place for cycle in some) for some in whole], counts)
        for place in range(1, block_length + 1)
    ]
    return Acceptance(
        block_length, sum(counts), per_cycle, tuple(share for share in kept if share is not None)
    )
