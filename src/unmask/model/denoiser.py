"""The denoiser: a backbone with an adapter, seen as noisy tokens in, laws of the clean tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.diffusion.gaussian import Informed
from unmask.diffusion.process import Process
from unmask.layout import Layout, Segment
from unmask.model.adapter import Adapter
from unmask.model.cache import Cache, KVCache
from unmask.model.conditioning import Conditioning
from unmask.model.continuous import TokenVectors
from unmask.model.packed import Packed, Part
from unmask.model.transformer import Transformer


@dataclass(frozen=True)
class Draft:
    """What one canvas forward says: the AR law after the last decided token (V,), and at each canvas place (B, V).

    `is_exact`: the first canvas position has the AR law, as with a logit shift, for decided tokens run in the causal
    stream.
    """

    next_logits: Tensor
    logits: Tensor
    is_exact: bool = False

    def proposed(self, length: int) -> Tensor:
        """Return the laws to draft so many tokens by, (length, V); the first is the AR law, whose drafts all hold."""
        if self.is_exact:
            return self.logits[:length]
        return torch.cat([self.next_logits[None], self.logits[1:length]])


@dataclass(frozen=True)
class Canvas:
    """(B,) tokens at positions ``[start, start + B)`` of a cache row, the mask token where they are open."""

    row: int
    start: int
    tokens: Tensor


@dataclass(frozen=True)
class CanvasStates:
    """Final states (M, D) of canvas tokens, each with the canvas (M,) and the canvas position (M,) that it predicts."""

    hidden: Tensor
    canvas: Tensor
    position: Tensor


@dataclass(frozen=True)
class Denoiser:
    """The only place that knows the mask token, the logit shift and the banned tokens.

    With `logit_shift` the state of one position predicts the token of the next, as in the AR model it came from
    (Fast-dLLM v2, arXiv 2509.26328); without it every canvas position predicts its own token. `mask_token_id` may lie
    outside the vocabulary; its embedding is the adapter's where there is one. Banned tokens have logit -inf.
    `predicts_next` says whether the causal stream was trained to. `full_attention`: there is no causal stream, every
    forward sees the whole sequence both ways, and nothing can be cached. `process` is the noise that it undoes, `None`
    for an autoregressive model. `conditioning` tells noisy tokens the time and the last belief. `vectors`: of a
    continuous model, whose noise is on them and not on tokens; it has no mask token and no `process`.
    """

    transformer: Transformer
    adapter: Adapter | None = None
    mask_token_id: int | None = None
    logit_shift: bool = True
    banned: tuple[int, ...] = ()
    predicts_next: bool = True
    full_attention: bool = False
    process: Process | None = None
    conditioning: Conditioning | None = None
    vectors: TokenVectors | None = None

    @property
    def vocab_size(self) -> int:
        """K, the tokens that a text is made of: the whole vocabulary, or all but a mask token that ends it."""
        size = self.transformer.config.vocab_size
        return size - 1 if self.mask_token_id == size - 1 else size

    def new_cache(self, capacity: int, *, num_rows: int = 1) -> KVCache:
        """Return an empty KV cache for `num_rows` requests of up to `capacity` tokens."""
        model = self.transformer
        return KVCache(
            model.config, num_rows=num_rows, capacity=capacity, dtype=model.dtype, device=model.device
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """(N,) token ids, masks among them -> (N, D) embeddings."""
        if self.adapter is None or self.mask_token_id is None:
            return self.transformer.embed_tokens(tokens)
        is_mask = tokens == self.mask_token_id
        embedded = self.transformer.embed_tokens(tokens.masked_fill(is_mask, 0))
        return torch.where(is_mask[:, None], self.adapter.mask_embedding.to(embedded.dtype), embedded)

    def embed_noisy(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        """(N,) noisy tokens at times (N,), with the last belief (N, K) of a step ago -> (N, D) embeddings."""
        embedded = self.embed(tokens)
        if self.conditioning is None:
            return embedded
        return self.conditioning(embedded, time, belief, self.transformer.embed.weight)  # type: ignore[no-any-return]

    def whole(self, tokens: Tensor, time: Tensor, belief: Tensor | None = None) -> Tensor:
        """Denoise whole sequences that attend both ways: (B, L) tokens -> (B, L, K) logits, each of its own place.

        `time`: broadcasts to (B, L). `belief`: (B, L, K) probabilities of the last step. Full-attention models only
        (LLaDA, arXiv 2502.09992); a `DenoiserFunction` for samplers and likelihoods.
        """
        rows, length = tokens.shape
        device = self.transformer.device
        packed = tokens.flatten().to(device)
        times = time.expand(tokens.shape).flatten().to(device)
        inputs = self.embed_noisy(packed, times, None if belief is None else belief.flatten(0, 1).to(device))
        layout = Layout([Segment(0, length, causal=False)] * rows)
        logits = self.head(self.transformer(inputs, layout))
        return logits[:, : self.vocab_size].view(rows, length, -1)

    def whole_continuous(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None = None, /) -> Tensor:
        """Denoise whole sequences of noisy vectors (B, L, E) as a `GaussianDenoiser`, by their context alone."""
        rows, length, _ = noisy.shape
        logits = self.continuous(
            noisy.flatten(0, 1),
            gamma.expand(rows, length).flatten(),
            None if belief is None else belief.flatten(0, 1),
            Layout([Segment(0, length, causal=False)] * rows),
        )
        return logits.view(rows, length, -1)

    def continuous(self, noisy: Tensor, gamma: Tensor, belief: Tensor | None, layout: Layout) -> Tensor:
        """Run packed noisy vectors (N, E) at gammas (N,), with the last belief (N, K): (N, K) logits."""
        assert self.vectors is not None  # a continuous model
        inputs = self.vectors(noisy, gamma, self.transformer.embed.weight).to(self.transformer.dtype)
        if self.conditioning is not None:
            time = (gamma / 4).sigmoid()
            inputs = self.conditioning(inputs, time, belief, self.transformer.embed.weight)
        logits = self.head(self.transformer(inputs, layout))[:, : self.vocab_size]
        return logits + self.vectors.prior

    def informed(self) -> Informed:
        """Return the denoiser of a continuous model: its network, told what each noisy vector says alone."""
        assert self.vectors is not None
        return Informed(self.whole_continuous, self.vectors.process())

    def head(self, hidden: Tensor) -> Tensor:
        """(M, D) -> (M, V) float32 logits, banned tokens at -inf."""
        logits = self.transformer.logits(hidden)
        if self.banned:
            logits[:, list(self.banned)] = -torch.inf
        return logits

    @torch.inference_mode()
    def laws(self, parts: Sequence[Part], cache: Cache) -> tuple[Tensor, ...]:
        """Run all parts in one forward; return for each the laws that it asks for: (M, V) float32 logits."""
        packed = Packed(int(self.logit_shift), self.mask_token_id)
        for part in parts:
            packed.add(part)
        device = self.transformer.device
        tokens = torch.tensor(packed.tokens, device=device)
        inputs = self.embed(tokens)
        for canvas in packed.canvases if self.conditioning is not None else ():
            noisy = tokens[canvas.span]
            time = torch.as_tensor(canvas.time, device=device).expand(canvas.length)[: len(noisy)]
            belief = None if canvas.belief is None else canvas.belief[: len(noisy)].to(device)
            inputs[canvas.span] = self.embed_noisy(noisy, time, belief)
        hidden = self.transformer(inputs, Layout(packed.segments), cache, self.adapter)
        wanted = torch.tensor(packed.wanted, dtype=torch.int64, device=device)
        return torch.split(self.head(hidden[wanted]), packed.counts)

    def causal(
        self, tokens: Tensor, start: int, cache: KVCache, *, row: int = 0, num_heads: int = 1
    ) -> Tensor:
        """Run (n,) decided tokens from position `start` causally and store their keys and values.

        Returns the laws after each of the last `num_heads` tokens: (num_heads, V) float32 logits.
        """
        (logits,) = self.laws([Part(row, start, tokens.tolist(), num_laws=num_heads)], cache)
        return logits

    def draft(
        self,
        pending: Sequence[int],
        canvas: Tensor,
        start: int,
        cache: KVCache,
        *,
        row: int = 0,
        time: Tensor | None = None,
        belief: Tensor | None = None,
    ) -> Draft:
        """Run decided tokens from `start` on causally, and the (B,) canvas after them both ways, with the adapter.

        `pending`: at least the last decided token. Open canvas positions hold the mask token. The pending tokens' keys
        and values are stored, the canvas leaves no trace. `time` (broadcasts to (B,)) and `belief` (B, K) are for the
        ports of a denoiser that has them.
        """
        part = Part(
            row,
            start,
            pending,
            num_laws=1,
            canvas=canvas.tolist(),
            places=range(int(self.logit_shift), len(canvas)),
            time=0.0 if time is None else time,
            belief=belief,
        )
        (logits,) = self.laws([part], cache)
        return Draft(logits[0], logits if self.logit_shift else logits[1:], is_exact=self.logit_shift)

    def draft_after(
        self,
        text: Sequence[int],
        canvas: Tensor,
        cache: KVCache,
        *,
        time: Tensor | None = None,
        belief: Tensor | None = None,
    ) -> Draft:
        """Run a canvas after a text, as `draft`, and what of the text is not stored yet, its last token at least."""
        start = min(cache.lengths[0], len(text) - 1)
        return self.draft(text[start:], canvas, start, cache, time=time, belief=belief)

    def canvas_states(self, canvases: Sequence[Canvas], cache: KVCache) -> CanvasStates:
        """Run canvases that continue cached rows, all in one forward that stores nothing.

        With a logit shift a canvas says nothing of its first position, which the causal stream predicts.
        """
        parts = [self._run_part(canvas.tokens) for canvas in canvases]
        shift = int(self.logit_shift)
        layout = Layout(
            [
                Segment(canvas.start, len(part), causal=False, adapter=True, row=canvas.row)
                for canvas, part in zip(canvases, parts, strict=True)
            ]
        )
        hidden = self.transformer(
            self.embed(torch.cat(parts).to(self.transformer.device)), layout, cache, self.adapter
        )
        which = torch.from_numpy(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
        position = torch.cat([torch.arange(len(part)) for part in parts]) + shift
        inside = position < torch.tensor([len(canvas.tokens) for canvas in canvases])[which]
        return CanvasStates(hidden[inside.to(hidden.device)], which[inside], position[inside])

    def _run_part(self, canvas: Tensor) -> Tensor:
        """Drop a last open position that, under a shift, predicts beyond the canvas and tells the others nothing."""
        return canvas[:-1] if self.logit_shift and canvas[-1] == self.mask_token_id else canvas
