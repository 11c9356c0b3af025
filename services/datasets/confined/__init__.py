"""A stranger's table or ZIP is read by a process of its own, with little memory, little time, no network and no secrets.

A new kind of content is a room with `read(file, order, say)`, and its line in `child.py`.
"""
