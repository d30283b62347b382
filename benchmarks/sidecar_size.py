"""Claim: a region-attribute pair costs about 5 bytes in a pairs sidecar (JSON in the tar costs about 64).

    python -m benchmarks.sidecar_size RUN

Reads the pairs sidecars of a finished run; boxes are included. The JSON beside it is what the same pairs take as
one compact JSON list an image, in a 512-byte-padded tar member.
"""

from __future__ import annotations

import json
import sys

from shards import sidecar
from shards.commit import StageFolder
from shards.reader import read_sidecar
from shards.tar import BLOCK, padded


def main() -> None:
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"
    folder = StageFolder(f"{run}/train", "pairs")
    stored = pairs = as_json = 0
    for shard in folder.shards_done():
        marker = folder.marker(shard)
        stored += marker.output(".parquet").bytes
        pairs += int(marker.counts["pairs"])
        for row in read_sidecar(folder, shard, sidecar.PAIRS).to_pylist():
            triples = [
                [row["boxes"][r], a, round(float(s), 3)]
                for r, a, s in zip(row["region"], row["attribute"], row["score"], strict=True)
            ]
            as_json += BLOCK + padded(len(json.dumps(triples, separators=(",", ":"))))
    result = {"pairs": pairs, "bytes_a_pair": round(stored / pairs, 2), "json_bytes_a_pair": round(as_json / pairs, 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
