"""Which process this is, from the variables a launcher sets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triax.common.errors import UserError
from triax.launcher.cluster.launchers import discover

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


def test_nobody_s_child_is_the_only_process() -> None:
    found = discover({"MASTER_ADDR": "somewhere", "PATH": "/bin"})
    assert (found.rank, found.world_size, found.launcher) == (0, 1, "single")


def test_torchrun_s_variables_are_read() -> None:
    found = discover(TORCHRUN)
    assert (found.rank, found.local_rank, found.node_rank) == (5, 1, 1)
    assert (found.world_size, found.local_world_size, found.launcher) == (8, 4, "torchrun")
    without_group = {name: value for name, value in TORCHRUN.items() if name != "GROUP_RANK"}
    assert discover(without_group).node_rank == 1


@pytest.mark.parametrize("missing", [name for name in TORCHRUN if name != "GROUP_RANK"])
def test_a_half_set_environment_names_what_is_missing(missing: str) -> None:
    variables = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(UserError, match=f"but not {missing}: start the processes with torchrun"):
        discover(variables)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RANK", "8", "RANK is 8, expected less than WORLD_SIZE, which is 8"),
        ("RANK", "-1", "RANK is '-1', expected a whole number of at least 0"),
        ("RANK", "", "RANK is ''"),
        ("LOCAL_RANK", "4", "LOCAL_RANK is 4, expected less than LOCAL_WORLD_SIZE"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0', expected a whole number of at least 1"),
        ("WORLD_SIZE", "eight", "WORLD_SIZE is 'eight'"),
        ("LOCAL_WORLD_SIZE", "9", "more than WORLD_SIZE, 8"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http'"),
        ("GROUP_RANK", "x", "GROUP_RANK is 'x'"),
    ],
)
def test_nonsense_names_the_variable(name: str, value: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        discover(TORCHRUN | {name: value})
    assert words in str(raised.value)


@settings(deadline=None)
@given(values=st.fixed_dictionaries(dict.fromkeys(TORCHRUN, st.text(max_size=3))))
def test_no_values_give_anything_but_a_place_or_a_report(values: dict[str, str]) -> None:
    try:
        found = discover(values)
    except UserError:
        return
    assert 0 <= found.rank < found.world_size


DEEPSPEED = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_SIZE": "4", "CROSS_RANK": "1",
    "CROSS_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "7", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3", "SLURM_STEP_NODELIST": "gpu[08-09]",
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "3",
}  # fmt: skip


@pytest.mark.parametrize("variables", [TORCHRUN, DEEPSPEED, MPIRUN])
def test_launchers_that_say_the_same_in_other_words(variables: dict[str, str]) -> None:
    found = discover(variables)
    assert (found.rank, found.local_rank, found.world_size, found.local_world_size) == (5, 1, 8, 4)
    assert (found.node_rank, found.num_nodes) == (1, 2)
    assert (found.master_addr, found.master_port) == ("node0", 29500)
    expected = {id(TORCHRUN): "torchrun", id(DEEPSPEED): "deepspeed", id(MPIRUN): "mpirun"}
    assert found.launcher == expected[id(variables)]
    assert str(found).startswith(f"{found.launcher}: 8 processes on 2 nodes, rank 5 on ")


def test_srun_s_tasks_find_each_other_without_more() -> None:
    found = discover(SRUN)
    assert (found.rank, found.local_rank, found.world_size, found.local_world_size) == (5, 1, 7, 3)
    assert (found.node_rank, found.num_nodes, found.nodes) == (1, 2, ("gpu08", "gpu09"))
    assert found.master_addr == "gpu08"
    peer = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert discover(SRUN | peer).master_port == found.master_port
    assert 10_000 <= found.master_port < 30_000
    other = {discover(SRUN | {"SLURM_STEP_ID": str(step)}).master_port for step in range(20)}
    assert len(other) > 15, "a new step doesn't meet an old one's port"
    given = discover(SRUN | {"MASTER_ADDR": "ib08", "MASTER_PORT": "1234"})
    assert (given.master_addr, given.master_port) == ("ib08", 1234)
    assert found.variables()["RANK"] == "5"


def test_a_launcher_inside_another_wins() -> None:
    assert discover(SRUN | TORCHRUN).launcher == "torchrun"
    assert discover(SRUN | MPIRUN).launcher == "mpirun"
    assert discover(MPIRUN | DEEPSPEED).launcher == "deepspeed"


def test_a_batch_script_is_no_task() -> None:
    """Its shell has a rank, but no step."""
    script = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "4"}
    assert discover(script).launcher == "single"


def test_one_machine_of_mpirun_needs_no_address() -> None:
    alone = {name: value for name, value in MPIRUN.items() if not name.startswith("MASTER")}
    with pytest.raises(UserError, match="but not MASTER_ADDR and MASTER_PORT: mpirun doesn't say"):
        discover(alone)
    found = discover(alone | {"OMPI_COMM_WORLD_SIZE": "6", "OMPI_COMM_WORLD_LOCAL_SIZE": "6"})
    assert found.master_addr == "127.0.0.1"


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        *((DEEPSPEED, name) for name in DEEPSPEED if name != "CROSS_SIZE"),
        *((MPIRUN, name) for name in MPIRUN),
        *((SRUN, name) for name in SRUN if name not in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")),
    ],
)
def test_any_launcher_s_missing_variable_is_named(variables: dict[str, str], missing: str) -> None:
    left = {name: value for name, value in variables.items() if name != missing}
    with pytest.raises(UserError, match=f"but not .*{missing}"):
        discover(left)


@pytest.mark.parametrize(
    ("variables", "name", "value", "words"),
    [
        (SRUN, "SLURM_STEP_NODELIST", "gpu[8-", "SLURM_STEP_NODELIST: 'gpu[8-' is no list of"),
        (SRUN, "SLURM_STEP_TASKS_PER_NODE", "x", "SLURM_STEP_TASKS_PER_NODE: 'x' is no list"),
        (SRUN, "SLURM_NODEID", "2", "SLURM_NODEID is 2, but SLURM_STEP_NODELIST has 2 nodes"),
        (SRUN, "SLURM_PROCID", "7", "SLURM_PROCID is 7, expected less than SLURM_STEP_NUM_TASKS"),
        (SRUN, "MASTER_ADDR", "", "MASTER_ADDR is ''"),
        (SRUN, "MASTER_PORT", "70000", "MASTER_PORT is 70000, expected at most 65535"),
        (DEEPSPEED, "CROSS_RANK", "2", "CROSS_RANK is 2, expected less than CROSS_SIZE"),
        (MPIRUN, "OMPI_COMM_WORLD_RANK", "8", "expected less than OMPI_COMM_WORLD_SIZE"),
    ],
)
def test_any_launcher_s_nonsense_is_named(
    variables: dict[str, str], name: str, value: str, words: str
) -> None:
    with pytest.raises(UserError) as raised:
        discover(variables | {name: value})
    assert words in str(raised.value)


@settings(deadline=None)
@given(
    variables=st.sampled_from([DEEPSPEED, MPIRUN, SRUN]),
    values=st.dictionaries(
        st.sampled_from(sorted(DEEPSPEED | MPIRUN | SRUN)), st.text("0129[](x),-n", max_size=6)
    ),
)
def test_no_launcher_s_values_give_anything_else(
    variables: dict[str, str], values: dict[str, str]
) -> None:
    try:
        found = discover(variables | values)
    except UserError:
        return
    assert 0 <= found.rank < found.world_size
    assert 0 <= found.node_rank < found.num_nodes
