"""Judge the shipped adapter beside an untrained one, and keep the report here.

    python benchmarks/acceptance.py [--prompts 40] [any other option of unmask judge]

Writes benchmarks/acceptance.json, acceptance.png and agreement.png, and from the metrics of the conversion, kept in
conversion.jsonl, the picture conversion.png. Stop with Ctrl-C and give the same command again to go on.
"""

import json
import shutil
import sys
from pathlib import Path

from unmask.cli.main import main
from unmask.evaluation.pictures import draw_curve

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "acceptance"

if __name__ == "__main__":
    status = main(["judge", "smollm2-135m", "--against", "untrained", "--out", str(FOLDER), *sys.argv[1:]])
    if status == 0:
        shutil.copyfile(FOLDER / "judgement.json", HERE / "acceptance.json")
        for name in ("acceptance.png", "agreement.png"):
            shutil.copyfile(FOLDER / name, HERE / name)
        curve = [json.loads(line) for line in (HERE / "conversion.jsonl").read_text().splitlines()]
        draw_curve(curve, HERE / "conversion.png")
    sys.exit(status)
