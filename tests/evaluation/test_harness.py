"""Our models in lm-evaluation-harness: its tasks on our items give the scores of our own runner, item by item."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from packaged_tasks import write_data

from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.errors import UsageError
from unmask.evaluation.harness import generation_request, harness_model
from unmask.evaluation.model_scorer import ModelScorer
from unmask.evaluation.scoring import GenerationRequest, LikelihoodRequest
from unmask.evaluation.tasks import TASKS, find_tasks
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item, LastWord, MultipleChoice, WrittenAnswer
from unmask.evaluation.zero_shot import evaluate
from unmask.model.catalogue import DEFAULT_MODEL
from unmask.model.store import cache_directory

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


def harness_tasks(names: list[str], data: TaskData, folder: Path, *, limit: int) -> list[Any]:
    """Return tasks of the harness over the first items of ours, by way of files that it reads itself."""
    from lm_eval.api.task import ConfigurableTask

    tasks = []
    for name in names:
        items = [item for item, _ in zip(TASKS.get(name).load(data), range(limit), strict=False)]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(document(item)) + "\n" for item in items), encoding="utf-8")
        kind = type(items[0])
        metrics = {
            MultipleChoice: ["acc", "acc_norm", "acc_bytes"],
            LastWord: ["acc", "perplexity"],
            WrittenAnswer: ["exact_match"],
        }[kind]
        config: dict[str, Any] = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "doc_to_text": "context",
            "doc_to_target": "target",
            "output_type": {
                MultipleChoice: "multiple_choice",
                LastWord: "loglikelihood",
                WrittenAnswer: "generate_until",
            }[kind],
            "metric_list": [{"metric": metric} for metric in metrics],
        }
        if kind is MultipleChoice:
            config["doc_to_choice"] = "choices"
        if kind is WrittenAnswer:
            (request,) = items[0].requests
            assert isinstance(request, GenerationRequest)
            config["generation_kwargs"] = {"until": list(request.until), "max_gen_toks": request.max_tokens}
        tasks.append(ConfigurableTask(config=config))
    return tasks


def document(item: Item) -> dict[str, object]:
    """Return an item as a document of the harness."""
    match item:
        case MultipleChoice():
            return {"context": item.contexts[0], "choices": list(item.choices), "target": item.gold}
        case LastWord():
            return {"context": item.context, "target": f" {item.word}"}
        case WrittenAnswer():
            return {"context": item.request.context, "target": "?"}
        case _:
            raise TypeError(item)


def harness_results(model: Any, tasks: list[Any]) -> dict[str, Any]:
    import lm_eval

    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=model, tasks=tasks, bootstrap_iters=0, log_samples=True, verbosity="ERROR"
    )
    return results


def answers_of(samples: list[dict[str, Any]]) -> list[list[float | str]]:
    """Return what a model answered to each document: log-likelihoods, or texts."""
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    return [
        [part if isinstance(part, str) else float(part[0]) for part in _first(sample["resps"])]
        for sample in ordered
    ]


def _first(responses: list[Any]) -> list[Any]:
    return [response[0] for response in responses]


def compare(
    names: list[str],
    model: LanguageModel,
    harness_lm: Any,
    data: TaskData,
    folder: Path,
    *,
    limit: int,
    tolerance: float,
) -> None:
    """Compare every answer and every score of the harness with those of our runner."""
    report = evaluate(model, find_tasks(",".join(names)), folder / "out", Options(), data=data, limit=limit)
    lines = (folder / "out" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    theirs = harness_results(harness_lm, harness_tasks(names, data, folder, limit=limit))
    for task in report.tasks:
        own = [json.loads(line) for line in lines if json.loads(line)["task"] == task.task]
        samples = answers_of(theirs["samples"][task.task])
        assert len(samples) == len(own)
        for mine, other in zip(own, samples, strict=True):
            assert mine["answers"][: len(other)] == pytest.approx(other, abs=tolerance)
        scores = theirs["results"][task.task]
        for metric in ("acc", "acc_norm", "acc_bytes"):
            if metric in task.scores and f"{metric},none" in scores:
                assert task.scores[metric].mean == pytest.approx(scores[f"{metric},none"], abs=1e-9)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the harness's data in this test's folder."""
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.mark.slow
@pytest.mark.usefixtures("offline_hub")
def test_the_harness_agrees_with_our_runner(tiny_model: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "cache")
    model = load(str(tiny_model))
    names = ["arc-easy", "hellaswag", "lambada", "basic-skills-coding", "basic-skills-coding-written"]
    adapter = harness_model(ModelScorer(model, Options()))
    compare(names, model, adapter, data, tmp_path, limit=2, tolerance=1e-4)


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


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("offline_hub")
def test_the_default_model_scores_as_in_the_harness_itself(tmp_path: Path) -> None:
    """Two hundred items of four tasks, in the harness's own `hf` model on the same weights, and in ours."""
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM

    from unmask.model.catalogue import find_card
    from unmask.model.checkpoint import Finder

    cache = cache_directory()
    folder, _ = Finder(cache, offline=False, progress=print).find(DEFAULT_MODEL, find_card(DEFAULT_MODEL))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    harness_lm = HFLM(pretrained=reference, tokenizer=tokenizer, batch_size=4, device="cpu")
    data = TaskData(cache, offline=False, progress=print)
    names = ["arc-easy", "piqa", "hellaswag", "lambada"]
    compare(names, load(DEFAULT_MODEL), harness_lm, data, tmp_path, limit=200, tolerance=5e-3)
