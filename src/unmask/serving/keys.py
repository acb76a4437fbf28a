"""API keys."""

import hashlib
import hmac
from collections.abc import Sequence

from unmask.serving.errors import ServingError


class Keys:
    """The keys that open a server; without any it is open to all.

    Only digests are kept, and all of them are compared, each in constant time.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> None:
        """Raise ServingError unless a header ``Authorization: Bearer KEY`` holds one of the keys."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ServingError(
                401,
                "this server wants an API key: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
