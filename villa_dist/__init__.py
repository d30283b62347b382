"""ViLLA at scale: region-attribute pairs from image-text shards, and a contrastive VLM trained on them.

Imports torch but never ray: a stage is a function over a shard, and the caller decides where it runs.
`RegionVLM` is the Python interface to a trained model; it is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from villa_dist.api import RegionVLM

__version__ = "0.1.0"
__all__ = ["RegionVLM", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "RegionVLM":
        from villa_dist.api import RegionVLM

        return RegionVLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
