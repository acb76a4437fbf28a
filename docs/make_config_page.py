"""Write docs/training-keys.md from the tables of training and conversion; a test fails when the page is out of date.

make docs
"""

from inspect import cleandoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unmask.training.config import VARIANTS, Table, TrainingConfig
from unmask.training.conversion_config import RECIPES, ConversionConfig, FrozenRecipe

PAGE = Path(__file__).with_name("training-keys.md")

HEAD = """\
# Keys of a training configuration

Written by `make docs` from `unmask.training.config`. A key without a default must be given; an unknown one is an error.
"""


CONVERSION_HEAD = """
# Settings of a conversion

From `unmask.training.conversion_config`. Most settings of a run are options of `unmask convert`: `block_lengths` is
`--block-lengths`, and `--text FILE:WEIGHT` adds to `texts` and `text_weights`. `--set KEY=VALUE` sets the others, and
those of the recipe that `--recipe NAME` chooses.
"""


def page() -> str:
    """Return the page as it should be."""
    parts = [HEAD]
    for name, field in TrainingConfig.model_fields.items():
        for kind in VARIANTS[name].values() if name in VARIANTS else (table_of(field),):
            parts.append(section(name, kind))
    parts.append(CONVERSION_HEAD)
    parts.append(table("## The run", ConversionConfig.__doc__ or "", fields_of(ConversionConfig)))
    for name, recipe in RECIPES.items():
        parts.append(table(f"## Recipe {name}", recipe.__doc__ or "", fields_of(recipe)))
    return "".join(parts)


def table_of(field: FieldInfo) -> type[Table]:
    """Return the class of a table that has one form only."""
    kind = field.annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Table)
    return kind


def section(name: str, kind: type[Table]) -> str:
    """Return the part about one table; one that extends another has only what it adds."""
    variants = {variant: other for other, variant in VARIANTS.get(name, {}).items()}
    title = f'## [{name}] with `name = "{variants[kind]}"`' if variants else f"## [{name}]"
    text, fields = kind.__doc__ or "", fields_of(kind)
    parent = kind.__mro__[1]
    if parent in variants:
        text += f" Its keys are those of `{variants[parent]}`, and:"
        fields = {key: field for key, field in fields.items() if key not in parent.model_fields}
    return table(title, text, fields)


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the keys of a table but for its name."""
    return {key: field for key, field in kind.model_fields.items() if key != "name"}


def table(title: str, text: str, fields: dict[str, FieldInfo]) -> str:
    """Return a heading, a text and a row for each key."""
    lines = ["", title, "", cleandoc(text)]
    if fields:
        lines += ["", "| key | default | |", "| --- | --- | --- |"]
        lines += [row(key, field) for key, field in fields.items()]
    return "\n".join(lines) + "\n"


def row(key: str, field: FieldInfo) -> str:
    """Return one key's line of the table."""
    default = "" if field.default is None or field.default_factory else f"`{written(field.default)}`"
    default = "required" if field.is_required() else default
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{key}` | {default} | {text} |"


def written(value: Any) -> str:
    """Return a default as one would write it in the file."""
    match value:
        case bool():
            return str(value).lower()
        case FrozenRecipe():
            return written(value.name)
        case str():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(map(written, value))}]"
    return str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
