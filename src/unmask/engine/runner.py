"""One forward of a batch: its parts packed, tokens drawn from its laws, its requests told."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from unmask.decoding.candidates import Keys, Shape, draw, sampling_law
from unmask.decoding.decision import Drift, decide_after
from unmask.decoding.proposal import propose
from unmask.decoding.speculation import accept
from unmask.engine.acceptance import Verdict
from unmask.engine.job import Job, LinearProposal
from unmask.engine.paged_cache import PagedCache
from unmask.engine.request import Kind
from unmask.engine.scheduler import Share
from unmask.errors import FailureError
from unmask.model.denoiser import Denoiser
from unmask.model.packed import Part
from unmask.rng import Stream


@dataclass(frozen=True)
class _Outcome:
    """The laws (M, V) that a job's share asked for, and what they settle."""

    job: Job
    kind: Kind
    logits: Tensor

    @property
    def is_of_tree(self) -> bool:
        is_drafted = self.kind == "draft" and not self.job.plan.is_linear
        return is_drafted or (self.kind == "verify" and self.job.tree is not None)

    @property
    def draws_at_once(self) -> bool:
        """Whether one token comes from each law, whatever the others are."""
        draws_each = self.kind in ("step", "draft") and not self.is_of_tree
        return draws_each and not self.job.text_law.reads_text


class Runner:
    """Runs shares of any mode in one forward over the pages, and lets each request take what came of it."""

    def __init__(self, denoiser: Denoiser, cache: PagedCache) -> None:
        self.denoiser, self.cache = denoiser, cache
        conditioning = denoiser.conditioning
        self.keeps_belief = conditioning is not None and conditioning.belief is not None

    def run(self, shares: Sequence[Share], jobs: Mapping[int, Job]) -> dict[int, Verdict]:
        """Run a batch's shares, and return what verifications made of drafts; `jobs` and verdicts by request number."""
        # Attention serves neighbours of one shape in one call.
        shares = sorted(shares, key=lambda share: (share.begin, share.end, share.num_tokens, share.stores))
        requests = [share.request for share in shares]
        rows = self.cache.rows(
            [request.table for request in requests], [request.num_stored for request in requests]
        )
        parts = [self._part(share, jobs[share.request.number], row) for row, share in enumerate(shares)]
        logits = self.denoiser.laws(parts, rows)
        outcomes = []
        for share, piece in zip(shares, logits, strict=True):
            request = share.request
            request.num_forwards += 1
            if share.settles:
                outcomes.append(_Outcome(jobs[request.number], request.kind, piece))
            if (
                not share.settles or request.kind != "verify"
            ):  # a verdict says how much of the drafts to count
                request.store(share.stored_end)
        verdicts: dict[int, Verdict] = {}
        alike: dict[Shape, list[_Outcome]] = {}
        for outcome in outcomes:
            if outcome.draws_at_once:
                alike.setdefault(outcome.job.options.shape, []).append(outcome)
                continue
            try:
                verdict = self._settle(outcome)
            except FailureError as error:  # of this request's constraint; the others go on
                outcome.job.failure = error
                continue
            if verdict is not None:
                verdicts[outcome.job.request.number] = verdict
        for shape, drawing in alike.items():
            _draw(drawing, shape)
        return verdicts

    @torch.inference_mode()
    def measure(self, sizes: Sequence[int], *, repeats: int = 3) -> list[tuple[int, float]]:
        """Return the median seconds of a causal forward of each size, all laws asked for, outside the pages."""
        found = []
        for size in sizes:
            cache, tokens = self.denoiser.new_cache(size), torch.zeros(size, dtype=torch.int64)
            run = partial(self.denoiser.causal, tokens, 0, cache, num_heads=size)
            found.append((size, median(_seconds(run) for _ in range(repeats))))
        return found

    @torch.inference_mode()
    def measure_drafts(self, *, length: int = 8, repeats: int = 8) -> list[tuple[int, float]]:
        """Return the tokens and seconds of some drafts after one token, outside the pages."""
        cache, mask = self.denoiser.new_cache(length + 1), self.denoiser.mask_token_id
        assert mask is not None  # the caller's
        canvas = torch.full((length,), mask)
        tokens = 1 + length - int(self.denoiser.logit_shift)

        def draft() -> Tensor:
            return self.denoiser.draft([0], canvas, 0, cache).logits

        return [(tokens, _seconds(draft)) for _ in range(repeats)]

    def _part(self, share: Share, job: Job, row: int) -> Part:
        request = job.request
        tokens = request.decided(share.begin, share.end)
        if not share.settles:
            return Part(row, share.begin, tokens)
        mask = self.denoiser.mask_token_id
        canvas: Sequence[int | None]
        match request.kind:
            case "verify":
                drafts = request.drafts
                if job.tree is not None:
                    assert mask is not None  # admit
                    return job.tree.part(row, share.begin, tokens, mask)
                return Part(row, share.begin, [*tokens, *drafts], num_laws=len(drafts))
            case "step":
                canvas = ()
            case "draft" | "denoise":
                canvas = request.canvas or [None] * request.num_open
                assert mask is not None  # admit
        is_open = [token is None for token in canvas]
        places = [place for place in range(len(canvas)) if is_open[place] or self.keeps_belief]
        return Part(
            row,
            share.begin,
            tokens,
            store=share.stores,
            num_laws=0 if request.kind == "denoise" else 1,
            canvas=[mask if token is None else token for token in canvas],  # type: ignore[misc]
            places=places if request.kind == "denoise" else places[1:],  # a draft begins by the AR law
            time=sum(is_open) / len(is_open) if is_open else 1.0,
            belief=job.belief if request.canvas else None,
        )

    def _settle(self, outcome: _Outcome) -> Verdict | None:
        match outcome.kind:
            case "draft" | "verify" if outcome.is_of_tree:
                return _speculate(outcome)
            case "verify":
                return _verify(outcome.job, outcome.logits)
            case "denoise":
                self._denoise(outcome.job, outcome.logits)
            case "step" | "draft":
                _draw_in_turn(outcome)
        return None

    def _denoise(self, job: Job, logits: Tensor) -> None:
        """Draw a candidate at each open position of the canvas, and commit those the rule chooses."""
        request, options = job.request, job.options
        assert options.rule is not None  # resolve
        if not request.canvas:
            job.drift = Drift(options.rule.memory)
        length = request.num_open
        canvas = request.canvas or [None] * length
        if self.keeps_belief:
            job.belief = logits[:, : self.denoiser.vocab_size].softmax(-1)
        else:
            spread = logits.new_zeros(length, logits.shape[1])
            spread[torch.tensor([token is None for token in canvas])] = logits
            logits = spread
        decision = decide_after(
            job.text_law,
            options.rule,
            logits,
            canvas,
            Keys.of_one(options.seed, range(request.base, request.base + length), request.decode_number),
            steps_left=request.steps_left,
            drift=job.drift,
        )
        places = decision.chosen[0].nonzero()[:, 0]
        tokens = decision.candidates.tokens[0, places]
        request.commit(dict(zip(places.tolist(), tokens.tolist(), strict=True)))


def _seconds(run: Callable[[], Tensor]) -> float:
    """Return how long a forward takes until the device has its last law."""
    begin = time.perf_counter()
    run()[-1].argmax().item()
    return time.perf_counter() - begin


def _draw(outcomes: Sequence[_Outcome], shape: Shape) -> None:
    """Draw the tokens of steps and drafts that are shaped alike, all at once."""
    counts = [len(outcome.logits) for outcome in outcomes]
    law = sampling_law(torch.cat([outcome.logits for outcome in outcomes]), shape)
    keys = [
        (outcome.job.options.seed, outcome.job.request.base + place, outcome.job.request.decode_number)
        for outcome, count in zip(outcomes, counts, strict=True)
        for place in range(count)
    ]
    seeds, positions, steps = zip(*keys, strict=True)
    noise = Keys(seeds, torch.tensor(positions)[:, None], steps).noise(Stream.TOKEN)[:, 0]
    tokens = torch.split(draw(law, noise.to(law.device)).cpu(), counts)
    for outcome, own_law, own_tokens in zip(outcomes, torch.split(law, counts), tokens, strict=True):
        _take(outcome, own_tokens, own_law)


def _draw_in_turn(outcome: _Outcome) -> None:
    """Draw the tokens of a step or a draft whose laws depend on the tokens before them."""
    noise = outcome.job.noise(len(outcome.logits), Stream.TOKEN).to(outcome.logits.device)
    _take(outcome, *outcome.job.text_law.draw(outcome.logits, noise))


def _take(outcome: _Outcome, tokens: Tensor, law: Tensor) -> None:
    """Let a request have what was drawn for its step or its draft, from laws (B, V)."""
    job, logits = outcome.job, outcome.logits
    if outcome.kind == "step":
        job.request.take_next(int(tokens[0]))
        job.transcript.explain(logits)
    else:
        job.proposal = LinearProposal(law, logits[0])
        job.request.propose(tokens.tolist())


def _verify(job: Job, logits: Tensor) -> Verdict:
    """Accept the drafts that follow the AR law, and the verifier's own token after them."""
    request, proposal = job.request, job.proposal
    assert proposal is not None  # a draft came before
    length, device = len(request.drafts), logits.device
    logits = torch.cat([proposal.next_logits[None], logits])
    verdict = accept(
        torch.tensor(request.drafts, device=device),
        proposal.law,
        job.text_law.laws(logits, request.drafts),
        job.noise(length, Stream.ACCEPT).to(device),
        job.noise(length + 1, Stream.RESIDUAL).to(device),
    )
    job.proposal = None
    request.accept(verdict.num_accepted, verdict.next_token)
    job.transcript.explain(logits)
    return Verdict(length, verdict.num_accepted)


def _speculate(outcome: _Outcome) -> Verdict | None:
    """Take what a draft or the verification of a tree settles, and the next tree where drafts for it came along.

    What the planner has not ordered is of no kind that it knows, and gets no verdict.
    """
    job, request = outcome.job, outcome.job.request
    step = request.decode_number
    verdict: Verdict | None = None
    if outcome.kind == "draft":
        request.propose(())
        offered, next_logits = outcome.logits, outcome.logits[0]
    else:
        assert job.tree is not None  # a draft came before
        tree, settled = job.tree, job.tree.settle(outcome.logits, job.moment(step))
        job.tree, next_logits = None, None
        if job.is_planned:
            verdict = Verdict(
                1 + max(node.depth for node in tree.tree.nodes),
                len(settled.accepted),
                branching=job.drafted_by.branching,
                ahead=tree.next_logits is None,
                num_predrafts=job.drafted_by.num_predrafts if tree.pre_drafts else 0,
                hit=settled.offered is not None,
            )
        request.accept_path(settled.accepted, settled.next_token, num_stored=settled.num_stored)
        job.transcript.explain(settled.logits)
        if settled.offered is None or request.is_finished:
            return verdict
        offered = settled.offered
    job.tree, job.drafted_by = propose(offered, next_logits, job.moment(step)), job.way
    request.plan_verification(job.tree.trunk, num_beside=job.tree.num_beside, needs_law=next_logits is None)
    return verdict
