"""`python -m cluster.sbom >sbom.json`: what is installed here that villa-dist uses, as CycloneDX 1.6 JSON.

The closure of its requirements by `importlib.metadata`, with versions, licences, a digest of each
RECORD and who needs whom.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import uuid
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from shards.errors import VillaError

ROOT = "villa-dist"


def closure(root: str = ROOT, extras: Iterable[str] = ()) -> dict[str, tuple[Distribution, list[str]]]:
    """Canonical name -> (distribution, names it needs), of all that `root` needs here, itself first. Raises: VillaError when
    it is not installed."""
    found: dict[str, tuple[Distribution, list[str]]] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset(extras))]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        key = canonicalize_name(name)
        if (key, wanted) in done:
            continue
        done.add((key, wanted))
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            if name == root:
                raise VillaError(
                    f"{root} is not installed here; run `pip install {root}`, or `make setup` in a clone"
                ) from None
            continue
        needed = [r for r in map(_parsed, dist.requires or []) if r is not None and _holds(r, wanted)]
        known = found.get(key, (dist, []))[1]
        found[key] = (dist, sorted({*known, *(canonicalize_name(r.name) for r in needed)}))
        waiting += [(r.name, frozenset(r.extras)) for r in needed]
    return {name: (dist, [n for n in needs if n in found]) for name, (dist, needs) in found.items()}


def _parsed(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:  # of old packages
        return None


def _holds(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}))


def document(root: str = ROOT, extras: Iterable[str] = ()) -> dict[str, Any]:
    """The bill of materials."""
    found = closure(root, extras)
    names = sorted(name for name in found if name != canonicalize_name(root))
    main = _component(found[canonicalize_name(root)][0], "application")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "component": main,
            "properties": [{"name": "python", "value": sys.version.split()[0]}],
        },
        "components": [_component(found[name][0], "library") for name in names],
        "dependencies": [
            {"ref": _purl(dist), "dependsOn": sorted(_purl(found[n][0]) for n in needs)}
            for dist, needs in (found[name] for name in [canonicalize_name(root), *names])
        ],
    }


def _purl(dist: Distribution) -> str:
    return f"pkg:pypi/{canonicalize_name(dist.metadata['Name'])}@{dist.version.replace('+', '%2B')}"


def _component(dist: Distribution, kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": kind,
        "bom-ref": _purl(dist),
        "name": dist.metadata["Name"],
        "version": dist.version,
        "purl": _purl(dist),
    }
    if licence := _licence(dist):
        made["licenses"] = [licence]
    record = dist.read_text("RECORD")  # the digests of all its files
    if record:
        digest = hashlib.sha256(record.encode()).hexdigest()
        made["properties"] = [{"name": "villa:sha256-of-RECORD", "value": digest}]
    return made


def _licence(dist: Distribution) -> dict[str, Any] | None:
    metadata: Any = dist.metadata
    if expression := metadata.get("License-Expression"):
        return {"expression": expression}
    classified = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")]
    named = next((n for n in classified if n != "OSI Approved"), None) or (metadata.get("License") or "").strip()
    first = named.splitlines()[0][:100] if named else ""
    return {"license": {"name": first}} if first and first != "UNKNOWN" else None


def main() -> int:
    try:
        made = document(extras=sys.argv[1:])
    except VillaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(made, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
