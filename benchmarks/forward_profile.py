"""Measure where a forward's time goes: the memory's floor, the matrix products, and all that is between them.

    python benchmarks/forward_profile.py [--threads 1] [--rounds 15] [--out benchmarks/forward_profile.json]

`products`: one product of each shape of the default model's layers, by rows: torch's own on plain weights, packed
float32, int8 with its rounding of activations; weights take turns so that none is found in a cache.
`forwards`: a step of ar, a draft and a verification behind 150 cached tokens, in the layout of the checkpoint, merged,
and merged in int8; `products_s` is the same forward's products alone, `floor_s` its weights' bytes at the bandwidth
measured beside it. Everything takes turns; figures are medians and least values. With one thread seconds are its CPU
time, in which programs beside it count only by what they take from caches and memory.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from rich.progress import track

from unmask.decoding.language_model import LanguageModel, load
from unmask.evaluation.fingerprint import fingerprint
from unmask.evaluation.provenance import provenance
from unmask.model.merged import Product, product
from unmask.model.quantize import int8_product

SHAPES = {"qkv": (576, 960), "o": (576, 576), "gate_up": (576, 3072), "down": (1536, 576)}
ROWS = (1, 2, 8, 16, 32)
CACHED, BLOCK_LENGTH = 150, 8
STREAMED_BYTES = 64 * 2**20

Calls = dict[str, Callable[[], object]]


def clock() -> float:
    """Return the CPU time of this thread where torch has no other, so that neighbours on the core do not count."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def stream_bytes_per_s(rounds: int) -> float:
    """Return the bandwidth at which a product of one row reads a matrix that no cache holds."""
    matrix, vector = torch.ones(STREAMED_BYTES // (4 * 4096), 4096), torch.ones(4096)
    seconds = take_turns({"": lambda: matrix @ vector}, rounds)[""]["median_s"]
    return matrix.numel() * matrix.element_size() / seconds


def take_turns(calls: Calls, rounds: int) -> dict[str, dict[str, float]]:
    """Return median and least seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = clock()
            call()
            seconds[name].append(clock() - began)
    return {name: {"median_s": median(own), "least_s": min(own)} for name, own in seconds.items()}


@torch.inference_mode()
def compare_products(rounds: int) -> dict[str, object]:
    """Time one product of every shape and number of rows, three ways."""
    generator = torch.Generator().manual_seed(0)
    report: dict[str, object] = {}
    for name, (inner, outer) in track(SHAPES.items(), "products"):
        count = max(2, STREAMED_BYTES // (4 * inner * outer))
        weights = [torch.randn(outer, inner, generator=generator) / inner**0.5 for _ in range(count)]
        ways: dict[str, list[Product]] = {
            "plain": [lambda x, weight=weight: F.linear(x, weight) for weight in weights],  # type: ignore[misc]
            "packed": [product(weight, None) for weight in weights],
            "int8": [int8_product(weight, None) for weight in weights],
        }
        for rows in ROWS:
            x = torch.randn(rows, inner, generator=generator)

            def through(products: Sequence[Product], x: torch.Tensor = x) -> None:
                for each in products:
                    each(x)

            timed = take_turns(
                {way: lambda own=own: through(own) for way, own in ways.items()},  # type: ignore[misc]
                rounds,
            )
            report[f"{name} {inner}x{outer}, {rows} rows"] = {
                way: {key: value / count for key, value in figures.items()} for way, figures in timed.items()
            }
    return report


@torch.inference_mode()
def compare_forwards(models: dict[str, LanguageModel], rounds: int, bytes_per_s: float) -> dict[str, object]:
    """Time the three forwards of speculation in every layout."""
    calls: Calls = {}
    for name, model in models.items():
        denoiser = model.denoiser
        assert denoiser.mask_token_id is not None
        cache = denoiser.new_cache(CACHED + BLOCK_LENGTH + 1)
        denoiser.causal(torch.arange(CACHED), 0, cache)
        blank = torch.full((BLOCK_LENGTH,), denoiser.mask_token_id)
        calls |= {
            f"step, {name}": lambda d=denoiser, c=cache: d.causal(torch.tensor([5]), CACHED, c),  # type: ignore[misc]
            f"draft, {name}": lambda d=denoiser, c=cache, b=blank: d.draft([5], b, CACHED, c),  # type: ignore[misc]
            f"verification, {name}": lambda d=denoiser, c=cache: d.causal(  # type: ignore[misc]
                torch.arange(BLOCK_LENGTH), CACHED, c, num_heads=BLOCK_LENGTH
            ),
        }
    report: dict[str, object] = dict(take_turns(calls, rounds))
    config = next(iter(models.values())).checkpoint.transformer.config
    numbers = config.num_layers * sum(inner * outer for inner, outer in SHAPES.values())
    numbers += config.vocab_size * config.hidden_size
    for name, make, size in (("merged float32", product, 4), ("merged int8", int8_product, 1)):
        layer = [
            [make(torch.randn(outer, inner), None) for inner, outer in SHAPES.values()]
            for _ in range(config.num_layers)
        ]
        head = make(torch.randn(config.vocab_size, config.hidden_size), None)
        for rows in (1, BLOCK_LENGTH):
            inputs = [torch.randn(rows, inner) for inner, _ in SHAPES.values()]

            def all_products(
                layer: list[list[Product]] = layer,
                head: Product = head,
                inputs: list[torch.Tensor] = inputs,
            ) -> None:
                for products in layer:
                    for each, x in zip(products, inputs, strict=True):
                        each(x)
                head(inputs[0])

            report[f"products of {rows} rows, {name}"] = {
                **take_turns({"": all_products}, rounds)[""],
                "floor_s": size * numbers / bytes_per_s,
            }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    merged = load("smollm2-135m")
    models = {
        "as in the checkpoint": LanguageModel(merged.checkpoint),
        "merged float32": merged,
        "merged int8": load("smollm2-135m", quantize="int8"),
    }
    cpu = torch.device("cpu")
    bytes_per_s = stream_bytes_per_s(asked.rounds)
    report = {
        "provenance": provenance(cpu, torch.float32),
        "bytes_per_s": bytes_per_s,
        "model": {"name": "smollm2-135m", "fingerprint": fingerprint(merged)},
        "forwards": compare_forwards(models, asked.rounds, bytes_per_s),
        "products": compare_products(asked.rounds),
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    for part in ("forwards", "products"):
        for name, figures in report[part].items():  # type: ignore[attr-defined]
            print(f"{name:40}", json.dumps(figures))


if __name__ == "__main__":
    main()
