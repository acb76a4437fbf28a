"""Ways to decode, named as on the command line, and what a prompt gives in one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from unmask.decoding.admission import default_sampler
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES
from unmask.decoding.samplers import parse_sampler
from unmask.errors import UsageError
from unmask.evaluation.together import Together, in_order, in_turn
from unmask.model.denoiser import Denoiser

SERIAL_RULE = "top-k:1"
"""One token per forward, the most confident one: what mode diffusion writes when it takes its time."""


@dataclass(frozen=True)
class Way:
    """The options that decide how a generation is decoded; `rule` and `sampler` are texts such as `threshold:0.9`.

    Raises UsageError for what `Options` refuses.
    """

    mode: Mode
    rule: str | None = None
    sampler: str | None = None
    block_length: int | None = None
    num_steps: int | None = None
    temperature: float = 0.0

    def __post_init__(self) -> None:
        self.options(max_tokens=1)

    @property
    def name(self) -> str:
        """What the way is called in files and tables."""
        choice = self.rule or self.sampler
        words = [
            *([choice] if choice else [self.mode]),
            *([] if self.block_length is None else [f"block {self.block_length}"]),
            *([] if self.num_steps is None else [f"{self.num_steps} steps"]),
            *([] if self.temperature == 0 else [f"temperature {self.temperature:g}"]),
        ]
        return ", ".join(words)

    def options(self, *, max_tokens: int, seed: int = 0) -> Options:
        """Return the options of one generation."""
        return Options(
            mode=self.mode,
            max_tokens=max_tokens,
            block_length=self.block_length,
            rule=None if self.rule is None else RULES.parse(self.rule),
            sampler=None if self.sampler is None else parse_sampler(self.sampler),
            num_steps=self.num_steps,
            temperature=self.temperature,
            seed=seed,
        )


def require_room(max_tokens: int, block_lengths: Sequence[int]) -> None:
    """Raise UsageError unless there are blocks, and every one fits a text of `max_tokens` with a token around it."""
    if not block_lengths or min(block_lengths) < 1:
        raise UsageError(f"block_lengths={tuple(block_lengths)}: give one or more, each at least 1")
    least = max(block_lengths) + 2
    if max_tokens < least:
        raise UsageError(
            f"max_tokens={max_tokens} leaves no room for a block of {max(block_lengths)}",
            f"give at least {least}",
        )


def takes_rules(denoiser: Denoiser) -> bool:
    """Tell whether rules decode a model: its tokens are open until they are decided."""
    return denoiser.mask_token_id is not None and default_sampler(denoiser) is None


@dataclass(frozen=True)
class Writing:
    """What one prompt gave in one way. `num_forwards` has the prefill in it."""

    token_ids: tuple[int, ...]
    text: str
    num_forwards: int
    num_decode_forwards: int


def write(
    model: LanguageModel,
    prompt_ids: Sequence[int],
    ways: Sequence[Way],
    *,
    max_tokens: int,
    seed: int = 0,
    together: Together = in_turn,
) -> list[Writing]:
    """Decode a prompt in some ways; block length and stop tokens that one leaves open are those of the model's card."""
    asked = [(prompt_ids, model.resolve(way.options(max_tokens=max_tokens, seed=seed))) for way in ways]
    return [
        Writing(
            generation.token_ids, generation.text, generation.num_forwards, generation.num_decode_forwards
        )
        for generation in in_order(model, asked, together)
    ]
