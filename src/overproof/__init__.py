"""Overproof distils a small, fast language model from a big one, and proves where it came from."""

__version__ = "0.1.0"
