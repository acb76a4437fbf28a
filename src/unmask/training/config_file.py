"""Reading the configuration of a training run, and settings of the command line that change it (no torch)."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from unmask.errors import UsageError
from unmask.registry import unknown_name
from unmask.training.config import VARIANTS, Table, TrainingConfig


def read_config(path: Path, settings: Sequence[str] = ()) -> TrainingConfig:
    """Read a TOML file and change it by ``table.key=value`` settings.

    Raise UsageError, with the nearest known key where one is unknown, for anything that does not belong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "name a TOML file") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    for setting in settings:
        _set(content, setting)
    if isinstance(optimizer := content.get("optimizer"), dict):
        optimizer.setdefault("name", "adamw")
    if isinstance(model := content.get("model"), dict):
        model.setdefault("name", "base" if "base" in model else "new")
    try:
        return TrainingConfig.model_validate(content)
    except ValidationError as error:
        _explain(error, content)


def parse_setting(text: str, example: str) -> tuple[str, object]:
    """Return key and value of ``KEY=VALUE``; a value that is not TOML by itself, such as a bare word, is a text.

    Raise UsageError, with an `example`, where there is no equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r} is not of the form KEY=VALUE", f"say {example}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return key.strip(), value


def _set(content: dict[str, Any], setting: str) -> None:
    """Change one value."""
    name, value = parse_setting(setting, "run.steps=1000")
    table, dot, key = name.partition(".")
    if not dot or "." in key:
        raise UsageError(f"setting {setting!r} is not of the form table.key=value", "say run.steps=1000")
    values = content.setdefault(table, {})
    if not isinstance(values, dict):
        raise UsageError(f"{table} is no table", f"write [{table}] in the file")
    values[key] = value


def _explain(error: ValidationError, content: Mapping[str, Any]) -> NoReturn:
    """Raise the first fault that pydantic found, in the file's own terms."""
    fault = error.errors()[0]
    path = [str(part) for part in fault["loc"]]
    table = path[0] if path else ""
    kind = TrainingConfig.model_fields.get(table)
    if len(path) > 1 and path[1] in VARIANTS.get(table, {}):
        del path[1]  # the name of the variant, which pydantic puts in
    where = ".".join(path)
    match fault["type"]:
        case "extra_forbidden" if kind is None:
            raise unknown_name("table", table, tuple(TrainingConfig.model_fields)) from error
        case "extra_forbidden":
            raise _unknown_key(table, path[-1], content) from error
        case "missing":
            raise UsageError(f"{where} is missing", "see docs/training.md") from error
        case "union_tag_not_found":
            raise UsageError(
                f"{where}.name is missing", f"choose from {', '.join(VARIANTS[table])}"
            ) from error
        case "union_tag_invalid":
            raise unknown_name(table, str(fault["input"].get("name")), tuple(VARIANTS[table])) from error
    message = fault["msg"].removeprefix("Value error, ")
    raise UsageError(f"{where}: {message}" if where else message, "see docs/training.md") from error


def _unknown_key(table: str, key: str, content: Mapping[str, Any]) -> UsageError:
    if table not in VARIANTS:
        kind = TrainingConfig.model_fields[table].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Table)
        return unknown_name(f"key {table}", key, tuple(kind.model_fields))
    name = content[table]["name"]
    users = [other for other, variant in VARIANTS[table].items() if key in variant.model_fields]
    if users:
        return UsageError(
            f"{table}.{key} has no meaning when {table}.name is {name!r}",
            f"it belongs to {' and '.join(users)}",
        )
    return unknown_name(f"key {table}", key, tuple(VARIANTS[table][name].model_fields))
