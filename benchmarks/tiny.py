"""Compare the three tiny models that come with the package: next tokens, masked diffusion, continuous diffusion.

    python benchmarks/tiny.py SHARDS [--student FOLDER] [--quick]

They were trained at equal parameters, data and time (benchmarks/tiny.toml). SHARDS are what they were trained on,
whose held-out documents are read here. Bits per byte: exact by next tokens; bounds by exact counts of masks and by
Gaussian noise; and the probability flow's own likelihood, on fewer texts. Samples: bits per token under tiny-ar, which
learnt from the same text but is another model, and bits per byte under smollm2-135m, which did not; beside their
unigram entropy, for at a low temperature every model pleases a judge. So every count of forwards is run at several
temperatures, and the bits are interpolated at the entropy of held-out text. Seconds: of texts of several lengths, one
at a time.
`--student`: a model that objective 'distill' made of tiny-continuous. Writes benchmarks/tiny.json, tiny-quality.png and
tiny-seconds.png.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from unmask.decoding.candidates import Shape
from unmask.decoding.gaussian_samplers import GAUSSIAN_SAMPLERS
from unmask.decoding.gaussian_sampling import gaussian_sample
from unmask.decoding.generate import generate
from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.decoding.samplers import parse_sampler
from unmask.decoding.sampling import sample
from unmask.evaluation.autoregressive import Autoregressive
from unmask.evaluation.average import Average, average
from unmask.evaluation.canvas_likelihood import Bound, Flow
from unmask.evaluation.continuations import Continuation, LikelihoodKind
from unmask.evaluation.model_scorer import ModelScorer
from unmask.evaluation.provenance import provenance
from unmask.evaluation.written import distinct_pairs, judged_bits, judged_bits_per_byte, unigram_entropy
from unmask.runtime import thread_count, tune_allocator
from unmask.training.shards import Shards

HERE = Path(__file__).parent
LENGTH = 128
SEED = 0
NUM_NOISE_SAMPLES = 8
FULL = {
    "texts": 200,
    "flow_texts": 24,
    "flow_steps": 32,
    "samples": 24,
    "steps": (2, 4, 8, 16, 32, 64, 128, 256),
    "temperatures": (0.7, 0.85, 1.0, 1.15),
    "lengths": (16, 32, 64, 128),
    "repeats": 5,
}
QUICK = {
    "texts": 2,
    "flow_texts": 2,
    "flow_steps": 2,
    "samples": 2,
    "steps": (2, 4),
    "temperatures": (0.8, 1.0),
    "lengths": (16, 32),
    "repeats": 1,
}
Write = Callable[[int, int, float, int], Tensor]
"""Number of texts, steps, temperature and length to rows of tokens, the start token first."""


def canvas(model: LanguageModel, num_rows: int, length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.full((num_rows, length + 1), model.tokenizer.eos_id)
    free = torch.ones_like(tokens, dtype=torch.bool)
    free[:, 0] = False
    return tokens, free


def by_next_tokens(model: LanguageModel) -> Write:
    def write(num_rows: int, steps: int, temperature: float, length: int) -> Tensor:
        start = model.tokenizer.eos_id
        rows = []
        for seed in range(num_rows):
            options = Options(
                mode="ar", max_tokens=length, temperature=temperature, seed=seed, stop_token_ids=()
            )
            rows.append([start, *generate(model.denoiser, model.tokenizer, [start], options).token_ids])
        return torch.tensor(rows)

    return write


def by_masks(model: LanguageModel, sampler: str) -> Write:
    def write(num_rows: int, steps: int, temperature: float, length: int) -> Tensor:
        tokens, free = canvas(model, num_rows, length)
        way, shape = parse_sampler(sampler), Shape(temperature=temperature)
        process = model.denoiser.process
        return sample(
            model.denoiser.whole, process, tokens, free, way, steps=steps, seeds=range(num_rows), shape=shape
        ).tokens

    return write


def by_noise(model: LanguageModel, sampler: str) -> Write:
    def write(num_rows: int, steps: int, temperature: float, length: int) -> Tensor:
        tokens, free = canvas(model, num_rows, length)
        informed, way = model.denoiser.informed(), GAUSSIAN_SAMPLERS.parse(sampler)
        return gaussian_sample(
            informed,
            informed.process,
            tokens,
            free,
            way,
            steps=steps,
            seeds=range(num_rows),
            shape=Shape(temperature=temperature),
        ).tokens

    return write


def bits_per_byte(nats: list[float], num_bytes: list[int]) -> Average:
    found = average(nats, num_bytes)
    assert found is not None
    return found.scaled(1 / math.log(2))


def likelihoods(
    ar: LanguageModel,
    masked: LanguageModel,
    continuous: LanguageModel,
    texts: Tensor,
    *,
    num_flow: int,
    flow_steps: int,
) -> dict[str, dict[str, object]]:
    """Return bits per byte of rows of tokens after their first; the standard errors are over texts."""
    num_bytes = [len(ar.tokenizer.decode(row, skip_special=False).encode()) for row in texts[:, 1:].tolist()]
    rows = [Continuation(tuple(row), len(row) - 1) for row in texts.tolist()]

    def nats(model: LanguageModel, kind: LikelihoodKind, some: Sequence[Continuation]) -> list[float]:
        options = Options(mode="ar" if model is ar else "diffusion", seed=SEED)
        return [-answer.nats for answer in ModelScorer(model, options, kind).score(some)]

    bounds = nats(continuous, Bound(NUM_NOISE_SAMPLES), rows)
    found = {
        "ar, exact": nats(ar, Autoregressive(), rows),
        "masked, bound": nats(masked, Bound(NUM_NOISE_SAMPLES), rows),
        "continuous, bound": bounds,
        "continuous, flow": nats(continuous, Flow(flow_steps, 2), rows[:num_flow]),
        "continuous, bound on the texts of the flow": bounds[:num_flow],
    }
    return {name: asdict(bits_per_byte(some, num_bytes[: len(some)])) for name, some in found.items()}


def quality(tokens: Tensor, ar: LanguageModel, judge: LanguageModel) -> dict[str, object]:
    texts = [ar.tokenizer.decode(row) for row in tokens[:, 1:].tolist()]
    bits = judged_bits(ar.denoiser, tokens)
    bytes_bits = torch.tensor(judged_bits_per_byte(judge, texts), dtype=torch.float64)

    def mean(values: Tensor) -> dict[str, float]:
        return {
            "mean": round(float(values.mean()), 4),
            "standard_error": round(float(values.std() / len(values) ** 0.5), 4),
        }

    return {
        "bits_per_token_by_tiny_ar": mean(bits),
        "bits_per_byte_by_smollm2": mean(bytes_bits),
        "unigram_entropy_bits": mean(unigram_entropy(tokens[:, 1:])),
        "distinct_pairs": round(distinct_pairs(tokens[:, 1:]), 4),
        "sample": texts[0][:300],
    }


def at_entropy(rows: list[dict[str, object]], entropy: float, key: str) -> float | None:
    """Interpolate the bits of runs at several temperatures at an entropy; None where they do not span it."""
    points = sorted((row["unigram_entropy_bits"]["mean"], row[key]["mean"]) for row in rows)
    if not points[0][0] <= entropy <= points[-1][0]:
        return None
    return round(float(np.interp(entropy, *zip(*points, strict=True))), 4)


def seconds(write: Write, steps: int, length: int, repeats: int) -> float:
    write(1, 2, 1.0, length)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        write(1, steps, 1.0, length)
        times.append(time.perf_counter() - began)
    return round(median(times), 4)


def draw_quality(report: dict[str, object], path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    real = report["held_out_text"]
    for name in dict.fromkeys(row["model"] for row in report["samples"]):
        mine = [row for row in report["samples"] if row["model"] == name and row["temperature"] == 1.0]
        style = {"marker": "o", "ms": 3} | ({"ls": "none", "marker": "*", "ms": 10} if name == "ar" else {})
        for axis, key in zip(axes[:2], ("bits_per_token_by_tiny_ar", "unigram_entropy_bits"), strict=True):
            means, errors = ([row[key][part] for row in mine] for part in ("mean", "standard_error"))
            axis.errorbar([row["steps"] for row in mine], means, errors, label=name, **style)
        found = [row for row in report["at_matched_entropy"] if row["model"] == name]
        axes[2].plot(
            [row["steps"] for row in found if row["bits_per_byte_by_smollm2"] is not None],
            [row["bits_per_byte_by_smollm2"] for row in found if row["bits_per_byte_by_smollm2"] is not None],
            label=name,
            **style,
        )
    labels = ("bits per token under tiny-ar, T = 1", "unigram entropy, bits, T = 1", "at the text's entropy")
    keys = ("bits_per_token_by_tiny_ar", "unigram_entropy_bits", "bits_per_byte_by_smollm2")
    for axis, key, label in zip(axes, keys, labels, strict=True):
        axis.axhline(real[key]["mean"], color="k", lw=0.8, ls="--", label="held-out text")
        axis.set(xscale="log", xlim=(1.5, 350), xlabel=f"forwards for {LENGTH} tokens", ylabel=label)
    axes[2].set(ylabel="bits per byte under smollm2-135m,\nat the unigram entropy of held-out text")
    axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def draw_seconds(report: dict[str, object], path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.5, 4), layout="constrained")
    for name in dict.fromkeys(row["model"] for row in report["seconds"]):
        mine = [row for row in report["seconds"] if row["model"] == name]
        label = name if name == "ar" else f"{name}, 16 steps"
        axis.plot([row["length"] for row in mine], [row["seconds"] for row in mine], "o-", ms=3, label=label)
    axis.set(xlabel="tokens", ylabel="seconds a text", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--student", help="folder of a distilled model")
    parser.add_argument("--quick", action="store_true", help="few texts and samples, to see that it runs")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(thread_count() or torch.get_num_threads())
    size = QUICK if arguments.quick else FULL
    ar, masked, continuous = (load(f"tiny-{name}") for name in ("ar", "masked", "continuous"))
    judge = load("smollm2-135m")
    held_out = Shards.open(arguments.shards).held_out.read(0, size["texts"] * LENGTH)
    pieces = torch.from_numpy(held_out.astype(np.int64)).view(-1, LENGTH)
    texts = torch.cat([torch.full((len(pieces), 1), ar.tokenizer.eos_id), pieces], 1)
    report: dict[str, object] = {
        "command": " ".join(["python", "benchmarks/tiny.py", *sys.argv[1:]]),
        "machine": provenance(torch.device("cpu"), torch.float32),
        "settings": size,
        "seed": SEED,
        "parameters": {
            name: sum(weights.numel() for weights in model.checkpoint.transformer.parameters())
            for name, model in (("ar", ar), ("masked", masked), ("continuous", continuous))
        },
        "bits_per_byte": likelihoods(
            ar, masked, continuous, texts, num_flow=size["flow_texts"], flow_steps=size["flow_steps"]
        ),
        "held_out_text": quality(texts[: size["samples"]], ar, judge),
    }
    print(json.dumps(report["bits_per_byte"], indent=2), file=sys.stderr, flush=True)
    writers = {
        "ar": (by_next_tokens(ar), (LENGTH,)),
        "masked, ancestral": (by_masks(masked, "ancestral"), size["steps"]),
        "masked, top-k": (by_masks(masked, "top-k:1"), tuple(n for n in size["steps"] if n <= LENGTH)),
        "continuous, multistep": (by_noise(continuous, "multistep"), size["steps"]),
        "continuous, churn": (by_noise(continuous, "churn:1"), size["steps"]),
    }
    if arguments.student:
        student = by_noise(load(arguments.student), "restart")
        writers["student, restart"] = (student, tuple(n for n in size["steps"] if n <= 16))
    rows, matched = [], []
    for name, (write, steps) in writers.items():
        for count in steps:
            runs = []
            for temperature in size["temperatures"]:
                tokens = write(size["samples"], count, temperature, LENGTH)
                run = {
                    "model": name,
                    "steps": count,
                    "temperature": temperature,
                    **quality(tokens, ar, judge),
                }
                runs.append(run)
                shown = {key: value for key, value in run.items() if key != "sample"}
                print(shown, file=sys.stderr, flush=True)
            rows += runs
            target = report["held_out_text"]["unigram_entropy_bits"]["mean"]
            keys = ("bits_per_token_by_tiny_ar", "bits_per_byte_by_smollm2")
            matched.append(
                {
                    "model": name,
                    "steps": count,
                    "entropy": target,
                    **{key: at_entropy(runs, target, key) for key in keys},
                }
            )
    report |= {"at_matched_entropy": matched, "samples": rows}
    fixed = {
        "ar": writers["ar"][0],
        "masked": by_masks(masked, "ancestral"),
        "continuous": by_noise(continuous, "multistep"),
    }
    report["seconds"] = [
        {"model": name, "length": length, "steps": length if name == "ar" else 16, "seconds": took}
        for name, write in fixed.items()
        for length in size["lengths"]
        for took in [seconds(write, 16, length, size["repeats"])]
    ]
    (arguments.out / "tiny.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draw_quality(report, arguments.out / "tiny-quality.png")
    draw_seconds(report, arguments.out / "tiny-seconds.png")


if __name__ == "__main__":
    main()
