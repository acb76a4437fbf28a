"""The engine: requests come and go, and each step is one forward for all that run."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unmask.decoding.admission import admit, default_sampler
from unmask.decoding.generation import Generation
from unmask.decoding.logprobs import TokenLogprobs
from unmask.decoding.options import Options
from unmask.decoding.text_law import TextLaw
from unmask.decoding.transcript import Transcript
from unmask.engine.curve_file import CurveFile
from unmask.engine.job import Job
from unmask.engine.paged_cache import PagedCache
from unmask.engine.pages import PagePool, PageTable
from unmask.engine.planner import Choice, Planner
from unmask.engine.request import Request
from unmask.engine.runner import Runner
from unmask.engine.scheduler import Scheduler
from unmask.errors import FailureError, UsageError
from unmask.model.denoiser import Denoiser
from unmask.tokenizer import Tokenizer

DEFAULT_PAGE_SIZE = 16
DEFAULT_TOKEN_BUDGET = 512
DEFAULT_MAX_REQUESTS = 32

_CALIBRATION_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Progress:
    """What a forward did for a request: the tokens it decided, and the canvas after them, `None` where open.

    `drafts`: what is proposed and not verified yet. `logprobs`: of the tokens, where `num_logprobs` asked for them.
    """

    request_id: int
    token_ids: tuple[int, ...]
    canvas: tuple[int | None, ...]
    drafts: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A request's generation; `seconds` has a phase "waiting" before the other two."""

    request_id: int
    generation: Generation


@dataclass(frozen=True)
class Failed:
    """A request that its constraint left without a next token; it is gone."""

    request_id: int
    error: FailureError


Event = Progress | Finished | Failed


@dataclass(eq=False)
class _Watch:
    """When a request came, first ran and first decided, and how many of its tokens have been told."""

    added: float
    started: float | None = None
    decided: float | None = None
    num_told: int = 0

    def seconds(self, now: float) -> dict[str, float]:
        started = now if self.started is None else self.started
        decided = now if self.decided is None else self.decided
        return {"waiting": started - self.added, "prefill": decided - started, "decode": now - decided}


class Engine:
    """Many requests over one page pool, any mode, one forward at a time.

    What a request writes does not depend on what runs beside it: it is what `decoding.generate` writes, up to the
    rounding of sums of other shapes.

    `num_pages` pages of `page_size` positions hold keys and values. `token_budget`: most tokens of a forward.
    `max_requests`: most that run at once; others wait. `planner`: decides for planned requests; it learns from every
    forward. `choice` is its last one.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tokenizer: Tokenizer,
        *,
        num_pages: int,
        page_size: int = DEFAULT_PAGE_SIZE,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        max_requests: int = DEFAULT_MAX_REQUESTS,
        planner: Planner | None = None,
    ) -> None:
        if denoiser.full_attention:
            raise UsageError(
                "this model sees whole texts both ways and has nothing to keep in pages",
                "use decoding.generate",
            )
        model = denoiser.transformer
        self._denoiser, self._tokenizer = denoiser, tokenizer
        pool = PagePool(num_pages, page_size)
        self.scheduler = Scheduler(pool, token_budget=token_budget, max_requests=max_requests)
        cache = PagedCache(
            model.config, num_pages=num_pages, page_size=page_size, dtype=model.dtype, device=model.device
        )
        self._runner = Runner(denoiser, cache)
        self.planner = Planner() if planner is None else planner
        self.planner.most_open = token_budget - 1
        # Where only rows are exact a tree's candidates attend together, and a greedy tie may turn.
        self.planner.plans_trees = model.exact or not model.exact_rows
        self.choice: Choice | None = None
        self._jobs: dict[int, Job] = {}
        self._watches: dict[int, _Watch] = {}
        self._num_added = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, prompt_ids: Sequence[int], options: Options) -> int:
        """Take a request, to run as soon as there is room, and return its id.

        What the options leave open takes the defaults of `Options.resolve`, without stop tokens. In mode auto the
        planner chooses between steps and drafts of at most `block_length`, with or without trees and pre-drafts,
        whatever is faster with all that runs. The law stays the autoregressive one, and so, up to rounding, does greedy
        text; which tokens are drawn from it depends on the choices. Of a model that is `exact` no choice changes a bit,
        and of one of `exact_rows` only steps and linear drafts are chosen, so that none does.

        Raises UsageError for what the model or the engine cannot do, and then takes nothing.
        """
        options = options.resolve(
            block_length=None, stop_token_ids=(), sampler=default_sampler(self._denoiser)
        )
        room = admit(self._denoiser, prompt_ids, options)
        if options.sampler is not None or (options.rule is not None and self._denoiser.mask_token_id is None):
            what = f"sampler {options.sampler}" if options.sampler else "a model without a mask token"
            raise UsageError(f"{what}: the engine fills masks by rules", "use decoding.generate")
        if options.suffix_ids:
            raise UsageError(
                "suffix_ids: the engine's canvases end the text, none is a hole in it",
                "use decoding.generate",
            )
        transcript = Transcript(self._tokenizer, options, room=room)
        text_law = TextLaw.of(options, transcript.token_ids, self._tokenizer)
        request = Request(
            self._num_added,
            tuple(prompt_ids),
            transcript,
            PageTable(self.scheduler.pool),
            "speculative" if options.mode == "auto" else options.mode,
            block_length=options.block_length or 0,
            most_beside=0 if options.is_linear else options.most_proposed,
            num_steps=options.num_steps,
            looks_back=self._denoiser.logit_shift,
            predicts_next=self._denoiser.predicts_next,
        )
        self.scheduler.add(request)
        self._jobs[request.number] = Job(request, options, transcript, text_law)
        self._watches[request.number] = _Watch(time.perf_counter())
        self._num_added += 1
        return request.number

    def abort(self, request_id: int) -> None:
        """Forget a request and release its pages; raises UsageError when it is finished, aborted or unknown."""
        if request_id not in self._jobs:
            raise UsageError(f"request {request_id} is not here: it has finished, was aborted or never added")
        self._forget(self._jobs[request_id].request)

    def step(self) -> list[Event]:
        """Run one forward and return what came of it, oldest request first; nothing where there is no work."""
        self._plan()
        batch = self.scheduler.schedule()
        if not batch.shares:
            return []
        now = time.perf_counter()
        for share in batch.shares:
            watch = self._watches[share.request.number]
            watch.started = now if watch.started is None else watch.started
        num_tokens = batch.num_tokens
        others = [share for share in batch.shares if not self._jobs[share.request.number].is_planned]
        other_tokens = sum(share.num_tokens for share in others)
        num_trees = sum(self._jobs[share.request.number].has_tree for share in batch.shares)
        num_canvases = sum(
            share.settles and share.request.kind in ("draft", "denoise") for share in batch.shares
        )
        for number, verdict in self._runner.run(batch.shares, self._jobs).items():
            self.planner.observe_verdict(number, verdict)
        other_decided = sum(self._num_untold(share.request) for share in others)
        self.planner.observe_forward(
            num_tokens,
            time.perf_counter() - now,
            num_canvases=num_canvases,
            num_trees=num_trees,
            other_tokens=other_tokens,
            other_decided=other_decided,
        )
        events: list[Event] = []
        for share in batch.shares:
            if share.settles:
                events += self._tell(self._jobs[share.request.number])
        return events

    def calibrate(self, file: CurveFile | None = None) -> None:
        """Measure what forwards of some sizes cost here, for the planner; takes about as long as a hundred tokens.

        With a file, what was measured before is read from it, and what is measured now is kept there. What the adapter
        on a draft costs is always measured.
        """
        curve = None if file is None else file.read()
        if curve is not None:
            self.planner.curve = curve
        else:
            most = min(self.scheduler.token_budget, self._denoiser.transformer.config.max_positions)
            sizes = [size for size in _CALIBRATION_SIZES if size <= most]
            for tokens, seconds in self._runner.measure(sizes):
                self.planner.curve.observe(tokens, seconds)
            if file is not None:
                file.write(self.planner.curve)
        if self._denoiser.mask_token_id is not None:
            for tokens, seconds in self._runner.measure_drafts():
                self.planner.canvas.observe(seconds - self.planner.curve.seconds(tokens))

    def generate(self, requests: Iterable[tuple[Sequence[int], Options]]) -> list[Generation]:
        """Run prompts with their options to their ends, together, and return the generations in the same order.

        Raises what `add` raises, and FailureError when a constraint leaves one without a next token. Whatever is
        raised, none of them stays behind.
        """
        if self.has_work:
            raise UsageError("the engine has requests already", "let them finish, or step and add yourself")
        ids: list[int] = []
        done: dict[int, Generation] = {}
        try:
            for prompt, options in requests:
                ids.append(self.add(prompt, options))
            while len(done) < len(ids):
                for event in self.step():
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Finished):
                        done[event.request_id] = event.generation
        finally:
            for number in self._jobs.keys() & ids:
                self.abort(number)
        return [done[number] for number in ids]

    def check(self) -> None:
        """Prove that pages add up and no request is lost; raises AssertionError."""
        self.scheduler.check()
        here = [request.number for request in (*self.scheduler.running, *self.scheduler.waiting)]
        assert sorted(here) == sorted(self._jobs) == sorted(self._watches)

    def _tell(self, job: Job) -> list[Event]:
        if job.failure is not None:
            self._forget(job.request)
            return [Failed(job.request.number, job.failure)]
        request, watch, now = job.request, self._watches[job.request.number], time.perf_counter()
        tokens = tuple(job.transcript.token_ids[watch.num_told :])
        logprobs = tuple(job.transcript.logprobs[watch.num_told :])
        watch.num_told += len(tokens)
        if tokens and watch.decided is None:
            watch.decided = now
        canvas = () if request.is_finished else tuple(request.canvas[request.num_leading :])
        drafts = () if request.is_finished else tuple(request.drafts)
        events: list[Event] = [Progress(request.number, tokens, canvas, drafts, logprobs)]
        if request.is_finished:
            self._forget(request)
            generation = Generation.of(
                job.transcript,
                job.options,
                prompt_tokens=len(request.prompt),
                num_forwards=request.num_forwards,
                num_decode_forwards=request.num_decode_forwards,
                accepted_lengths=request.accepted_lengths,
                seconds=watch.seconds(now),
            )
            events.append(Finished(request.number, generation))
        return events

    def _forget(self, request: Request) -> None:
        self.scheduler.remove(request)
        self.planner.forget(request.number)
        del self._jobs[request.number], self._watches[request.number]

    def _plan(self) -> None:
        planned = {
            request: job.options.block_length or 0
            for request in self.scheduler.running
            if (job := self._jobs[request.number]).is_planned
        }
        if not planned:
            self.choice = None
        elif free := [request for request in planned if self._is_free(request)]:
            self.choice = self.planner.plan(planned)
            for request in free:
                self._jobs[request.number].follow(self.choice.ways[request.number])

    def _is_free(self, request: Request) -> bool:
        """Say whether the planner may change how a request drafts next."""
        return request.is_between or self._jobs[request.number].tree is not None

    def _num_untold(self, request: Request) -> int:
        return len(request.written.token_ids) - self._watches[request.number].num_told
