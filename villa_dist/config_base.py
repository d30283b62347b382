"""What all sections of the config are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shards.errors import VillaError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
MOST = 10**12
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Width = Annotated[int, Field(ge=1, le=65_536)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
MOST_REGIONS = 10_000  # an image


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ConfigError(VillaError):
    """A key, a type or a value in a config file or `--set` that is not what is expected."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
