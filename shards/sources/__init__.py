"""Image-text sources that `shards.pack` turns into base shards: one file a kind, `find.py` to tell them apart."""
