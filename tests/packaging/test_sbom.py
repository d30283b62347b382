"""The bill of materials: valid CycloneDX of the whole closure, all of it locked."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from cluster.sbom import ROOT, closure, document
from shards.errors import VillaError

CONSTRAINTS = Path(__file__).parents[2] / "constraints" / "cpu.txt"


@pytest.fixture(scope="module")
def bom() -> dict[str, Any]:
    return document()


def test_its_fields_are_those_of_cyclonedx(bom: dict[str, Any]) -> None:
    assert bom["bomFormat"] == "CycloneDX" and bom["specVersion"] == "1.6" and bom["version"] == 1
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bom["serialNumber"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", bom["metadata"]["timestamp"])
    assert bom["metadata"]["component"]["name"] == ROOT
    for part in bom["components"]:
        assert {"type", "bom-ref", "name", "version", "purl"} <= set(part)
        assert re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[\w.%-]+", part["purl"]), part["purl"]
        for licence in part.get("licenses", ()):
            assert set(licence) in ({"expression"}, {"license"})


def test_who_needs_whom_names_only_what_is_in_it(bom: dict[str, Any]) -> None:
    refs = {part["bom-ref"] for part in (*bom["components"], bom["metadata"]["component"])}
    assert len(refs) == len(bom["components"]) + 1
    assert {d["ref"] for d in bom["dependencies"]} == refs
    assert all(set(d["dependsOn"]) <= refs for d in bom["dependencies"])


def test_it_has_what_is_needed_directly_and_by_extras_and_no_tools_of_tests(bom: dict[str, Any]) -> None:
    names = {part["name"].lower(): part["version"] for part in bom["components"]}
    assert names["ray"] == version("ray") and names["torch"] == version("torch")
    assert "aiohttp" in names and "botocore" in names  # ray[default]'s, and s3fs' through aiobotocore
    assert not {"pytest", "hypothesis", "ruff", "mypy"} & set(names)


def test_all_of_it_is_locked_to_the_version_that_is_here(bom: dict[str, Any]) -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    locked = {re.sub(r"[-_.]+", "-", name).lower(): at for name, at in (line.split("==") for line in lines)}
    here = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"].partition("+")[0] for p in bom["components"]}
    assert {name: at for name, at in here.items() if locked.get(name) != at} == {}


def test_what_is_not_installed_is_told() -> None:
    with pytest.raises(VillaError, match="no-such-package-here is not installed"):
        closure("no-such-package-here")
