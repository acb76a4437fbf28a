"""A crowd at one server, a third of which leaves at random: nothing lost, nothing mixed up, nothing kept.

    python benchmarks/serving_load.py --clients 200 --minutes 10 [--model NAME] [--out FILE]

Every answer must be what the decoder writes by itself for that prompt, those options and that seed. At the end the
server gets SIGTERM with all clients waiting: every request must finish or get a clean error. Prints a report, and exits
with status 1 where something was lost, mixed up, cut or kept.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from unmask.decoding.language_model import LanguageModel, load
from unmask.decoding.options import Options
from unmask.evaluation.provenance import provenance

SUBJECTS = ("rivers", "bread", "the moon", "a lighthouse", "copper", "bees")
MODES = ("ar", "diffusion", "speculative")
MAX_TOKENS = 16
SHARE_LEAVING = 1 / 3
MOST_GROWTH_MIB = 32.0
PATIENCE_S = 20.0
SETTLED_S = 300.0
"""From when on memory is judged: before, libraries keep a compiled product for every new shape of a batch."""


@dataclass(frozen=True)
class Question:
    """A request and the only right answer to it."""

    body: dict[str, Any]
    text: str


@dataclass
class Tally:
    """What became of requests, and the resident memory of the server, in MiB, once a second."""

    outcomes: Counter[str] = field(default_factory=Counter)
    memory_mib: list[float] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """How much more the last quarter of the time takes than the third."""
        quarter = len(self.memory_mib) // 4
        if not quarter:
            return 0.0
        before, after = self.memory_mib[-2 * quarter : -quarter], self.memory_mib[-quarter:]
        return sum(after) / quarter - sum(before) / quarter


def questions(model: LanguageModel, seed: int) -> list[Question]:
    """Return requests of every mode with the answers that the decoder writes, one at a time."""
    found = []
    for number, subject in enumerate(SUBJECTS):
        for mode in MODES:
            prompt = f"Write a sentence about {subject}."
            shaping = {"temperature": 0.7 * (number % 2), "seed": seed + number, "max_tokens": MAX_TOKENS}
            *_, truth = model.stream(prompt, Options(mode=mode, **shaping), raw=True)
            found.append(Question({"prompt": prompt, "mode": mode, **shaping}, truth.text))
    return found


async def ask(
    client: httpx.AsyncClient,
    question: Question,
    leaves: random.Random | None,
    headers: dict[str, str] | None = None,
) -> str:
    """Send one request and return what became of it; `leaves`: go away before the answer is whole."""
    is_streamed = leaves is not None or question.body["seed"] % 2 == 0
    if not is_streamed:
        answer = await client.post("/v1/completions", json=question.body, headers=headers)
        if answer.status_code != 200:
            return _refusal(answer.status_code, answer.content)
        return _verdict(answer.json()["choices"][0]["text"], question)
    patience = leaves.randrange(MAX_TOKENS) if leaves is not None else None
    body = {**question.body, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        if answer.status_code != 200:
            return _refusal(answer.status_code, await answer.aread())
        text, num_chunks = "", 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return _verdict(text, question)
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return f"clean error: {chunk['error']['code']}"
            text += chunk["choices"][0]["text"]
            if num_chunks == patience:
                return "left"
            num_chunks += 1
    return "cut"


def _verdict(text: str, question: Question) -> str:
    return "right" if text == question.text else "wrong"


def _refusal(status: int, body: bytes) -> str:
    code = json.loads(body)["error"]["code"]
    return "busy" if status == 429 else f"clean error: {code}" if status in (503, 504) else f"status {status}"


async def visit(
    client: httpx.AsyncClient, asked: Sequence[Question], tally: Tally, generator: random.Random, end: float
) -> None:
    """Be one client until the end of the time."""
    while time.monotonic() < end:
        leaves = generator if generator.random() < SHARE_LEAVING else None
        outcome = await ask(client, generator.choice(asked), leaves)
        tally.outcomes[outcome] += 1
        if outcome == "busy":
            await asyncio.sleep(generator.uniform(0.5, 1.5))


async def last_visit(client: httpx.AsyncClient, question: Question, number: int) -> str:
    """Ask while the server stops, under a request id of one's own."""
    try:
        return await ask(client, question, None, {"X-Request-Id": f"last-{number}"})
    except httpx.TransportError:
        return "no answer"


async def all_asked(client: httpx.AsyncClient, wanted: int) -> None:
    """Wait until so many answers are open, or as many as there will be."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        state = await gauges(client)
        if state["unmask_answers_running"] + state["unmask_answers_waiting"] >= wanted:
            return
        await asyncio.sleep(0.05)


async def watch_memory(pid: int, tally: Tally) -> None:
    """Note the server's resident memory once a second."""
    while True:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        tally.memory_mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        await asyncio.sleep(1)


async def start(model: str, *options: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a server on a free port and return it with its address."""
    command = [sys.executable, "-m", "unmask", "serve", model, "--port", "0", "--json", "--offline", *options]
    server = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert server.stderr is not None
    async for line in server.stderr:
        if b" on http://" in line:
            return server, json.loads(line)["message"].rpartition(" on ")[2]
    raise SystemExit("the server did not start")


async def read_log(server: asyncio.subprocess.Process, levels: Counter[str], ids: set[str]) -> None:
    """Read the server's log to its end: count lines by level, note the ids of requests that it took."""
    assert server.stderr is not None
    async for line in server.stderr:
        entry = json.loads(line) if line.startswith(b"{") else {"level": "other"}
        levels[entry["level"]] += 1
        ids.add(entry.get("request_id", ""))


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the metrics that have no labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = [line.split() for line in lines if line and line[0] != "#" and "{" not in line]
    return {name: float(value) for name, value in pairs}


async def crowd(
    model: str, asked: Sequence[Question], *, clients: int, minutes: float, seed: int, cache_mib: int
) -> dict[str, Any]:
    """Run the whole test against a server of its own, and return the report."""
    server, url = await start(model, "--cache-mib", str(cache_mib))
    tally, levels, ids = Tally(), Counter[str](), set[str]()
    reading = asyncio.create_task(read_log(server, levels, ids))
    watching = asyncio.create_task(watch_memory(server.pid, tally))
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
            begin = time.monotonic()
            visits = [
                visit(client, asked, tally, random.Random(seed + number), begin + 60 * minutes)
                for number in range(clients)
            ]
            await asyncio.gather(*visits)
            seconds = time.monotonic() - begin
            watching.cancel()
            state = await gauges(client)
            while state["unmask_answers_running"] + state["unmask_answers_waiting"]:
                await asyncio.sleep(0.1)
                state = await gauges(client)
            final = [
                asyncio.create_task(last_visit(client, asked[n % len(asked)], n)) for n in range(clients)
            ]
            await all_asked(client, clients // 2)
            server.send_signal(signal.SIGTERM)
            last = await asyncio.gather(*final)
        status = await server.wait()
        await reading
        # A request that the server never took is the kernel's; one that it took and did not answer is cut.
        fates = Counter(
            ("cut" if f"last-{number}" in ids else "not accepted") if fate == "no answer" else fate
            for number, fate in enumerate(last)
        )
    finally:
        watching.cancel()
        if server.returncode is None:
            server.kill()
    return {
        "clients": clients,
        "seconds": round(seconds, 1),
        "requests": tally.outcomes.total(),
        "outcomes": dict(tally.outcomes),
        "pages": state["unmask_pages"],
        "pages_back": state["unmask_pages_available"],
        "memory_growth_mib": round(tally.growth_mib, 1),
        "memory_mib": [round(mib) for mib in tally.memory_mib[:: max(1, len(tally.memory_mib) // 20)]],
        "at_sigterm": dict(fates),
        "exit_signal": -status,
        "log_levels": dict(levels),
    }


def faults(report: dict[str, Any]) -> list[str]:
    """Return one line for each thing that must not be."""
    found = [
        f"{count} x {outcome!r}"
        for outcome, count in report["outcomes"].items()
        if outcome not in ("right", "left", "busy")
    ]
    found += [
        f"at SIGTERM {count} x {outcome!r}"
        for outcome, count in report["at_sigterm"].items()
        if outcome not in ("right", "not accepted", "busy") and not outcome.startswith("clean error")
    ]
    if report["pages"] != report["pages_back"]:
        found.append(f"{report['pages'] - report['pages_back']} pages are not back")
    if report["seconds"] > SETTLED_S and report["memory_growth_mib"] > MOST_GROWTH_MIB:
        found.append(f"memory grew by {report['memory_growth_mib']} MiB")
    if report["log_levels"].get("error"):
        found.append(f"{report['log_levels']['error']} errors in the log")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-mib", type=int, default=128, help="small, so that it is soon full")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = load(given.model, offline=True)
    transformer = model.denoiser.transformer
    report = asyncio.run(
        crowd(
            given.model,
            questions(model, given.seed),
            clients=given.clients,
            minutes=given.minutes,
            seed=given.seed,
            cache_mib=given.cache_mib,
        )
    )
    report = {
        "command": " ".join(["python", "benchmarks/serving_load.py", *(arguments or sys.argv[1:])]),
        "model": given.model,
        "seed": given.seed,
        **report,
        "faults": faults(report),
        **provenance(transformer.device, transformer.dtype),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
