"""Measure how fast a model writes text for its own conversion, by the number of documents written side by side.

    python benchmarks/synthesis.py [--rows 32 128 256] [--words 12] [--repeats 3]

Processor time of the first tokens of each document, without those that the template gives; configurations take turns
and the median counts. Writes benchmarks/synthesis.json.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from unmask.evaluation.provenance import provenance
from unmask.model.checkpoint import load_checkpoint
from unmask.runtime import thread_count, tune_allocator
from unmask.training.synthesis import Script, SynthesisConfig, write_batch

MODEL = "smollm2-135m"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--words", type=int, default=12, help="tokens of each document")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(thread_count() or torch.get_num_threads())
    # As a conversion loads them: not laid out for the few rows of inference.
    checkpoints = {
        "float32": load_checkpoint(MODEL, adapter="none", dtype="float32"),
        "bfloat16": load_checkpoint(MODEL, adapter="none", dtype="bfloat16"),
    }
    script = Script.of(checkpoints["float32"].tokenizer)
    config = SynthesisConfig(length=len(script.head) + arguments.words)
    seconds: dict[tuple[int, str], list[float]] = {}
    for repeat in range(arguments.repeats):
        for rows in arguments.rows:
            for dtype, checkpoint in checkpoints.items():
                begin = time.process_time()
                write_batch(
                    checkpoint.transformer,
                    script.head,
                    replace(config, batch_size=rows),
                    stop_token=None,
                    seed=0,
                    batch=repeat,
                )
                seconds.setdefault((rows, dtype), []).append(time.process_time() - begin)
                print(f"{rows} rows, {dtype}: {seconds[rows, dtype][-1]:.1f} s", file=sys.stderr, flush=True)
    report = {
        "command": " ".join(["python", "benchmarks/synthesis.py", *sys.argv[1:]]),
        "machine": provenance(torch.device("cpu"), torch.float32),
        "model": MODEL,
        "tokens_per_document": arguments.words,
        "repeats": arguments.repeats,
        "speeds": [
            {
                "rows": rows,
                "dtype": dtype,
                "tokens_per_processor_s": round(rows * arguments.words / median(found), 1),
            }
            for (rows, dtype), found in seconds.items()
        ],
    }
    (Path(__file__).parent / "synthesis.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
