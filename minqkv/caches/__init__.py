"""Caches that keep less than the plain one in cache.py, one kind per file."""

from .ring import RingCache

__all__ = ["RingCache"]
