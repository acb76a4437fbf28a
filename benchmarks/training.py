"""Train the frozen recipe's adapter here and by a straightforward program on transformers and peft: speed and memory.

    python benchmarks/training.py [--model smollm2-135m] [--steps 4] [--repeats 3] [--rows 3] [--length 320]

Both load the same folder and train LoRA of rank 32 on all seven maps and a mask embedding, by AdamW, on the same
documents, canvases and targets; the loss of the first step, where the update is still zero, must be the same. The
straightforward program runs each document as ``[clean | noisy]`` under a dense mask of (1, 1, T, T), the teacher once
more without the adapter, and takes the cross-entropy over all logits of all positions. PEFT adapts every token, so its
clean half changes too: that is no frozen stream, and costs nothing extra.

Every run is a process of its own, ways and precisions in turn; both keep freed buffers (`unmask.runtime`). Tokens per
second are tokens of documents over the median step, the first one left out; memory is the peak resident set. Writes
benchmarks/training.json and .png.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.evaluation.provenance import provenance
from unmask.model.checkpoint import Precision, load_checkpoint, save_checkpoint
from unmask.model.denoiser import Canvas
from unmask.runtime import thread_count, tune_allocator
from unmask.training.blocks import BlockConfig, cut, is_draft
from unmask.training.conversion_config import FrozenRecipe
from unmask.training.documents import Document
from unmask.training.pupil import AdapterPupil

HERE = Path(__file__).parent
WAYS = ("unmask", "transformers + peft")
RECIPE = FrozenRecipe()
BLOCKS = (4, 8, 16)
RATE = 1e-4

Step = Callable[[list[Document], np.random.Generator], float]


def documents(rows: int, length: int, vocab_size: int, step: int) -> list[Document]:
    generator = np.random.default_rng((1, step))
    return [Document.of_text(generator.integers(100, vocab_size, length).tolist()) for _ in range(rows)]


def ours(folder: Path, dtype: Precision) -> Step:
    checkpoint = load_checkpoint(str(folder), adapter="none", dtype=dtype)
    pupil = AdapterPupil(RECIPE, checkpoint, BLOCKS, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(pupil.module.parameters(), lr=RATE)

    def step(batch: list[Document], generator: np.random.Generator) -> float:
        loss = pupil.loss(batch, generator, 0.0).loss
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def straightforward(folder: Path, dtype: Precision) -> Step:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    vocab_size = base.config.vocab_size
    targets = [f"{name}_proj" for name in RECIPE.targets]
    model = get_peft_model(
        base,
        LoraConfig(r=RECIPE.rank, lora_alpha=int(RECIPE.alpha), target_modules=targets, lora_dropout=0.0),
    )
    embeddings = model.get_input_embeddings().weight
    mask_embedding = torch.nn.Parameter(embeddings.detach().float().mean(0))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([*trained, mask_embedding], lr=RATE)
    blocks = BlockConfig(BLOCKS, RECIPE.drafting_share)

    def step(batch: list[Document], generator: np.random.Generator) -> float:
        losses, weights = [], []
        rows = [cut(document, row, vocab_size, blocks, generator) for row, document in enumerate(batch)]
        parts = [[run_part(canvas, vocab_size) for canvas in canvases] for canvases in rows]
        tokens, positions, visible = packed(batch, parts)
        is_mask = tokens == vocab_size
        inputs = embeddings[tokens.masked_fill(is_mask, 0)]
        inputs = torch.where(is_mask[..., None], mask_embedding.to(inputs.dtype), inputs)
        hidden = torch.zeros(visible.shape, dtype=inputs.dtype).masked_fill(
            ~visible, torch.finfo(inputs.dtype).min
        )
        clean = torch.tensor([document.ids for document in batch])
        with torch.no_grad(), model.disable_adapter():
            teacher = model(input_ids=clean, use_cache=False).logits.float()
        logits = model(
            inputs_embeds=inputs, attention_mask=hidden[:, None], position_ids=positions, use_cache=False
        ).logits.float()
        for row, canvases in enumerate(rows):
            place = clean.shape[1]
            for canvas in canvases:
                size, draft = len(canvas.tokens), is_draft(canvas, vocab_size)
                # With a logit shift the state at a place of the canvas predicts the next one.
                is_open = (canvas.tokens == vocab_size)[1:]
                student = logits[row, place : place + size - 1][is_open]
                target = teacher[row, canvas.start : canvas.start + size - 1][is_open].softmax(-1)
                truth = clean[row, canvas.start + 1 : canvas.start + size][is_open]
                share = 0.0 if draft else RECIPE.label_share
                target = (1 - share) * target + share * F.one_hot(truth, vocab_size)
                losses.append(F.cross_entropy(student, target, reduction="none"))
                weights.append((RECIPE.draft_decay if draft else 1.0) ** torch.arange(size - 1)[is_open])
                place += len(run_part(canvas, vocab_size).tokens)
        weight = torch.cat(weights)
        loss = (torch.cat(losses) * weight).sum() / weight.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def run_part(canvas: Canvas, mask: int) -> Canvas:
    """Drop a last open token: under a logit shift it predicts what lies beyond the canvas."""
    return Canvas(canvas.row, canvas.start, canvas.tokens[:-1]) if canvas.tokens[-1] == mask else canvas


def packed(batch: Sequence[Document], rows: Sequence[Sequence[Canvas]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens and positions (B, T) of ``[clean | noisy]``, padded, and who sees whom (B, T, T)."""
    length = len(batch[0].ids)
    total = length + max(sum(len(canvas.tokens) for canvas in canvases) for canvases in rows)
    tokens, positions = (torch.zeros(len(batch), total, dtype=torch.int64) for _ in range(2))
    visible = torch.eye(total, dtype=torch.bool).repeat(len(batch), 1, 1)
    for row, (document, canvases) in enumerate(zip(batch, rows, strict=True)):
        tokens[row, :length], positions[row, :length] = torch.tensor(document.ids), torch.arange(length)
        visible[row, :length, :length] = torch.ones(length, length).tril().bool()
        place = length
        for canvas in canvases:
            own = slice(place, place + len(canvas.tokens))
            tokens[row, own] = canvas.tokens
            positions[row, own] = canvas.start + torch.arange(len(canvas.tokens))
            visible[row, own, : canvas.start] = visible[row, own, own] = True
            place = own.stop
    return tokens, positions, visible


def run(way: str, folder: Path, dtype: Precision, steps: int, rows: int, length: int) -> dict[str, Any]:
    """Train in this process; return the seconds of each step, the first loss and the peak memory."""
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    step = ours(folder, dtype) if way == WAYS[0] else straightforward(folder, dtype)
    seconds, losses = [], []
    for number in range(steps + 1):
        batch = documents(rows, length, vocab_size, number)
        began = time.perf_counter()
        losses.append(step(batch, np.random.default_rng((2, number))))
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds[1:], "losses": losses, "peak_bytes": peak}


def spawn(way: str, folder: Path, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"steps": arguments.steps, "rows": arguments.rows, "length": arguments.length}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, __file__, "--run", way, "--folder", str(folder), "--dtypes", dtype, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(runs: Sequence[dict[str, Any]], num_tokens: int) -> dict[str, Any]:
    speeds = [num_tokens / statistics.median(run["seconds"]) for run in runs]
    error = round(statistics.stdev(speeds) / len(speeds) ** 0.5, 2) if len(speeds) > 1 else None
    return {
        "tokens_per_s": round(statistics.mean(speeds), 2),
        "tokens_per_s_standard_error": error,
        "peak_mib": round(max(run["peak_bytes"] for run in runs) / 2**20, 1),
        "first_loss": round(runs[0]["losses"][0], 5),
    }


def draw_picture(report: dict[str, Any], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, (key, label) in zip(
        axes, (("tokens_per_s", "tokens per second"), ("peak_mib", "peak memory, MiB")), strict=True
    ):
        for place, way in enumerate(WAYS):
            values = [results[way][key] for results in report["results"].values()]
            bars = axis.bar(np.arange(len(values)) + 0.4 * place, values, 0.38, label=way)
            axis.bar_label(bars, fmt="%.0f")
        axis.set_xticks(np.arange(len(report["results"])) + 0.2, list(report["results"]))
        axis.set_title(label)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--length", type=int, default=320)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=HERE / "training.json")
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tune_allocator()
    if (threads := thread_count()) is not None:
        torch.set_num_threads(threads)
    sizes = (arguments.steps, arguments.rows, arguments.length)
    if arguments.run:
        print(json.dumps(run(arguments.run, arguments.folder, arguments.dtypes[0], *sizes)))
        return
    folder = HERE.parent / "build" / "training" / Path(arguments.model).name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(load_checkpoint(arguments.model, adapter="none"), folder)
    runs: dict[str, dict[str, list[Any]]] = {dtype: {way: [] for way in WAYS} for dtype in arguments.dtypes}
    for repeat in range(arguments.repeats):
        for dtype in arguments.dtypes:
            for way in WAYS if repeat % 2 == 0 else WAYS[::-1]:
                runs[dtype][way].append(spawn(way, folder, dtype, arguments))
                print(
                    dtype,
                    way,
                    summary(runs[dtype][way][-1:], arguments.rows * arguments.length),
                    file=sys.stderr,
                )
    results: dict[str, dict[str, Any]] = {}
    for dtype, ways in runs.items():
        results[dtype] = {way: summary(some, arguments.rows * arguments.length) for way, some in ways.items()}
        first, second = (results[dtype][way] for way in WAYS)
        results[dtype]["times_faster"] = round(first["tokens_per_s"] / second["tokens_per_s"], 3)
        results[dtype]["share_of_memory"] = round(first["peak_mib"] / second["peak_mib"], 3)
        if abs(first["first_loss"] / second["first_loss"] - 1) > (1e-3 if dtype == "float32" else 2e-2):
            sys.exit(f"{dtype}: the first losses differ: {first['first_loss']} and {second['first_loss']}")
    report = {
        "command": " ".join(["python", "benchmarks/training.py", *sys.argv[1:]]),
        "machine": provenance(torch.device("cpu"), torch.float32),
        "configuration": {
            "model": arguments.model,
            "recipe": RECIPE.model_dump(mode="json"),
            "block_lengths": BLOCKS,
            "documents": arguments.rows,
            "length": arguments.length,
            "steps": arguments.steps,
            "repeats": arguments.repeats,
        },
        "results": results,
        "runs": runs,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    draw_picture(report, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
