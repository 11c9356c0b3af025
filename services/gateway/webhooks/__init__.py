"""Telling the endpoints that people registered: what is to be sent, in which form, and by whom."""
