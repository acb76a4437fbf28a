"""Measure the default model: speed of light, frontier, frontier at one entropy, roofline; keep the reports here.

    python benchmarks/measures.py [sol] [sol-32] [frontier] [sampled] [roofline] [-- further options of the command]

The frontiers are judged by a model of another family, fetched by benchmarks/judge.py.

Without names all of them, one after the other. Each keeps its state in build/measures, so Ctrl-C and the same command
again go on. Writes benchmarks/speed-of-light.json and .png for blocks of 4, 8 and 16, speed-of-light-32.json and .png,
frontier.json, .csv and .png, length.png, frontier-sampled.json and .png, roofline.json and .png.
"""

import shutil
import sys
from pathlib import Path

from judge import fetch_judge

from unmask.cli.main import main

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "measures"

# Rules of a fixed number of tokens a forward (top-k, margin, random, left-to-right) differ in what they write, not in
# how much: one stands for all.
RULES = ("threshold:0.9", "threshold:0.5", "factor:1", "klass", "entropy-bound:0.1", "top-k:2", "spaced")
SPEED_OF_LIGHT = [
    # 34 tokens: the first one, a block of 32, and the one that its commit gives.
    *("sol", "--prompts", "17", "--max-tokens", "34", "--max-canvases", "100"),
    *(word for rule in RULES for word in ("--rule", rule)),
]
COMMANDS = {
    "sol": [*SPEED_OF_LIGHT, "--blocks", "4,8,16"],
    "sol-32": [*SPEED_OF_LIGHT, "--blocks", "32"],
    "frontier": [
        *("frontier", "--prompts", "5", "--lengths", "16,32,64,128,256"),
        *("--tasks", "lambada-written,basic-skills-arithmetic-written", "--limit", "100"),
    ],
    "sampled": [
        *("frontier", "--prompts", "5", "--temperatures", "0.6,0.8,1,1.2"),
        *("--rule", "threshold:0.9", "--rule", "threshold:0.5", "--rule", "entropy-bound:0.1"),
        *("--rule", "top-k:2", "--rule", "random:2", "--rule", "spaced"),
    ],
    "roofline": ["roofline"],
}
FILES = {
    "sol": {"speed-of-light.json": None, "speed-of-light.png": None},
    "sol-32": {
        "speed-of-light.json": "speed-of-light-32.json",
        "speed-of-light.png": "speed-of-light-32.png",
    },
    "frontier": {"frontier.json": None, "frontier.csv": None, "frontier.png": None, "length.png": None},
    "sampled": {"frontier.json": "frontier-sampled.json", "frontier.png": "frontier-sampled.png"},
    "roofline": {"roofline.json": None, "roofline.png": None},
}


def measure(name: str, options: list[str]) -> int:
    """Run one command and copy what it wrote; return its exit status."""
    command = [*COMMANDS[name], "--out", str(FOLDER / name), *options]
    if command[0] == "frontier" and "--judge" not in options:
        command += ["--judge", str(fetch_judge())]
    status = main(command)
    if status == 0:
        for written, kept in FILES[name].items():
            shutil.copyfile(FOLDER / name / written, HERE / (kept or written))
    return status


if __name__ == "__main__":
    words = sys.argv[1:]
    options = words[words.index("--") + 1 :] if "--" in words else []
    names = words[: words.index("--")] if "--" in words else words
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        sys.exit(f"{unknown[0]!r}: choose from {', '.join(COMMANDS)}")
    for name in names or COMMANDS:
        if status := measure(name, options):
            sys.exit(status)
