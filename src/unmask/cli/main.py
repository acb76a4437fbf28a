"""The command ``unmask``: its commands, and the one place where their errors end.

Exit status: 0 done, 1 failed, 2 wrongly asked, 130 stopped by Ctrl-C.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from unmask import __version__
from unmask.cli.batch import batch
from unmask.cli.bench import bench
from unmask.cli.chat import chat
from unmask.cli.compare import compare
from unmask.cli.convert import convert
from unmask.cli.data import data
from unmask.cli.demo import demo
from unmask.cli.doctor import doctor
from unmask.cli.eval import eval
from unmask.cli.failure import Failure
from unmask.cli.fill import fill
from unmask.cli.frontier import frontier
from unmask.cli.generate import generate
from unmask.cli.judge import judge
from unmask.cli.models import models
from unmask.cli.output import print_json, print_line, write_text
from unmask.cli.report import report
from unmask.cli.roofline import roofline
from unmask.cli.serve import serve
from unmask.cli.sol import sol
from unmask.cli.synthesize import synthesize
from unmask.cli.train import train

COMMANDS = (
    generate,
    fill,
    batch,
    serve,
    chat,
    demo,
    data,
    train,
    synthesize,
    convert,
    judge,
    eval,
    sol,
    bench,
    roofline,
    frontier,
    report,
    compare,
    models,
    doctor,
)
"""In the order of the help page; a command is called like its function."""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
for _command in COMMANDS:
    app.command()(_command)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run language models that write many tokens per forward pass, by diffusion and by self-speculation."""
    if version:
        print_line(__version__)
    elif context.invoked_subcommand is None:
        context.get_help()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process) and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        return _run(arguments)
    except BrokenPipeError:
        # Whoever read the output has gone; so must what Python would still flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in flags:
            traceback.print_exc()
        failure = Failure.of(error)
    if "--json" in flags:
        print_json(failure.to_json())
    write_text(sys.stderr, failure.line + "\n")
    return failure.exit_status


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        # Not command.main(), which would answer some exceptions itself.
        with command.make_context("unmask", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    return 0


def run() -> None:
    """Be the program ``unmask``."""
    sys.exit(main())
