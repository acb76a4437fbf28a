"""Measure what an adapter is worth: tokens per draft-verify cycle and per forward, and speed, beside AR.

    python benchmarks/acceptance.py [--adapter FOLDER] [--prompts 3] [--max-tokens 48] [--blocks 8 16]
    python benchmarks/acceptance.py --curve RUN/metrics.jsonl      (the loss curve of the conversion beside it)

Greedy, float32, on the first prompts of every kind in tests/decoding/prompts.json, none of which was trained on. Every
prompt runs in all settings before the next one, so that their speeds compare although the machine's own varies; speeds
are total tokens over total decoding time. Each mean over cycles comes with its standard error over prompts. Writes
benchmarks/acceptance.json and .png.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

import unmask
from unmask.decoding.generate import Generation
from unmask.decoding.language_model import LanguageModel, load
from unmask.runtime import thread_count, tune_allocator

ROOT = Path(__file__).parent.parent
HERE = ROOT / "benchmarks"


@dataclass
class Setting:
    """A way to decode, and what it gave for each prompt."""

    model: LanguageModel
    adapter: str
    options: dict[str, object]
    generations: dict[str, list[Generation]] = field(default_factory=lambda: defaultdict(list))

    def run(self, kind: str, prompt: str, max_tokens: int) -> None:
        self.generations[kind].append(self.model.generate(prompt, max_tokens=max_tokens, **self.options))

    def all(self) -> list[Generation]:
        return [one for ones in self.generations.values() for one in ones]


def mean_and_error(values: list[float]) -> dict[str, float]:
    """Return the mean and its standard error."""
    return {
        "mean": round(float(np.mean(values)), 4),
        "se": round(float(np.std(values, ddof=1) / len(values) ** 0.5), 4),
    }


def per_cycle(generations: list[Generation]) -> dict[str, float]:
    """Return tokens per draft-verify cycle: accepted drafts and the verifier's one, averaged prompt by prompt."""
    return mean_and_error(
        [float(np.mean(one.accepted_lengths)) + 1 for one in generations if one.accepted_lengths]
    )


def speed(generations: list[Generation]) -> float:
    return sum(one.num_tokens - 1 for one in generations) / sum(one.seconds["decode"] for one in generations)


def row(setting: Setting, ar: Setting) -> dict[str, object]:
    """Return one line of the report."""
    generations = setting.all()
    equal = [one.token_ids == other.token_ids for one, other in zip(generations, ar.all(), strict=True)]
    described: dict[str, object] = {
        **setting.options,
        "adapter": setting.adapter,
        "tokens_per_forward": round(
            sum(one.num_tokens for one in generations) / sum(one.num_decode_forwards for one in generations),
            4,
        ),
        "tokens_per_s": round(speed(generations), 2),
        "speed_over_ar": round(speed(generations) / speed(ar.all()), 4),
        "num_prompts": len(generations),
        "same_text_as_ar": sum(equal),
    }
    if setting.options["mode"] == "speculative":
        described["tokens_per_cycle"] = per_cycle(generations)
        described["tokens_per_cycle_by_kind"] = {
            kind: per_cycle(ones) for kind, ones in setting.generations.items()
        }
    return described


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "unmask": unmask.__version__,
        "torch": torch.__version__,
        "cpu": name,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
    }


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for prompt in json.loads((ROOT / "tests" / "decoding" / "prompts.json").read_text()):
        kinds[prompt["kind"]].append(prompt["text"])
    trained = load("smollm2-135m", adapter=arguments.adapter)
    untrained = load("smollm2-135m", adapter="untrained")
    ar = Setting(trained, "none", {"mode": "ar"})
    settings = [ar]
    for block in arguments.blocks:
        for name, model in (("untrained", untrained), ("trained", trained)):
            settings.append(Setting(model, name, {"mode": "speculative", "block_length": block}))
    for rule in ("threshold:0.9", "threshold:0.7"):
        settings.append(Setting(trained, "trained", {"mode": "diffusion", "block_length": 8, "rule": rule}))
    prompts = [(kind, text) for kind, texts in kinds.items() for text in texts[: arguments.prompts]]
    for number, (kind, text) in enumerate(prompts):
        print(f"{number + 1} of {len(prompts)}: {kind}", file=sys.stderr, flush=True)
        for setting in settings:
            setting.run(kind, text, arguments.max_tokens)
    return {
        "command": " ".join(["python", "benchmarks/acceptance.py", *sys.argv[1:]]),
        "machine": machine(),
        "max_tokens": arguments.max_tokens,
        "rows": [row(setting, ar) for setting in settings],
    }


def draw(report: dict[str, object], curve: list[dict[str, float]], path: Path) -> None:
    """Draw the conversion's curves and the measured tokens per cycle by kind of prompt."""
    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    train = [line for line in curve if line["split"] == "train"]
    held_out = [line for line in curve if line["split"] == "held_out"]
    for axis, key, label in (
        (left, "loss", "loss, nats"),
        (middle, "tokens_per_cycle", "tokens per cycle, block 16"),
    ):
        known = [line for line in train if line[key] is not None]
        axis.plot(
            [line["step"] for line in known],
            [line[key] for line in known],
            color="0.8",
            lw=0.8,
            label="batch",
        )
        axis.plot(
            [line["step"] for line in held_out],
            [line[key] for line in held_out],
            "o-",
            ms=3,
            label="held out",
        )
        axis.set(xlabel="step", ylabel=label)
        axis.legend(frameon=False)
    rows = [line for line in report["rows"] if "tokens_per_cycle_by_kind" in line]
    for place, line in enumerate(rows):
        kinds = line["tokens_per_cycle_by_kind"]
        at = np.arange(len(kinds)) + (place - len(rows) / 2) * 0.8 / len(rows)
        means, errors = ([value[key] for value in kinds.values()] for key in ("mean", "se"))
        name = f"{line['adapter']}, block {line['block_length']}"
        right.bar(at, means, 0.8 / len(rows), yerr=errors, label=name, error_kw={"lw": 0.7})
        right.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    right.set(ylabel="tokens per cycle, greedy", ylim=(1, None))
    right.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", help="adapter folder (default: the one in the package)")
    parser.add_argument("--prompts", type=int, default=3, help="prompts of each kind")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 16])
    parser.add_argument(
        "--curve", type=Path, default=HERE / "conversion.jsonl", help="metrics of the conversion"
    )
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(thread_count() or torch.get_num_threads())
    report = measure(arguments)
    (HERE / "acceptance.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(
        report,
        [json.loads(line) for line in arguments.curve.read_text().splitlines()],
        HERE / "acceptance.png",
    )


if __name__ == "__main__":
    main()
