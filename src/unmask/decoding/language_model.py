"""A model ready to write: a checkpoint behind the few methods that most callers need."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from unmask.chat_template import Message
from unmask.decoding.admission import default_sampler
from unmask.decoding.constraint import Constraint
from unmask.decoding.generate import generate, stream
from unmask.decoding.generation import Event, Generation
from unmask.decoding.guidance import Guidance, read_guidance
from unmask.decoding.mode import Mode
from unmask.decoding.options import AnySampler, Options
from unmask.decoding.rules import RULES, Rule
from unmask.decoding.samplers import parse_sampler
from unmask.diffusion.process import PROCESSES, Process, build_process
from unmask.diffusion.schedule import SCHEDULES
from unmask.errors import UsageError
from unmask.model.adapter import Adapter
from unmask.model.catalogue import ModelCard
from unmask.model.checkpoint import Checkpoint, load_checkpoint
from unmask.model.continuous import GAUSSIAN
from unmask.model.denoiser import Denoiser
from unmask.model.merged import merge, product
from unmask.model.quantize import Quantisation, check_quantisation, int8_product
from unmask.model.transformer import Transformer
from unmask.runtime import tune_allocator

Prompt = str | Sequence[Message]
"""A text, or the messages of a conversation, each with a ``role`` and a ``content``."""

SUFFIX_LENGTH = 64
"""Most tokens after a hole that stand on its canvas."""


class LanguageModel:
    """A checkpoint with its denoiser; stateless between calls.

    `running`: what decodes in the place of the checkpoint's transformer and adapter: the same weights laid out for
    inference or shared out, in the number format `quantize`, where that is not their own.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        running: tuple[Transformer, Adapter | None] | None = None,
        quantize: Quantisation | None = None,
    ) -> None:
        card, vocab_size = checkpoint.card, checkpoint.transformer.config.vocab_size
        mask = card.mask_token_id
        self.checkpoint = checkpoint
        self.quantize = quantize
        self.tokenizer = checkpoint.tokenizer
        transformer, adapter = running or (checkpoint.transformer, checkpoint.adapter)
        self.denoiser = Denoiser(
            transformer,
            adapter=adapter,
            mask_token_id=mask,
            logit_shift=card.logit_shift,
            banned=() if mask is None or mask >= vocab_size else (mask,),
            predicts_next=card.predicts_next,
            full_attention=card.attention == "full",
            process=_process(card, vocab_size),
            conditioning=checkpoint.conditioning,
            vectors=checkpoint.vectors,
        )

    @property
    def default_mode(self) -> Mode:
        """The first mode that the model has."""
        modes = self.checkpoint.card.modes
        return modes[0] if modes else "ar"

    def generate(
        self,
        prompt: Prompt,
        *,
        mode: Mode | None = None,
        max_tokens: int = 256,
        block_length: int | None = None,
        rule: Rule | str | None = None,
        sampler: AnySampler | str | None = None,
        num_steps: int | None = None,
        guidance: Guidance | str | float | None = None,
        tree_size: int | None = None,
        num_predrafts: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        num_logprobs: int | None = None,
        constraint: Constraint | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] | None = None,
        raw: bool = False,
    ) -> Generation:
        """Write the answer to a prompt; see `Options` for the options and `stream` for the prompt.

        `mode`: the model's own unless given. Raises UsageError, before the first forward, for whatever is unknown or
        not supported in the mode.
        """
        options = Options(
            mode=mode or self.default_mode,
            max_tokens=max_tokens,
            block_length=block_length,
            rule=RULES.parse(rule) if isinstance(rule, str) else rule,
            sampler=parse_sampler(sampler) if isinstance(sampler, str) else sampler,
            num_steps=num_steps,
            guidance=read_guidance(guidance),
            tree_size=tree_size,
            num_predrafts=num_predrafts,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            logit_bias=tuple((logit_bias or {}).items()),
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            num_logprobs=num_logprobs,
            constraint=constraint,
            seed=seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=None if stop_token_ids is None else tuple(stop_token_ids),
        )
        *_, generation = self.stream(prompt, options, raw=raw)
        assert isinstance(generation, Generation)  # stream's promise
        return generation

    def fill(
        self,
        before: str,
        after: str,
        *,
        length: int,
        rule: Rule | str | None = None,
        sampler: AnySampler | str | None = None,
        num_steps: int | None = None,
        guidance: Guidance | str | float | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Generation:
        """Write `length` tokens between two texts, by diffusion; see `Options` for the rest.

        Of the text before the model sees as much as its context holds, of the text after at most 64 tokens: canvases
        in training end not far behind what is open. Raises UsageError for a length or an option that cannot be.
        """
        if length < 1:
            raise UsageError(f"length={length}: a hole has at least one token")
        suffix = self.tokenizer.encode(after)[:SUFFIX_LENGTH]
        room = self.checkpoint.transformer.config.max_positions - length - len(suffix)
        options = Options(
            "diffusion",
            max_tokens=length,
            rule=RULES.parse(rule) if isinstance(rule, str) else rule,
            sampler=parse_sampler(sampler) if isinstance(sampler, str) else sampler,
            num_steps=num_steps,
            guidance=read_guidance(guidance),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop_token_ids=(),
            suffix_ids=tuple(suffix),
        )
        head = self.encode(before, raw=True)
        return generate(self.denoiser, self.tokenizer, head[-max(1, room) :], self.resolve(options))

    def stream(self, prompt: Prompt, options: Options, *, raw: bool = False) -> Iterator[Event]:
        """Yield a snapshot after every forward, and the generation last.

        A text becomes the user's message in the chat template, or stands alone where the model has no
        template or `raw` is true. Block length and stop tokens that the options leave open are those of the
        model's card.
        """
        return stream(self.denoiser, self.tokenizer, self.encode(prompt, raw=raw), self.resolve(options))

    def resolve(self, options: Options) -> Options:
        """Return options with what they leave open taken from the model's card."""
        card = self.checkpoint.card
        return options.resolve(
            block_length=card.block_length,
            stop_token_ids=tuple(card.stop_token_ids),
            sampler=default_sampler(self.denoiser),
        )

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Return the token ids that a prompt means; raises UsageError where it means none."""
        if not isinstance(prompt, str):
            if raw:
                raise UsageError(
                    "a raw prompt is a text, but messages were given", "leave raw out, or give a text"
                )
            return self.tokenizer.render_chat(prompt)
        if self.tokenizer.chat_template is not None and not raw:
            return self.tokenizer.render_chat([{"role": "user", "content": prompt}])
        ids = self.tokenizer.encode_prompt(prompt)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        if not ids:
            raise UsageError(
                "the prompt is empty, and this model has no token to begin a text with", "give a text"
            )
        return ids


def _process(card: ModelCard, vocab_size: int) -> Process | None:
    """Return the noise on tokens that a model was trained on, `None` where it has only next tokens or vectors."""
    mask = card.mask_token_id
    if card.process == GAUSSIAN:
        return None
    if mask is None and PROCESSES.get(card.process.partition(":")[0]).masks:
        return None
    num_tokens = vocab_size - 1 if mask == vocab_size - 1 else vocab_size
    return build_process(card.process, num_tokens, mask, SCHEDULES.parse(card.schedule))


def load(
    source: str,
    *,
    adapter: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    quantize: Quantisation | None = None,
    tensor_parallel: int = 1,
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Load a model by catalogue name, folder, GGUF file or hub id; see `load_checkpoint`.

    `quantize`: "int8" computes all products of the transformer in int8, on CPUs. On a CPU the weights are laid out
    for inference (`unmask.model.merged`), unless `tensor_parallel` shares them out over so many processes
    (`unmask.model.tensor_parallel`). The process's allocator is told to keep freed buffers, see `unmask.runtime`.
    """
    tune_allocator()
    if quantize is not None and tensor_parallel > 1:
        raise UsageError(
            f"quantize={quantize!r} with tensor_parallel={tensor_parallel}: shared out weights are not rounded",
            "leave one of them out",
        )
    if quantize is not None:
        check_quantisation(quantize, device=device, dtype=dtype)
    checkpoint = load_checkpoint(
        source,
        adapter=adapter,
        dtype=dtype,
        device=device,
        cache_dir=cache_dir,
        offline=offline,
        progress=progress,
    )
    transformer = checkpoint.transformer
    if tensor_parallel > 1:
        from unmask.model.tensor_parallel import share_out  # torch.distributed takes a while to import

        return LanguageModel(checkpoint, running=share_out(transformer, checkpoint.adapter, tensor_parallel))
    if transformer.device.type != "cpu":
        return LanguageModel(checkpoint)
    began = time.perf_counter()
    make = product if quantize is None else int8_product
    running = merge(transformer, checkpoint.adapter, make, exact_rows=quantize is not None)
    if quantize is not None and progress is not None:
        progress(f"weights rounded to {quantize} in {time.perf_counter() - began:.1f} s")
    return LanguageModel(checkpoint, running=running, quantize=quantize)
