"""Write docs/published.md from the package's table of published scores; a test fails when the page is out of date.

make docs
"""

from itertools import groupby
from pathlib import Path

from unmask.evaluation.published import markdown_table, published_scores

PAGE = Path(__file__).with_name("published.md")

HEAD = """\
# Published scores

Written by `make docs` from `unmask/evaluation/published.json`; `unmask eval --compare` shows them beside ours. Per
cent, as each source gives them. Prompts, shots, metrics and the count of forwards are the source's own: they say where
a model stands among its like, not whether it beats one that was measured otherwise.
"""


def page() -> str:
    """Return the page as it should be."""
    parts = [HEAD]
    for (source, protocol), group in groupby(
        published_scores(), key=lambda entry: (entry.source, entry.protocol)
    ):
        entries = list(group)
        tasks = list(dict.fromkeys(task for entry in entries for task in entry.scores))
        parts.append(
            f"\n## {source}\n\n{protocol[0].upper()}{protocol[1:]}.\n\n{markdown_table(entries, tasks)}"
        )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
