"""Reshard: samples of any number of tars into new shards of a wanted size, without decoding anything.

    sources -> scan -> [duplicates] -> [buckets] -> cut -> write -> finish

Each arrow is a set of units that are committed one by one under `<DST>/.work/`, so a killed reshard goes on where it was.
`run.py` is the driver; the other files are one pass each.
"""
