"""Draw how a canvas was filled: every token of an answer, coloured by the forward that decided it.

    python benchmarks/canvas.py [--prompt TEXT] [--max-tokens 48]

One row of text per mode. Writes docs/canvas.png, and benchmarks/canvas.json with the tokens and forwards drawn.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl

from unmask.decoding.language_model import LanguageModel, load

ROOT = Path(__file__).parent.parent
COLUMNS = 12
MODES = {
    "ar": {"mode": "ar"},
    "diffusion, threshold 0.7": {"mode": "diffusion", "rule": "threshold:0.7"},
    "speculative": {"mode": "speculative"},
}


def write(model: LanguageModel, prompt: str, max_tokens: int) -> dict[str, dict[str, object]]:
    """Return each mode's tokens as text, and the decode forward that decided each."""
    answers = {}
    for name, options in MODES.items():
        answer = model.generate(prompt, max_tokens=max_tokens, **options)
        answers[name] = {
            "tokens": [model.tokenizer.decode([token]) for token in answer.token_ids],
            "decided_at": list(answer.decided_at),
            "num_decode_forwards": answer.num_decode_forwards,
        }
    return answers


def draw(answers: dict[str, dict[str, object]], path: Path) -> None:
    """Draw the tokens in rows of `COLUMNS`, a panel for each mode, one colour scale for all."""
    mpl.use("agg")
    from matplotlib import pyplot

    most = max(answer["num_decode_forwards"] for answer in answers.values())
    rows = [-(-len(answer["tokens"]) // COLUMNS) for answer in answers.values()]
    figure, axes = pyplot.subplots(
        len(answers),
        1,
        figsize=(11, 0.32 * sum(rows) + 0.5 * len(rows)),
        height_ratios=rows,
        layout="constrained",
    )
    colours = mpl.colormaps["viridis"].resampled(most + 1)
    for axis, (name, answer) in zip(axes, answers.items(), strict=True):
        for index, (token, step) in enumerate(zip(answer["tokens"], answer["decided_at"], strict=True)):
            x, y = index % COLUMNS, -(index // COLUMNS)
            axis.add_patch(mpl.patches.Rectangle((x, y), 0.97, 0.9, color=colours(step), lw=0))
            shade = "white" if step < 0.6 * most else "black"
            text = token.strip().replace("\n", "↵").replace("$", r"\$") or "␣"
            axis.text(x + 0.48, y + 0.42, text, ha="center", va="center", size=8, color=shade)
        forwards = f"{len(answer['tokens'])} tokens in {answer['num_decode_forwards']} forwards"
        axis.set_title(f"{name}: {forwards}", loc="left", fontsize=9)
        axis.set(xlim=(0, COLUMNS), ylim=(-((len(answer["tokens"]) - 1) // COLUMNS), 1))
        axis.axis("off")
    bar = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, most), colours)
    figure.colorbar(bar, ax=axes, label="decided by forward number", fraction=0.025)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default="Write a short paragraph about why rivers matter to cities.")
    parser.add_argument("--max-tokens", type=int, default=48)
    arguments = parser.parse_args()
    answers = write(load("smollm2-135m"), arguments.prompt, arguments.max_tokens)
    report = {
        "command": " ".join(["python", "benchmarks/canvas.py", *sys.argv[1:]]),
        "prompt": arguments.prompt,
    }
    (ROOT / "benchmarks" / "canvas.json").write_text(
        json.dumps({**report, "answers": answers}, indent=1) + "\n"
    )
    draw(answers, ROOT / "docs" / "canvas.png")


if __name__ == "__main__":
    main()
