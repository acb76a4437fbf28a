"""Measurements of speed, and reports of all measurements."""
