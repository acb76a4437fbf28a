"""Put the tiny models, trained as benchmarks/tiny.toml says, where the package finds them.

    python benchmarks/ship_tiny.py RUNS [--only continuous]

Takes the last checkpoint of each run (RUNS/ar, RUNS/masked, RUNS/continuous) and writes it in bfloat16, with its ports
and token vectors in float32, to src/unmask/model/checkpoints/tiny-*, in the place of what was there.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from unmask.model.catalogue import shipped_folder
from unmask.model.checkpoint import load_checkpoint, save_checkpoint

MODELS = {
    "ar": "next tokens, left to right",
    "masked": "masked diffusion, the whole text at once",
    "continuous": "continuous diffusion over token vectors, the whole text at once",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", choices=MODELS)
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else MODELS:
        trained = load_checkpoint(str(arguments.runs / name))
        target = shipped_folder() / f"tiny-{name}"
        if target.exists():
            shutil.rmtree(target)
        card = replace(
            trained.card,
            name=target.name,
            licence="Apache-2.0",
            description=f"a tiny model trained from scratch: {MODELS[name]}",
            adapter=None,
        )
        shipped = replace(
            trained,
            transformer=trained.transformer.to(torch.bfloat16),
            tokenizer=replace(trained.tokenizer, chat_template=None),  # they have seen no conversation
            card=card,
        )
        save_checkpoint(shipped, target)
        for path in target.rglob("*"):
            path.chmod(0o644)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        print(f"{target}: {size / 1e6:.1f} MB, from {arguments.runs / name}")


if __name__ == "__main__":
    main()
