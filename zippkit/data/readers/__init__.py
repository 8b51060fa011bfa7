"""Readers of corpora, one file per family; `corpus` finds them by name."""

from __future__ import annotations

from zippkit.data.readers.corpus import read
from zippkit.data.readers.digits import DIGITS

__all__ = ["DIGITS", "read"]
