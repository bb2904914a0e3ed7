"""Document patterns of packed rows, for attention that is divided over processes."""

from __future__ import annotations

import torch
from torch import Tensor

PATTERNS = ("none", "one", "short", "random", "borders", "long", "mixed")


def document_ids(pattern: str, seq_len: int, generator: torch.Generator) -> Tensor | None:
    """Ids (T,) of a row, int32; None for rows without documents.

    Patterns: `none`; `one` document; `short` ones of one to three tokens; `random` ones; `borders`,
    where they begin with each eighth of the row, as stretches of up to four processes do; `long`,
    a document over all processes between two of a token; `mixed`, a long one and then short ones.
    """
    begins = torch.zeros(seq_len, dtype=torch.bool)
    match pattern:
        case "none":
            return None
        case "one":
            pass
        case "short":
            begins = torch.rand(seq_len, generator=generator) < 0.6
        case "random":
            begins = torch.rand(seq_len, generator=generator) < 0.2
        case "borders":
            begins[:: max(1, seq_len // 8)] = True
        case "long":
            begins[1] = begins[-1] = True
        case "mixed":
            begins[seq_len * 2 // 3 :] = True
        case _:
            raise ValueError(pattern)
    return begins.cumsum(0).int()
