"""The way to rank 0: mistakes that a single machine hides."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from triax.common.errors import UserError
from triax.launcher.cluster import network
from triax.launcher.cluster.environment import Environment

HERE = Environment(
    rank=1, local_rank=0, world_size=2, local_world_size=1, node_rank=1, hostname="here",
    launcher="deepspeed", num_nodes=2, master_addr="127.0.0.1", master_port=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SAME_MACHINE_SECONDS", 0.3)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_is_refused_where_rank_0_is_elsewhere(address: str) -> None:
    with pytest.raises(UserError, match=rf"MASTER_ADDR is '{address}', which on here .* loopback"):
        network.prepare(replace(HERE, master_addr=address), {})


def test_loopback_is_right_where_all_nodes_are_one_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        variables: dict[str, str] = {}
        network.prepare(replace(HERE, master_port=server.getsockname()[1]), variables)
    assert variables == {}


def test_srun_tells_that_nodes_are_different_machines() -> None:
    first = replace(HERE, rank=0, node_rank=0, launcher="srun", nodes=("node1", "node2"))
    with pytest.raises(UserError, match="loopback"):
        network.prepare(first, {})


def test_on_one_machine_nothing_but_loopback_listens() -> None:
    variables: dict[str, str] = {}
    assert network.prepare(replace(HERE, num_nodes=1), variables) == ""
    assert variables == {network.GLOO: "lo", network.NCCL: "=lo"}
    given = {network.GLOO: "lo", network.NCCL: "^docker"}
    network.prepare(replace(HERE, num_nodes=1), given)
    assert given[network.NCCL] == "^docker"


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_an_unknown_name_is_reported(num_nodes: int) -> None:
    with pytest.raises(
        UserError, match=r"MASTER_ADDR is 'no\.such\.host\.invalid'.* can't resolve"
    ):
        network.prepare(replace(HERE, num_nodes=num_nodes, master_addr="no.such.host.invalid"), {})


@pytest.mark.parametrize("variable", [network.GLOO, network.NCCL])
def test_an_interface_that_is_not_there_is_named(variable: str) -> None:
    with pytest.raises(UserError, match=rf"{variable} is 'wrong0', but here has no such .* lo"):
        network.prepare(HERE, {variable: "wrong0"})
    with pytest.raises(UserError, match=rf"{variable} is 'lo', the loopback interface"):
        network.prepare(replace(HERE, master_addr="192.0.2.7"), {variable: "lo"})


def test_nccl_s_patterns_are_understood() -> None:
    for given in ("^docker,lo", "l", "=lo"):
        network.check_given_interfaces(replace(HERE, num_nodes=1), {network.NCCL: given})
    with pytest.raises(UserError):
        network.check_given_interfaces(replace(HERE, num_nodes=1), {network.NCCL: "=l"})


def test_the_interface_of_the_way_is_chosen() -> None:
    addresses = [
        address for address, name in network._own_addresses().items()
        if name != "lo" and ":" not in address
    ]  # fmt: skip
    if not addresses:
        pytest.skip("this machine has no interface but loopback")
    address = addresses[0]
    variables: dict[str, str] = {}
    said = network.prepare(replace(HERE, master_addr=address), variables)
    assert variables[network.GLOO] == network._own_addresses()[address] in said
    assert variables[network.NCCL] == variables[network.GLOO]
    given = {network.GLOO: variables[network.GLOO]}
    network.prepare(replace(HERE, master_addr=address), given)
    assert set(given) == {network.GLOO, network.NCCL}
