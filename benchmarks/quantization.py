"""Measure what int8 costs in quality beside float32, and check that speculation in int8 writes the text of ar in int8.

    python benchmarks/quantization.py [--texts 200] [--prompts 5] [--items 200] [--out benchmarks/quantization.json]

- `text`: the passages of LAMBADA's test set, each scored as a whole: perplexity of both, their ratio with the standard
  error over passages, and how often the most probable next token is the same one, given the same text.
- `writing`: greedy texts of the judging prompts: how far int8 writes what float32 writes, and for how many speculation
  in int8 writes what ar in int8 writes.
- `tasks`: the first items of each zero-shot task, with the difference item by item.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.progress import track
from torch import Tensor

from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.evaluation.agreement import measure_agreement
from unmask.evaluation.average import average
from unmask.evaluation.fingerprint import fingerprint
from unmask.evaluation.item_record import ItemRecord
from unmask.evaluation.ledger import Ledger
from unmask.evaluation.likelihood import autoregressive_nll
from unmask.evaluation.prompts import first_prompts
from unmask.evaluation.provenance import provenance
from unmask.evaluation.tasks import TASKS
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.zero_shot import ITEMS_FILE, evaluate
from unmask.layout import causal_layout
from unmask.training.run_folder import RunFolder

TASK_NAMES = ("arc-easy", "piqa", "lambada")

Models = dict[str, LanguageModel]


@torch.inference_mode()
def next_token_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Return the logits of all tokens but the first: (L - 1, V)."""
    hidden = model.denoiser.transformer(tokens, causal_layout(len(tokens)))
    return model.denoiser.head(hidden[:-1])


def compare_text(models: Models, texts: Sequence[str]) -> dict[str, object]:
    """Score passages under both models, token by token on the same text."""
    nats: dict[str, list[float]] = {name: [] for name in models}
    sizes, same = [], []
    tokenizer = models["float32"].tokenizer
    for text in track(texts, "text"):
        tokens = torch.tensor([*tokenizer.prefix_ids, *tokenizer.encode(text)])
        logits = {name: next_token_logits(model, tokens) for name, model in models.items()}
        for name, own in logits.items():
            nats[name].append(autoregressive_nll(own[None], tokens[None, 1:]).item())
        best = [own.argmax(-1) for own in logits.values()]
        same.append(int((best[0] == best[1]).sum()))
        sizes.append(len(tokens) - 1)
    means = {name: average(own, sizes) for name, own in nats.items()}
    gaps = average([b - a for a, b in zip(nats["float32"], nats["int8"], strict=True)], sizes)
    assert gaps is not None
    return {
        "num_tokens": sum(sizes),
        "nats_per_token": {name: mean and asdict(mean) for name, mean in means.items()},
        "perplexity": {name: mean and math.exp(mean.mean) for name, mean in means.items()},
        "nats_per_token_int8_minus_float32": asdict(gaps),
        "perplexity_ratio": math.exp(gaps.mean),
        "same_most_probable_token": average_of(same, sizes),
    }


def compare_writing(models: Models, num_prompts: int, max_tokens: int) -> dict[str, object]:
    """Write greedily after each prompt: ar in both formats, speculation in int8."""
    prompts = first_prompts(num_prompts)
    texts: dict[str, list[tuple[int, ...]]] = {}
    ways: list[tuple[str, Mode]] = [("float32", "ar"), ("int8", "ar"), ("int8", "speculative")]
    for prompt in track(prompts, "writing"):
        for name, mode in ways:
            generation = models[name].generate(prompt.text, mode=mode, max_tokens=max_tokens)
            texts.setdefault(f"{mode} {name}", []).append(generation.token_ids)
    agreement = measure_agreement(texts["ar int8"], texts["ar float32"])
    assert agreement is not None
    pairs = list(zip(texts["ar int8"], texts["speculative int8"], strict=True))
    return {
        "num_prompts": len(prompts),
        "max_tokens": max_tokens,
        "int8_beside_float32": asdict(agreement),
        "speculative_equals_ar_in_int8": sum(one == other for one, other in pairs),
    }


def compare_tasks(models: Models, num_items: int) -> dict[str, object]:
    """Ask both models the first items of each task."""
    found: dict[str, list[ItemRecord]] = {}
    for name, model in models.items():
        with TemporaryDirectory() as scratch:
            evaluate(
                model,
                {task: TASKS.get(task) for task in TASK_NAMES},
                Path(scratch),
                model.resolve(Options()),
                limit=num_items,
                observe=lambda event, name=name: print(name, event.stage, event.done, file=sys.stderr),
            )
            items = RunFolder(Path(scratch), "zero-shot evaluation")
            found[name] = Ledger(items, ITEMS_FILE, ItemRecord).records
    report: dict[str, object] = {}
    for task in TASK_NAMES:
        metric = TASKS.get(task).metric
        scores = {
            name: [record.scores[metric] for record in records if record.task == task]
            for name, records in found.items()
        }
        ones = [1.0] * len(scores["int8"])
        gaps = [b - a for a, b in zip(scores["float32"], scores["int8"], strict=True)]
        report[task] = {
            "metric": metric,
            **{name: average_of(own, ones) for name, own in scores.items()},
            "int8_minus_float32": average_of(gaps, ones),
        }
    return report


def average_of(amounts: Sequence[float], sizes: Sequence[float]) -> dict[str, object] | None:
    """Return an average as JSON."""
    found = average(amounts, sizes)
    return None if found is None else asdict(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=5, help="of each kind")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    models = {"float32": load(asked.model), "int8": load(asked.model, quantize="int8", progress=print)}
    items = islice(TASKS.get("lambada").load(TaskData()), asked.texts)
    texts = [request.context + request.continuation for item in items for request in item.requests]
    transformer = models["float32"].checkpoint.transformer
    report = {
        "provenance": provenance(transformer.device, transformer.dtype),
        "model": {"name": asked.model, "fingerprint": fingerprint(models["float32"])},
        "text": compare_text(models, texts),
        "writing": compare_writing(models, asked.prompts, asked.max_tokens),
        "tasks": compare_tasks(models, asked.items),
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
