"""What a speed benchmark compares: ways to write the same number of tokens after the same prompt."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from unmask.decoding.generate import stream
from unmask.decoding.generation import Generation
from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import Mode
from unmask.decoding.options import Options
from unmask.engine.engine import DEFAULT_PAGE_SIZE, DEFAULT_TOKEN_BUDGET, Engine, Finished, Progress
from unmask.engine.planner import Planner


@dataclass(frozen=True)
class Run:
    """One greedy text: its tokens, the seconds to the first of them and to the last, and the forwards it took.

    `num_forwards` and `num_decode_forwards`, without the prefill, are None where a contender does not tell.
    """

    token_ids: tuple[int, ...]
    first_s: float
    seconds: float
    num_forwards: int | None = None
    num_decode_forwards: int | None = None


class Contender(Protocol):
    """A named way to write; `is_lossless`: its text shall be that of mode ar with the same products."""

    @property
    def name(self) -> str: ...

    def write(self, prompt_ids: Sequence[int], max_tokens: int) -> Run:
        """Write exactly so many tokens after a prompt, whatever stop tokens come, and time it."""
        ...


@dataclass(frozen=True)
class Loop:
    """A mode of the reference loop, which is what `unmask generate` runs."""

    name: str
    model: LanguageModel
    mode: Mode

    def write(self, prompt_ids: Sequence[int], max_tokens: int) -> Run:
        """Write exactly so many tokens after a prompt, whatever stop tokens come, and time it."""
        options = options_of(self.model, self.mode, max_tokens)
        first_s: float | None = None
        began = time.perf_counter()
        for event in stream(self.model.denoiser, self.model.tokenizer, prompt_ids, options):
            now = time.perf_counter() - began
            if isinstance(event, Generation):
                forwards = event.num_forwards, event.num_decode_forwards
                return Run(event.token_ids, now if first_s is None else first_s, now, *forwards)
            begins = bool(event.token_ids) or (event.phase == "denoise" and event.canvas[0] is not None)
            first_s = now if first_s is None and begins else first_s
        raise AssertionError("a stream ends with its generation")


@dataclass(frozen=True)
class Planned:
    """The engine with its planner, one request at a time; what it learns of drafts it keeps."""

    name: str
    model: LanguageModel
    planner: Planner

    def write(self, prompt_ids: Sequence[int], max_tokens: int) -> Run:
        """Write exactly so many tokens after a prompt, whatever stop tokens come, and time it."""
        engine = engine_for(self.model, [len(prompt_ids)], max_tokens, self.planner)
        first_s: float | None = None
        began = time.perf_counter()
        engine.add(prompt_ids, options_of(self.model, "auto", max_tokens))
        while True:
            events = engine.step()
            now = time.perf_counter() - began
            for event in events:
                if isinstance(event, Progress) and event.token_ids:
                    first_s = now if first_s is None else first_s
                if isinstance(event, Finished):
                    done = event.generation
                    assert first_s is not None  # progress comes before the end
                    return Run(done.token_ids, first_s, now, done.num_forwards, done.num_decode_forwards)


def own_contenders(
    models: Sequence[LanguageModel], modes: Sequence[Mode], note: Callable[[str], None]
) -> list[Contender]:
    """Return every mode on every model; `note` is told of calibrations, which take some seconds."""
    contenders: list[Contender] = []
    for model in models:
        for mode in modes:
            name = f"{mode} {number_format(model)}"
            if mode == "auto":
                note(f"measuring forwards in {number_format(model)}")
                contenders.append(Planned(name, model, calibrated(model)))
            else:
                contenders.append(Loop(name, model, mode))
    return contenders


def options_of(model: LanguageModel, mode: Mode, max_tokens: int) -> Options:
    """Return the greedy options of a benchmark; the rule of mode diffusion is the default one."""
    return model.resolve(Options(mode=mode, max_tokens=max_tokens, stop_token_ids=()))


def conditions_of(model: LanguageModel, modes: Sequence[Mode], max_tokens: int) -> dict[str, object]:
    """Return what decides how the modes write, as plain values: the options given or resolved, the engine's sizes."""
    options = {}
    for mode in modes:
        resolved = options_of(model, mode, max_tokens)
        values = {field.name: getattr(resolved, field.name) for field in fields(Options)}
        options[mode] = {
            name: value if isinstance(value, int | float | str) else str(value)
            for name, value in values.items()
            if value != getattr(Options, name)
        }
    return {"options": options, "token_budget": DEFAULT_TOKEN_BUDGET, "page_size": DEFAULT_PAGE_SIZE}


def engine_for(
    model: LanguageModel, prompt_lengths: Sequence[int], max_tokens: int, planner: Planner | None = None
) -> Engine:
    """Return an engine with room for so many requests at once, and nothing in its pages."""
    pages = sum(-(-(length + max_tokens) // DEFAULT_PAGE_SIZE) + 1 for length in prompt_lengths)
    return Engine(
        model.denoiser,
        model.tokenizer,
        num_pages=pages,
        max_requests=len(prompt_lengths),
        planner=planner,
    )


def calibrated(model: LanguageModel) -> Planner:
    """Return a planner that knows what forwards cost just now."""
    planner = Planner()
    engine_for(model, [1], model.denoiser.transformer.config.max_positions - 1, planner).calibrate()
    return planner


def number_format(model: LanguageModel) -> str:
    """Name the number format that a model computes in."""
    return model.quantize or str(model.denoiser.transformer.dtype).removeprefix("torch.")
