"""What processes that share a model make of it; for `run_fleet`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from triax.inference.compare import compare
from triax.inference.generate import generate_batch
from triax.inference.load import find_model
from triax.inference.sampling import Sampling
from triax.inference.scoring import score
from triax.inference.team import Team
from triax.inference.validation import Sequences, validate
from triax.launcher.cluster.together import tells_of_a_lost_peer
from triax.parallel.initial_weights import local_part

PROMPTS = [[5, 9, 2, 33, 7, 1, 60, 4, 12], [3], [8, 8, 8, 41]]
SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2),
)
WAYS: tuple[dict[str, Any], ...] = ({"tensor": 2}, {"shards": True}, {})
"""Each layer divided, all weights shared, and whole copies that share the work."""


def team_of(**options: Any) -> Team:
    """The team of all processes."""
    return Team.of(torch.device("cpu"), dist.new_group(backend="gloo"), **options)


def answers(folder: str, team: Team) -> Any:
    """Texts, and scores of continuations: with whole copies each process has its share."""
    model = find_model(folder).load(team=team)

    def write(prompts: Sequence[list[int]]) -> list[list[list[int]]]:
        texts: list[list[list[int]]] = [[] for _ in prompts]
        for sampling in SAMPLINGS if prompts else ():
            steps = generate_batch(
                model, prompts, max_new_tokens=12, context=16, sampling=sampling,
                seeds=[sum(prompt) for prompt in prompts], team=team,
            )  # fmt: skip
            by_step = [[new.token for new in step if new is not None] for step in steps]
            for text, tokens in zip(texts, zip(*by_step, strict=True), strict=True):
                text.append(list(tokens))
        return texts

    pairs = [(prompt, [1, 2, 3]) for prompt in PROMPTS]
    scored = team.divide(pairs, lambda own: score(model, own, max_length=16, batch_size=2))
    held = sum(local_part(parameter)[0].numel() for parameter in model.parameters())
    return team.divide(PROMPTS, write), [one.log_prob for one in scored], held


def losses(folders: Sequence[str], data: str, team: Team) -> list[float]:
    """What `triax eval --data` finds: of one checkpoint, and of two compared."""
    sequences = Sequences(data, seq_len=16, limit=7, micro_batch_size=2, mask_documents=True)
    found = validate(folders[0], sequences, team).evaluation
    compared = compare(folders[:2], sequences, team).compared
    difference = compared[1].difference
    assert difference is not None
    told = [found.loss, found.num_targets, *(one.evaluation.loss for one in compared)]
    return [*told, difference.mean, difference.low, difference.high]


def answers_in_every_way(folders: Sequence[str], data: str) -> list[Any]:
    """Of each folder, and of the data, in each of the ways, by this process of several."""
    found = []
    for way in WAYS:
        team = team_of(**way)
        found.append(([answers(folder, team) for folder in folders], losses(folders, data, team)))
    return found


def answered(count: int) -> list[int]:
    """What two processes make of so many questions."""
    team = team_of()
    return team.divide(range(count), lambda own: [number * number for number in own])


def left_alone() -> bool:
    """What rank 0 makes of a peer that is gone in the middle of their work."""
    team = team_of()
    team.divide([1, 2], list)
    if team.rank == 1:
        os._exit(9)
    try:
        team.divide([1, 2], list)
    except RuntimeError as error:
        return tells_of_a_lost_peer(error)
    return False
