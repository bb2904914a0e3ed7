"""Checkpoints compared on the same data, against a plain computation document by document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from triax.data.read.shards import ShardWriter
from triax.data.read.token_weights import WeightsWriter
from triax.inference.compare import compare
from triax.inference.load import find_model
from triax.inference.validation import Sequences, validate

SEQ_LEN, NUM_DOCUMENTS = 24, 60


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models, of which the second is the first one, a little changed."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    made = []
    for number in range(2):
        made.append(str(tmp_path_factory.mktemp(f"model-{number}")))
        model.save_pretrained(made[-1])
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return made


class Text:
    """Documents as rows of conversations, with weights, in shards."""

    def __init__(self, folder: Path) -> None:
        chance = np.random.default_rng(2)
        self.prefix = str(folder / "text")
        self.documents = [
            chance.integers(1, 64, chance.integers(3, SEQ_LEN)) for _ in range(NUM_DOCUMENTS)
        ]
        self.weights = [
            chance.choice([0, 0.25, 0.5, 1], document.size).astype(np.float32)
            for document in self.documents
        ]
        weights = WeightsWriter(folder / "text", 1)
        with ShardWriter(folder / "text", np.dtype("<u2")) as writer:
            for document, own in zip(self.documents, self.weights, strict=True):
                writer.add_document(document)
                weights.add(own)
        weights.write()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text(tmp_path_factory.mktemp("data"))


@torch.no_grad()
def losses_of(folder: str, text: Text) -> NDArray[np.float64]:
    """Of each document: the weighted sum of its targets' losses."""
    model = find_model(folder).load()
    found = []
    for document, weights in zip(text.documents, text.weights, strict=True):
        log_probs_TV = model.logits(torch.from_numpy(document)[None])[0].log_softmax(-1)
        chosen = log_probs_TV[np.arange(document.size - 1), document[1:]].double().numpy()
        found.append(-(chosen * weights[1:]).sum())
    return np.array(found)


def test_targets_count_as_much_as_they_weigh(folders: list[str], text: Text) -> None:
    """The mean loss is that of `triax eval` with one checkpoint; the difference and its interval
    are those of a bootstrap in plain words."""
    sequences = Sequences(text.prefix, seq_len=SEQ_LEN, mask_documents=True, micro_batch_size=4)
    found = compare(folders, sequences)
    weights_D = np.array([weights[1:].sum() for weights in text.weights])
    losses = [losses_of(folder, text) for folder in folders]
    num_targets = sum(int((weights[1:] > 0).sum()) for weights in text.weights)
    for one, losses_D, folder in zip(found.compared, losses, folders, strict=True):
        assert one.evaluation.loss == pytest.approx(losses_D.sum() / weights_D.sum(), rel=1e-5)
        assert one.evaluation.num_targets == num_targets
        alone = validate(folder, sequences).evaluation
        assert one.evaluation.loss == pytest.approx(alone.loss, rel=1e-6)
        assert one.evaluation.num_bytes is None is alone.num_bytes
    difference = found.compared[1].difference
    assert found.compared[0].difference is None and difference is not None
    apart_D, seen = losses[1] - losses[0], weights_D > 0
    assert difference.mean == pytest.approx(apart_D.sum() / weights_D.sum(), abs=1e-6)
    assert found.num_documents == seen.sum()
    chance = np.random.default_rng(5)
    drawn_ND = chance.choice(np.flatnonzero(seen), (4000, int(seen.sum())))
    means = apart_D[drawn_ND].sum(1) / weights_D[drawn_ND].sum(1)
    ends = np.quantile(means, [0.025, 0.975])
    width = ends[1] - ends[0]
    assert (difference.low, difference.high) == pytest.approx(tuple(ends), abs=0.06 * width)
    assert difference.low < difference.mean < difference.high


def test_a_checkpoint_does_not_differ_from_itself(folders: list[str], text: Text) -> None:
    found = compare([folders[0]] * 2, Sequences(text.prefix, seq_len=SEQ_LEN, limit=5))
    difference = found.compared[1].difference
    assert difference is not None
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
