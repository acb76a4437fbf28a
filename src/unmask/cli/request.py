"""From the words of a command line to decoding options and messages."""

from pathlib import Path
from typing import TYPE_CHECKING

from unmask.decoding.mode import MODES, Mode
from unmask.errors import FailureError, UsageError

if TYPE_CHECKING:
    from unmask.chat_template import Message
    from unmask.decoding.constraint import Constraint
    from unmask.decoding.options import Options


def decoding_options(
    *,
    mode: str,
    max_tokens: int,
    rule: str | None = None,
    sampler: str | None = None,
    block_length: int | None = None,
    num_steps: int | None = None,
    guidance: str | None = None,
    tree_size: int | None = None,
    num_predrafts: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    logit_bias: list[str] | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logprobs: int | None = None,
    constraint: "Constraint | None" = None,
    seed: int = 0,
    stop: list[str] | None = None,
    stop_token: list[int] | None = None,
    ignore_stop_tokens: bool = False,
    modes: tuple[Mode, ...] = MODES,
) -> "Options":
    """Return checked options; UsageError names what is unknown or does not go with the mode, one of `modes`."""
    from unmask.decoding.guidance import read_guidance
    from unmask.decoding.options import Options
    from unmask.decoding.rules import RULES
    from unmask.decoding.samplers import parse_sampler
    from unmask.registry import unknown_name

    known = next((name for name in modes if name == mode), None)
    if known is None:
        raise unknown_name("mode", mode, modes)
    if stop_token and ignore_stop_tokens:
        raise UsageError("--stop-token and --ignore-stop-tokens contradict each other", "give one of them")
    stop_token_ids = () if ignore_stop_tokens else tuple(stop_token) if stop_token else None
    return Options(
        mode=known,
        rule=None if rule is None else RULES.parse(rule),
        sampler=None if sampler is None else parse_sampler(sampler),
        block_length=block_length,
        num_steps=num_steps,
        guidance=read_guidance(guidance),
        tree_size=tree_size,
        num_predrafts=num_predrafts,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        logit_bias=tuple(_bias(text) for text in logit_bias or ()),
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        num_logprobs=logprobs,
        constraint=constraint,
        seed=seed,
        stop=tuple(stop or ()),
        stop_token_ids=stop_token_ids,
    )


def own_mode(model: str) -> str:
    """Return how a model writes unless told otherwise, by the card of its name or its folder."""
    from unmask.model.catalogue import ModelCard, find_card
    from unmask.model.run_checkpoints import last_model

    card = find_card(model) or ModelCard.from_folder(Path(last_model(model)).expanduser())
    return "ar" if card is None else next(iter(card.modes), "ar")


def read_constraint(json_schema: Path | None, regex: str | None, grammar: Path | None) -> "Constraint | None":
    """Return what at most one of three options asks for; FailureError for a file that cannot be read."""
    from unmask.decoding.constraint import Constraint

    given = [
        name
        for name, value in (("--json-schema", json_schema), ("--regex", regex), ("--grammar", grammar))
        if value
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} were given", "a text can have one constraint; choose")
    if regex:
        return Constraint("regex", regex)
    path = json_schema or grammar
    if path is None:
        return None
    try:
        return Constraint("json_schema" if json_schema else "grammar", path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FailureError(f"cannot read {path}: {error}", "check the file") from error


def opening(system: str | None) -> "list[Message]":
    """Return the messages that come before the user's first."""
    return [] if system is None else [{"role": "system", "content": system}]


def _bias(text: str) -> tuple[int, float]:
    token, _, number = text.partition("=")
    try:
        return int(token), float(number)
    except ValueError:
        raise UsageError(
            f"--logit-bias {text!r} is not of the form ID=NUMBER", "write, say, 42=-100"
        ) from None
