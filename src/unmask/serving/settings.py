"""What a server is told when it starts."""

from dataclasses import dataclass, field

from unmask.decoding.mode import Mode
from unmask.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """The name a model is served under, the mode of requests that give none, and the limits.

    `max_tokens`: most that one answer may have; `None` for what context and pages hold. `max_queue`: answers that may
    wait for a place among those that run; more are turned away. `max_choices`: most answers of one request.
    `timeout_s`: most seconds from a request's arrival to its end. `drain_s`: most seconds that open requests get when
    the server is told to stop. `api_keys`: any of these is asked for; none for an open server. `origins`: web pages
    that may call the server from a browser, beside its own.
    """

    name: str
    mode: Mode = "ar"
    max_tokens: int | None = None
    max_queue: int = 256
    max_choices: int = 16
    max_body_bytes: int = 2**20
    timeout_s: float = 600.0
    drain_s: float = 30.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_choices", "max_body_bytes", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        for name in ("max_queue", "drain_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must not be negative")
        if not self.timeout_s > 0:
            raise UsageError(f"timeout_s={self.timeout_s} must be positive")
        if not all(self.api_keys):
            raise UsageError("an API key is empty", "give a key, or leave it out")
