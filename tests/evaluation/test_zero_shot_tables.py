"""The README's zero-shot tables say what the report says."""

import json
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_zero_shot_tables.py"))


def run_of(mean: float, tokens: int, equal: list[int]) -> Mapping[str, Any]:
    task = {
        "task": "piqa",
        "metric": "acc",
        "num_items": 1500,
        "digest": "d",
        "scores": {"acc": {"mean": mean, "standard_error": 0.012}},
        "num_tokens": tokens,
        "num_decode_forwards": 10,
    }
    return {"tasks": [task], "equal_to_ar": {"piqa": equal}}


def test_scores_speeds_and_equal_answers() -> None:
    section: Callable[[Mapping[str, Any]], str] = SCRIPT["section"]
    text = section({"ar": run_of(0.5, 10, [3, 3]), "speculative": run_of(0.504, 15, [1499, 1500])})
    assert "| `piqa` | 1,500 | 50.0 ± 1.2 | 50.4 ± 1.2 |" in text
    assert "over all tasks (1): ar 1.00, speculative 1.50." in text
    assert "Of 1,500 answers, mode `speculative` wrote 1,499 as mode `ar` did." in text
    assert "likelihood" not in text


def test_the_readme_is_up_to_date() -> None:
    readme, path = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "benchmarks" / "zero_shot.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}}
    assert SCRIPT["page"](readme, report) == readme
