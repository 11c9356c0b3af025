"""An uploaded document becomes a stream of blocks of text, with pages and headings: read by a process of its own, because files come from strangers.

A new kind of document is a module with `read(file, limits)` that yields what `blocks.py` calls Found, and its line in `child.py`.
"""
