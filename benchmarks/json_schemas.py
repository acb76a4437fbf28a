"""Ask the server for JSON of twenty schemas in every mode, and check each answer with the package jsonschema.

    python benchmarks/json_schemas.py [--requests 25] [--model NAME] [--out FILE]

Sends so many chat requests for each schema in each mode, many at once, so that the engine runs them together. Half
are greedy, half are drawn at temperature 1. Every answer must end by itself, parse and validate, and greedy speculation
must write what greedy ar does. The answers lie in build/json-schemas: Ctrl-C and the same command again go on, and more
requests add to fewer. Writes benchmarks/json_schemas.json, and exits with status 1 where an answer is wrong.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
from rich.progress import Progress

from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.mode import MODES, Mode
from unmask.engine.engine import Engine
from unmask.evaluation.ledger import Ledger
from unmask.evaluation.provenance import provenance
from unmask.serving.app import create_app
from unmask.serving.settings import Settings
from unmask.training.run_folder import RunFolder

FOLDER = Path(__file__).parent.parent / "build" / "json-schemas"
MAX_TOKENS = 400
MOST_AT_ONCE = 32
NUM_PAGES = 1024
TOPICS = ("a small town", "a wooden boat", "a winter day", "an old book", "a tired cat")

Schema = dict[str, Any]


def record(**properties: Schema) -> Schema:
    """Return the schema of an object that has these properties, all of them and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def several(items: Schema, least: int, most: int) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def text(most: int) -> Schema:
    """Return the schema of a text of at most so many characters, any that JSON can spell."""
    return {"type": "string", "maxLength": most}


def whole(least: int, most: int) -> Schema:
    """Return the schema of a whole number."""
    return {"type": "integer", "minimum": least, "maximum": most}


def spelled(pattern: str) -> Schema:
    """Return the schema of a text that a regular expression describes."""
    return {"type": "string", "pattern": pattern}


POINT = record(x=whole(-9, 9), y=whole(-9, 9))
SCHEMAS: dict[str, Schema] = {
    "object": record(name=text(12), age=whole(0, 120)),
    "booleans": record(is_big={"type": "boolean"}, is_old={"type": "boolean"}, is_red={"type": "boolean"}),
    "enum": record(size={"enum": ["small", "medium", "large"]}, colour={"enum": ["red", "green", "blue"]}),
    "enum of all kinds": record(value={"enum": [None, True, -1, 2.5, "two", ["a", 1], {"deep": None}]}),
    "const": record(kind={"const": "report"}, version={"const": 3}, rating=whole(1, 5)),
    "whole numbers": record(numbers=several(whole(-99, 99), 2, 4)),
    "fractions": record(share={"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.125}),
    "texts": record(title=text(20), summary=text(40)),
    "text with escapes": record(path=spelled(r'^[A-Z]:\\[a-z]{2,6}\\"[a-z]{2,6}"\t\n$')),
    "enum with escapes": record(
        line={"enum": ['say "no"', "a\\b", "one\ntwo", "tab\there", "\u0001/\u007f"]}
    ),
    "enum of unicode": record(city={"enum": ["Łódź", "São Paulo", "東京", "Αθήνα", "🏙️ Città"]}),
    "text of unicode": record(russian=spelled("^[а-я]{2,8}$"), chinese=spelled("^[一-鿿]{1,4}$")),
    "names of unicode": record(größe=whole(0, 9), 名前=text(8), **{'a "quoted" name': {"type": "boolean"}}),
    "list of objects": record(points=several(POINT, 1, 3)),
    "list of lists": record(rows=several(several({"enum": [0, 1]}, 3, 3), 3, 3)),
    "tuple": record(
        pair={
            "type": "array",
            "prefixItems": [text(6), whole(0, 9), {"type": "boolean"}],
            "items": False,
            "minItems": 3,
        }
    ),
    "nested": record(
        order=record(
            number=whole(1, 999),
            customer=record(name=text(10), address=record(street=text(12), code=spelled("^[0-9]{5}$"))),
        )
    ),
    "optional": {
        "type": "object",
        "properties": {"first": text(8), "second": whole(0, 9), "third": {"type": "null"}},
        "required": ["second"],
        "additionalProperties": False,
    },
    "choice": record(
        shape={
            "anyOf": [
                record(circle=whole(1, 9)),
                record(square=whole(1, 9), tilted={"type": "boolean"}),
                {"type": "null"},
            ]
        }
    ),
    "definitions and formats": {
        "$defs": {"day": {"type": "string", "format": "date"}, "point": POINT},
        **record(begin={"$ref": "#/$defs/day"}, end={"$ref": "#/$defs/day"}, place={"$ref": "#/$defs/point"}),
    },
}


@dataclass(frozen=True)
class Job:
    """A request: number `number` for a schema in a mode. Even numbers are greedy."""

    mode: Mode
    schema: str
    number: int

    @property
    def body(self) -> dict[str, Any]:
        """What is sent to the server."""
        topic = TOPICS[self.number % len(TOPICS)]
        return {
            "messages": [
                {"role": "user", "content": f"Invent {topic}, number {self.number}. Answer in JSON."}
            ],
            "mode": self.mode,
            "temperature": self.number % 2,
            "seed": self.number,
            "max_tokens": MAX_TOKENS,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMAS[self.schema]},
            },
        }


@dataclass(frozen=True)
class Answer:
    """What a job got. `fault`: what is wrong with it, empty for nothing. `passed_s`: since the answer before it."""

    job: Job
    text: str
    fault: str
    num_tokens: int
    num_forwards: int
    passed_s: float


def fault_of(response: httpx.Response, schema: Schema) -> str:
    """Say what is wrong with an answer."""
    if response.status_code != 200:
        return f"status {response.status_code}: {response.json()['error']['message']}"
    (choice,) = response.json()["choices"]
    if choice["finish_reason"] != "stop":
        return f"finish_reason {choice['finish_reason']}"
    try:
        jsonschema.validate(
            json.loads(choice["message"]["content"]), schema, cls=jsonschema.Draft202012Validator
        )
    except ValueError as error:
        return f"no JSON: {error}"
    except jsonschema.ValidationError as error:
        return f"invalid: {error.message}"
    return ""


async def ask_all(model: LanguageModel, jobs: Sequence[Job], ledger: Ledger[Answer], bar: Progress) -> None:
    """Send what the ledger has no answer of, so many at once, to a server in this process."""
    engine = Engine(model.denoiser, model.tokenizer, num_pages=NUM_PAGES, max_requests=MOST_AT_ONCE)
    app = create_app(model, engine, Settings("model"))
    asked = {answer.job for answer in ledger.records}
    open_jobs = [job for job in jobs if job not in asked]
    task = bar.add_task("requests", total=len(jobs), completed=len(jobs) - len(open_jobs))
    places, last = asyncio.Semaphore(MOST_AT_ONCE), time.monotonic()

    async def ask(client: httpx.AsyncClient, job: Job) -> None:
        nonlocal last
        async with places:
            response = await client.post("/v1/chat/completions", json=job.body)
        content = response.json() if response.status_code == 200 else None
        choice = content["choices"][0] if content else None
        now = time.monotonic()
        ledger.add(
            Answer(
                job,
                choice["message"]["content"] if choice else "",
                fault_of(response, SCHEMAS[job.schema]),
                content["usage"]["completion_tokens"] if content else 0,
                choice["unmask"]["num_forwards"] if choice else 0,
                round(now - last, 4),
            )
        )
        last = now
        bar.advance(task)

    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://server", timeout=None) as client,
        asyncio.TaskGroup() as group,
    ):
        for job in open_jobs:
            group.create_task(ask(client, job))


def report_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the counts of answers by mode and by schema, what is wrong, and what speculation wrote like ar."""
    texts = {answer.job: answer.text for answer in answers if not answer.fault}
    greedy = [job for job in texts if job.mode == "speculative" and not job.body["temperature"]]
    different = [job for job in greedy if texts[job] != texts.get(Job("ar", job.schema, job.number))]
    return {
        "seconds": round(sum(answer.passed_s for answer in answers), 1),
        "modes": {mode: _counts([a for a in answers if a.job.mode == mode]) for mode in MODES},
        "schemas": {name: _counts([a for a in answers if a.job.schema == name]) for name in SCHEMAS},
        "faults": [
            f"{answer.job.mode}, {answer.job.schema}, {answer.job.number}: {answer.fault}"
            for answer in answers
            if answer.fault
        ],
        "greedy_speculation": {
            "valid": len(greedy),
            "as_ar": len(greedy) - len(different),
            "different": [f"{job.schema}, {job.number}" for job in different],
        },
    }


def _counts(answers: Sequence[Answer]) -> dict[str, int]:
    return {
        "asked": len(answers),
        "valid": sum(not answer.fault for answer in answers),
        "tokens": sum(answer.num_tokens for answer in answers),
        "forwards": sum(answer.num_forwards for answer in answers),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, check, write the report and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=25, help="for each schema in each mode")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the answers are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args(arguments)
    settings = {"model": given.model, "max_tokens": MAX_TOKENS, "at_once": MOST_AT_ONCE, "schemas": SCHEMAS}
    folder = RunFolder(given.folder, "answers to JSON schemas")
    folder.claim("settings.json", json.dumps(settings, indent=2), json.loads)
    ledger = Ledger(folder, "answers.jsonl", Answer)
    model = load(given.model, offline=True)
    jobs = [
        Job(mode, schema, number) for number in range(given.requests) for schema in SCHEMAS for mode in MODES
    ]
    with Progress() as bar:
        asyncio.run(ask_all(model, jobs, ledger, bar))
    wanted = set(jobs)
    transformer = model.denoiser.transformer
    report = {
        "provenance": provenance(transformer.device, transformer.dtype),
        "settings": {"requests": given.requests, **settings},
        **report_of([answer for answer in ledger.records if answer.job in wanted]),
    }
    given.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {key: report[key] for key in ("seconds", "modes", "faults", "greedy_speculation")}, indent=2
        )
    )
    return 1 if report["faults"] or report["greedy_speculation"]["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
