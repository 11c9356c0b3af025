"""`make demo`: a fine-tune from start to end, before your eyes."""
