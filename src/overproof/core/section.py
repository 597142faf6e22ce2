"""What every part of a recipe, and of a command's configuration, is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A part of the recipe: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
