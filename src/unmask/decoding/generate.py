"""The decoding loop: one request in three modes, to be read, and to be what faster code must equal."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmask.decoding.admission import default_sampler, gaussian_sampler
from unmask.decoding.candidates import Keys
from unmask.decoding.canvas import Canvas
from unmask.decoding.decision import Drift, decide_after
from unmask.decoding.gaussian_sampling import Sharpened, gaussian_sampling
from unmask.decoding.generation import Event, Generation, Snapshot
from unmask.decoding.mode import MODES, Mode
from unmask.decoding.options import DEFAULT_GAUSSIAN_STEPS, Options
from unmask.decoding.request import Request
from unmask.decoding.sampling import Sampled, sampling
from unmask.decoding.speculation import accept
from unmask.decoding.tree_speculation import speculate
from unmask.diffusion.denoising import DenoiserFunction
from unmask.errors import UsageError
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
    if options.mode == "auto":
        raise UsageError(
            "mode 'auto': nothing is planned for one request by itself",
            f"choose from {', '.join(MODES)}, or use the engine",
        )
    request = Request.open(
        denoiser,
        tokenizer,
        prompt_ids,
        options.resolve(block_length=None, stop_token_ids=(), sampler=default_sampler(denoiser)),
    )
    return _timed(request)


def _timed(request: Request) -> Iterator[Event]:
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


def _run(request: Request) -> Iterator[Snapshot]:
    if not request.denoiser.full_attention:
        yield from _prefill(request)
    yield from _LOOPS[request.options.mode](request)


def _prefill(request: Request) -> Iterator[Snapshot]:
    """Run the prompt causally in chunks; the law after its last token, where the model has one, gives the first one."""
    prompt = torch.tensor(request.prompt_ids)
    for begin in range(0, len(prompt), PREFILL_CHUNK):
        chunk = prompt[begin : begin + PREFILL_CHUNK]
        is_last = begin + len(chunk) == len(prompt)
        has_law = is_last and request.denoiser.predicts_next and not request.fills_hole
        request.num_forwards += 1
        logits = request.denoiser.causal(chunk, begin, request.cache, num_heads=int(has_law))
        if has_law:
            request.append_next(logits)
        yield request.snapshot("prefill")


def _autoregressive(request: Request) -> Iterator[Snapshot]:
    """One token per causal forward of the seed."""
    while not request.transcript.is_finished:
        yield request.step()


def _diffusion(request: Request) -> Iterator[Snapshot]:
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


def _by_rule(request: Request, start: int) -> Generator[Snapshot, None, Tensor]:
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


def _by_sampler(request: Request, start: int) -> Generator[Snapshot, None, Tensor]:
    """Run the sampler on a canvas of noise; nothing is decided before it ends. Return the canvas's tokens."""
    options, process, sampler = request.options, request.denoiser.process, request.sampler
    assert process is not None  # admit
    assert sampler is not None
    tokens, free = request.free_canvas()
    length, first = int(free.sum()), int(free[0].long().argmax())
    shape = tuple(tokens.shape)
    states = sampling(
        _led(request, request.denoise(start), shape, lambda source: process.prior(shape, source), 1.0),
        process,
        tokens,
        free,
        sampler,
        steps=options.num_steps or length,
        seeds=(options.seed,),
        shape=options.shape,
        start=start - first,
    )

    def is_open(state: Sampled) -> Tensor:
        return process.is_masked(state.tokens) if process.masks else state.noisy

    return (yield from _follow(request, states, slice(first, first + length), is_open))


def _by_gaussian(request: Request, start: int) -> Generator[Snapshot, None, Tensor]:
    """Let a whole canvas of a continuous model sharpen out of noise; what is shown before the end are proposals."""
    options, informed = request.options, request.denoiser.informed()
    tokens, free = request.free_canvas()
    device, process = request.denoiser.transformer.device, informed.process
    shape, (_, high) = tuple(tokens.shape), process.schedule.ends()

    def noise(source: torch.Generator) -> Tensor:
        return torch.randn(*shape, process.size, generator=source).to(process.embeddings)

    states = gaussian_sampling(
        _led(request, informed, shape, noise, float(high.detach())),
        process,
        tokens.to(device),
        free.to(device),
        gaussian_sampler(options),
        steps=options.num_steps or DEFAULT_GAUSSIAN_STEPS,
        seeds=(options.seed,),
        shape=options.shape,
    )
    first = int(free[0].long().argmax())
    places = slice(first, first + int(free.sum()))
    return (yield from _follow(request, states, places, lambda state: torch.zeros_like(state.noisy)))


def _led(
    request: Request,
    denoiser: DenoiserFunction,
    shape: tuple[int, ...],
    noise: Callable[[torch.Generator], Tensor],
    level: float,
) -> DenoiserFunction:
    """Return a denoiser of rows of a shape guided as the options ask; the noise in the prompt's place is drawn once."""
    guidance = request.options.guidance
    if guidance is None:
        return denoiser
    source = torch.Generator().manual_seed(request.options.seed % 2**63)
    return guidance.lead(denoiser, request.told(shape[1]), noise(source), level)


def _follow(
    request: Request, states: Iterator[Sampled], places: slice, is_open: Callable[[Sampled], Tensor]
) -> Generator[Snapshot, None, Tensor]:
    """Show and count every forward of a sampler; decide the `places` of the row it ends with."""
    transcript, forwards_each = request.transcript, 1 if request.options.guidance is None else 2
    num_before, num_forwards = len(transcript.token_ids), request.num_decode_forwards
    for state in states:
        done = int(state.num_forwards) * forwards_each
        request.num_forwards += done - (request.num_decode_forwards - num_forwards)
        request.num_decode_forwards = num_forwards + done
        written, unsure, steps = (
            part[0, places] for part in (state.tokens, is_open(state), state.decided_at)
        )
        canvas = Canvas(written, unsure, steps.clamp_min(1) * forwards_each + num_forwards)
        if done:
            confidence = state.confidence[0, places].tolist() if isinstance(state, Sharpened) else ()
            yield replace(request.snapshot("denoise", canvas, num_before), confidence=tuple(confidence))
    for token, step in zip(written.tolist(), canvas.decided_at.tolist(), strict=True):
        transcript.append(token, step)
    return written


def _denoise(
    request: Request, canvas: Canvas, draft: Draft, start: int, steps_left: int | None, drift: Drift
) -> Canvas:
    """Draw a candidate at each open position of a canvas from `start` on; commit those the rule chooses."""
    options, step, length = request.options, request.num_decode_forwards, len(canvas.tokens)
    assert options.rule is not None  # resolve
    decision = decide_after(
        request.text_law,
        options.rule,
        draft.logits[:length],
        canvas.shown,
        Keys.of_one(options.seed, range(start, start + length), step),
        steps_left=steps_left,
        drift=drift,
    )
    return canvas.commit(decision.chosen[0], decision.candidates.tokens[0], step)


def _speculative(request: Request) -> Iterator[Snapshot]:
    """Draft a canvas in one forward, verify it causally in the next; tokens follow the AR law.

    The verifier's last token always comes along, so a cycle drafts no more than fits beside it.
    """
    if not request.options.is_linear:
        yield from speculate(request)
        return
    transcript = request.transcript
    while not transcript.is_finished:
        if transcript.room == 1:
            yield request.step()
            continue
        start = request.num_decided
        canvas = request.blank_canvas(transcript.room - 1)
        length = len(canvas.tokens)
        draft = request.draft(canvas, start)
        places = range(start, start + length + 1)
        noise = request.noise(places[:length], Stream.TOKEN)
        drafts, draft_law = request.text_law.draw(draft.proposed(length), noise)
        proposal = canvas.commit(canvas.open, drafts.cpu(), request.num_decode_forwards)
        yield request.snapshot("draft", proposal)

        logits = torch.cat([draft.next_logits[None], request.causal(drafts, start, num_heads=length)])
        verdict = accept(
            drafts,
            draft_law,
            request.text_law.laws(logits, drafts.tolist()),
            request.noise(places[:length], Stream.ACCEPT),
            request.noise(places, Stream.RESIDUAL),
        )
        request.accepted_lengths.append(verdict.num_accepted)
        request.write([*drafts[: verdict.num_accepted].tolist(), verdict.next_token], logits)
        yield request.snapshot("verify")


_LOOPS: dict[Mode, Callable[[Request], Iterator[Snapshot]]] = {
    "ar": _autoregressive,
    "diffusion": _diffusion,
    "speculative": _speculative,
}
