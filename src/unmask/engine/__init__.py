"""Many requests, any mode, one forward at a time."""
