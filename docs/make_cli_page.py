"""Write docs/cli.md from the commands themselves; a test fails when the page is out of date.

make docs
"""

from pathlib import Path
from typing import Any

import typer

from unmask.cli.main import app

PAGE = Path(__file__).with_name("cli.md")

HEAD = """\
# Command line

Written by `make docs` from the commands themselves.

The answer goes to standard output, everything else to standard error. With `--json` the output is JSON, errors
included: `{"error": {"type", "message", "remedy", "exit_status"}}`. Exit status: 0 done, 1 failed, 2 wrongly asked, 130
stopped by Ctrl-C. `UNMASK_CACHE` moves the cache directory;
`UNMASK_TUNE_ALLOCATOR=0` leaves the memory allocator alone.
"""


def page() -> str:
    """Return the page as it should be."""
    root: Any = typer.main.get_command(app)  # typer keeps the classes of its commands to itself
    return HEAD + "".join(section(name, command) for name, command in root.commands.items())


def section(name: str, command: Any) -> str:
    """Return one command's part of the page."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(["unmask", name, *(argument.metavar for argument in arguments), "[OPTIONS]"])
    lines = ["", f"## unmask {name}", "", *command.help.splitlines(), "", "```sh", usage, "```", ""]
    lines += [f"`{argument.metavar}`: {argument.help}\n" for argument in arguments]
    lines += ["| option | default | |", "| --- | --- | --- |"]
    lines += [row(option) for option in options]
    return "\n".join(lines) + "\n"


def row(option: Any) -> str:
    """Return one option's line of the table."""
    spelling = " ".join([", ".join(option.opts), *([option.metavar] if option.metavar else [])])
    has_default = option.default is not None and option.default is not False
    default = "required" if option.required else f"`{option.default}`" if has_default else ""
    return f"| `{spelling}` | {default} | {option.help} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
