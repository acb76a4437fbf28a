"""How guidance changes what the tiny models write after a prompt, for several weights.

    python benchmarks/guidance.py TEXT [--prompts 48] [--out benchmarks/guidance.json]

Prompts of 32 tokens from TEXT, one after the other; 32 tokens are written after each, in 16 steps at temperature 1.
tiny-ar judges: bits per token after the prompt, and how many fewer they are than without the prompt ("told by the
prompt"), beside the unigram entropy, which guidance lowers as a low temperature does. The true continuations are judged
as well. Errors are over prompts.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from unmask.decoding.language_model import LanguageModel, load
from unmask.evaluation.autoregressive import AutoregressiveLikelihood
from unmask.evaluation.average import average
from unmask.evaluation.continuations import Continuation
from unmask.evaluation.provenance import provenance
from unmask.evaluation.written import unigram_entropy
from unmask.runtime import thread_count, tune_allocator

LENGTH = 32
STEPS = 16
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)


def judged(judge: LanguageModel, prompts: list[list[int]], written: list[list[int]]) -> dict[str, object]:
    likelihood, start = AutoregressiveLikelihood(judge.denoiser), judge.tokenizer.beginning
    pairs = list(zip(prompts, written, strict=True))
    after = likelihood([Continuation((*start, *prompt, *text), LENGTH) for prompt, text in pairs])
    alone = likelihood([Continuation((*start, *text), LENGTH) for text in written])
    bits = [-answer.nats / math.log(2) / LENGTH for answer in after]
    told = [(one.nats - other.nats) / math.log(2) / LENGTH for one, other in zip(after, alone, strict=True)]
    entropy = unigram_entropy(torch.tensor(written)).tolist()
    names = ("bits_per_token", "told_by_the_prompt", "unigram_entropy_bits")
    means = (average(values, [1.0] * len(values)) for values in (bits, told, entropy))
    return {name: mean and asdict(mean) for name, mean in zip(names, means, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(thread_count() or torch.get_num_threads())
    judge = load("tiny-ar")
    ids = judge.tokenizer.encode(arguments.text.read_text(encoding="utf-8"))
    pieces = [ids[begin : begin + 2 * LENGTH] for begin in range(0, len(ids) - 2 * LENGTH, 2 * LENGTH)]
    pieces = pieces[: arguments.prompts]
    prompts = [piece[:LENGTH] for piece in pieces]
    rows: list[dict[str, object]] = [
        {"model": "the text itself", **judged(judge, prompts, [piece[LENGTH:] for piece in pieces])}
    ]
    for name in ("tiny-masked", "tiny-continuous"):
        model = load(name)
        for weight in WEIGHTS:
            written = [
                list(
                    model.generate(
                        model.tokenizer.decode(prompt),
                        max_tokens=LENGTH,
                        num_steps=STEPS,
                        sampler="ancestral" if name == "tiny-masked" else None,
                        temperature=1.0,
                        guidance=weight,
                        seed=seed,
                        stop_token_ids=(),
                        raw=True,
                    ).token_ids
                )
                for seed, prompt in enumerate(prompts)
            ]
            rows.append({"model": name, "weight": weight, **judged(judge, prompts, written)})
            print(rows[-1], flush=True)
    report = {
        "machine": provenance(torch.device("cpu"), torch.float32),
        "settings": {"prompts": len(prompts), "length": LENGTH, "steps": STEPS, "temperature": 1.0},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
