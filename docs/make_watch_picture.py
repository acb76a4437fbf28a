"""Draw docs/watch.svg: one text of tiny-continuous sharpening out of noise, as `unmask generate --watch` shows it.

python docs/make_watch_picture.py [--prompt TEXT] [--steps 16] [--temperature 0.7] [--seed 0]
"""

import argparse
import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

from unmask.cli.view import FillingCanvas
from unmask.decoding.generation import Snapshot
from unmask.decoding.language_model import load
from unmask.decoding.options import Options

PICTURE = Path(__file__).parent / "watch.svg"
WIDTH = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default="The whale")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = load("tiny-continuous")
    options = Options(
        mode="diffusion",
        num_steps=arguments.steps,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        stop_token_ids=(),
    )
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    command = f"unmask generate tiny-continuous {arguments.prompt!r} --steps {arguments.steps} --watch "
    command += (
        f"--temperature {arguments.temperature} --max-tokens {arguments.max_tokens} --ignore-stop-tokens"
    )
    console.print(f"$ {command}\n", style="bold")
    view = FillingCanvas(model.tokenizer, console)
    shown = sorted({1, *(2**power for power in range(1, 10) if 2**power < arguments.steps), arguments.steps})
    for event in model.stream(arguments.prompt, options):
        if isinstance(event, Snapshot) and event.num_forwards in shown:
            text = view.picture(event)
            text = Text(" ").join(text.split("\n")) if "\n" in text.plain else text
            console.print(f"forward {event.num_forwards}", style="dim")
            console.print(Text.assemble((arguments.prompt, "underline"), text), end="\n\n")
    console.save_svg(str(PICTURE), title="a text sharpens out of noise")


if __name__ == "__main__":
    main()
