"""Train adapters that differ in one setting each, for a few steps on the same text, and compare how far drafts hold.

    python benchmarks/ablations.py [--steps 30] [--model smollm2-135m] [--variants rank-8 hard-targets]

Every variant of the recipe `frozen` sees the same documents in the same order. All are then measured alike, on
documents kept out of training, by fully open canvases of 8: how often a sampled draft would be accepted, and how many
tokens a greedy cycle would write. Runs stay in build/ablations, so Ctrl-C and the same command again go on. Writes
benchmarks/ablations.json and .png.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.cli.run_bar import RunBar
from unmask.config import LINEAR_NAMES
from unmask.evaluation.average import average
from unmask.evaluation.figure import new_figure
from unmask.evaluation.provenance import provenance
from unmask.model.checkpoint import load_checkpoint
from unmask.runtime import tune_allocator
from unmask.training.blocks import BlockConfig
from unmask.training.conversion import DOCUMENTS_FILE, Conversion
from unmask.training.conversion_config import ConversionConfig
from unmask.training.documents import Document
from unmask.training.frozen_objective import conversion_loss
from unmask.training.pupil import AdapterPupil

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "ablations"
ATTENTION, MLP = LINEAR_NAMES[:4], LINEAR_NAMES[4:]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "rank-8": {"rank": 8, "alpha": 8.0},
    "rank-128": {"rank": 128, "alpha": 128.0},
    "attention-only": {"targets": ATTENTION},
    "mlp-only": {"targets": MLP},
    "no-shift": {"logit_shift": False},
    "hard-targets": {"teacher_temperature": 0.05},
    "few-drafts": {"drafting_share": 0.3},
    "only-drafts": {"drafting_share": 1.0},
    "first-places": {"draft_decay": 0.5},
    "twice-the-rate": {"learning_rate": 2e-3},
    "blocks-of-8": {"block_lengths": (8,)},
}
NUM_HELD_OUT = 48
RESULT_FILE = "result.json"


def config_of(variant: str, model: str, steps: int) -> ConversionConfig:
    recipe = dict(VARIANTS[variant])
    lengths = recipe.pop("block_lengths", (4, 8, 16))
    return ConversionConfig.model_validate(
        {
            "model": model,
            "steps": steps,
            "synthetic_tokens": 60_000,
            "block_lengths": lengths,
            "warmup_steps": 10,
            "held_out_documents": NUM_HELD_OUT,
            "save_every": steps,
            "dtype": "bfloat16",
            "recipe": {"name": "frozen", **recipe},
        }
    )


def measure(run: Conversion, documents: Sequence[Document]) -> dict[str, Any]:
    """Return what fully open canvases of 8 come to, each with its standard error over documents."""
    assert isinstance(run.pupil, AdapterPupil)
    objective = replace(run.pupil.objective, blocks=BlockConfig((8,), 1.0))
    found: dict[str, list[float]] = {"overlap": [], "tokens_per_cycle": []}
    with torch.no_grad():
        for number, document in enumerate(documents):
            batch = conversion_loss(run.pupil.denoiser, [document], objective, np.random.default_rng(number))
            for name, values in (("overlap", batch.overlap), ("tokens_per_cycle", batch.cycle_tokens)):
                if len(values):
                    found[name].append(float(values.mean()))
    return {name: asdict(average(own, [1.0] * len(own))) for name, own in found.items()}


def train(variant: str, model: str, steps: int) -> dict[str, Any]:
    """Train a variant, and return what it came to."""
    config = config_of(variant, model, steps)
    run = Conversion(config, FOLDER / variant, load_checkpoint(model, adapter="none", dtype="bfloat16"))
    written = FOLDER / variant / DOCUMENTS_FILE
    if not written.exists() and variant != "default":
        shutil.copyfile(FOLDER / "default" / DOCUMENTS_FILE, written)
    with RunBar() as bar:
        run.run(lambda event: bar.show(variant, event.done, event.total, event.stage))
    held_out, _ = run.documents(lambda event: None)
    return {
        "changed": VARIANTS[variant],
        "steps": steps,
        "num_tokens": run.num_tokens,
        "seconds": run.seconds,
        **measure(run, held_out),
    }


def draw(results: dict[str, Any], path: Path) -> None:
    figure = new_figure(2)
    for axes, (name, label) in zip(
        figure.subplots(1, 2, sharey=True),
        (
            ("overlap", "chance that a sampled draft is accepted"),
            ("tokens_per_cycle", "tokens per greedy cycle, block 8"),
        ),
        strict=True,
    ):
        means = [result[name]["mean"] for result in results.values()]
        errors = [result[name]["standard_error"] for result in results.values()]
        axes.errorbar(means, list(results), xerr=errors, fmt="o", ms=4)
        axes.axvline(results["default"][name]["mean"], lw=0.8, color="grey")
        axes.set(xlabel=label)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    asked = parser.parse_args()
    tune_allocator()
    results: dict[str, Any] = {}
    for variant in ["default", *(name for name in asked.variants if name != "default")]:
        kept = FOLDER / variant / RESULT_FILE
        if not kept.exists():
            result = train(variant, asked.model, asked.steps)
            kept.write_text(json.dumps(result) + "\n", encoding="utf-8")
        results[variant] = json.loads(kept.read_text(encoding="utf-8"))
        print(variant, json.dumps(results[variant]), flush=True)
    report = {
        "provenance": provenance(torch.device("cpu"), torch.bfloat16),
        "model": asked.model,
        "steps": asked.steps,
        "default": config_of("default", asked.model, asked.steps).model_dump(mode="json"),
        "num_held_out": NUM_HELD_OUT,
        "variants": results,
    }
    (HERE / "ablations.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(results, HERE / "ablations.png")


if __name__ == "__main__":
    main()
