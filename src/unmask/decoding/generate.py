"""The decoding loop: one request in three modes, to be read, and to be what faster code must equal."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unmask.decoding.admission import admit, default_sampler, gaussian_sampler
from unmask.decoding.candidates import Keys, Shape, draw, sampling_law
from unmask.decoding.canvas import Canvas
from unmask.decoding.decision import Drift, decide
from unmask.decoding.gaussian_sampling import Sharpened, gaussian_sampling
from unmask.decoding.generation import Event, Generation, Phase, Snapshot
from unmask.decoding.options import DEFAULT_GAUSSIAN_STEPS, Mode, Options
from unmask.decoding.sampler import Sampler
from unmask.decoding.samplers import Unmask
from unmask.decoding.sampling import Sampled, sampling
from unmask.decoding.speculation import accept
from unmask.decoding.transcript import Transcript
from unmask.diffusion.denoising import DenoiserFunction
from unmask.model.cache import KVCache
from unmask.model.denoiser import Denoiser, Draft
from unmask.rng import Stream
from unmask.tokenizer import Tokenizer

PREFILL_CHUNK = 512
"""Most prompt tokens in one forward."""


def generate(
    denoiser: Denoiser, tokenizer: Tokenizer, prompt_ids: Sequence[int], options: Options
) -> Generation:
    """Run `stream` to its end and return the generation."""
    *_, generation = stream(denoiser, tokenizer, prompt_ids, options)
    assert isinstance(generation, Generation)  # stream's promise
    return generation


def stream(
    denoiser: Denoiser, tokenizer: Tokenizer, prompt_ids: Sequence[int], options: Options
) -> Iterator[Event]:
    """Yield a snapshot after every forward, and the generation last.

    What the options leave open takes the defaults of `Options.resolve`, without stop tokens. Raises
    UsageError, before the first forward, for a prompt that is empty or too long, and for a mode the model
    does not have.
    """
    request = _Request.open(
        denoiser,
        tokenizer,
        prompt_ids,
        options.resolve(block_length=None, stop_token_ids=(), sampler=default_sampler(denoiser)),
    )
    return _timed(request)


def _timed(request: "_Request") -> Iterator[Event]:
    """Run the request, timing what happens here and not what the caller does between two events."""
    snapshots = _run(request)
    seconds = {"prefill": 0.0, "decode": 0.0}
    while True:
        begin = time.perf_counter()
        snapshot = next(snapshots, None)
        if snapshot is None:
            break
        seconds["prefill" if snapshot.phase == "prefill" else "decode"] += time.perf_counter() - begin
        yield snapshot
    yield request.generation(seconds)


def _run(request: "_Request") -> Iterator[Snapshot]:
    if not request.denoiser.full_attention:
        yield from _prefill(request)
    yield from _LOOPS[request.options.mode](request)


def _prefill(request: "_Request") -> Iterator[Snapshot]:
    """Run the prompt causally in chunks; the law after its last token, where the model has one, gives the first one."""
    prompt = torch.tensor(request.prompt_ids)
    for begin in range(0, len(prompt), PREFILL_CHUNK):
        chunk = prompt[begin : begin + PREFILL_CHUNK]
        has_law = begin + len(chunk) == len(prompt) and request.denoiser.predicts_next
        request.num_forwards += 1
        logits = request.denoiser.causal(chunk, begin, request.cache, num_heads=int(has_law))
        if has_law:
            request.append_next(logits)
        yield request.snapshot("prefill")


def _autoregressive(request: "_Request") -> Iterator[Snapshot]:
    """One token per causal forward of the seed."""
    while not request.transcript.is_finished:
        yield request.step()


def _diffusion(request: "_Request") -> Iterator[Snapshot]:
    """Fill a canvas after the decided tokens, commit it with a causal forward, take the next token from its law.

    What later blocks see is the causal stream's keys and values alone. Nothing follows the last block, so it is not
    committed. A model that predicts no next tokens needs no forward for the commit: the next canvas's first forward
    stores the block.
    """
    transcript = request.transcript
    fill = _by_rule if request.sampler is None else _by_sampler
    if request.denoiser.vectors is not None:
        fill = _by_gaussian
    while not transcript.is_finished:
        start = request.num_decided
        tokens = yield from fill(request, start)
        if request.denoiser.predicts_next and not transcript.is_finished:
            request.append_next(request.causal(tokens, start, num_heads=1))
            yield request.snapshot("commit")


def _by_rule(request: "_Request", start: int) -> Generator[Snapshot, None, Tensor]:
    """Commit after every forward what the rule chooses; return the canvas's tokens."""
    transcript, options = request.transcript, request.options
    num_before, canvas = len(transcript.token_ids), request.blank_canvas(transcript.room)
    assert options.rule is not None  # resolve
    drift, steps_left = Drift(options.rule.memory), options.num_steps
    belief: Tensor | None = None
    while canvas.open.any() and not transcript.is_finished:
        draft = request.draft(canvas, start, belief)
        belief = draft.logits[: len(canvas.tokens), : request.denoiser.vocab_size].softmax(-1)
        canvas = _denoise(request, canvas, draft, start, steps_left, drift)
        steps_left = None if steps_left is None else steps_left - 1
        for place in range(len(transcript.token_ids) - num_before, int(canvas.num_leading)):
            transcript.append(int(canvas.tokens[place]), int(canvas.decided_at[place]))
        yield request.snapshot("denoise", canvas, num_before)
    return canvas.tokens


def _by_sampler(request: "_Request", start: int) -> Generator[Snapshot, None, Tensor]:
    """Run the sampler on a canvas of noise; nothing is decided before it ends. Return the canvas's tokens."""
    options, process, sampler = request.options, request.denoiser.process, request.sampler
    assert process is not None  # admit
    assert sampler is not None
    tokens, free = request.free_canvas()
    length = int(free.sum())
    states = sampling(
        request.denoise(start),
        process,
        tokens,
        free,
        sampler,
        steps=options.num_steps or length,
        seeds=(options.seed,),
        shape=request.shape,
        start=start + length - tokens.shape[1],
    )

    def is_open(state: Sampled) -> Tensor:
        return process.is_masked(state.tokens) if process.masks else state.noisy

    return (yield from _follow(request, states, length, is_open))


def _by_gaussian(request: "_Request", start: int) -> Generator[Snapshot, None, Tensor]:
    """Let a whole canvas of a continuous model sharpen out of noise; what is shown before the end are proposals."""
    options, denoiser = request.options, request.denoiser.informed()
    tokens, free = request.free_canvas()
    device = request.denoiser.transformer.device
    states = gaussian_sampling(
        denoiser,
        denoiser.process,
        tokens.to(device),
        free.to(device),
        gaussian_sampler(options),
        steps=options.num_steps or DEFAULT_GAUSSIAN_STEPS,
        seeds=(options.seed,),
        shape=request.shape,
    )
    return (yield from _follow(request, states, int(free.sum()), lambda state: torch.zeros_like(state.noisy)))


def _follow(
    request: "_Request", states: Iterator[Sampled], length: int, is_open: Callable[[Sampled], Tensor]
) -> Generator[Snapshot, None, Tensor]:
    """Show and count every forward of a sampler; decide the last `length` tokens of the row it ends with."""
    transcript = request.transcript
    num_before, num_forwards = len(transcript.token_ids), request.num_decode_forwards
    for state in states:
        request.num_forwards += int(state.num_forwards) - (request.num_decode_forwards - num_forwards)
        request.num_decode_forwards = num_forwards + int(state.num_forwards)
        written, unsure, steps = (
            part[0, -length:] for part in (state.tokens, is_open(state), state.decided_at)
        )
        canvas = Canvas(written, unsure, steps.clamp_min(1) + num_forwards)
        if int(state.num_forwards):
            confidence = state.confidence[0, -length:].tolist() if isinstance(state, Sharpened) else ()
            yield replace(request.snapshot("denoise", canvas, num_before), confidence=tuple(confidence))
    for token, step in zip(written.tolist(), canvas.decided_at.tolist(), strict=True):
        transcript.append(token, step)
    return written


def _denoise(
    request: "_Request", canvas: Canvas, draft: Draft, start: int, steps_left: int | None, drift: Drift
) -> Canvas:
    """Draw a candidate at each open position of a canvas from `start` on; commit those the rule chooses."""
    options, step = request.options, request.num_decode_forwards
    assert options.rule is not None  # resolve
    length = len(canvas.tokens)
    logits = draft.logits[None, :length]
    decision = decide(
        options.rule,
        logits,
        canvas.open[None],
        options,
        Keys.of_one(options.seed, range(start, start + length), step),
        steps_left=(steps_left,),
        changes=drift.update(logits),
    )
    return canvas.commit(decision.chosen[0], decision.candidates.tokens[0], step)


def _speculative(request: "_Request") -> Iterator[Snapshot]:
    """Draft a canvas in one forward, verify it causally in the next; tokens follow the AR law.

    The verifier's last token always comes along, so a cycle drafts no more than fits beside it.
    """
    transcript, options = request.transcript, request.options
    while not transcript.is_finished:
        if transcript.room == 1:
            yield request.step()
            continue
        start = request.num_decided
        canvas = request.blank_canvas(transcript.room - 1)
        length = len(canvas.tokens)
        draft = request.draft(canvas, start)
        places = range(start, start + length + 1)
        draft_law = sampling_law(draft.logits[:length], options)
        drafts = draw(draft_law, request.noise(places[:length], Stream.TOKEN))
        proposal = canvas.commit(canvas.open, drafts.cpu(), request.num_decode_forwards)
        yield request.snapshot("draft", proposal)

        logits = request.causal(drafts, start, num_heads=length)
        verifier_law = sampling_law(torch.cat([draft.next_logits[None], logits]), options)
        verdict = accept(
            drafts,
            draft_law,
            verifier_law,
            request.noise(places[:length], Stream.ACCEPT),
            request.noise(places, Stream.RESIDUAL),
        )
        request.accepted_lengths.append(verdict.num_accepted)
        for token in [*drafts[: verdict.num_accepted].tolist(), verdict.next_token]:
            transcript.append(token, request.num_decode_forwards)
        yield request.snapshot("verify")


_LOOPS: dict[Mode, Callable[["_Request"], Iterator[Snapshot]]] = {
    "ar": _autoregressive,
    "diffusion": _diffusion,
    "speculative": _speculative,
}


@dataclass
class _Request:
    """The state of one generation. Its last decided token is the seed: not yet stored, in a model with next tokens."""

    denoiser: Denoiser
    prompt_ids: tuple[int, ...]
    options: Options
    transcript: Transcript
    cache: KVCache
    num_forwards: int = 0
    num_decode_forwards: int = 0
    accepted_lengths: list[int] = field(default_factory=list)

    @classmethod
    def open(
        cls, denoiser: Denoiser, tokenizer: Tokenizer, prompt_ids: Sequence[int], options: Options
    ) -> "_Request":
        room = admit(denoiser, prompt_ids, options)
        transcript = Transcript(tokenizer, options, room=room)
        capacity = 0 if denoiser.full_attention else len(prompt_ids) + room
        return cls(denoiser, tuple(prompt_ids), options, transcript, denoiser.new_cache(capacity))

    @property
    def decided(self) -> list[int]:
        """Prompt and generated tokens together."""
        return [*self.prompt_ids, *self.transcript.token_ids]

    @property
    def num_decided(self) -> int:
        """How many they are: the position of the next token."""
        return len(self.prompt_ids) + len(self.transcript.token_ids)

    @property
    def shape(self) -> Shape:
        """How the model's laws are cut."""
        return Shape(self.options.temperature, self.options.top_k, self.options.top_p)

    @property
    def sampler(self) -> Sampler | None:
        """What fills the canvases, where the loop by rule does not: it needs masks, and a causal stream."""
        options, denoiser = self.options, self.denoiser
        if isinstance(options.sampler, Sampler):
            return options.sampler
        if denoiser.full_attention or denoiser.mask_token_id is None:
            return None if options.rule is None else Unmask(options.rule)
        return None

    def blank_canvas(self, room: int) -> Canvas:
        """Return an open canvas of the block length, or of `room` when that is less."""
        assert self.options.block_length is not None  # resolve
        assert self.denoiser.mask_token_id is not None  # open
        return Canvas.blank(min(self.options.block_length, room), self.denoiser.mask_token_id)

    def free_canvas(self) -> tuple[Tensor, Tensor]:
        """Return a row (1, L) of free tokens, and which ones are free: what a whole sequence shows before is given."""
        assert self.options.block_length is not None  # resolve
        length = min(self.options.block_length, self.transcript.room)
        given = self.decided if self.denoiser.full_attention else []
        tokens = torch.tensor([*given, *[0] * length])[None]
        return tokens, torch.arange(tokens.shape[1])[None] >= len(given)

    def causal(self, tokens: Tensor, start: int, *, num_heads: int) -> Tensor:
        """Run tokens after the prompt from `start` on: (num_heads, V) logits."""
        self._count()
        return self.denoiser.causal(tokens, start, self.cache, num_heads=num_heads)

    def draft(self, canvas: Canvas, start: int, belief: Tensor | None = None) -> Draft:
        """Run the canvas at `start`, and before it the last decided token and any other that is not stored yet."""
        self._count()
        share = canvas.open.double().mean()
        return self._run_canvas(canvas.tokens, start, share, belief)

    def denoise(self, start: int) -> DenoiserFunction:
        """Return the denoiser of a canvas at `start`: of the whole sequence where the model sees it whole."""
        if self.denoiser.full_attention:
            return self.denoiser.whole

        def run(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
            draft = self._run_canvas(tokens[0], start, time[0], None if belief is None else belief[0])
            return draft.logits[None, : tokens.shape[1], : self.denoiser.vocab_size]

        return run

    def _run_canvas(self, tokens: Tensor, start: int, time: Tensor, belief: Tensor | None) -> Draft:
        first = min(self.cache.lengths[0], start - 1)
        pending = self.decided[first:start]
        return self.denoiser.draft(pending, tokens, first, self.cache, time=time, belief=belief)

    def step(self) -> Snapshot:
        """Decide one token with one causal forward of the seed."""
        seed = torch.tensor(self.transcript.token_ids[-1:])
        self.append_next(self.causal(seed, self.num_decided - 1, num_heads=1))
        return self.snapshot("step")

    def append_next(self, logits: Tensor) -> None:
        """Draw the next token from the (1, V) logits after the last one."""
        law = sampling_law(logits, self.options)
        token = draw(law, self.noise([self.num_decided], Stream.TOKEN))
        self.transcript.append(int(token[0]), self.num_decode_forwards)

    def noise(self, positions: Sequence[int], stream: Stream) -> Tensor:
        """Return the uniforms of some positions at the present forward: (M,) float64."""
        noise = Keys.of_one(self.options.seed, positions, self.num_decode_forwards).noise(stream)[0]
        return noise.to(self.denoiser.transformer.device)

    def snapshot(self, phase: Phase, canvas: Canvas | None = None, num_before: int | None = None) -> Snapshot:
        """Describe the present state; the canvas, if any, begins after `num_before` tokens (default: all)."""
        tokens: tuple[int | None, ...] = ()
        steps: tuple[int | None, ...] = ()
        if canvas is not None:
            rows = zip(canvas.tokens.tolist(), canvas.decided_at.tolist(), canvas.open.tolist(), strict=True)
            pairs = [(None, None) if is_open else (token, step) for token, step, is_open in rows]
            tokens, steps = tuple(token for token, _ in pairs), tuple(step for _, step in pairs)
        done = self.transcript.token_ids[:num_before]
        decided_at = (*self.transcript.decided_at[:num_before], *steps)
        return Snapshot(phase, tuple(done), tokens, decided_at, self.num_forwards)

    def generation(self, seconds: dict[str, float]) -> Generation:
        """Return the result of a finished request."""
        return Generation.of(
            self.transcript,
            self.options,
            prompt_tokens=len(self.prompt_ids),
            num_forwards=self.num_forwards,
            num_decode_forwards=self.num_decode_forwards,
            accepted_lengths=self.accepted_lengths,
            seconds=seconds,
        )

    def _count(self) -> None:
        self.num_forwards += 1
        self.num_decode_forwards += 1
