"""Settings of the property tests."""

from hypothesis import settings

settings.register_profile("unmask", deadline=None)  # a busy machine is not a failure
settings.load_profile("unmask")
