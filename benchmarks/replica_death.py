"""Kill one of two Ray replicas under load: the service answers on, and what died with it is written again or told.

    python benchmarks/replica_death.py [--clients 6] [--seconds 60] [--model NAME] [--out FILE]

Needs the extra ray. Clients ask as in serving_load.py, and each answer is compared with the decoder's own; after a
third of the time one replica gets SIGKILL. No answer may be wrong or silently cut: one that comes whole must come, a
stream may end in the error `replica_died`. Writes benchmarks/replica_death.json; exits with status 1 on a fault.
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
from pathlib import Path
from typing import Any

import httpx
from serving_load import Question, ask, questions, read_log, start

from unmask.decoding.language_model import load
from unmask.evaluation.provenance import provenance

REPLICA = b"ServeReplica"
NUM_REPLICAS = 2
ALLOWED = {"whole": {"right"}, "streamed": {"right", "clean error: replica_died"}}


def replica_pids() -> set[int]:
    """Return the processes that Ray names after their replica."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if REPLICA in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


async def visit(
    client: httpx.AsyncClient, asked: Sequence[Question], generator: random.Random, end: float
) -> list[tuple[float, str, str]]:
    """Be one client until the end of the time; return when each answer was asked for, its kind and its outcome."""
    seen = []
    while (begin := time.monotonic()) < end:
        question = generator.choice(asked)
        kind = "whole" if question.body["seed"] % 2 else "streamed"
        seen.append((begin, kind, await ask(client, question, None)))
    return seen


async def kill_one(after_s: float) -> tuple[float, float]:
    """Kill a replica after some seconds; return when, and after how many seconds there were two again."""
    await asyncio.sleep(after_s)
    before = replica_pids()
    assert len(before) == NUM_REPLICAS, before
    os.kill(min(before), signal.SIGKILL)
    killed = time.monotonic()
    while len(replica_pids()) < NUM_REPLICAS or min(before) in replica_pids():
        await asyncio.sleep(0.1)
    return killed, time.monotonic() - killed


async def scene(
    model: str, asked: Sequence[Question], *, clients: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Run the whole test against a server of its own, and return the report."""
    server, url = await start(model, "--cache-mib", "128", "--replicas", str(NUM_REPLICAS))
    levels = Counter[str]()
    reading = asyncio.create_task(read_log(server, levels, set()))
    try:
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            killing = asyncio.create_task(kill_one(seconds / 3))
            end = time.monotonic() + seconds
            visits = await asyncio.gather(
                *(visit(client, asked, random.Random(seed + number), end) for number in range(clients))
            )
            killed, again_s = await killing
            is_healthy = (await client.get("/health")).status_code == 200
        server.send_signal(signal.SIGTERM)
        await server.wait()
        await reading
    finally:
        if server.returncode is None:
            server.kill()
    seen = [each for one in visits for each in one]
    phases = {
        "before": [each for each in seen if each[0] < killed],
        "after": [each for each in seen if each[0] >= killed],
    }
    return {
        "answers_asked": {
            phase: {kind: dict(Counter(each[2] for each in some if each[1] == kind)) for kind in ALLOWED}
            for phase, some in phases.items()
        },
        "seconds_until_two_again": round(again_s, 1),
        "is_healthy": is_healthy,
        "faults": [
            f"{phase}: {kind} answer {outcome!r}"
            for phase, some in phases.items()
            for _, kind, outcome in some
            if outcome not in ALLOWED[kind]
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test, write the report and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args(arguments)
    os.environ["RAY_ADDRESS"] = "local"  # a cluster of the server's own, whose processes are here
    model = load(given.model, offline=True)
    transformer = model.denoiser.transformer
    asked = questions(model, given.seed)
    settings = {"model": given.model, "clients": given.clients, "seconds": given.seconds, "seed": given.seed}
    found = asyncio.run(
        scene(given.model, asked, clients=given.clients, seconds=given.seconds, seed=given.seed)
    )
    report = {"settings": settings, **found, "provenance": provenance(transformer.device, transformer.dtype)}
    given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return 1 if report["faults"] or not report["is_healthy"] else 0


if __name__ == "__main__":
    sys.exit(main())
