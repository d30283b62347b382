"""ViLLA at scale: region-attribute pairs from image-text shards, and a contrastive VLM trained on them.

Imports torch but never ray: a stage is a function over a shard, and the caller decides where it runs.
"""

__version__ = "0.1.0"
