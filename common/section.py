"""The base of every config section: frozen, strict, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
