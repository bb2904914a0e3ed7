"""A training step of chosen processes of a run, rehearsed on this machine.

Each is a process of its own here: libraries keep parts of a job as globals, and several go at once.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from triax.common.errors import UserError
from triax.launcher.cluster.environment import Environment
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.bench import num_micro_batches
from triax.launcher.job.engine import engine_class, make_engine
from triax.parallel.layout import Layout
from triax.planning.rehearsal.fake import FakeTensors, between_stages, fake_world
from triax.planning.rehearsal.recording import Recording, record_step
from triax.training.bench.batches import RandomBatches
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler
from triax.training.step.step import StepContext


def rehearse(
    config: RunConfig, ranks: Sequence[int], world_size: int, processes_per_node: int
) -> Iterator[Recording]:
    """Rehearse a step on each of the ranks, several at a time; in their order.

    Args:
        config: checked against so many processes.
        ranks: of the run.
        world_size: of the run.
        processes_per_node: of the run.

    Raises:
        UserError: a step can't be rehearsed, or the machine has no memory for it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    count = min(len(ranks), os.cpu_count() or 1)
    with ProcessPoolExecutor(count, mp_context=context, max_tasks_per_child=1) as pool:
        tasks = [
            pool.submit(_rehearse, config, rank, world_size, processes_per_node) for rank in ranks
        ]
        try:
            for task in tasks:
                yield task.result()
        except BrokenProcessPool:
            raise UserError(
                "a rehearsal's process was ended from outside, likely for lack of memory: "
                "rehearse fewer ranks at once with --rank"
            ) from None
        finally:
            for task in tasks:
                task.cancel()


def _rehearse(config: RunConfig, rank: int, world_size: int, processes_per_node: int) -> Recording:
    torch.set_num_threads(1)
    environment = _environment(rank, world_size, processes_per_node)
    os.environ.update(environment.variables())
    processes = Processes(environment, torch.device("cpu"), None, None)
    layout = Layout.of(config.parallel, world_size)
    batches = RandomBatches(
        vocab_size=config.model.vocab_size,
        seq_len=config.data.seq_len,
        micro_batch_size=config.batch.micro_batch_size,
        num_micro_batches=num_micro_batches(config, layout),
        dp_rank=layout.data_rank(rank),
        mask_documents=config.data.mask_documents,
        pin_memory=False,
    ).of_step(0)

    def build() -> StepContext:
        engine = make_engine(config, layout, processes)
        return StepContext(
            engine,
            LossScaler(config.precision, engine.device),
            Guard(config.stability, engine.device),
            config.optimizer.clip_norm,
        )

    sent = between_stages(
        config.model.hidden_size,
        config.parallel,
        config.precision.compute,
        config.batch.micro_batch_size,
        config.data.seq_len,
    )
    engine_class(config)  # its libraries are imported before the world is one that isn't there
    with fake_world(rank, world_size), FakeTensors(sent):
        return record_step(build, batches, config.optimizer.lr)


def _environment(rank: int, world_size: int, processes_per_node: int) -> Environment:
    """As a launcher on such nodes would make it."""
    node, local_rank = divmod(rank, processes_per_node)
    return Environment(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=min(processes_per_node, world_size),
        node_rank=node,
        hostname=socket.gethostname(),
        launcher="torchrun",
        num_nodes=-(-world_size // processes_per_node),
        master_addr="127.0.0.1",
        master_port=1,
    )
