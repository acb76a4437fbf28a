"""What a caller may ask of one generation, checked before anything runs."""

import math
from dataclasses import dataclass, replace

from unmask.decoding.candidates import Shape
from unmask.decoding.constraint import Constraint
from unmask.decoding.gaussian_samplers import GaussianSampler, Multistep
from unmask.decoding.guidance import Guidance
from unmask.decoding.mode import ENGINE_MODES, Mode
from unmask.decoding.rules import Rule, Threshold
from unmask.decoding.sampler import Sampler
from unmask.errors import UsageError
from unmask.registry import unknown_name

DEFAULT_BLOCK_LENGTH = 8
DEFAULT_RULE = Threshold()
DEFAULT_GAUSSIAN_SAMPLER = Multistep()
DEFAULT_GAUSSIAN_STEPS = 64

AnySampler = Sampler | GaussianSampler


@dataclass(frozen=True)
class Options:
    """The options of one generation; raises UsageError naming the field, its value and the mode.

    `None` means not given: an option that the mode would not use is refused when it is given. `resolve` fills
    in what depends on the model.

    `max_tokens`: most tokens to generate; the context's end may come first.
    `mode`: "auto" is for the engine, whose planner changes between steps and drafts; their law is the same.
    `block_length` (diffusion, speculative, auto): most open positions on the canvas.
    `rule` (diffusion): which open positions to commit after a forward.
    `sampler` (diffusion), in the place of a rule: what becomes of the canvas after each forward; of a continuous
    model a `GaussianSampler`.
    `num_steps` (diffusion): most denoise forwards per block; what a rule leaves open is spread evenly over
    them, and a continuous model makes exactly so many, 64 unless given.
    `guidance` (diffusion, models that see whole texts both ways): two forwards a step, led towards the prompt.
    `tree_size` (speculative): most candidates of a draft, several at a place; without it there is one at each.
    `num_predrafts` (speculative): so many of the likeliest places where a verification may stop have their next draft
    in the same forward.
    `temperature`: 0 is greedy; `top_k` (0 is off), then `top_p`, then `min_p` cut the tempered law. A greedy choice
    survives every cut. `logit_bias`: (token, number) pairs; the number is added to the token's logit.
    `presence_penalty`, `frequency_penalty` (without a sampler): taken from a token's logit once if it was generated
    before, and as often as it was. The prompt does not count.
    `num_logprobs` (all but diffusion): so many of the likeliest tokens are told at each place, beside the token there,
    with their log-probabilities under the model's own law of the next token: before all of the above.
    `constraint` (without a sampler): what the whole text has to be; it ends in a stop token, unless it is cut off.
    `suffix_ids` (diffusion): what comes after a hole of exactly `max_tokens`, which is one canvas and takes no other
    block length. Nothing stops it unless stop tokens or strings are given.
    `seed`: of all noise. `stop`: strings that end the text. `stop_token_ids`: tokens that do; `()` for none.
    """

    mode: Mode = "ar"
    max_tokens: int = 256
    block_length: int | None = None
    rule: Rule | None = None
    sampler: AnySampler | None = None
    num_steps: int | None = None
    guidance: Guidance | None = None
    tree_size: int | None = None
    num_predrafts: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_logprobs: int | None = None
    constraint: Constraint | None = None
    suffix_ids: tuple[int, ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ENGINE_MODES:
            raise unknown_name("mode", str(self.mode), ENGINE_MODES)
        if self.mode == "ar":
            self._refuse("block_length", "an autoregressive step has no canvas")
        if self.mode != "diffusion":
            self._refuse("rule", "only mode 'diffusion' chooses what to commit")
            self._refuse("sampler", "only mode 'diffusion' denoises")
            self._refuse("num_steps", "only mode 'diffusion' denoises in steps")
            self._refuse("guidance", "only mode 'diffusion' sees the prompt as noise")
        else:
            self._refuse("num_logprobs", "a canvas gives no law of a next token")
        if self.mode != "speculative":
            because = "the planner chooses it" if self.mode == "auto" else "nothing is drafted"
            self._refuse("tree_size", because)
            self._refuse("num_predrafts", because)
        self._check_integer("max_tokens", 1)
        for field, least in (
            ("block_length", 1),
            ("num_steps", 1),
            ("tree_size", 1),
            ("num_predrafts", 0),
            ("num_logprobs", 0),
        ):
            if getattr(self, field) is not None:
                self._check_integer(field, least)
        self._check(
            not self.num_predrafts or self.block_length != 1,
            "num_predrafts",
            "a pre-draft says nothing of its first place; give a block_length of 2 or more",
        )
        self._check_integer("top_k", 0)
        self._check_integer("seed", None)
        self._check(
            self.rule is None or isinstance(self.rule, Rule),
            "rule",
            "must be a Rule; RULES.parse reads a text",
        )
        self._check(
            self.sampler is None or isinstance(self.sampler, AnySampler),
            "sampler",
            "must be a Sampler; parse_sampler reads a text",
        )
        self._check(
            self.guidance is None or isinstance(self.guidance, Guidance),
            "guidance",
            "must be a Guidance; read_guidance reads a number or a text",
        )
        self._check(self.sampler is None or self.rule is None, "sampler", "cannot be given with a rule too")
        self._check(
            _is_number(self.temperature) and self.temperature >= 0,
            "temperature",
            "must be 0 or more and finite",
        )
        self._check(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        self._check(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", "must be between 0 and 1")
        self._check(
            _is_bias(self.logit_bias),
            "logit_bias",
            "must be a tuple of pairs, each of a token id that comes once and a finite number",
        )
        for field in ("presence_penalty", "frequency_penalty"):
            self._check(_is_number(getattr(self, field)), field, "must be a finite number")
            self._check(
                self.sampler is None or not getattr(self, field),
                field,
                "a sampler cannot count, only a rule can; leave it out",
            )
        self._check(
            self.constraint is None or isinstance(self.constraint, Constraint),
            "constraint",
            "must be a Constraint",
        )
        if self.constraint is not None:
            self._check(
                self.sampler is None,
                "constraint",
                "a sampler cannot keep to it, only a rule can; leave it out",
            )
            self._check(not self.stop, "constraint", "a stop string would cut it; leave `stop` out")
            self._check(self.stop_token_ids != (), "constraint", "its end is a stop token, and there is none")
        self._check(
            isinstance(self.stop, tuple) and all(isinstance(text, str) and text for text in self.stop),
            "stop",
            "must be a tuple of texts, none of them empty",
        )
        for field in ("stop_token_ids", "suffix_ids"):
            ids = getattr(self, field)
            self._check(
                (field == "stop_token_ids" and ids is None)
                or (isinstance(ids, tuple) and all(_is_integer(i) and i >= 0 for i in ids)),
                field,
                "must be a tuple of token ids, each 0 or more",
            )
        if self.suffix_ids:
            self._check_hole()

    @property
    def shape(self) -> Shape:
        """What shapes the law at every place alike."""
        return Shape(self.temperature, self.top_k, self.top_p, self.min_p, self.logit_bias)

    @property
    def is_linear(self) -> bool:
        """Whether speculation is one draft, and then its verification."""
        return self.tree_size is None and not self.num_predrafts

    @property
    def most_proposed(self) -> int:
        """The most tokens that a verification runs: the candidates, and the canvases of the pre-drafts."""
        length = self.block_length or 0
        return (self.tree_size or length) + (self.num_predrafts or 0) * length

    @property
    def penalises(self) -> bool:
        """Whether the tokens written so far change the law of the next one."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    def resolve(
        self, *, block_length: int | None, stop_token_ids: tuple[int, ...], sampler: AnySampler | None = None
    ) -> "Options":
        """Return these options with what was not given taken from the model, or else from the defaults.

        `sampler`: of a model that no rule can decode.
        """
        if self.mode == "diffusion" and self.rule is None and self.sampler is None:
            return replace(self, sampler=sampler, rule=None if sampler else DEFAULT_RULE).resolve(
                block_length=block_length, stop_token_ids=stop_token_ids
            )
        uses_canvas = self.mode != "ar"
        if self.suffix_ids:
            block_length, stop_token_ids = self.max_tokens, ()
        return replace(
            self,
            block_length=self.block_length or (block_length or DEFAULT_BLOCK_LENGTH if uses_canvas else None),
            stop_token_ids=stop_token_ids if self.stop_token_ids is None else self.stop_token_ids,
        )

    def _check_hole(self) -> None:
        """Check what only a text before the suffix can have."""
        self._check(self.mode == "diffusion", "suffix_ids", "only mode 'diffusion' sees what comes after")
        self._check(self.constraint is None, "constraint", "a hole is not filled from left to right")
        for field in ("presence_penalty", "frequency_penalty"):
            self._check(not getattr(self, field), field, "a hole is not filled from left to right")
        self._check(
            self.block_length in (None, self.max_tokens),
            "block_length",
            f"a hole is one canvas, of max_tokens={self.max_tokens}",
        )

    def _check(self, passes: bool, field: str, reason: str) -> None:
        if not passes:
            raise UsageError(f"{field}={getattr(self, field)!r} in mode {self.mode!r}: {reason}")

    def _check_integer(self, field: str, least: int | None) -> None:
        value = getattr(self, field)
        bound = "" if least is None else f" of at least {least}"
        passes = _is_integer(value) and (least is None or value >= least)
        self._check(passes, field, f"must be a whole number{bound}")

    def _refuse(self, field: str, reason: str) -> None:
        if getattr(self, field) is not None:
            raise UsageError(
                f"{field}={getattr(self, field)!r} is not supported in mode {self.mode!r}: {reason}",
                "leave it out",
            )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_bias(value: object) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return False
    tokens = [token for token, _ in value]
    return (
        len(set(tokens)) == len(tokens)
        and all(_is_integer(token) and token >= 0 for token in tokens)
        and all(_is_number(number) for _, number in value)
    )
