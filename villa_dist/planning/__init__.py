"""`villa plan`: a few small shards are put through the real stages, and what they took is multiplied."""
