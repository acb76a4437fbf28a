"""Hours of arrivals and aborts: nothing lost, nothing answered twice, nothing that grows."""

import os
import random
import time
from dataclasses import replace

import pytest
from mixes import TOKENIZER, denoiser_of, random_options

from unmask.engine.engine import Engine, Finished

SOAK_S = float(os.environ.get("UNMASK_SOAK_S", "60"))


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(2 * SOAK_S + 120)
def test_soak() -> None:
    generator = random.Random(0)
    engine = Engine(denoiser_of(1), TOKENIZER, num_pages=40, page_size=4, token_budget=96, max_requests=8)
    alive: set[int] = set()
    num_added = num_answered = num_aborted = num_steps = 0
    settled_bytes = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < SOAK_S or alive:
        if passed < SOAK_S and len(alive) < 24 and generator.random() < 0.5:
            prompt = [generator.randint(2, 5) for _ in range(generator.randint(1, 60))]
            options = random_options(generator, predicts_next=True)
            if options.mode == "speculative" and generator.random() < 0.5:
                options = replace(options, mode="auto", tree_size=None, num_predrafts=None)
            alive.add(engine.add(prompt, options))
            num_added += 1
        if alive and generator.random() < 0.03:
            number = generator.choice(sorted(alive))
            engine.abort(number)
            alive.remove(number)
            num_aborted += 1
        for event in engine.step():
            if isinstance(event, Finished):
                alive.remove(event.request_id)  # KeyError: answered twice, or aborted
                num_answered += 1
        engine.check()
        num_steps += 1
        if not settled_bytes and passed > SOAK_S / 2:
            settled_bytes = resident_bytes()
    assert num_added == num_answered + num_aborted
    assert num_answered > 100
    assert engine.scheduler.pool.num_available == 40
    grown = (resident_bytes() - settled_bytes) / 2**20
    assert grown < 16, f"{grown:.0f} MiB more after {num_steps} steps and {num_added} requests"
