"""From committed shards to training batches, in the global sample order."""
