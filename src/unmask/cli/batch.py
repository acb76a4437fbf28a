"""``unmask batch``: a file of prompts, all at once."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    BlockLengthOption,
    CacheMibOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    FrequencyPenaltyOption,
    GrammarOption,
    IgnoreStopTokensFlag,
    JsonFlag,
    JsonSchemaOption,
    LogitBiasOption,
    MaxRequestsOption,
    MaxTokensOption,
    MinPOption,
    NumLogprobsOption,
    NumPredraftsOption,
    NumStepsOption,
    OfflineFlag,
    OptionalModel,
    PresencePenaltyOption,
    QuantizeOption,
    RegexOption,
    RuleOption,
    SeedOption,
    StopOption,
    StopTokenOption,
    SystemOption,
    TemperatureOption,
    TokenBudgetOption,
    TopKOption,
    TopPOption,
    TreeSizeOption,
)
from unmask.cli.output import print_json, print_line
from unmask.cli.request import decoding_options, opening, read_constraint
from unmask.cli.run_bar import RunBar
from unmask.cli.session import calibrate, open_engine, open_model
from unmask.decoding.mode import ENGINE_MODES
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.cli.batch_file import AnswerFile, Entry
    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.options import Options
    from unmask.engine.engine import Engine


@dataclass(frozen=True)
class _Request:
    """A line of the file, ready for the engine; `digest` stands for all that decides its answer."""

    line: int
    id: str | int
    prompt_ids: list[int]
    options: "Options"
    digest: str


@dataclass
class _Tally:
    """What a run did so far."""

    num_requests: int
    num_answered_before: int
    num_answered: int = 0
    num_tokens: int = 0
    num_forwards: int = 0
    num_decode_forwards: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        return self.num_tokens / self.seconds if self.seconds and self.num_tokens else None

    @property
    def tokens_per_forward(self) -> float | None:
        """The mean over requests' own decode forwards, not those that they share."""
        return self.num_tokens / self.num_decode_forwards if self.num_decode_forwards else None


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="One JSON object a line with a prompt or messages, and what is to be different from the options "
            "below (mode, rule, max_tokens, json_schema, ...); an id is passed through.",
        ),
    ],
    model: OptionalModel = DEFAULT_MODEL,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where answers go, each as soon as it is finished; those there already are not computed again "
            "(default: FILE with .answers.jsonl).",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="How to write: ar, diffusion, speculative (fewer forwards, the text of ar), or auto: ar or "
            "speculative, whatever is faster with all that runs."
        ),
    ] = "ar",
    rule: RuleOption = None,
    block_length: BlockLengthOption = None,
    num_steps: NumStepsOption = None,
    tree_size: TreeSizeOption = None,
    num_predrafts: NumPredraftsOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    logit_bias: LogitBiasOption = None,
    presence_penalty: PresencePenaltyOption = 0.0,
    frequency_penalty: FrequencyPenaltyOption = 0.0,
    logprobs: NumLogprobsOption = None,
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    grammar: GrammarOption = None,
    seed: SeedOption = 0,
    stop: StopOption = None,
    stop_token: StopTokenOption = None,
    ignore_stop_tokens: IgnoreStopTokensFlag = False,
    system: SystemOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Give the model bare prompts, without a chat template.")
    ] = False,
    max_requests: MaxRequestsOption = 32,
    token_budget: TokenBudgetOption = 512,
    cache_mib: CacheMibOption = 1024,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Write the answers to a file of prompts, many at a time.

    Ctrl-C loses nothing that is finished: the same command goes on where it was stopped.
    """
    from unmask.cli.batch_file import AnswerFile, read_entries
    from unmask.evaluation.fingerprint import fingerprint

    if system is not None and raw:
        raise UsageError("--raw leaves no place for --system", "write the system message into the prompts")
    defaults = {
        "mode": mode,
        "rule": rule,
        "block_length": block_length,
        "num_steps": num_steps,
        "tree_size": tree_size,
        "num_predrafts": num_predrafts,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "logit_bias": logit_bias,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logprobs": logprobs,
        "constraint": read_constraint(json_schema, regex, grammar),
        "seed": seed,
        "stop": stop,
        "stop_token": stop_token,
        "ignore_stop_tokens": ignore_stop_tokens,
    }
    entries = read_entries(file)
    language_model = open_model(
        model, adapter=adapter, dtype=dtype, device=device, offline=offline, quantize=quantize
    )
    weights = fingerprint(language_model)
    requests = []
    for line, entry in entries:
        try:
            requests.append(_request(line, entry, language_model, defaults, system, raw=raw, weights=weights))
        except UsageError as error:
            raise UsageError(f"{file}, line {line}: {error.message}", error.remedy) from error
    engine = open_engine(language_model, cache_mib, token_budget=token_budget, max_requests=max_requests)
    out = file.with_suffix(".answers.jsonl") if out is None else out
    with AnswerFile(out) as answers, RunBar() as bar:
        tally = _run(engine, language_model, requests, answers, bar)
    if json:
        print_json(
            {
                "model": model,
                "dtype": dtype,
                "out": str(out),
                **asdict(tally),
                "tokens_per_s": tally.tokens_per_s,
                "tokens_per_forward": tally.tokens_per_forward,
            }
        )
        return
    print_line(f"{tally.num_answered} answers in {out}" + _summary(tally))


def _request(
    line: int,
    entry: "Entry",
    model: "LanguageModel",
    defaults: Mapping[str, Any],
    system: str | None,
    *,
    raw: bool,
    weights: str,
) -> _Request:
    settings = entry.over(defaults)
    options = model.resolve(decoding_options(**settings, modes=ENGINE_MODES))
    if entry.messages is not None:
        if system is not None:
            raise UsageError("messages beside --system", "write the system message into the messages")
        prompt_ids = model.encode([message.model_dump() for message in entry.messages], raw=raw)
    elif system is not None:
        prompt_ids = model.encode([*opening(system), {"role": "user", "content": entry.prompt or ""}])
    else:
        prompt_ids = model.encode(entry.prompt or "", raw=raw)
    digest = hashlib.sha256(f"{weights} {prompt_ids} {options}".encode()).hexdigest()[:16]
    return _Request(line, line if entry.id is None else entry.id, prompt_ids, options, digest)


def _run(
    engine: "Engine",
    model: "LanguageModel",
    requests: list[_Request],
    answers: "AnswerFile",
    bar: RunBar,
) -> _Tally:
    """Answer what is not answered yet; every request is checked before the first forward."""
    from unmask.engine.engine import Failed, Finished

    open_requests = [request for request in requests if not answers.has(request.line, request.digest)]
    running: dict[int, _Request] = {}
    for request in open_requests:
        try:
            number = engine.add(request.prompt_ids, request.options)
            running[number] = request
        except UsageError as error:
            raise UsageError(f"line {request.line}: {error.message}", error.remedy) from error
    if any(request.options.mode == "auto" for request in open_requests):
        calibrate(engine, model)
    tally = _Tally(len(requests), len(requests) - len(open_requests))
    begin = time.perf_counter()
    while running:
        for event in engine.step():
            if isinstance(event, Failed):
                request = running.pop(event.request_id)
                answers.append(request.line, request.digest, {"id": request.id, "error": event.error.message})
                tally.num_answered += 1
            if not isinstance(event, Finished):
                continue
            request, generation = running.pop(event.request_id), event.generation
            answers.append(request.line, request.digest, {"id": request.id, **asdict(generation)})
            tally.num_answered += 1
            tally.num_tokens += generation.num_tokens
            tally.num_decode_forwards += generation.num_decode_forwards
        tally.num_forwards += 1
        tally.seconds = time.perf_counter() - begin
        done = tally.num_answered_before + tally.num_answered
        bar.show("requests", done, tally.num_requests, f"{done} of {tally.num_requests}{_summary(tally)}")
    return tally


def _summary(tally: _Tally) -> str:
    parts = [f", {tally.num_answered_before} of them from before"] if tally.num_answered_before else []
    if tally.tokens_per_s is not None:
        parts.append(f": {tally.num_tokens} tokens in {tally.seconds:.1f} s ({tally.tokens_per_s:.1f} tok/s)")
        parts.append(f", {tally.num_forwards} forwards")
    if tally.tokens_per_forward is not None:
        parts.append(f", TPF {tally.tokens_per_forward:.2f}")
    return "".join(parts)
