"""Speed benchmarks: the sums are right, and both commands run to their record on a tiny model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from command_line import Command
from unmask.benchmark import rivals
from unmask.benchmark.contender import Run
from unmask.benchmark.latency import LatencyConfig, Spread, run_latency, speeds_of
from unmask.benchmark.throughput import Crowd, balances_of, points_of
from unmask.evaluation.ledger import Ledger
from unmask.evaluation.prompts import Prompt
from unmask.training.run_folder import RunFolder


def run(first_s: float, seconds: float, tokens: tuple[int, ...] = (1, 2, 3, 4)) -> Run:
    return Run(tokens, first_s, seconds, num_forwards=3, num_decode_forwards=2)


def test_speeds_are_sums_over_prompts_and_medians_over_rounds() -> None:
    runs = {
        "slow": [[run(1, 4), run(1, 4), run(1, 8)], [run(1, 4), run(1, 4), run(1, 8)]],
        "fast": [
            [run(0.5, 1), run(0.5, 2), run(0.5, 1)],
            [run(0.5, 1), run(0.5, 2), run(0.5, 1, (1, 2, 3, 9))],
        ],
    }
    speeds = speeds_of(runs, baseline="slow", references=dict.fromkeys(runs, "slow"))
    slow, fast = speeds["slow"], speeds["fast"]
    assert slow.tokens_per_s == Spread(1.0, 0.5, 1.0)
    assert fast.tokens_per_s == Spread(4.0, 2.0, 4.0)
    assert fast.ratio == Spread(4.0, 2.0, 8.0)
    assert slow.decode_tokens_per_s.median == 1.0
    assert slow.first_token_s.median == 1.0
    assert slow.tokens_per_forward == 2.0
    assert (slow.num_equal, fast.num_equal) == (2, 1)


def test_contenders_take_turns_and_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def write(self, prompt_ids: object, max_tokens: int) -> Run:
            order.append((self.name, prompt_ids, max_tokens))
            if len(order) in stops:
                stops.clear()
                raise KeyboardInterrupt
            return run(1, 2)

    order: list[tuple[str, object, int]] = []
    stops = [7]
    prompts = [(Prompt(0, "chat", "x"), [1]), (Prompt(1, "chat", "y"), [2])]
    contenders = [Recorder("a"), Recorder("b")]

    def write() -> Mapping[str, Sequence[Sequence[Run]]]:
        ledger = Ledger(RunFolder(tmp_path, "benchmark"), "runs.jsonl", Run)
        return run_latency(contenders, prompts, LatencyConfig(1, 40, 2, {}), ledger, lambda progress: None)

    with pytest.raises(KeyboardInterrupt):
        write()
    stopped = order.pop()  # before it was written
    runs = write()
    written = [(name, prompt) for name, prompt, length in order if length == 40]
    assert written[4] == stopped[:2]
    assert written[:4] == [("a", [1]), ("b", [1]), ("a", [2]), ("b", [2])]
    assert written[4:] == [("b", [1]), ("a", [1]), ("b", [2]), ("a", [2])]
    assert [len(own) for own in runs["a"]] == [2, 2]
    num_written = len(order)
    assert write() == runs
    assert len(order) == num_written


def test_the_balance_is_against_the_best_lossless_mode() -> None:
    seconds = {"ar": 2.0, "speculative": 1.0, "diffusion": 0.1, "auto": 1.25}
    crowds = [Crowd(mode, "int8", 4, 100, 60, 50, spent) for mode, spent in seconds.items()]  # type: ignore[arg-type]
    (balance,) = balances_of(points_of(crowds))
    assert (balance.best, balance.auto_over_best, balance.concurrency) == ("speculative", 0.8, 4)


@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_the_command_writes_a_record_and_a_picture(
    kind: str, unmask_command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "record.json"
    own = ["--against", "transformers"] if kind == "latency" else ["--concurrency", "1,7"]
    result = unmask_command(
        "bench", kind, tiny_model, "--out", out, "--max-tokens", "6", "--rounds", "1", *own, "--json"
    )
    assert result.status == 0, result.err
    record = json.loads(out.read_text())
    assert json.loads(result.out) == record
    assert record["model"]["fingerprint"]
    assert out.with_suffix(".png").stat().st_size
    assert not out.with_suffix(".runs").exists()
    conditions = record["config"]["conditions"]
    assert conditions["options"]["speculative"]["block_length"] == 4
    assert conditions["options"]["diffusion"]["rule"].startswith("Threshold")
    assert conditions["token_budget"] == 512
    if kind == "throughput":
        assert {(p["mode"], p["number_format"], p["concurrency"]) for p in record["points"]} == {
            (mode, number_format, size)
            for mode in ("ar", "diffusion", "speculative", "auto")
            for number_format in ("float32", "int8")
            for size in (1, 7)
        }
        assert (record["config"]["num_prompts"], len(record["prompts"])) == (2, 12)
        assert all(crowd["num_tokens"] == 6 * crowd["concurrency"] for crowd in record["crowds"])
        return
    assert record["baseline"] == "transformers float32"
    assert all(len(run["token_ids"]) == 6 for own in record["runs"].values() for runs in own for run in runs)
    for name in ("transformers float32", "speculative float32", "speculative int8", "auto int8"):
        assert record["speeds"][name]["num_equal"] == len(record["prompts"]), name


@pytest.mark.parametrize("kind", ["latency", "throughput"])
def test_what_fails_before_the_first_run_leaves_no_folder(
    kind: str, unmask_command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    own = ["--against", ""] if kind == "latency" else ["--concurrency", "1"]
    command = ("bench", kind, "tiny-ar", "--formats", "float32", "--max-tokens", "2", "--rounds", "1")
    for modes, status in (("auto", 2), ("ar", 0)):
        done = unmask_command(*command, *own, "--out", tmp_path / "record.json", "--modes", modes)
        assert done.status == status, done.err
        assert not list(tmp_path.glob("*.runs*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["speed"], "unknown benchmark 'speed'"),
        (["latency", "--concurrency", "2"], "--concurrency belongs to throughput"),
        (["throughput", "--against", "transformers"], "belong to latency"),
        (["throughput", "--against", ""], "belong to latency"),
        (["latency", "--modes", "fast"], "--modes 'fast'"),
        (["latency", "--formats", "int4"], "--formats 'int4'"),
        (["latency", "--against", "", "--gguf", "x.gguf"], "which is not among --against"),
        (["latency", "--against", "transformers", "--gguf", "x.gguf"], "only llama.cpp reads it"),
        (["latency", "--against", "llama.cpp", "--gguf", "x.gguf"], "--gguf x.gguf is no file"),
    ],
)
def test_what_is_asked_wrongly_is_refused(arguments: list[str], said: str, unmask_command: Command) -> None:
    result = unmask_command("bench", *arguments)
    assert result.status == 2
    assert said in result.err


def test_llama_cpp_needs_a_file_and_is_left_out_by_default_where_there_is_none(
    unmask_command: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "installed_rivals", lambda: ("llama.cpp",))
    command = ("bench", "latency", tiny_model, "--out", tmp_path / "record.json", "--modes", "ar", "--json")
    short = ("--formats", "float32", "--max-tokens", "2", "--rounds", "1")
    done = unmask_command(*command, *short)
    assert done.status == 0, done.err
    assert "llama.cpp takes no part" in done.err
    assert set(json.loads(done.out)["speeds"]) == {"ar float32"}
    refused = unmask_command(*command, *short, "--against", "llama.cpp")
    assert refused.status == 2
    assert "or leave llama.cpp out of --against" in refused.err
