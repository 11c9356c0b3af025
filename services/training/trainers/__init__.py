"""How each kind of model is trained: one file, one method, end to end."""
