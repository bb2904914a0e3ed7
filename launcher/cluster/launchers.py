"""Which process this is, by the variables that its launcher set. Imports no torch.

Each launcher has a reader; the first whose variables are there wins. They stand inside out: a
torchrun or mpirun that was itself started by srun knows better which processes it made.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace

from triax.common.errors import UserError
from triax.launcher.cluster.environment import (
    LOOPBACK,
    MEETING_FILE,
    Environment,
    Variables,
    below,
    integer,
    port_of,
    read_counts,
    require,
)
from triax.launcher.cluster.hostlist import expand_counts, expand_nodes


def discover(variables: Variables = os.environ) -> Environment:
    """Find out who started this process, and which of the run's processes it is.

    torchrun, triax's own launcher, the `deepspeed` launcher, Open MPI's mpirun and srun are known
    by their variables; without any of them this is the run's one process.

    Raises:
        UserError: some are set and others not, or their values make no sense; it names them.
    """
    for names, read in LAUNCHERS.items():
        if any(name in variables for name in names):
            return read(variables)
    return Environment(0, 0, 1, 1, 0, socket.gethostname(), "single")


def _from_torch(variables: Variables) -> Environment:
    """torchrun's variables and ours; the deepspeed launcher's differ where they count nodes."""
    by_deepspeed = "LOCAL_WORLD_SIZE" not in variables and "CROSS_SIZE" in variables
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE"]
    names += ["LOCAL_SIZE", "CROSS_RANK"] if by_deepspeed else ["LOCAL_WORLD_SIZE"]
    require(
        variables,
        [*names, "MASTER_ADDR", "MASTER_PORT"],
        "start the processes with torchrun or `triax train --nproc-per-node N`, or unset {found} "
        "to run one process",
    )
    counts = read_counts(variables, names[0], names[1], names[2], names[3])
    if by_deepspeed:
        node_rank = integer(variables, "CROSS_RANK", 0)
        num_nodes = integer(variables, "CROSS_SIZE", 1)
        node_names = ("CROSS_RANK", "CROSS_SIZE")
    else:
        node_rank = integer(variables, "GROUP_RANK", 0, counts.rank // counts.local_world_size)
        num_nodes = integer(
            variables, "GROUP_WORLD_SIZE", 1, -(-counts.world_size // counts.local_world_size)
        )
        node_names = ("GROUP_RANK", "GROUP_WORLD_SIZE")
    below(node_names[0], node_rank, node_names[1], num_nodes)
    launcher = "deepspeed" if by_deepspeed else "torchrun"
    found = counts.environment(variables, launcher, node_rank, num_nodes)
    # Within a process of ours someone may have started torchrun.
    if MEETING_FILE in variables and "TORCHELASTIC_RUN_ID" not in variables:
        return replace(found, launcher="triax", meeting_file=variables[MEETING_FILE])
    return replace(found, agent_listens=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _from_mpirun(variables: Variables) -> Environment:
    names = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")]
    require(variables, names, "start the processes with Open MPI's mpirun, or unset {found}")
    counts = read_counts(variables, *names)
    node_rank = counts.rank // counts.local_world_size
    num_nodes = -(-counts.world_size // counts.local_world_size)
    if num_nodes == 1 and "MASTER_ADDR" not in variables:
        job = variables.get("PMIX_NAMESPACE", variables.get("OMPI_MCA_ess_base_jobid", ""))
        port = port_of(variables, job)
        return counts.environment(
            {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}, "mpirun", 0, 1
        )
    require(
        variables,
        ["MASTER_ADDR", "MASTER_PORT"],
        "mpirun doesn't say where rank 0 is: add `-x MASTER_ADDR=HOST -x MASTER_PORT=29500`, where "
        "HOST is the first node's name",
        found=names[:1],
    )
    return counts.environment(variables, "mpirun", node_rank, num_nodes)


def _from_srun(variables: Variables) -> Environment:
    nodes_name = next(
        (name for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST") if name in variables),
        "SLURM_STEP_NODELIST",
    )
    names = ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"]
    require(
        variables,
        [*names, "SLURM_NODEID", nodes_name, "SLURM_JOB_ID"],
        "srun sets all of them: don't unset any, or unset {found} to run one process",
    )
    try:
        nodes = expand_nodes(variables[nodes_name])
    except UserError as error:
        raise UserError(f"environment: {nodes_name}: {error}") from None
    try:
        per_node = expand_counts(variables["SLURM_STEP_TASKS_PER_NODE"])
    except UserError as error:
        raise UserError(f"environment: SLURM_STEP_TASKS_PER_NODE: {error}") from None
    node_rank = integer(variables, "SLURM_NODEID", 0)
    if node_rank >= min(len(nodes), len(per_node)):
        raise UserError(
            f"environment: SLURM_NODEID is {node_rank}, but {nodes_name} has {len(nodes)} nodes "
            f"and SLURM_STEP_TASKS_PER_NODE {len(per_node)}"
        )
    tasks_here = {**variables, "SLURM_STEP_TASKS_PER_NODE": str(per_node[node_rank])}
    counts = read_counts(tasks_here, *names)
    job = f"{variables['SLURM_JOB_ID']}.{variables.get('SLURM_STEP_ID', '0')}"
    rendezvous = {
        "MASTER_ADDR": variables.get("MASTER_ADDR", nodes[0] if len(nodes) > 1 else LOOPBACK),
        "MASTER_PORT": str(port_of(variables, job)),
    }
    return counts.environment(rendezvous, "srun", node_rank, len(nodes), tuple(nodes))


LAUNCHERS: dict[tuple[str, ...], Callable[[Variables], Environment]] = {
    ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"): _from_torch,
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"): _from_mpirun,
    # A batch script has SLURM_PROCID too: only srun's tasks have a step with tasks.
    ("SLURM_STEP_NUM_TASKS",): _from_srun,
}
"""Readers by the variables of which one is there, inside out."""
