"""Decoding the same prompts in several ways, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Mode
from unmask.evaluation.acceptance import Acceptance, Cycle, cycles_of, measure_acceptance
from unmask.evaluation.agreement import Agreement, measure_agreement
from unmask.evaluation.average import Average, average
from unmask.evaluation.prompts import Prompt

Which = Literal["judged", "against"]


@dataclass(frozen=True)
class Setting:
    """A way to decode, greedily: by the judged model or the one it is compared with. `None`: not of this mode."""

    mode: Mode
    model: Which = "judged"
    block_length: int | None = None
    threshold: float | None = None

    @property
    def name(self) -> str:
        """What the setting is called in files and tables."""
        words = [
            self.mode,
            *([] if self.block_length is None else [f"block {self.block_length}"]),
            *([] if self.threshold is None else [f"threshold {self.threshold:g}"]),
            *([] if self.model == "judged" else [self.model]),
        ]
        return ", ".join(words)


AR = Setting("ar")


@dataclass(frozen=True)
class Trial:
    """What one prompt gave in one setting; `seconds` are those of decoding, without the prefill."""

    token_ids: tuple[int, ...]
    num_decode_forwards: int
    seconds: float
    cycles: tuple[Cycle, ...] = ()


@dataclass(frozen=True)
class PromptRecord:
    """One prompt in all settings, by the settings' names."""

    number: int
    kind: str
    trials: Mapping[str, Trial]


RECORD = TypeAdapter(PromptRecord)
"""Reads a record from what JSON makes of it, and writes it."""


def run_prompt(
    prompt: Prompt,
    settings: Sequence[Setting],
    models: Mapping[Which, LanguageModel],
    max_tokens: int,
) -> PromptRecord:
    """Decode a prompt in all settings, one after the other: so speeds compare though a machine's own varies."""
    trials = {setting.name: _run(prompt, setting, models[setting.model], max_tokens) for setting in settings}
    return PromptRecord(prompt.number, prompt.kind, trials)


def _run(prompt: Prompt, setting: Setting, model: LanguageModel, max_tokens: int) -> Trial:
    generation = model.generate(
        prompt.text,
        mode=setting.mode,
        max_tokens=max_tokens,
        block_length=setting.block_length,
        rule=None if setting.threshold is None else f"threshold:{setting.threshold}",
    )
    cycles: tuple[Cycle, ...] = ()
    if setting.mode == "speculative":
        assert setting.block_length is not None
        context = model.checkpoint.transformer.config.max_positions
        room = min(max_tokens, context - generation.prompt_tokens)
        cycles = cycles_of(generation, setting.block_length, room)
    return Trial(
        generation.token_ids,
        generation.num_decode_forwards,
        round(generation.seconds["decode"], 6),
        cycles,
    )


@dataclass(frozen=True)
class Scores:
    """What a setting gave on some prompts, which are the samples of all averages.

    `tokens_per_forward` counts every decode forward; it is None where no prompt took one. `num_equal_to_ar`: texts that
    are those of mode ar, token for token. `speed_over_ar`: tokens per second over those of mode ar.
    """

    num_prompts: int
    num_tokens: int
    num_decode_forwards: int
    tokens_per_forward: Average | None
    tokens_per_s: float | None
    speed_over_ar: float | None
    num_equal_to_ar: int
    acceptance: Acceptance | None
    agreement: Agreement | None

    @classmethod
    def of(cls, setting: Setting, records: Sequence[PromptRecord]) -> "Scores":
        """Sum up the trials of one setting."""
        trials = [record.trials[setting.name] for record in records]
        truths = [record.trials[AR.name] for record in records]
        counts = [len(trial.token_ids) for trial in trials]
        forwards = [trial.num_decode_forwards for trial in trials]
        speed, ar_speed = _speed(trials), _speed(truths)
        texts, ar_texts = [trial.token_ids for trial in trials], [trial.token_ids for trial in truths]
        acceptance = agreement = None
        if setting.mode == "speculative":
            assert setting.block_length is not None
            acceptance = measure_acceptance([trial.cycles for trial in trials], setting.block_length)
        if setting.mode == "diffusion":
            agreement = measure_agreement(texts, ar_texts)
        return cls(
            num_prompts=len(records),
            num_tokens=sum(counts),
            num_decode_forwards=sum(forwards),
            tokens_per_forward=average(counts, forwards),
            tokens_per_s=speed,
            speed_over_ar=None if speed is None or ar_speed is None else speed / ar_speed,
            num_equal_to_ar=sum(one == other for one, other in zip(texts, ar_texts, strict=True)),
            acceptance=acceptance,
            agreement=agreement,
        )


def _speed(trials: Sequence[Trial]) -> float | None:
    """Return tokens per second of decoding; the first token of each is the prefill's."""
    seconds = sum(trial.seconds for trial in trials)
    return sum(len(trial.token_ids) - 1 for trial in trials) / seconds if seconds else None


@dataclass(frozen=True)
class SettingScores:
    """What a setting gave, overall and by kind of prompt; `unequal_prompts` are those whose text is not that of ar."""

    setting: Setting
    overall: Scores
    kinds: Mapping[str, Scores]
    unequal_prompts: tuple[int, ...]

    @classmethod
    def of(cls, setting: Setting, records: Sequence[PromptRecord]) -> "SettingScores":
        """Sum up the trials of one setting."""
        names = dict.fromkeys(record.kind for record in records)
        unequal = [
            record.number
            for record in records
            if record.trials[setting.name].token_ids != record.trials[AR.name].token_ids
        ]
        return cls(
            setting,
            Scores.of(setting, records),
            {
                name: Scores.of(setting, [record for record in records if record.kind == name])
                for name in names
            },
            tuple(unequal),
        )
