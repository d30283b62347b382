from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _same_numbers_everywhere() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
