"""How a generation looks while it is written: as text that grows, or as a canvas that fills."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from unmask.cli.output import harmless, print_line, print_note, write_text

if TYPE_CHECKING:
    from unmask.decoding.generation import Event, Generation, Snapshot
    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.options import Options
    from unmask.tokenizer import Tokenizer

OPEN = "░"
COLOURS = ("cyan", "green", "yellow", "magenta", "bright_blue", "bright_red")
"""A token has the colour of the forward that decided it, so neighbours of one colour were decided together."""

_TAIL_CHARACTERS = 72
_DARKEST, _NUM_GREYS = 237, 12
SURE = 0.95


class GrowingText:
    """Prints the text as it is decided; what may turn out to be a stop string waits until it is not."""

    def __init__(self, tokenizer: "Tokenizer", stop: Sequence[str], stop_token_ids: Iterable[int]) -> None:
        from unmask.decoding.settled_text import SettledText

        self._text = SettledText(tokenizer, stop, stop_token_ids)
        self._num_tokens = 0

    def show(self, snapshot: "Snapshot") -> None:
        """Print what a snapshot adds."""
        if snapshot.phase == "draft":
            return  # proposals
        canvas = () if snapshot.confidence else snapshot.canvas  # proposals too, of a continuous model
        num_leading = next((place for place, token in enumerate(canvas) if token is None), len(canvas))
        tokens = (*snapshot.token_ids, *canvas[:num_leading])
        _print(self._text.push(token for token in tokens[self._num_tokens :] if token is not None))
        self._num_tokens = len(tokens)

    def finish(self, generation: "Generation") -> None:
        """Print what is left of the text, and end the line."""
        _print(self._text.finish(generation.text))
        self.close()

    def close(self) -> None:
        """End the line."""
        write_text(sys.stdout, "\n")


class FillingCanvas:
    """Shows decided tokens in the colour of their forward, drafts dim, open positions as shaded boxes.

    The tokens of a continuous model are never open; the more probable, the brighter.

    On a terminal the picture stays in place; elsewhere every forward prints a line.
    """

    def __init__(self, tokenizer: "Tokenizer", console: Console | None = None) -> None:
        self._tokenizer = tokenizer
        self._console = console or Console(highlight=False)
        self._text = Text()
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        if self._console.is_terminal:
            self._live.start()

    def show(self, snapshot: "Snapshot") -> None:
        """Draw a snapshot."""
        picture = self.picture(snapshot)
        if snapshot.phase != "draft":
            self._text = picture
        caption = f"forward {snapshot.num_forwards} ({snapshot.phase}), {len(snapshot.token_ids)} tokens"
        if self._console.is_terminal:
            width, height = self._console.size
            lines = picture.wrap(self._console, width)[-max(1, height - 3) :]
            self._live.update(Group(*lines, Text(caption, style="dim")), refresh=True)
        else:
            shown = picture.plain.replace("\n", " ")[-_TAIL_CHARACTERS:]
            print_line(f"{snapshot.num_forwards:4} {snapshot.phase:8} {shown}")

    def picture(self, snapshot: "Snapshot") -> Text:
        """Return a snapshot as coloured text."""
        from unmask.decoding.transcript import TextStream

        stream, text = TextStream(self._tokenizer), Text()
        tokens = (*snapshot.token_ids, *snapshot.canvas)
        for place, (token, step) in enumerate(zip(tokens, snapshot.decided_at, strict=True)):
            if token is None:
                text.append(OPEN * 2, style="dim")
                continue
            is_proposal = snapshot.phase == "draft" and place >= len(snapshot.token_ids)
            style = "dim italic" if is_proposal else colour(step)
            if snapshot.confidence and place >= len(snapshot.token_ids):
                style = brightness(snapshot.confidence[place - len(snapshot.token_ids)])
            text.append(harmless(stream.push(token)), style=style)
        return text

    def finish(self, generation: "Generation") -> None:
        """Leave the text on the screen, in colour unless a control character in it was not shown."""
        text = generation.text
        self._text = self._text[: len(text)] if self._text.plain.startswith(text) else Text(text)
        self.close()

    def close(self) -> None:
        """Take the moving picture away and leave what was decided."""
        self._live.stop()
        self._console.print(self._text, soft_wrap=not self._console.is_terminal)


def _print(piece: str) -> None:
    write_text(sys.stdout, harmless(piece) if sys.stdout.isatty() else piece)


def open_view(model: "LanguageModel", options: "Options", *, watch: bool) -> "GrowingText | FillingCanvas":
    """Return the view of one generation: a canvas to `watch`, or else text."""
    if watch:
        return FillingCanvas(model.tokenizer)
    card = model.checkpoint.card
    stop_token_ids = card.stop_token_ids if options.stop_token_ids is None else options.stop_token_ids
    return GrowingText(model.tokenizer, options.stop, stop_token_ids)


def colour(step: int | None) -> str:
    """Return the style of a token decided by decode forward `step`; the first token, from the prefill, is plain."""
    return "" if not step else COLOURS[step % len(COLOURS)]


def brightness(confidence: float) -> str:
    """Return the style of a token that its model gives this probability: grey, and plain once it is all but sure."""
    return "" if confidence > SURE else f"color({_DARKEST + round(_NUM_GREYS * confidence)})"


def play(events: Iterable["Event"], view: GrowingText | FillingCanvas | None = None) -> "Generation":
    """Run a generation to its end, unseen or in front of a view, and return it.

    When it is cut short, the view leaves on the screen what was decided.
    """
    from unmask.decoding.generation import Generation

    try:
        for event in events:
            if isinstance(event, Generation):
                if view is not None:
                    view.finish(event)
                return event
            if view is not None:
                view.show(event)
    except (Exception, KeyboardInterrupt):
        if view is not None:
            view.close()
        raise
    raise AssertionError("the stream ended without a generation")


def tokens_per_second(generation: "Generation") -> float | None:
    """Return generated tokens by seconds of decode forwards, None when there was none."""
    seconds = generation.seconds["decode"]
    return generation.num_tokens / seconds if generation.num_decode_forwards and seconds else None


def print_summary(generation: "Generation") -> None:
    """Say on standard error what the generation took."""
    rate, per_forward = tokens_per_second(generation), generation.tokens_per_forward
    parts = [
        f"{generation.num_tokens} tokens, {generation.num_decode_forwards} decode forwards "
        f"({generation.num_forwards} with prefill)",
        *([] if per_forward is None else [f"{per_forward:.2f} tokens per forward"]),
        *([] if rate is None else [f"{rate:.1f} tokens/s"]),
        {"stop": "stopped by itself", "length": "cut at its length"}[generation.finish_reason],
    ]
    print_note(", ".join(parts))
