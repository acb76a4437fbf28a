"""What a conversion is worth: what the model was, what it became, and how much faster it writes the same text."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unmask.decoding.language_model import LanguageModel, load
from unmask.errors import UsageError
from unmask.evaluation.canvas_blocks import CanvasBlocks
from unmask.evaluation.fingerprint import fingerprint
from unmask.evaluation.held_out import (
    TextScore,
    Window,
    WindowScore,
    score_window,
    windows_of_file,
    windows_of_texts,
)
from unmask.evaluation.judgement_config import JudgementConfig
from unmask.evaluation.ledger import Ledger, Observer, StageProgress
from unmask.evaluation.prompts import first_prompts, kinds
from unmask.evaluation.provenance import provenance_of
from unmask.evaluation.together import Together
from unmask.evaluation.trials import (
    PromptRecord,
    Setting,
    SettingScores,
    Which,
    run_prompt,
    run_prompts,
)
from unmask.model.checkpoint import NO_ADAPTER
from unmask.training.run_folder import METRICS_FILE, RunFolder

JUDGEMENT_FILE = "judgement.json"
PROMPTS_FILE = "prompts.jsonl"
TEXT_FILE = "text.jsonl"

OWN_TEXT = "the prompts"
"""The held-out text where none is given: the prompts themselves, which nobody trained on."""


@dataclass(frozen=True)
class Judgement:
    """The report. `model`: what was judged. `curve`: the lines of the training run's metrics, where it is one."""

    config: JudgementConfig
    provenance: Mapping[str, object]
    model: Mapping[str, object]
    texts: tuple[TextScore, ...]
    settings: tuple[SettingScores, ...]
    curve: tuple[Mapping[str, Any], ...]

    @property
    def block_length(self) -> int:
        """The model's own, which mode diffusion used."""
        length = self.model["block_length"]
        assert isinstance(length, int)
        return length

    def to_json(self) -> dict[str, object]:
        """Return the report as `JUDGEMENT_FILE` holds it; of the curve, what was measured on held-out text."""
        fields = asdict(self)
        fields["curve"] = [line for line in self.curve if line.get("split") == "held_out"]
        for fields_of, scores in zip(fields["settings"], self.settings, strict=True):
            fields_of["setting"] = {"name": scores.setting.name, **asdict(scores.setting)}
        return fields


def judge(
    config: JudgementConfig,
    folder: Path,
    observe: Observer,
    *,
    together: Together | None = None,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Judgement:
    """Judge a converted model; all records go to `folder`, where a judgement that was cut off goes on.

    `together` decodes the prompts that are not timed side by side; without it each runs alone. Raise UsageError for a
    model that has no canvas or no next-token law, and for a folder that holds another judgement.
    """

    def open_model(source: str, adapter: str | None) -> LanguageModel:
        return load(
            source,
            adapter=adapter,
            dtype=config.dtype,
            device=config.device,
            quantize=config.quantize,
            offline=offline,
            progress=progress,
        )

    model = open_model(config.model, config.adapter)
    if model.denoiser.mask_token_id is None or not model.denoiser.predicts_next:
        lacks = "canvas" if model.denoiser.mask_token_id is None else "next-token law"
        raise UsageError(
            f"{config.model} has no {lacks}, so there is nothing to judge",
            "convert it first" if model.denoiser.predicts_next else "judge a converted model",
        )
    models: dict[Which, LanguageModel] = {"judged": model}
    if config.against is not None:
        models["against"] = open_model(config.model, config.against)
    run = _Run(config, RunFolder(folder, "judgement"), models, open_model, observe, together)
    windows = run.windows()  # before the folder is taken: texts that cannot be read leave no trace
    run.claim()
    texts, records = run.texts(windows), run.prompts()
    judgement = Judgement(
        config,
        provenance_of(model),
        run.description,
        texts,
        tuple(SettingScores.of(setting, records) for setting in config.settings),
        _curve(config.model),
    )
    run.folder.write_json(JUDGEMENT_FILE, judgement.to_json())
    return judgement


@dataclass(frozen=True)
class _Run:
    config: JudgementConfig
    folder: RunFolder
    models: Mapping[Which, LanguageModel]
    open_model: Callable[[str, str | None], LanguageModel]
    observe: Observer
    together: Together | None

    @cached_property
    def description(self) -> dict[str, object]:
        """What is judged: names, and a fingerprint of the weights, by which a folder knows its model."""
        model = self.models["judged"]
        card = model.checkpoint.card
        return {
            "name": card.name,
            "base": card.base,
            "adapter": card.adapter,
            "block_length": card.block_length,
            "logit_shift": card.logit_shift,
            "fingerprints": {which: fingerprint(model) for which, model in self.models.items()},
        }

    def windows(self) -> list[Window]:
        """Cut the held-out text, or else the prompts, into windows."""
        tokenizer = self.models["judged"].tokenizer
        if not self.config.texts:
            prompts = first_prompts(self.config.num_prompts)
            return windows_of_texts(OWN_TEXT, (prompt.text for prompt in prompts), tokenizer)
        return [
            window
            for path in self.config.texts
            for window in windows_of_file(
                Path(path), tokenizer, num_tokens=self.config.text_tokens, seed=self.config.seed
            )
        ]

    def claim(self) -> None:
        """Take the folder, or find that it holds a part of this judgement, perhaps on fewer prompts."""
        settings = {**asdict(self.config), "judged": self.description}
        del settings["num_prompts"]
        self.folder.claim_settings(settings)

    def texts(self, windows: Sequence[Window]) -> tuple[TextScore, ...]:
        """Score the held-out text, window by window."""
        ledger = Ledger(self.folder, TEXT_FILE, WindowScore)
        base = self._base() if len(ledger.records) < len(windows) else None
        base_denoiser = None if base is None else base.denoiser
        judged = self.models["judged"].denoiser
        canvases = {
            Setting("diffusion", which, length).name: (CanvasBlocks(model.denoiser), length)
            for length in self.config.block_lengths
            for which, model in self.models.items()
        }

        def score(window: Window) -> WindowScore:
            return score_window(window, judged, base_denoiser, canvases, seed=self.config.seed)

        scores = ledger.fill(windows, score, "text", self.observe)
        sources = dict.fromkeys(score.source for score in scores)
        return tuple(
            TextScore.of([score for score in scores if score.source == source]) for source in sources
        )

    def prompts(self) -> list[PromptRecord]:
        """Decode the prompts in their settings."""
        config = self.config
        num_kinds = len(kinds())
        asked = [
            (
                prompt,
                config.settings if place < num_kinds * config.num_diffusion else _causal(config.settings),
            )
            for place, prompt in enumerate(first_prompts(config.num_prompts))
        ]
        ledger = Ledger(self.folder, PROMPTS_FILE, PromptRecord)
        while (done := len(ledger.records)) < len(asked):
            self.observe(StageProgress("prompts", done, len(asked)))
            if self.together is None or done < num_kinds * config.num_timed:
                prompt, settings = asked[done]
                records = [run_prompt(prompt, settings, self.models, config.max_tokens)]
            else:
                # One of each kind: enough to fill a forward, and not much is lost when it is cut off.
                some = asked[done : done + num_kinds]
                records = run_prompts(some, self.models, config.max_tokens, self.together)
            for record in records:
                ledger.add(record)
        self.observe(StageProgress("prompts", len(asked), len(asked)))
        return ledger.records[: len(asked)]

    def _base(self) -> LanguageModel | None:
        """Return the model that was converted, where it is known."""
        checkpoint = self.models["judged"].checkpoint
        base = self.config.base or checkpoint.card.base
        if base is None and checkpoint.adapter is not None:
            base = self.config.model
        return None if base is None else self.open_model(base, NO_ADAPTER)


def _causal(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Leave out the settings of mode diffusion."""
    return tuple(setting for setting in settings if setting.mode != "diffusion")


def _curve(source: str) -> tuple[Mapping[str, Any], ...]:
    """Return the metrics of the run that a folder is of, or is in; nothing where there was none."""
    folder = Path(source).expanduser()
    path = next(
        (place / METRICS_FILE for place in (folder, *folder.parents[:2]) if (place / METRICS_FILE).is_file()),
        None,
    )
    if path is None:
        return ()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return tuple(json.loads(line) for line in lines if line.endswith("\n"))
