"""Judge the shipped adapter beside an untrained one, and keep the report here.

    python benchmarks/acceptance.py [--prompts 40] [any other option of unmask judge]

Writes benchmarks/acceptance.json and .png. Stop with Ctrl-C and give the same command again to go on.
"""

import shutil
import sys
from pathlib import Path

from unmask.cli.main import main

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "acceptance"

if __name__ == "__main__":
    status = main(["judge", "smollm2-135m", "--against", "untrained", "--out", str(FOLDER), *sys.argv[1:]])
    if status == 0:
        shutil.copyfile(FOLDER / "judgement.json", HERE / "acceptance.json")
        shutil.copyfile(FOLDER / "acceptance.png", HERE / "acceptance.png")
    sys.exit(status)
