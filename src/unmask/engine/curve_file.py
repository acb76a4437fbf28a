"""Cost curves on disk: what was measured once for a model on a machine is not measured again."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unmask.engine.cost_curve import CostCurve


@dataclass(frozen=True)
class CurveFile:
    """A file for the cost curve of one `key`: all that a forward's cost depends on, by name.

    A file that is missing, damaged or of another key is as good as none, and so is a disk that cannot be written.
    """

    path: Path
    key: Mapping[str, str]

    @classmethod
    def of(cls, cache: Path, key: Mapping[str, str]) -> "CurveFile":
        """Return the file for a key in the cache directory."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return cls(cache / "cost-curves" / f"{digest}.json", dict(key))

    def read(self) -> CostCurve | None:
        """Return the curve, or `None` where there is none to trust."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["key"] != self.key:
                return None
            curve = CostCurve.from_json(json.dumps(content["measurements"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return curve if curve.is_known else None

    def write(self, curve: CostCurve) -> None:
        """Keep a curve; readers find the old file or the new one, whole."""
        content = {"key": self.key, "measurements": json.loads(curve.to_json())}
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            partial.replace(self.path)
