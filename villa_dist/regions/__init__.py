"""Region proposals: one file a backend, and a dict of backends beside their protocol."""
