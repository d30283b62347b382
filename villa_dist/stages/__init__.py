"""Stages over shards: each is built once in a worker and has one method, `process(shard) -> Marker`."""
