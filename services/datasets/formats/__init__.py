"""The bytes of an uploaded file become rows: each a usable example, or refused with its number and its reason.

A new file format is a module with `read_…(chunks)` that yields `Found`s, and its line in reading.py. A new kind of row is a `Shape` in libs/rows.py.
"""

from .reading import rows
from .row import Row

__all__ = ["Row", "rows"]
