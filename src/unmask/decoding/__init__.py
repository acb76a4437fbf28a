"""Decoding, the slow and readable reference: one request, one forward at a time."""
