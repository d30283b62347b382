"""What all tests share: hypothesis without a deadline, and the real data beside the checkout, where there is some."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.s3 import moto_server, s3  # noqa: F401  fixtures
from hypothesis import HealthCheck, settings

settings.register_profile(
    "villa",
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("villa")

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no {SHARED_DATA}: real data is not part of the project")
    return SHARED_DATA
