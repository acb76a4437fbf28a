"""``unmask chat``: a conversation."""

import json as json_format
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    BlockLengthOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    FrequencyPenaltyOption,
    GrammarOption,
    IgnoreStopTokensFlag,
    JsonSchemaOption,
    LogitBiasOption,
    MaxTokensOption,
    MinPOption,
    ModeOption,
    NumPredraftsOption,
    NumStepsOption,
    OfflineFlag,
    OptionalModel,
    PresencePenaltyOption,
    QuantizeOption,
    RegexOption,
    RuleOption,
    SamplerOption,
    SeedOption,
    StopOption,
    StopTokenOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TreeSizeOption,
    WatchFlag,
)
from unmask.cli.failure import Failure
from unmask.cli.output import print_line, print_note, write_text
from unmask.cli.request import decoding_options, opening, read_constraint
from unmask.cli.session import open_model, settle_threads
from unmask.cli.view import open_view, play, print_summary
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.chat_template import Message
    from unmask.decoding.generation import Generation
    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.options import Options

_HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C cuts an answer short"


def chat(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    mode: ModeOption = "speculative",
    rule: RuleOption = None,
    sampler: SamplerOption = None,
    block_length: BlockLengthOption = None,
    num_steps: NumStepsOption = None,
    tree_size: TreeSizeOption = None,
    num_predrafts: NumPredraftsOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    logit_bias: LogitBiasOption = None,
    presence_penalty: PresencePenaltyOption = 0.0,
    frequency_penalty: FrequencyPenaltyOption = 0.0,
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    grammar: GrammarOption = None,
    seed: SeedOption = 0,
    stop: StopOption = None,
    stop_token: StopTokenOption = None,
    ignore_stop_tokens: IgnoreStopTokensFlag = False,
    system: SystemOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    watch: WatchFlag = False,
    json: Annotated[
        bool, typer.Option("--json", help="Read a message per line, print a JSON object per line and answer.")
    ] = False,
    debug: DebugFlag = False,
) -> None:
    """Talk with a model; every answer continues the conversation."""
    if watch and json:
        raise UsageError("--watch and --json both want standard output", "give one of them")
    options = decoding_options(
        mode=mode,
        rule=rule,
        sampler=sampler,
        block_length=block_length,
        num_steps=num_steps,
        tree_size=tree_size,
        num_predrafts=num_predrafts,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        logit_bias=logit_bias,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        constraint=read_constraint(json_schema, regex, grammar),
        seed=seed,
        stop=stop,
        stop_token=stop_token,
        ignore_stop_tokens=ignore_stop_tokens,
    )
    language_model = open_model(
        model, adapter=adapter, dtype=dtype, device=device, offline=offline, quantize=quantize
    )
    settle_threads(device)
    if language_model.tokenizer.chat_template is None:
        raise UsageError(f"{model} has no chat template", "use `unmask generate --raw`")
    conversation = opening(system)
    if not json:
        print_note(f"{model}, mode {mode}. {_HELP}.")
    for text in _user_messages(interactive=not json):
        if text == "/reset":
            conversation = opening(system)
            continue
        asked: list[Message] = [*conversation, {"role": "user", "content": text}]
        try:
            generation = _answer(language_model, asked, options, watch=watch, json=json)
        except KeyboardInterrupt:
            if json:
                raise
            print_note("stopped; the message is forgotten")
            continue
        except UsageError as error:  # say a conversation beyond the context
            if json:
                raise
            write_text(sys.stderr, Failure.of(error).line + "\n")
            continue
        conversation = [*asked, {"role": "assistant", "content": generation.text}]


def _user_messages(*, interactive: bool) -> Iterator[str]:
    """Yield what the user types, or the lines of standard input, until it ends or says so."""
    if interactive and sys.stdin.isatty():
        import readline  # noqa: F401  line editing and history for input()
    while True:
        try:
            text = input("> " if interactive and sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/help":
            print_note(_HELP)
        elif text:
            yield text


def _answer(
    model: "LanguageModel", messages: "list[Message]", options: "Options", *, watch: bool, json: bool
) -> "Generation":
    events = model.stream(messages, options)
    if json:
        generation = play(events)
        print_line(json_format.dumps(asdict(generation), ensure_ascii=False))
        return generation
    generation = play(events, open_view(model, options, watch=watch))
    print_summary(generation)
    return generation
