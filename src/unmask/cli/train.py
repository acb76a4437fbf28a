"""``unmask train``: a model from a configuration and token shards."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import DebugFlag, DeviceOption, JsonFlag, RunFolderOption
from unmask.cli.output import print_json, print_line
from unmask.cli.run_bar import RunBar

if TYPE_CHECKING:
    from unmask.training.journal import StepRecord, TrainingEvent


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="TOML file; docs/training.md has its keys.")
    ],
    *,
    out: RunFolderOption,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another value for a key of the file, such as run.steps=1000; may be repeated.",
            metavar="TABLE.KEY=VALUE",
        ),
    ] = None,
    device: DeviceOption = "cpu",
    json: JsonFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Train a model from scratch on token shards.

    Stop with Ctrl-C and give the same command again to go on. Under torchrun several processes share the work.
    """
    from unmask.training.config_file import read_config

    settings = read_config(config, set_ or ())
    from unmask.cli.session import prepare_process

    prepare_process()
    from unmask.model.checkpoint import usable_device
    from unmask.model.run_checkpoints import last_model
    from unmask.training.learner import Learner
    from unmask.training.parallel import joined_workers
    from unmask.training.run import TrainingRun
    from unmask.training.shards import Shards

    usable_device(device)
    shards = Shards.open(settings.data.folder)
    tokenizer = shards.tokenizer()
    recipe = Learner.new(settings, tokenizer, shards.train.log_frequencies(tokenizer.vocab_size)).recipe
    measured: list[StepRecord] = []
    with joined_workers(device) as workers, RunBar() as bar:

        def observe(event: "TrainingEvent") -> None:
            if workers.is_first:
                _show(event, bar, measured)

        run = TrainingRun(settings, out, shards, recipe, workers, observe)
        run.run()
    if not workers.is_first:
        return
    model = last_model(str(out))
    if json:
        held_out = [asdict(record) for record in measured]
        print_json(
            {
                "folder": str(out),
                "model": model,
                "step": run.step,
                "seconds": run.seconds,
                "held_out": held_out,
            }
        )
        return
    print_line(f"the model is in {model}: unmask generate {model} PROMPT --raw")


def _show(event: "TrainingEvent", bar: RunBar, measured: "list[StepRecord]") -> None:
    record, so_far = event.record, event.progress
    if event.sample is not None:
        bar.print(f"after {so_far.step} steps it writes: {event.sample}")
    elif record is not None and record.split == "held_out":
        measured.append(record)
        parts = "".join(
            f", {name} {loss:.4f}" for name, loss in record.losses.items() if len(record.losses) > 1
        )
        bar.print(f"held out after {record.step} steps: loss {record.loss:.4f}{parts}")
    elif record is not None:
        speed = record.num_tokens / so_far.seconds
        detail = f"step {record.step}, loss {record.loss:.3f}, {speed:,.0f} tokens/s"
        bar.show("training", so_far.done, so_far.total, detail)
