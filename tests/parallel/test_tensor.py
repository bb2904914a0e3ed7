"""What tensor parallelism is for: no process holds what it should share."""

from __future__ import annotations

from fleet import run_fleet
from worlds import SEQ_LEN, SMALL, Case, StageProfile, largest_tensor_of_a_step, stage_profile


def test_the_logits_are_never_gathered() -> None:
    """The vocabulary is made the largest thing there is; tied to nothing smaller."""
    vocab_size, micro_batch_size = 4096, 8
    model = SMALL | {"vocab_size": vocab_size, "hidden_size": 8, "head_dim": 2, "num_layers": 1}
    case = Case(
        model=model, parallel={"tensor": 2, "zero_stage": 1}, micro_batch_size=micro_batch_size
    )
    tokens = SEQ_LEN * micro_batch_size
    assert tokens > 8, "or the weights would be larger than the logits"
    assert set(run_fleet(2, largest_tensor_of_a_step, case)) == {tokens * vocab_size // 2}


def test_weights_gradients_and_optimizer_state_are_shared_out() -> None:
    model = SMALL | {"hidden_size": 64, "ffn_hidden_size": 192}
    case = Case(model=model, parallel={"tensor": 2, "pipeline": 2, "zero_stage": 1})
    profiles: list[StageProfile] = run_fleet(4, stage_profile, case)
    [whole] = run_fleet(1, stage_profile, Case(model=model, parallel={"zero_stage": 1}))
    share = sum(p.bytes_after_update for p in profiles) / whole.bytes_after_update
    assert 1.0 <= share < 1.05, "only the norms are held twice"


def test_a_tied_weight_is_gathered_once() -> None:
    """Of a vocabulary that outweighs all else: without its tie it would live twice between
    micro-batches, gathered and as a gradient."""
    model = SMALL | {"vocab_size": 4096, "num_layers": 1, "tie_embeddings": True}
    case = Case(model=model, parallel={"tensor": 2, "zero_stage": 1})
    found: StageProfile = run_fleet(4, stage_profile, case)[0]
    # Half of all is here: a quarter of weights and moments, the gathered weights, the gradients.
    expected = 1 / 4 + 1 / 2 + 1 / 2 + 2 / 4
    slack = 0.1  # a reduction's buffer is kept until the next one
    live = found.bytes_between_micro_batches / found.num_parameter_bytes
    assert 0 <= live - expected < slack
