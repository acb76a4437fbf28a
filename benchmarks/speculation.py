"""Measure what trees and pre-drafts bring to greedy speculation: tokens per forward, per cycle and per second.

    python benchmarks/speculation.py [--prompts 5] [--max-tokens 128] [--block-length 8] [--model smollm2-135m]

`--prompts`: of each kind, those of `unmask judge`. Every way writes the answer to a prompt before the next one comes,
so that a busy minute slows all of them. Answers are compared with those of mode 'ar'. The cost curve is that of causal
forwards after 128 stored tokens, all laws asked for. Writes benchmarks/speculation.json and speculation.png.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.progress import track

import unmask
from unmask.decoding.generation import Generation
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.evaluation.average import Average, average
from unmask.evaluation.figure import error_bars, new_figure
from unmask.evaluation.prompts import first_prompts
from unmask.evaluation.provenance import provenance

HERE = Path(__file__).parent
CONTEXT = 128
SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80)


@dataclass(frozen=True)
class Result:
    """Averages of one way over prompts; `tokens_per_cycle` of the cycles of draft and verification alone."""

    tokens_per_forward: Average
    tokens_per_cycle: Average | None
    tokens_per_s: Average
    seconds_per_forward: Average
    share_equal: float


def ways(block_length: int, max_tokens: int) -> dict[str, Options]:
    """Return every way of decoding that is compared; the first one's text is that of all."""

    def speculative(*, tree_size: int | None = None, num_predrafts: int | None = None) -> Options:
        return Options(
            "speculative",
            max_tokens=max_tokens,
            block_length=block_length,
            tree_size=tree_size,
            num_predrafts=num_predrafts,
        )

    return {
        "ar": Options("ar", max_tokens=max_tokens),
        "linear": speculative(),
        "tree of 4": speculative(tree_size=4),
        "tree of 8": speculative(tree_size=8),
        "tree of 16": speculative(tree_size=16),
        "1 pre-draft": speculative(num_predrafts=1),
        "2 pre-drafts": speculative(num_predrafts=2),
        "all pre-drafts": speculative(num_predrafts=block_length + 1),
        "tree of 8, 2 pre-drafts": speculative(tree_size=8, num_predrafts=2),
    }


def measure(model: LanguageModel, compared: dict[str, Options], texts: Sequence[str]) -> dict[str, Result]:
    """Run every way on every prompt."""
    for options in compared.values():  # first calls are slow
        model.generate(texts[0], mode=options.mode, max_tokens=4)
    found: dict[str, list[Generation]] = {name: [] for name in compared}
    for text in track(texts, description="prompts"):
        for name, options in compared.items():
            *_, generation = model.stream(text, options)
            assert isinstance(generation, Generation)  # stream's promise
            found[name].append(generation)
    truth = [generation.token_ids for generation in next(iter(found.values()))]
    return {name: result(generations, truth) for name, generations in found.items()}


def result(generations: Sequence[Generation], truth: Sequence[tuple[int, ...]]) -> Result:
    """Average over prompts. The first token comes from the prefill, and is not counted here."""
    tokens = [generation.num_tokens - 1 for generation in generations]
    forwards = [generation.num_decode_forwards for generation in generations]
    seconds = [generation.seconds["decode"] for generation in generations]
    cycles = [len(generation.accepted_lengths) for generation in generations]
    decided = [sum(length + 1 for length in generation.accepted_lengths) for generation in generations]
    equal = [generation.token_ids == wanted for generation, wanted in zip(generations, truth, strict=True)]
    return Result(
        _some(average(tokens, forwards)),
        average(decided, cycles),
        _some(average(tokens, seconds)),
        _some(average(seconds, forwards)),
        sum(equal) / len(equal),
    )


def _some(value: Average | None) -> Average:
    assert value is not None, "no prompt had an answer of two tokens"
    return value


@torch.inference_mode()
def cost_curve(model: LanguageModel, *, repeats: int) -> Iterator[tuple[int, float]]:
    """Yield the median seconds of a forward of each size, the sizes taking turns."""
    denoiser = model.denoiser
    cache = denoiser.new_cache(CONTEXT + max(SIZES))
    denoiser.causal(torch.zeros(CONTEXT, dtype=torch.int64), 0, cache)
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(repeats):
        for size in SIZES:
            begin = time.perf_counter()
            denoiser.causal(torch.zeros(size, dtype=torch.int64), CONTEXT, cache, num_heads=size).argmax(
                -1
            ).tolist()
            seconds[size].append(time.perf_counter() - begin)
    for size, values in seconds.items():
        yield size, median(values)


def draw(results: dict[str, Result], curve: Sequence[tuple[int, float]], path: Path) -> None:
    """Draw tokens per forward and tokens per second of every way, and what forwards cost."""
    figure = new_figure(3)
    panels = figure.subplots(1, 3)
    names = list(results)[::-1]
    for panel, values, label in (
        (panels[0], [results[name].tokens_per_forward for name in names], "tokens per forward"),
        (panels[1], [results[name].tokens_per_s for name in names], "tokens per second"),
    ):
        panel.barh(names, [value.mean for value in values], xerr=error_bars(values), color="tab:blue")
        panel.set(xlabel=label)
    panels[1].set_yticks([])
    sizes, seconds = zip(*curve, strict=True)
    panels[2].plot(sizes, [1000 * value for value in seconds], marker="o", ms=4)
    panels[2].set(xlabel="tokens in a forward", ylabel="ms", ylim=(0, None))
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, and write the report and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--block-length", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20, help="of the cost curve")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=HERE / "speculation.json")
    settings = parser.parse_args()
    model = unmask.load(settings.model)
    curve = list(cost_curve(model, repeats=settings.repeats))
    texts = [prompt.text for prompt in first_prompts(settings.prompts)]
    results = measure(model, ways(settings.block_length, settings.max_tokens), texts)
    transformer = model.denoiser.transformer
    report = {
        "settings": {name: str(value) for name, value in vars(settings).items() if name != "out"},
        "provenance": provenance(transformer.device, transformer.dtype),
        "num_prompts": len(texts),
        "results": {name: asdict(value) for name, value in results.items()},
        "forward_seconds": curve,
    }
    settings.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw(results, curve, settings.out.with_suffix(".png"))
    for name, value in results.items():
        print(
            f"{name:24} {value.tokens_per_forward} tokens/forward, {value.tokens_per_cycle} tokens/cycle, "
            f"{value.tokens_per_s} tokens/s, equal {value.share_equal:.0%}"
        )


if __name__ == "__main__":
    main()
