"""The state of one generation in the reference loop, and the forwards it can make."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.decoding.admission import admit
from unmask.decoding.candidates import Keys
from unmask.decoding.canvas import Canvas
from unmask.decoding.generation import Generation, Phase, Snapshot
from unmask.decoding.options import Options
from unmask.decoding.sampler import Sampler
from unmask.decoding.samplers import Unmask
from unmask.decoding.text_law import TextLaw
from unmask.decoding.transcript import Transcript
from unmask.diffusion.denoising import DenoiserFunction
from unmask.model.cache import KVCache
from unmask.model.denoiser import Denoiser, Draft
from unmask.rng import Stream
from unmask.tokenizer import Tokenizer


@dataclass
class Request:
    """One generation. Its last decided token is the seed: not yet stored, in a model with next tokens."""

    denoiser: Denoiser
    prompt_ids: tuple[int, ...]
    options: Options
    transcript: Transcript
    text_law: TextLaw
    cache: KVCache
    num_forwards: int = 0
    num_decode_forwards: int = 0
    accepted_lengths: list[int] = field(default_factory=list)

    @classmethod
    def open(
        cls, denoiser: Denoiser, tokenizer: Tokenizer, prompt_ids: Sequence[int], options: Options
    ) -> "Request":
        room = admit(denoiser, prompt_ids, options)
        transcript = Transcript(tokenizer, options, room=room)
        text_law = TextLaw.of(options, transcript.token_ids, tokenizer)
        capacity = 0 if denoiser.full_attention else len(prompt_ids) + room
        cache = denoiser.new_cache(capacity)
        return cls(denoiser, tuple(prompt_ids), options, transcript, text_law, cache)

    @property
    def decided(self) -> list[int]:
        """Prompt and generated tokens together."""
        return [*self.prompt_ids, *self.transcript.token_ids]

    @property
    def num_decided(self) -> int:
        """How many they are: the position of the next token."""
        return len(self.prompt_ids) + len(self.transcript.token_ids)

    @property
    def sampler(self) -> Sampler | None:
        """What fills the canvases, where the loop by rule does not: it needs masks, and a causal stream."""
        options, denoiser = self.options, self.denoiser
        if isinstance(options.sampler, Sampler):
            return options.sampler
        if denoiser.full_attention or denoiser.mask_token_id is None or self.fills_hole:
            return None if options.rule is None else Unmask(options.rule)
        return None

    @property
    def fills_hole(self) -> bool:
        """Whether the text after the canvas is given too."""
        return bool(self.options.suffix_ids)

    def blank_canvas(self, room: int) -> Canvas:
        """Return an open canvas of the block length, or of `room` when that is less."""
        assert self.options.block_length is not None  # resolve
        assert self.denoiser.mask_token_id is not None  # open
        return Canvas.blank(min(self.options.block_length, room), self.denoiser.mask_token_id)

    def free_canvas(self) -> tuple[Tensor, Tensor]:
        """Return a row (1, L) of free tokens, and which ones are free: the suffix is given, and what stands before.

        The latter is on the canvas of a model that sees the whole sequence.
        """
        assert self.options.block_length is not None  # resolve
        length = min(self.options.block_length, self.transcript.room)
        before = self.decided if self.denoiser.full_attention else []
        tokens = torch.tensor([[*before, *[0] * length, *self.options.suffix_ids]])
        places = torch.arange(tokens.shape[1])[None] - len(before)
        return tokens, (places >= 0) & (places < length)

    def told(self, length: int) -> Tensor:
        """Return which places of a whole sequence of this length the caller has given: (1, L) bool."""
        places = torch.arange(length)[None]
        return (places < len(self.prompt_ids)) | (places >= length - len(self.options.suffix_ids))

    def causal(self, tokens: Tensor, start: int, *, num_heads: int) -> Tensor:
        """Run tokens after the prompt from `start` on: (num_heads, V) logits."""
        self.count()
        return self.denoiser.causal(tokens, start, self.cache, num_heads=num_heads)

    def draft(self, canvas: Canvas, start: int, belief: Tensor | None = None) -> Draft:
        """Run the canvas at `start`, and before it the last decided token and any other that is not stored yet."""
        self.count()
        share = canvas.open.double().mean()
        text = self.decided[:start]
        return self.denoiser.draft_after(text, canvas.tokens, self.cache, time=share, belief=belief)

    def denoise(self, start: int) -> DenoiserFunction:
        """Return the denoiser of a canvas at `start`: of the whole sequence where the model sees it whole."""
        if self.denoiser.full_attention:
            return self.denoiser.whole

        def run(tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
            text, past = self.decided[:start], None if belief is None else belief[0]
            draft = self.denoiser.draft_after(text, tokens[0], self.cache, time=time[0], belief=past)
            return draft.logits[None, : tokens.shape[1], : self.denoiser.vocab_size]

        return run

    def step(self) -> Snapshot:
        """Decide one token with one causal forward of the seed, and before it what else is not stored yet."""
        first = min(self.cache.lengths[0], self.num_decided - 1)
        self.append_next(self.causal(torch.tensor(self.decided[first:]), first, num_heads=1))
        return self.snapshot("step")

    def append_next(self, logits: Tensor) -> None:
        """Draw the next token from the (1, V) logits after the last one."""
        token, _ = self.text_law.draw(logits, self.noise([self.num_decided], Stream.TOKEN))
        self.write(token.tolist(), logits)

    def write(self, tokens: Sequence[int], logits: Tensor) -> None:
        """Decide the next tokens, whose laws the (n, V) logits are, or the first rows of more."""
        for token in tokens:
            self.transcript.append(token, self.num_decode_forwards)
        self.transcript.explain(logits)

    def noise(self, positions: Sequence[int], stream: Stream) -> Tensor:
        """Return the uniforms of some positions at the present forward: (M,) float64."""
        noise = Keys.of_one(self.options.seed, positions, self.num_decode_forwards).noise(stream)[0]
        return noise.to(self.denoiser.transformer.device)

    def snapshot(self, phase: Phase, canvas: Canvas | None = None, num_before: int | None = None) -> Snapshot:
        """Describe the present state; the canvas, if any, begins after `num_before` tokens (default: all)."""
        tokens: tuple[int | None, ...] = ()
        steps: tuple[int | None, ...] = ()
        if canvas is not None:
            tokens = tuple(canvas.shown)
            decided_at = zip(tokens, canvas.decided_at.tolist(), strict=True)
            steps = tuple(None if token is None else step for token, step in decided_at)
        done = self.transcript.token_ids[:num_before]
        all_steps = (*self.transcript.decided_at[:num_before], *steps)
        return Snapshot(phase, tuple(done), tokens, all_steps, self.num_forwards)

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

    def count(self) -> None:
        self.num_forwards += 1
        self.num_decode_forwards += 1
