"""The engine: requests come and go, and each step is one forward for all that run."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unmask.decoding.admission import admit, default_sampler
from unmask.decoding.generate import Generation
from unmask.decoding.options import Options
from unmask.decoding.transcript import Transcript
from unmask.engine.paged_cache import PagedCache
from unmask.engine.pages import PagePool, PageTable
from unmask.engine.request import Request
from unmask.engine.runner import Job, Runner
from unmask.engine.scheduler import Scheduler
from unmask.errors import UsageError
from unmask.model.denoiser import Denoiser
from unmask.tokenizer import Tokenizer

DEFAULT_PAGE_SIZE = 16
DEFAULT_TOKEN_BUDGET = 512
DEFAULT_MAX_REQUESTS = 32


@dataclass(frozen=True)
class Progress:
    """What a forward did for a request: the tokens it decided, and the canvas after them, `None` where open.

    `drafts`: what is proposed and not verified yet.
    """

    request_id: int
    token_ids: tuple[int, ...]
    canvas: tuple[int | None, ...]
    drafts: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    """A request's generation; `seconds` has a phase "waiting" before the other two."""

    request_id: int
    generation: Generation


Event = Progress | Finished


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
    `max_requests`: most that run at once; others wait.
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
        self._jobs: dict[int, Job] = {}
        self._watches: dict[int, _Watch] = {}
        self._num_added = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, prompt_ids: Sequence[int], options: Options) -> int:
        """Take a request, to run as soon as there is room, and return its id.

        What the options leave open takes the defaults of `Options.resolve`, without stop tokens. Raises UsageError
        for what the model or the engine cannot do, and then takes nothing.
        """
        options = options.resolve(
            block_length=None, stop_token_ids=(), sampler=default_sampler(self._denoiser)
        )
        room = admit(self._denoiser, prompt_ids, options)
        if options.sampler is not None or (options.rule is not None and self._denoiser.mask_token_id is None):
            what = f"sampler {options.sampler}" if options.sampler else "a model without a mask token"
            raise UsageError(f"{what}: the engine fills masks by rules", "use decoding.generate")
        transcript = Transcript(self._tokenizer, options, room=room)
        request = Request(
            self._num_added,
            tuple(prompt_ids),
            transcript,
            PageTable(self.scheduler.pool),
            options.mode,
            block_length=options.block_length or 0,
            num_steps=options.num_steps,
            looks_back=self._denoiser.logit_shift,
            predicts_next=self._denoiser.predicts_next,
        )
        self.scheduler.add(request)
        self._jobs[request.number] = Job(request, options, transcript)
        self._watches[request.number] = _Watch(time.perf_counter())
        self._num_added += 1
        return request.number

    def abort(self, request_id: int) -> None:
        """Forget a request and release its pages; raises UsageError when it is finished, aborted or unknown."""
        if request_id not in self._jobs:
            raise UsageError(f"request {request_id} is not here: it has finished, was aborted or never added")
        self.scheduler.remove(self._jobs[request_id].request)
        del self._jobs[request_id], self._watches[request_id]

    def step(self) -> list[Event]:
        """Run one forward and return what came of it, oldest request first; nothing where there is no work."""
        batch = self.scheduler.schedule()
        if not batch.shares:
            return []
        now = time.perf_counter()
        for share in batch.shares:
            watch = self._watches[share.request.number]
            watch.started = now if watch.started is None else watch.started
        self._runner.run(batch.shares, self._jobs)
        events: list[Event] = []
        for share in batch.shares:
            if share.settles:
                events += self._tell(self._jobs[share.request.number])
        return events

    def generate(self, requests: Iterable[tuple[Sequence[int], Options]]) -> list[Generation]:
        """Run prompts with their options to their ends, together, and return the generations in the same order."""
        if self.has_work:
            raise UsageError("the engine has requests already", "let them finish, or step and add yourself")
        ids = [self.add(prompt, options) for prompt, options in requests]
        done: dict[int, Generation] = {}
        while len(done) < len(ids):
            done |= {e.request_id: e.generation for e in self.step() if isinstance(e, Finished)}
        return [done[number] for number in ids]

    def check(self) -> None:
        """Prove that pages add up and no request is lost; raises AssertionError."""
        self.scheduler.check()
        here = [request.number for request in (*self.scheduler.running, *self.scheduler.waiting)]
        assert sorted(here) == sorted(self._jobs) == sorted(self._watches)

    def _tell(self, job: Job) -> list[Event]:
        request, watch, now = job.request, self._watches[job.request.number], time.perf_counter()
        tokens = tuple(job.transcript.token_ids[watch.num_told :])
        watch.num_told += len(tokens)
        if tokens and watch.decided is None:
            watch.decided = now
        canvas = () if request.is_finished else tuple(request.canvas[request.num_leading :])
        drafts = () if request.is_finished else tuple(request.drafts)
        events: list[Event] = [Progress(request.number, tokens, canvas, drafts)]
        if request.is_finished:
            self.scheduler.remove(request)
            del self._jobs[request.number], self._watches[request.number]
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
