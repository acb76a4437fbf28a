"""The benchmark of JSON answers, small: some of its schemas in every mode, with a tiny model."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unmask.decoding.mode import MODES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "json_schemas.py"
SOME = ("object", "enum of unicode", "text with escapes", "list of objects", "choice")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("json_schemas", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "json_schemas", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SCHEMAS", {name: module.SCHEMAS[name] for name in SOME})
    return module


def test_every_answer_is_json_of_its_schema(script: ModuleType, tiny_model: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "report.json", tmp_path / "answers"
    arguments = ["--model", str(tiny_model), "--folder", str(folder), "--out", str(out)]
    assert script.main([*arguments, "--requests", "1"]) == 0
    first = (folder / "answers.jsonl").read_text()
    assert script.main([*arguments, "--requests", "2"]) == 0  # goes on where it was
    assert (folder / "answers.jsonl").read_text().startswith(first)
    report = json.loads(out.read_text())
    assert [report["modes"][mode]["valid"] for mode in MODES] == [2 * len(SOME)] * 3
    assert report["greedy_speculation"] == {"valid": len(SOME), "as_ar": len(SOME), "different": []}


def test_answers_that_are_no_such_json_are_faults(script: ModuleType) -> None:
    schema = script.SCHEMAS["enum of unicode"]
    texts = {'{"city": "東京"}': "", '{"city": "Tokyo"}': "invalid", '{"city": "東': "no JSON"}
    for text, fault in texts.items():
        choice = {"finish_reason": "stop", "message": {"content": text}}
        assert script.fault_of(script.httpx.Response(200, json={"choices": [choice]}), schema).startswith(
            fault
        )
    cut = {"choices": [{"finish_reason": "length", "message": {"content": "{}"}}]}
    assert script.fault_of(script.httpx.Response(200, json=cut), schema) == "finish_reason length"
