"""Which backend a config names. Each is imported when it is asked for: some need what not every machine has."""

from __future__ import annotations

from collections.abc import Callable

from shards.errors import VillaError
from villa_dist.config import RegionsConfig
from villa_dist.regions.proposals import Proposer


def make_proposer(config: RegionsConfig) -> Proposer:
    """The backend a config names. Raises: VillaError when what it needs is missing."""
    return BACKENDS[config.proposals](config)


def _annotations(config: RegionsConfig) -> Proposer:
    from villa_dist.regions.annotations import AnnotationProposer

    return AnnotationProposer()


def _grid(config: RegionsConfig) -> Proposer:
    from villa_dist.regions.grid import GridProposer

    return GridProposer(config)


def _segments(config: RegionsConfig) -> Proposer:
    try:
        import skimage.segmentation  # noqa: F401
    except ImportError as error:
        raise VillaError(
            f"regions.proposals: segments needs scikit-image, which does not import here ({error}); pip install "
            "scikit-image, or set regions.proposals=grid"
        ) from error
    from villa_dist.regions.segments import SegmentProposer

    return SegmentProposer(config.segments)


def _hf(config: RegionsConfig) -> Proposer:
    from villa_dist.regions.detector import load_detector

    return load_detector(config.hf)


BACKENDS: dict[str, Callable[[RegionsConfig], Proposer]] = {
    "annotations": _annotations,
    "grid": _grid,
    "segments": _segments,
    "hf": _hf,
}
