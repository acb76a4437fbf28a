"""Conversions of a tiny model, and what they leave."""

import json
import signal
from pathlib import Path

from unmask.model.checkpoint import NO_ADAPTER, Checkpoint, load_checkpoint
from unmask.training.conversion import METRICS_FILE, Conversion, ConversionEvent
from unmask.training.conversion_config import ConversionConfig


def frozen(**settings: object) -> dict[str, object]:
    return {"name": "frozen", "rank": 2, **settings}


def tiny_config(base: Path, **changes: object) -> ConversionConfig:
    settings: dict[str, object] = {
        "model": str(base),
        "steps": 6,
        "synthetic_tokens": 200,
        "length": 48,
        "batch_documents": 2,
        "synthesis_rows": 4,
        "recipe": {"name": "frozen", "rank": 2},
        "block_lengths": (2, 4),
        "held_out_documents": 2,
        "save_every": 3,
        "warmup_steps": 1,
    }
    return ConversionConfig.model_validate(settings | changes)


def run(config: ConversionConfig, folder: Path, *, interrupt_at: int | None = None) -> Checkpoint:
    adapter = None if config.recipe.name == "drafter" else NO_ADAPTER
    checkpoint = load_checkpoint(config.model, adapter=adapter)

    def observe(event: ConversionEvent) -> None:
        if event.record is not None and event.record.split == "train" and event.record.step == interrupt_at:
            signal.raise_signal(signal.SIGINT)

    Conversion(config, folder, checkpoint).run(observe)
    return checkpoint


def records(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
