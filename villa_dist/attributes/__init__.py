"""Attributes: which phrases exist, and which of them a text mentions."""
