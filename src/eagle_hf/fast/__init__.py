"""Holds what is there for speed alone. Nothing below depends on it."""
