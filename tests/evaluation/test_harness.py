"""Our models in lm-evaluation-harness: its tasks on our items give the scores of our own runner, item by item."""

import builtins
import runpy
from pathlib import Path
from typing import Any

import pytest
from packaged_tasks import write_data

from unmask.decoding.language_model import load
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.harness import generation_request, harness_model
from unmask.evaluation.model_scorer import ModelScorer
from unmask.evaluation.scoring import GenerationRequest, LikelihoodRequest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "harness_agreement.py"))

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports


def test_what_the_harness_asks_for() -> None:
    assert generation_request("Q:", {"until": ["\n"], "do_sample": False, "temperature": 0.0}) == (
        GenerationRequest("Q:", ("\n",), 256)
    )
    assert generation_request("Q:", {"until": ".", "max_gen_toks": 8}) == GenerationRequest("Q:", (".",), 8)
    with pytest.raises(UsageError, match="wants sampled text"):
        generation_request("Q:", {"do_sample": True})
    with pytest.raises(UsageError, match="generation argument 'top_k' is not supported"):
        generation_request("Q:", {"until": [], "top_k": 3})


def test_without_the_harness_there_is_a_line(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"lm-eval is not installed \(pip install 'unmask\[harness\]'\)"):
        harness_model(ModelScorer(load(str(tiny_model)), Options()))


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the harness's data in this test's folder."""
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def test_opposite_flips_are_two_other_items() -> None:
    ours = [{"scores": {"acc": 1.0}}, {"scores": {"acc": 0.0}}, {"scores": {"acc": 1.0}}]
    assert BENCHMARK["num_other"](ours, [{"acc": 0.0}, {"acc": 1}, {"acc": 1}], "acc") == 2


def test_an_item_without_all_its_answers_is_refused() -> None:
    pairs_of = BENCHMARK["pairs_of"]
    assert pairs_of([1.0, 2.0, 3.0, 4.0], [1.5, 2.5]) == [(1.0, 1.5), (2.0, 2.5)]
    for theirs in ([], [1.5], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="4 answers of ours"):
            pairs_of([1.0, 2.0, 3.0, 4.0], theirs)


@pytest.mark.slow
@pytest.mark.usefixtures("offline_hub")
def test_the_harness_agrees_with_our_runner(tiny_model: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "cache")
    model = load(str(tiny_model))
    names = ["arc-easy", "hellaswag", "lambada", "basic-skills-coding", "basic-skills-coding-written"]
    adapter = harness_model(ModelScorer(model, Options()))
    found = BENCHMARK["agreements"](names, model, adapter, data, tmp_path, limit=2)
    assert [one.num_items for one in found] == [2] * 5
    assert all(one.is_complete for one in found)
    assert all(set(one.num_other_items) == set(one.ours) for one in found)
    assert max(one.largest_difference for one in found) < 1e-4


def test_the_three_methods(tiny_model: Path) -> None:
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    scorer = ModelScorer(load(str(tiny_model)), Options())
    model = harness_model(scorer)
    pairs = [(f"context {number}", " end") for number in range(3)]
    assert model.loglikelihood([instance("loglikelihood", {}, pair, 0) for pair in pairs]) == [
        (pytest.approx(answer.nats, abs=1e-4), answer.is_greedy)
        for answer in scorer.loglikelihood([LikelihoodRequest(*pair) for pair in pairs])
    ]
    (rolling,) = model.loglikelihood_rolling([instance("loglikelihood_rolling", {}, ("a text",), 0)])
    assert rolling == scorer.loglikelihood_rolling(["a text"])[0].nats
    arguments = ("Say: ", {"until": ["e"], "max_gen_toks": 8})
    (text,) = model.generate_until([instance("generate_until", {}, arguments, 0)])
    assert text == scorer.generate_until([GenerationRequest("Say: ", ("e",), 8)])[0].text
