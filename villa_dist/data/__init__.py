"""From committed shards to training batches, in the global sample order; and to other people's trainers."""

from villa_dist.data.webdataset import webdataset_pairs as webdataset_pairs
