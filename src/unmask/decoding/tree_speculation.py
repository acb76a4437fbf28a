"""The loop of fused and tree speculation: one request, to be read, and to be what faster code must equal."""

from collections.abc import Iterator

import torch

from unmask.decoding.canvas import Canvas
from unmask.decoding.generation import Snapshot
from unmask.decoding.proposal import Moment, Proposal, propose
from unmask.decoding.request import Request


def speculate(request: Request) -> Iterator[Snapshot]:
    """Verify a tree of drafts in one causal forward, which may hold the next drafts too; tokens follow the AR law.

    Where no pre-draft stands at the place that verification stops at, a forward of its own drafts. What is accepted
    off the trunk has not been stored, and runs once more at the beginning of the next forward.
    """
    transcript = request.transcript
    proposal: Proposal | None = None
    while not transcript.is_finished:
        if transcript.room == 1:
            yield request.step()
            continue
        if proposal is None:
            proposal = _draft(request)
            yield request.snapshot("draft", _shown(request, proposal))
        proposal = _verify(request, proposal)
        yield request.snapshot("verify", None if proposal is None else _shown(request, proposal))


def _draft(request: Request) -> Proposal:
    """Run a canvas after the decided tokens."""
    canvas = request.blank_canvas(request.transcript.room - 1)
    draft = request.draft(canvas, request.num_decided)
    return propose(draft.proposed(len(canvas.tokens)), draft.next_logits, _moment(request))


def _verify(request: Request, proposal: Proposal) -> Proposal | None:
    """Run a proposal, write what it settles, and return the next one if a pre-draft stands ready for it."""
    start, cache = request.num_decided, request.cache
    first = min(cache.lengths[0], start)
    mask_token_id = request.denoiser.mask_token_id
    assert mask_token_id is not None  # admit
    request.count()
    part = proposal.part(0, first, request.decided[first:], mask_token_id)
    (logits,) = request.denoiser.laws([part], cache)
    settled = proposal.settle(logits, _moment(request))
    cache.lengths[0] = start + settled.num_stored  # the rest of the trunk was rejected
    request.accepted_lengths.append(len(settled.accepted))
    request.write([*settled.accepted, settled.next_token], settled.logits)
    if settled.offered is None or request.transcript.is_finished:
        return None
    return propose(settled.offered, None, _moment(request))


def _moment(request: Request) -> Moment:
    return Moment(
        request.options,
        request.text_law,
        request.num_decided,
        request.num_decode_forwards,
        request.transcript.room,
    )


def _shown(request: Request, proposal: Proposal) -> Canvas:
    """Return the trunk as a canvas of proposals."""
    blank = request.blank_canvas(len(proposal.trunk))
    return blank.commit(blank.open, torch.tensor(proposal.trunk), request.num_decode_forwards)
