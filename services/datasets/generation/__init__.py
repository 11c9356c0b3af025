"""Chunks of documents become examples: planned up front, written by a language model or out of the text itself, checked one by one."""
