"""How long texts of a given length take: at a fixed number of steps, and at a fixed number of tokens per forward."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

from unmask.decoding.generate import generate
from unmask.decoding.language_model import LanguageModel
from unmask.errors import UsageError
from unmask.evaluation.average import Average
from unmask.evaluation.prompts import first_prompts
from unmask.evaluation.ways import SERIAL_RULE, Way, takes_rules

FIXED_STEPS = 8
FIXED_TOKENS = 2


@dataclass(frozen=True)
class LengthWay:
    """Texts of so many tokens, stop tokens ignored, in one way; `series` is the line of the picture."""

    series: str
    length: int
    way: Way


@dataclass(frozen=True)
class LengthTime:
    """Seconds of decoding, prefill included, and decode forwards; the samples are one prompt of each kind."""

    series: str
    length: int
    seconds: Average
    num_decode_forwards: float


def length_ways(model: LanguageModel, lengths: Sequence[int]) -> tuple[LengthWay, ...]:
    """Return what to time, length after length.

    A model with a rule: mode ar where it has one; the whole text as one canvas in `FIXED_STEPS` forwards; canvases of
    the model's own length at `FIXED_TOKENS` tokens per forward. A model that no rule decodes: the first two of these.
    """
    denoiser, has_rules = model.denoiser, takes_rules(model.denoiser)
    found = []
    for length in lengths:
        if denoiser.predicts_next:
            found.append(LengthWay("ar", length, Way("ar")))
        steps = Way(
            "diffusion",
            rule=SERIAL_RULE if has_rules else None,
            block_length=length,
            num_steps=FIXED_STEPS,
        )
        found.append(LengthWay(f"{FIXED_STEPS} steps", length, steps))
        if has_rules:
            rule = Way("diffusion", rule=f"top-k:{FIXED_TOKENS}")
            found.append(LengthWay(f"{FIXED_TOKENS} tokens a step", length, rule))
    return tuple(found)


def time_lengths(model: LanguageModel, job: LengthWay) -> LengthTime:
    """Write one text for each kind of prompt, and return how long that took; UsageError where one comes out short."""
    seconds, forwards = [], []
    for prompt in first_prompts(1):
        options = replace(job.way.options(max_tokens=job.length), stop_token_ids=())
        prompt_ids = model.encode(prompt.text)
        written = generate(model.denoiser, model.tokenizer, prompt_ids, model.resolve(options))
        if written.num_tokens != job.length:
            raise UsageError(
                f"the model's window has no room for {job.length} tokens behind a prompt of "
                f"{written.prompt_tokens}",
                "choose shorter lengths",
            )
        seconds.append(sum(written.seconds.values()))
        forwards.append(written.num_decode_forwards)
    error = stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else None
    return LengthTime(job.series, job.length, Average(mean(seconds), error, len(seconds)), mean(forwards))
