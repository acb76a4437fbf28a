"""Arguments and options that several commands share, spelled and explained the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "smollm2-135m"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
"""Read by `unmask.cli.main.main` from the bare arguments, so that it covers errors found while parsing them."""

OptionalModel = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]", help="Catalogue name, folder, .gguf file or hub id.", show_default=True
    ),
]

AdapterOption = Annotated[
    str | None,
    typer.Option(
        help="Adapter folder instead of the model's own; 'none' to go without one, 'untrained' for what training "
        "starts from.",
        metavar="FOLDER",
    ),
]
DtypeOption = Annotated[str, typer.Option(help="Number format of the weights: float32 or bfloat16.")]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        help="int8: round weights and activations of all products, on CPUs (docs/quantization.md).",
        metavar="FORMAT",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]
OfflineFlag = Annotated[bool, typer.Option("--offline", help="Use what is in the cache and nothing else.")]

ModeOption = Annotated[
    str, typer.Option(help="How to write: ar, diffusion, or speculative (fewer forwards, the text of ar).")
]
OwnModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="How to write: ar, diffusion, or speculative (fewer forwards, the text of ar); the model's own way "
        "unless given.",
        show_default=False,
    ),
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        help="diffusion: what to commit after a forward, as NAME or NAME:NUMBER: threshold:0.9, top-k:2, "
        "entropy-bound:0.1, margin:2, factor:1, klass:0.9,0.01,2, spaced, random:1, left-to-right:1.",
        metavar="RULE",
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        help="diffusion, in the place of a rule: what becomes of the canvas after each forward: ancestral, "
        "remdm-cap:0.02, predictor-corrector, renoise, ... (docs/sampling.md); of a continuous model multistep, euler, "
        "heun, churn:1, ancestral, restart (docs/continuous.md).",
        metavar="SAMPLER",
    ),
]
BlockLengthOption = Annotated[
    int | None, typer.Option(help="diffusion, speculative: most open positions at a time.", metavar="N")
]
NumStepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        "--num-steps",
        help="diffusion: most denoise forwards per block; a continuous model makes so many, 64 unless given.",
        metavar="N",
    ),
]
GuidanceOption = Annotated[
    str | None,
    typer.Option(
        help="diffusion, models that see whole texts both ways: how far to lean towards the prompt, away from what is "
        "likely without it, in two forwards a step; 0 is off. self:W leans on the last forward instead "
        "(docs/sampling.md).",
        metavar="W",
        show_default=False,
    ),
]
TreeSizeOption = Annotated[
    int | None,
    typer.Option(
        help="speculative: most candidates of a draft, several at a place (default: one at each).",
        metavar="N",
        show_default=False,
    ),
]
NumPredraftsOption = Annotated[
    int | None,
    typer.Option(
        "--predrafts",
        "--num-predrafts",
        help="speculative: likely ends of a verification that have their next draft in the same forward.",
        metavar="N",
    ),
]
MaxTokensOption = Annotated[int, typer.Option(help="Most tokens to write.", metavar="N")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.", metavar="T")]
TopPOption = Annotated[
    float, typer.Option(help="Draw from the smallest set of tokens with this much mass.", metavar="P")
]
TopKOption = Annotated[int, typer.Option(help="Draw from the K likeliest tokens; 0 is off.", metavar="K")]
MinPOption = Annotated[
    float,
    typer.Option(
        help="Leave out tokens less than P times as probable as the likeliest; 0 is off.", metavar="P"
    ),
]
LogitBiasOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Add a number to a token's logit, as ID=NUMBER; -100 rules it out. May be repeated.",
        metavar="ID=NUMBER",
    ),
]
PresencePenaltyOption = Annotated[
    float, typer.Option(help="Take this from the logits of tokens written before.", metavar="X")
]
FrequencyPenaltyOption = Annotated[
    float, typer.Option(help="Take this from a token's logit for each time it was written.", metavar="X")
]
NumLogprobsOption = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        help="ar, speculative, with --json: tell each token's log-probability under the model's own law, and the N "
        "likeliest tokens there.",
        metavar="N",
    ),
]
JsonSchemaOption = Annotated[
    Path | None,
    typer.Option(
        help="Write JSON that the schema in this file describes.", metavar="FILE", show_default=False
    ),
]
RegexOption = Annotated[
    str | None,
    typer.Option(help="Write a text that this regular expression matches as a whole.", metavar="REGEX"),
]
GrammarOption = Annotated[
    Path | None,
    typer.Option(help="Write a text of the Lark grammar in this file.", metavar="FILE", show_default=False),
]
SeedOption = Annotated[int, typer.Option(help="Seed of all noise: same seed, same text.", metavar="N")]
StopOption = Annotated[
    list[str] | None, typer.Option(help="End before this text; may be repeated.", metavar="TEXT")
]
StopTokenOption = Annotated[
    list[int] | None,
    typer.Option(help="End at this token id instead of the model's own; may be repeated.", metavar="ID"),
]
IgnoreStopTokensFlag = Annotated[
    bool, typer.Option("--ignore-stop-tokens", help="Write on past the model's own stop tokens.")
]
SystemOption = Annotated[str | None, typer.Option(help="System message of the conversation.", metavar="TEXT")]
FileOption = Annotated[
    Path | None, typer.Option(help="Read the prompt from this file.", metavar="FILE", show_default=False)
]

NumPromptsOption = Annotated[
    int, typer.Option(help="Prompts of each of the six kinds, 40 at most.", metavar="N")
]
MaxTokensOfEachOption = Annotated[int, typer.Option(help="Most tokens to write for each.", metavar="N")]
BlockLengthsOption = Annotated[str, typer.Option(help="Block lengths, parted by commas.", metavar="N,N")]
ReportFolderOption = Annotated[
    Path,
    typer.Option(
        help="Folder of the report; what was measured there is not measured again.", metavar="FOLDER"
    ),
]

RunFolderOption = Annotated[
    Path, typer.Option(help="Folder of the run; an unfinished one is continued.", metavar="FOLDER")
]
DocumentLengthOption = Annotated[int, typer.Option(help="Tokens of a document, at most.", metavar="N")]
SynthesisRowsOption = Annotated[int, typer.Option(help="Documents written side by side.", metavar="N")]

WatchFlag = Annotated[bool, typer.Option("--watch", help="Show the canvas filling, forward by forward.")]

MaxRequestsOption = Annotated[int, typer.Option(help="Most requests that run at the same time.", metavar="N")]
TokenBudgetOption = Annotated[
    int, typer.Option(help="Most tokens in one forward; longer prompts run in chunks.", metavar="N")
]
CacheMibOption = Annotated[
    int, typer.Option("--cache-mib", help="Memory for keys and values, in MiB.", metavar="N")
]
