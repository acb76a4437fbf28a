"""``unmask models``: the catalogue, and what of it is on this machine."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli.arguments import DebugFlag, JsonFlag
from unmask.cli.output import print_json, print_note

if TYPE_CHECKING:
    from unmask.model.catalogue import ModelCard


def models(json: JsonFlag = False, debug: DebugFlag = False) -> None:
    """List the models that have a short name, and what is cached."""
    from unmask.model.catalogue import DEFAULT_MODEL, catalogue
    from unmask.model.store import cache_directory, folder_bytes

    folder = cache_directory()
    cards = catalogue()
    rows = [_row(card, is_default=card.name == DEFAULT_MODEL) for card in cards]
    if json:
        print_json({"cache": {"folder": str(folder), "bytes": folder_bytes(folder)}, "models": rows})
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "family", "licence", "modes", "cached", "what it is"):
        table.add_column(heading, overflow="fold")
    for card, row in zip(cards, rows, strict=True):
        size = f"{row['cached_bytes'] / 1e6:.0f} MB" if isinstance(row["cached_bytes"], int) else "no"
        size = "comes along" if row["shipped"] else size
        name = f"{row['name']} (default)" if row["default"] else str(row["name"])
        modes = ", ".join(card.modes)
        cells = (name, row["family"], row["licence"], modes, size, row["description"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console(highlight=False).print(table)
    print_note(
        f"cache: {folder}, {folder_bytes(folder) / 1e6:.0f} MB. Folders, .gguf files and hub ids work too."
    )


def _row(card: "ModelCard", *, is_default: bool) -> dict[str, object]:
    from unmask.model.catalogue import cached_paths, cached_size_bytes

    return {
        "name": card.name,
        "default": is_default,
        "family": card.family,
        "licence": card.licence,
        "description": card.description,
        "context_length": card.context_length,
        "modes": list(card.modes),
        "shipped": any(source.kind == "shipped" for source in card.sources),
        "mask_token_id": card.mask_token_id,
        "block_length": card.block_length,
        "adapter": card.adapter,
        "sources": [str(source) for source in card.sources],
        "sha256": card.sha256,
        "cached_bytes": cached_size_bytes(card) if cached_paths(card) else None,
    }
