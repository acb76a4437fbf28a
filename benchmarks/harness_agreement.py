"""Compare our scores with lm-evaluation-harness, answer by answer, and keep the comparison here.

    python benchmarks/harness_agreement.py [--limit 200] [--tasks arc-easy piqa hellaswag lambada]

The same items of the default model three times: by our own runner; by the harness through our adapter; and by the
harness's own `hf` model, transformers on the same weights. The harness reads the items as files, with our wording, and
splits and scores them itself. Needs `pip install 'unmask[harness]'` and transformers. Writes
benchmarks/harness_agreement.json.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import unmask
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.options import Options
from unmask.evaluation.harness import harness_model
from unmask.evaluation.model_scorer import ModelScorer
from unmask.evaluation.provenance import provenance_of
from unmask.evaluation.scoring import GenerationRequest
from unmask.evaluation.tasks import TASKS, find_tasks
from unmask.evaluation.tasks.data import TaskData
from unmask.evaluation.tasks.item import Item, LastWord, MultipleChoice, WrittenAnswer
from unmask.evaluation.zero_shot import evaluate
from unmask.model.catalogue import DEFAULT_MODEL, find_card
from unmask.model.checkpoint import Finder
from unmask.model.store import cache_directory

METRICS = {
    MultipleChoice: ("acc", "acc_norm", "acc_bytes"),
    LastWord: ("acc", "perplexity"),
    WrittenAnswer: ("exact_match",),
}
OUTPUTS = {MultipleChoice: "multiple_choice", LastWord: "loglikelihood", WrittenAnswer: "generate_until"}


@dataclass(frozen=True)
class Agreement:
    """One task: scores by metric, the largest difference of a log-likelihood, and what differs item by item.

    `num_other_items`: by metric, the items whose score is another.
    """

    task: str
    num_items: int
    num_answers: int
    largest_difference: float
    num_other_texts: int
    num_other_items: dict[str, int]
    ours: dict[str, float]
    theirs: dict[str, float]

    @property
    def is_complete(self) -> bool:
        """Whether every item has the same scores, and every text is the same."""
        return not self.num_other_texts and not any(self.num_other_items.values())


def agreements(
    tasks: Sequence[str], model: LanguageModel, theirs: Any, data: TaskData, folder: Path, *, limit: int
) -> list[Agreement]:
    """Ask our runner and a model of the harness the first items of some tasks; `folder` is for files on the way."""
    report = evaluate(model, find_tasks(",".join(tasks)), folder / "ours", Options(), data=data, limit=limit)
    lines = [json.loads(line) for line in (folder / "ours" / "items.jsonl").read_text("utf-8").splitlines()]
    found = harness_results(theirs, [harness_task(name, data, folder, limit=limit) for name in tasks])
    result = []
    for task in report.tasks:
        own = {line["item"]: line for line in lines if line["task"] == task.task}
        order = [own[item.id] for item in first_items(task.task, data, limit)]
        samples = sorted(found["samples"][task.task], key=lambda sample: int(sample["doc_id"]))
        pairs = [
            pair
            for line, sample in zip(order, samples, strict=True)
            for pair in pairs_of(line["answers"], answers_of(sample))
        ]
        scores = found["results"][task.task]
        shared = [name for name in ("acc", "acc_norm", "acc_bytes") if f"{name},none" in scores]
        result.append(
            Agreement(
                task.task,
                task.num_items,
                len(pairs),
                max((abs(a - b) for a, b in pairs if not isinstance(a, str)), default=0.0),
                sum(a != b for a, b in pairs if isinstance(a, str)),
                {name: num_other(order, samples, name) for name in shared},
                {name: task.scores[name].mean for name in shared},
                {name: scores[f"{name},none"] for name in shared},
            )
        )
    return result


def first_items(task: str, data: TaskData, limit: int) -> list[Item]:
    """Return the first items of a task."""
    return [item for item, _ in zip(TASKS.get(task).load(data), range(limit), strict=False)]


def harness_task(name: str, data: TaskData, folder: Path, *, limit: int) -> Any:
    """Return a task of the harness over the first items of ours, by way of a file that it reads itself."""
    from lm_eval.api.task import ConfigurableTask

    items = first_items(name, data, limit)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(document(item)) + "\n" for item in items), encoding="utf-8")
    kind = type(items[0])
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "doc_to_text": "context",
        "doc_to_target": "target",
        "output_type": OUTPUTS[kind],
        "metric_list": [{"metric": metric} for metric in METRICS[kind]],
    }
    if kind is MultipleChoice:
        config["doc_to_choice"] = "choices"
    if kind is WrittenAnswer:
        (request,) = items[0].requests
        assert isinstance(request, GenerationRequest)
        config["generation_kwargs"] = {"until": list(request.until), "max_gen_toks": request.max_tokens}
    return ConfigurableTask(config=config)


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


def harness_results(model: Any, tasks: Sequence[Any]) -> dict[str, Any]:
    """Let the harness ask a model of its own kind some tasks."""
    import lm_eval

    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), bootstrap_iters=0, log_samples=True, verbosity="ERROR"
    )
    return results


def answers_of(sample: Mapping[str, Any]) -> list[float | str]:
    """Return what a model answered to a document: log-likelihoods, or texts."""
    return [part if isinstance(part, str) else float(part[0]) for part, *_ in sample["resps"]]


def pairs_of(
    ours: Sequence[float | str], theirs: Sequence[float | str]
) -> list[tuple[float | str, float | str]]:
    """Pair the answers to one item; ours may go on with every choice once more, unconditioned, as only we ask."""
    if not theirs or len(ours) not in (len(theirs), 2 * len(theirs)):
        raise ValueError(f"{len(ours)} answers of ours, {len(theirs)} of the harness")
    return list(zip(ours, theirs, strict=False))


def num_other(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], metric: str) -> int:
    """Count the items that the two score differently; both lists are in the order of the items."""
    return sum(one["scores"][metric] != float(other[metric]) for one, other in zip(ours, theirs, strict=True))


def own_model_of_the_harness() -> Any:
    """Return the harness's `hf` model on the default model's weights."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    folder, _ = Finder(cache_directory(), offline=False, progress=print).find(
        DEFAULT_MODEL, find_card(DEFAULT_MODEL)
    )
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=reference, tokenizer=tokenizer, batch_size=4, device="cpu")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", default=["arc-easy", "piqa", "hellaswag", "lambada"])
    arguments = parser.parse_args()
    import datasets

    model, data = unmask.load(DEFAULT_MODEL), TaskData(progress=print)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        datasets.config.HF_DATASETS_CACHE = str(folder / "datasets")
        found = {
            name: agreements(arguments.tasks, model, theirs, data, folder, limit=arguments.limit)
            for name, theirs in (
                ("through our adapter", harness_model(ModelScorer(model, Options()))),
                ("its own hf model", own_model_of_the_harness()),
            )
        }
    record = {
        "provenance": provenance_of(model),
        **{name: [asdict(one) for one in some] for name, some in found.items()},
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, some in found.items():
        for one in some:
            verdict = "equal on every item"
            if not one.is_complete:
                verdict = f"{one.num_other_items} items and {one.num_other_texts} texts differ"
            print(
                f"{name}: {one.task}, {one.num_items} items, {one.num_answers} answers within "
                f"{one.largest_difference:.1e} nats: {verdict}"
            )
