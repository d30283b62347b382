"""A `webdataset` pipeline over base shards joined with their pairs, for other trainers than this one.

Files are found through their commit markers and read with their digests checked; members are decoded by the allow-list of
`shards.decode`, never by webdataset's own decoders, some of which unpickle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shards import sidecar
from shards.commit import StageFolder
from shards.decode import MAX_PIXELS, decode_image, image_member, sample_text
from shards.errors import VillaError
from shards.reader import read_sidecar
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.data.others import joinable, places
from villa_dist.data.samples import OpenShard

SIDECARS = ("pairs", "truth")


@dataclass(frozen=True)
class JoinedShards:
    """From webdataset's shard dicts to sample dicts; see `webdataset_pairs`. Picklable, for worker processes."""

    dataset_url: str
    stage: str
    phrases: tuple[str, ...]
    decode: bool
    max_pixels: int

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            yield from self.samples(shard["url"])

    def samples(self, shard: str) -> Iterator[dict[str, Any]]:
        opened = OpenShard(self.dataset_url, shard, self.stage, embeddings=False)
        table = read_sidecar(StageFolder(self.dataset_url, self.stage), shard, sidecar.PAIRS)
        score, score_at = sidecar.list_column(table, "score")
        assert opened.rows is not None
        for row, (key, members) in enumerate(opened.base.samples()):
            boxes, region, attribute = opened.rows.row(row)
            data = image_member(members)
            yield {
                "__key__": key,
                "__url__": opened.base.place,
                "image": decode_image(data, self.max_pixels) if self.decode else data,
                "text": sample_text(members),
                "boxes": boxes.copy(),
                "region": region.astype("int64"),
                "attribute": attribute.astype("int64"),
                "score": score[score_at[row] : score_at[row + 1]].astype("float32"),
                "phrase": [self.phrases[a] for a in attribute.tolist()],
            }


def webdataset_pairs(
    run_or_dataset: str,
    *,
    split: str = "train",
    stage: str = "pairs",
    decode: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Any:
    """A `webdataset.DataPipeline` of dicts, one an image in tar order, its shards shared out among nodes and workers by
    webdataset's own rules:

        __key__, __url__   the sample's key, the path of its tar
        image              H x W x 3 uint8, upright RGB; with decode=False the file's bytes
        text               the whole text
        boxes              R x 4 float32, xyxy in pixels
        region, attribute  P int64: attribute[p] is said of boxes[region[p]]
        score, phrase      P float32, P texts: how sure the mapping is, and the attribute's phrase

    run_or_dataset: a run, of which `split` is taken, or a split's folder `<run>/<split>`; local or s3://. stage: `pairs`, or
    `truth` where that is known. Add stages by `.compose(webdataset.shuffle(1000), …)`.

    Raises: VillaError when the folder is neither, or holds no such pairs; while reading, ShardError where pairs and images
    do not belong together or a file is not what was committed.
    """
    import webdataset as wds

    if stage not in SIDECARS:
        raise VillaError(f"stage={stage!r} holds no pairs; give one of {', '.join(SIDECARS)}")
    run, dataset = places(run_or_dataset, split)
    words = vocabulary.read(Store(run))
    base, _ = joinable(dataset, stage)
    joined = JoinedShards(dataset, stage, words.phrases, decode, max_pixels)
    return wds.DataPipeline(wds.SimpleShardList(list(base.shards)), wds.split_by_node, wds.split_by_worker, joined)
