"""Settings and plain requests for tests that need no model."""

from hypothesis import settings

settings.register_profile("unmask", deadline=None)  # a busy machine is not a failure
settings.load_profile("unmask")
