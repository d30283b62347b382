"""Hostile bytes end in a value or a refusal: what fuzzing has found before, and a little new fuzzing each time."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import fuzz_run
import fuzz_targets
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.bin"))
TARGETS = fuzz_targets.targets()
SECONDS = 0.5  # for each target


@pytest.fixture
def no_hang() -> Iterator[None]:
    previous = signal.signal(signal.SIGALRM, fuzz_run._alarm)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_what_fuzzing_found_stays_mended(path: Path, no_hang: None) -> None:
    name = path.stem.split("-")[0]
    assert fuzz_targets.outcome(TARGETS[name], path.read_bytes()) in ("value", "refused")


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) > 30
    assert {p.stem.split("-")[0] for p in CORPUS} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_one_seed(name: str, no_hang: None) -> None:
    """The same inputs on each run, as many as fit the time."""
    rng, target = random.Random(f"{name} 0"), TARGETS[name]
    stop, outcomes = time.monotonic() + SECONDS, []
    while time.monotonic() < stop:
        outcomes.append(fuzz_targets.outcome(target, target.mutate(rng)))
    assert len(outcomes) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_at_length(name: str, tmp_path: Path) -> None:
    """Other inputs on each run; a find is kept where the message says."""
    seed = random.SystemRandom().randrange(1 << 32)
    inputs, _, found = fuzz_run.fuzz(name, seed, 60.0, tmp_path)
    for kind, data in found.items():
        (tmp_path / f"{name}-{kind}-{seed}.bin").write_bytes(data)
    assert not found, f"{sorted(found)} with seed {seed}; the inputs are in {tmp_path}"
    assert inputs > 100
