"""Documents that share word n-grams with evaluation sets (Brown et al. 2020, appendix C)."""

from __future__ import annotations

import numpy as np

from triax.common.errors import UserError
from triax.data.clean.config import ContaminationConfig
from triax.data.clean.document import Document
from triax.data.clean.shingles import shingle_hashes
from triax.data.prepare.text import iter_records

_NAME = "contamination"


class Contamination:
    """Drops or tags documents. Holds 8 bytes for each n-gram of the evaluation sets."""

    def __init__(self, config: ContaminationConfig, text_field: str) -> None:
        self._config = config
        texts = [record.text for record in iter_records(config.sets, text_field)]
        hashes, _ = shingle_hashes(texts, config.ngram)
        if not len(hashes):
            raise UserError(
                f"contamination: the texts of {', '.join(config.sets)} are all shorter than "
                f"{config.ngram} words; a smaller ngram would find them"
            )
        self._known = np.unique(hashes)

    def __call__(self, document: Document) -> str | None:
        hashes, _ = shingle_hashes([document.text], self._config.ngram)
        places = np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)
        num_shared = len(np.unique(hashes[self._known[places] == hashes]))
        if num_shared < self._config.min_shared:
            return None
        if self._config.action == "tag":
            document.metadata[_NAME] = num_shared
            return None
        return _NAME
