"""Decoding the same prompts in several ways, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unmask.decoding.generation import Generation
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.decoding.rules import RULES
from unmask.evaluation.acceptance import Acceptance, Cycle, cycles_of, measure_acceptance
from unmask.evaluation.agreement import Agreement, measure_agreement
from unmask.evaluation.average import Average, average
from unmask.evaluation.prompts import Prompt
from unmask.evaluation.together import Together, in_order

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
    """What one prompt gave in one setting.

    `seconds`: of decoding, without the prefill; None where others ran beside it.
    """

    token_ids: tuple[int, ...]
    num_decode_forwards: int
    seconds: float | None
    cycles: tuple[Cycle, ...] = ()


@dataclass(frozen=True)
class PromptRecord:
    """One prompt in its settings, by their names."""

    number: int
    kind: str
    trials: Mapping[str, Trial]


def run_prompt(
    prompt: Prompt,
    settings: Sequence[Setting],
    models: Mapping[Which, LanguageModel],
    max_tokens: int,
) -> PromptRecord:
    """Decode a prompt in all settings, one after the other: so speeds compare though a machine's own varies."""
    trials = {}
    for setting in settings:
        model = models[setting.model]
        *_, generation = model.stream(prompt.text, _options(setting, max_tokens))
        assert isinstance(generation, Generation)  # stream's promise
        trials[setting.name] = _trial(generation, setting, model, max_tokens, alone=True)
    return PromptRecord(prompt.number, prompt.kind, trials)


def run_prompts(
    prompts: Sequence[tuple[Prompt, Sequence[Setting]]],
    models: Mapping[Which, LanguageModel],
    max_tokens: int,
    together: Together,
) -> list[PromptRecord]:
    """Decode prompts, each in its settings, all that one model does side by side: the same but for the seconds."""
    trials: list[dict[str, Trial]] = [{} for _ in prompts]
    for which, model in models.items():
        asked = [
            (number, prompt, setting)
            for number, (prompt, settings) in enumerate(prompts)
            for setting in settings
            if setting.model == which
        ]
        wanted = [
            (model.encode(prompt.text), model.resolve(_options(setting, max_tokens)))
            for _, prompt, setting in asked
        ]
        generations = in_order(model, wanted, together)
        for (number, _, setting), generation in zip(asked, generations, strict=True):
            trials[number][setting.name] = _trial(generation, setting, model, max_tokens, alone=False)
    return [
        PromptRecord(prompt.number, prompt.kind, {setting.name: found[setting.name] for setting in settings})
        for (prompt, settings), found in zip(prompts, trials, strict=True)
    ]


def _options(setting: Setting, max_tokens: int) -> Options:
    return Options(
        mode=setting.mode,
        max_tokens=max_tokens,
        block_length=setting.block_length,
        rule=None if setting.threshold is None else RULES.parse(f"threshold:{setting.threshold}"),
    )


def _trial(
    generation: Generation, setting: Setting, model: LanguageModel, max_tokens: int, *, alone: bool
) -> Trial:
    cycles: tuple[Cycle, ...] = ()
    if setting.mode == "speculative":
        assert setting.block_length is not None
        context = model.checkpoint.transformer.config.max_positions
        room = min(max_tokens, context - generation.prompt_tokens)
        cycles = cycles_of(generation, setting.block_length, room)
    return Trial(
        generation.token_ids,
        generation.num_decode_forwards,
        round(generation.seconds["decode"], 6) if alone else None,
        cycles,
    )


@dataclass(frozen=True)
class Scores:
    """What a setting gave on some prompts, which are the samples of all averages.

    `tokens_per_forward` counts every decode forward; it is None where no prompt took one. `num_equal_to_ar`: texts that
    are those of mode ar, token for token. `speed_over_ar`: tokens per second over those of mode ar; both are of the
    `num_timed` prompts that ran alone.
    """

    num_prompts: int
    num_tokens: int
    num_decode_forwards: int
    tokens_per_forward: Average | None
    tokens_per_s: float | None
    speed_over_ar: float | None
    num_timed: int
    num_equal_to_ar: int
    acceptance: Acceptance | None
    agreement: Agreement | None

    @property
    def tokens_per_cycle(self) -> Average | None:
        """What a cycle of draft and verification gave, where there were any."""
        return None if self.acceptance is None else self.acceptance.tokens_per_cycle

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
            num_timed=sum(trial.seconds is not None for trial in trials),
            num_equal_to_ar=sum(one == other for one, other in zip(texts, ar_texts, strict=True)),
            acceptance=acceptance,
            agreement=agreement,
        )


def _speed(trials: Sequence[Trial]) -> float | None:
    """Return tokens per second of decoding, of what ran alone; the first token of each is the prefill's."""
    timed = [(trial, trial.seconds) for trial in trials if trial.seconds is not None]
    seconds = sum(seconds for _, seconds in timed)
    return sum(len(trial.token_ids) - 1 for trial, _ in timed) / seconds if seconds else None


@dataclass(frozen=True)
class SettingScores:
    """What a setting gave, overall and by kind of prompt; `unequal_prompts` are those whose text is not that of ar."""

    setting: Setting
    overall: Scores
    kinds: Mapping[str, Scores]
    unequal_prompts: tuple[int, ...]

    @classmethod
    def of(cls, setting: Setting, records: Sequence[PromptRecord]) -> "SettingScores":
        """Sum up the trials of one setting, in which not every prompt need have run."""
        records = [record for record in records if setting.name in record.trials]
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
