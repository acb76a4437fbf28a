"""Train one model from scratch for every process at the same budget, and compare bits per byte and few-step samples.

    unmask data SHARDS --text FILE ... --tokenizer bpe:4096
    python benchmarks/processes.py SHARDS --runs FOLDER [--minutes 18] [--cases masked uniform]

Every run is `unmask train benchmarks/processes.toml` with other settings, and is continued where it stopped. Bits per
byte are those of the held-out documents: exact for `ar`, an upper bound for the others. Samples are judged by the `ar`
model of the same run (bits per token), beside their own unigram entropy and the share of distinct pairs: a low number
alone says nothing. Writes benchmarks/processes.json and .png; cases that are not named keep what the report has of
them.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from unmask.decoding.candidates import Shape
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.samplers import parse_sampler
from unmask.decoding.sampling import sample
from unmask.evaluation.provenance import provenance
from unmask.evaluation.written import distinct_pairs, judged_bits, unigram_entropy
from unmask.runtime import thread_count, tune_allocator
from unmask.training.run_folder import METRICS_FILE
from unmask.training.shards import Shards

HERE = Path(__file__).parent
CASES = {
    "ar": ["objective.name=ar"],
    "joint, block 8": ["objective.name=joint", "objective.block_lengths=[8]", "objective.times=exact-count"],
    "block 8": ["objective.name=diffusion", "objective.block_lengths=[8]", "objective.times=exact-count"],
    "masked": ["objective.name=diffusion", "objective.times=exact-count"],
    "hybrid 0.2": [
        "objective.name=diffusion",
        "objective.process=hybrid:0.2",
        "objective.schedule=polynomial:4",
        "objective.time_conditioning=true",
    ],
    "uniform": [
        "objective.name=diffusion",
        "objective.process=uniform",
        "objective.schedule=polynomial:2",
        "objective.time_conditioning=true",
    ],
    "continuous": [
        "objective.name=continuous",
        "objective.schedule=learned:-7,5",
        "objective.self_conditioning=false",
    ],
}
SAMPLERS = {
    "masked": ("ancestral", "top-k:1", "random:1", "remdm-cap"),
    "uniform": ("ancestral",),
    "hybrid 0.2": ("ancestral",),
}
STEPS = (4, 8, 16, 32, 64, 128)
NUM_SAMPLES, LENGTH = 32, 128


def folder_of(runs: Path, name: str) -> Path:
    return runs / name.replace(", ", "-").replace(" ", "-")


def train(name: str, shards: Path, folder: Path, minutes: float) -> None:
    settings = [f"data.folder={json.dumps(str(shards))}", f"run.minutes={minutes}", *CASES[name]]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "unmask",
        "train",
        str(HERE / "processes.toml"),
        "--out",
        str(folder),
        *options,
    ]
    subprocess.run(command, check=True)


def curve(folder: Path) -> list[dict[str, object]]:
    lines = (json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines())
    return [line for line in lines if line["split"] == "held_out"]


def model_of(folder: Path) -> LanguageModel:
    return load(str(folder))


def quality(tokens: Tensor, judge: LanguageModel) -> dict[str, float]:
    """Return bits per token of rows after their first under the judge, unigram entropy, and distinct pairs."""
    return {
        "judged_bits_per_token": round(float(judged_bits(judge.denoiser, tokens).mean()), 3),
        "unigram_entropy_bits": round(float(unigram_entropy(tokens[:, 1:]).mean()), 3),
        "distinct_pairs": round(distinct_pairs(tokens[:, 1:]), 4),
    }


def samples(name: str, model: LanguageModel, judge: LanguageModel) -> list[dict[str, object]]:
    start = model.tokenizer.eos_id
    rows = []
    for sampler in SAMPLERS[name]:
        for steps in STEPS:
            tokens = torch.full((NUM_SAMPLES, LENGTH + 1), start)
            free = torch.ones_like(tokens, dtype=torch.bool)
            free[:, 0] = False
            # A rule of one token at a time is made to finish in time.
            written = sample(
                model.denoiser.whole,
                model.denoiser.process,
                tokens,
                free,
                parse_sampler(sampler),
                steps=steps,
                seeds=range(NUM_SAMPLES),
                shape=Shape(temperature=1.0),
            )
            rows.append(
                {
                    "model": name,
                    "sampler": sampler,
                    "steps": steps,
                    **quality(written.tokens, judge),
                    "sample": model.tokenizer.decode(written.tokens[0, 1:].tolist())[:300],
                }
            )
            print({key: rows[-1][key] for key in rows[-1] if key != "sample"}, file=sys.stderr, flush=True)
    return rows


def held_out_text(shards: Shards, judge: LanguageModel) -> dict[str, float]:
    """Return the same numbers of real text."""
    tokens = torch.from_numpy(shards.held_out.read(0, NUM_SAMPLES * LENGTH)).view(NUM_SAMPLES, LENGTH)
    rows = torch.cat([torch.full((NUM_SAMPLES, 1), judge.tokenizer.eos_id), tokens], dim=1)
    return quality(rows, judge)


def draw_picture(report: dict[str, object], path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for name, entry in report["models"].items():
        tokens = [point["num_tokens"] / 1e6 for point in entry["curve"]]
        left.plot(tokens, [point["bits_per_byte"] for point in entry["curve"]], label=name)
    left.set(xlabel="training tokens, millions", ylabel="held-out bits per byte", ylim=(None, 5))
    left.legend(frameon=False, fontsize=8)
    for axis, key, label in (
        (middle, "judged_bits_per_token", "bits per token under the ar model"),
        (right, "unigram_entropy_bits", "unigram entropy, bits"),
    ):
        for model, sampler in dict.fromkeys((row["model"], row["sampler"]) for row in report["samples"]):
            mine = [row for row in report["samples"] if (row["model"], row["sampler"]) == (model, sampler)]
            axis.plot(
                [row["steps"] for row in mine],
                [row[key] for row in mine],
                "o-",
                ms=3,
                label=f"{model}, {sampler}",
            )
        axis.axhline(report["held_out_text"][key], color="k", lw=0.8, ls="--", label="held-out text")
        axis.set(xscale="log", xlabel="denoising steps for 128 tokens", ylabel=label)
    middle.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def bounds(name: str, folder: Path, per_byte: float) -> dict[str, object]:
    """Return the held-out bits per byte of a run, as it trained and at its end."""
    measured = curve(folder)
    points = [
        {
            "step": point["step"],
            "num_tokens": point["num_tokens"],
            "bits_per_byte": round(point["losses"]["ar" if name == "ar" else "diffusion"] * per_byte, 4),
        }
        for point in measured
    ]
    last = measured[-1]["losses"]
    also = {"ar_bits_per_byte": round(last["ar"] * per_byte, 4)} if name.startswith("joint") else {}
    return {
        "bits_per_byte": points[-1]["bits_per_byte"],
        **also,
        "tokens": points[-1]["num_tokens"],
        "curve": points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=18)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--train-only", action="store_true", help="write no report")
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(thread_count() or torch.get_num_threads())
    for name in arguments.cases:
        train(name, arguments.shards, folder_of(arguments.runs, name), arguments.minutes)
    if arguments.train_only:
        return
    shards = Shards.open(arguments.shards)
    entry = shards.manifest.splits["held_out"]
    per_byte = entry.num_tokens / entry.num_bytes / math.log(2)
    path = HERE / "processes.json"
    kept = json.loads(path.read_text()) if len(arguments.cases) < len(CASES) and path.exists() else {}
    judge = model_of(folder_of(arguments.runs, "ar"))
    old = [row for row in kept.get("samples", ()) if row["model"] not in arguments.cases]
    new = [
        row
        for name in SAMPLERS
        if name in arguments.cases
        for row in samples(name, model_of(folder_of(arguments.runs, name)), judge)
    ]
    report = {
        "commands": [
            *kept.get("commands", []),
            " ".join(["python", "benchmarks/processes.py", *map(shlex.quote, sys.argv[1:])]),
        ],
        "machine": provenance(torch.device("cpu"), torch.float32),
        "minutes_per_model": arguments.minutes,
        "bytes_per_token": round(entry.num_bytes / entry.num_tokens, 4),
        "held_out_text": held_out_text(shards, judge),
        "models": kept.get("models", {})
        | {name: bounds(name, folder_of(arguments.runs, name), per_byte) for name in arguments.cases},
        "samples": old + new,
    }
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draw_picture(report, HERE / "processes.png")


if __name__ == "__main__":
    main()
