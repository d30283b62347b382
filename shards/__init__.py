"""The on-disk format: samples, tars, indexes, sidecars, commits, manifests and the global sample order.

Imports neither torch nor ray, so that any process can read and write shards cheaply.
"""
