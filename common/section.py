"""The base of every config section: frozen, strict, unknown keys refused."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

SMALLEST_FP32, LARGEST_FP32 = 1.2e-38, 3.4e38
"""About the ends of fp32's normal numbers."""


def _normal(value: float) -> float:
    if value < SMALLEST_FP32:
        raise ValueError(
            f"expected at least {SMALLEST_FP32}, for fp32 takes less for 0, got {value}"
        )
    return value


PositiveFp32 = Annotated[float, Field(gt=0, le=LARGEST_FP32), AfterValidator(_normal)]
"""A number that is neither zero nor infinite in fp32, in which it is computed with."""
NonNegativeFp32 = Annotated[float, Field(ge=0, le=LARGEST_FP32)]


class Section(BaseModel):
    """A table of the run's TOML file, or a table within one.

    Values are taken only in the type that is written down (`"4"` is no integer, though an
    integer is taken for a float), unknown keys and empty texts are errors, and nothing is changed
    afterwards: derived values live with the code that derives them.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        str_min_length=1,
    )

    independent: ClassVar[frozenset[str]] = frozenset()
    """Fields that no check looks at but their own: the rest is checked though one is wrong."""
