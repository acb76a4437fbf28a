"""Twenty seconds of the load test: a crowd that comes and goes at a server of its own, and SIGTERM at the end."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"


@pytest.mark.slow
def test_a_crowd_loses_nothing(tiny_model: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("serving_load", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path / "report.json"
    arguments = ["--model", str(tiny_model), "--clients", "24", "--minutes", "0.33"]
    arguments += ["--cache-mib", "4", "--out", str(out)]
    assert script.main(arguments) == 0
    report = json.loads(out.read_text())
    assert report["outcomes"]["right"] > 24
    assert report["outcomes"]["left"] > 0
    assert sum(report["at_sigterm"].values()) == 24
    assert report["exit_signal"] == 15
