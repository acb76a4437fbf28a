"""``unmask generate``: one prompt, one answer."""

from dataclasses import asdict
from typing import Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    BlockLengthOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    FileOption,
    FrequencyPenaltyOption,
    GrammarOption,
    GuidanceOption,
    IgnoreStopTokensFlag,
    JsonFlag,
    JsonSchemaOption,
    LogitBiasOption,
    MaxTokensOption,
    MinPOption,
    NumLogprobsOption,
    NumPredraftsOption,
    NumStepsOption,
    OfflineFlag,
    OwnModeOption,
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
from unmask.cli.output import print_json
from unmask.cli.request import decoding_options, opening, own_mode, read_constraint
from unmask.cli.session import open_model, read_prompt, settle_threads
from unmask.cli.view import open_view, play, print_summary
from unmask.errors import UsageError


def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] PROMPT",
            help=f"The prompt, '-' for standard input; a model before it (default: {DEFAULT_MODEL}) is a "
            "catalogue name, a folder, a .gguf file or a hub id.",
            show_default=False,
        ),
    ] = None,
    *,
    file: FileOption = None,
    mode: OwnModeOption = None,
    rule: RuleOption = None,
    sampler: SamplerOption = None,
    block_length: BlockLengthOption = None,
    num_steps: NumStepsOption = None,
    guidance: GuidanceOption = None,
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
        bool, typer.Option("--raw", help="Give the model the bare prompt, without a chat template.")
    ] = False,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    watch: WatchFlag = False,
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Write the answer to a prompt."""
    if watch and json:
        raise UsageError("--watch and --json both want standard output", "give one of them")
    if logprobs is not None and not json:
        raise UsageError("--logprobs has no place in a text", "add --json")
    if system is not None and raw:
        raise UsageError("--raw leaves no place for --system", "write the system message into the prompt")
    model_name, text = _model_and_prompt(words or [], has_file=file is not None)
    prompt = read_prompt(text, file)
    options = decoding_options(
        mode=mode or own_mode(model_name),
        rule=rule,
        sampler=sampler,
        block_length=block_length,
        num_steps=num_steps,
        guidance=guidance,
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
        logprobs=logprobs,
        constraint=read_constraint(json_schema, regex, grammar),
        seed=seed,
        stop=stop,
        stop_token=stop_token,
        ignore_stop_tokens=ignore_stop_tokens,
    )
    model = open_model(
        model_name, adapter=adapter, dtype=dtype, device=device, offline=offline, quantize=quantize
    )
    settle_threads(device)
    head = opening(system)
    events = model.stream([*head, {"role": "user", "content": prompt}] if head else prompt, options, raw=raw)
    if json:
        print_json({"model": model_name, "dtype": dtype, **asdict(play(events))})
        return
    generation = play(events, open_view(model, options, watch=watch))
    print_summary(generation)


def _model_and_prompt(words: list[str], *, has_file: bool) -> tuple[str, str | None]:
    """Part the positional words: the last is the prompt, unless a file holds it."""
    from unmask.model.catalogue import find_card

    num_prompts = 0 if has_file else 1
    if len(words) > 1 + num_prompts:
        raise UsageError(
            f"{len(words)} words were given, expected [MODEL]{' PROMPT' if num_prompts else ''}",
            "put the prompt in quotes",
        )
    if has_file:
        return (words[0] if words else DEFAULT_MODEL), None
    if not words:
        raise UsageError("there is no prompt", "give one in quotes, '-' for standard input, or --file")
    if len(words) == 1 and find_card(words[0]) is not None:
        raise UsageError(
            f"{words[0]!r} is a model, and there is no prompt",
            f"give one after it; to say just this to the default model: unmask generate {DEFAULT_MODEL} {words[0]}",
        )
    return (words[0] if len(words) == 2 else DEFAULT_MODEL), words[-1]
