"""Can this process reach rank 0, and by which interface? What loopback would hide is said here.

Imports no torch.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping, MutableMapping

from triax.common.errors import UserError
from triax.launcher.cluster.environment import Environment

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
SAME_MACHINE_SECONDS = 60.0
"""How long a node whose MASTER_ADDR is loopback waits for rank 0 to listen there: it may really
be on this machine, where someone tries out several "nodes"."""
_LOOPBACKS = ("lo", "lo0")
"""Its name on Linux, and on macOS."""
_SIOCGIFADDR = 0x8915
_ELSEWHERE = "192.0.2.1"
"""An address that no machine has (RFC 5737): the way there is the default route."""


def prepare(environment: Environment, variables: MutableMapping[str, str] = os.environ) -> str:
    """Check the way to rank 0 and choose the interface of a job on several nodes.

    Sets GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in `variables` where they aren't set; on one node
    to loopback. NCCL uses
    that interface to find its peers only; over InfiniBand data doesn't pass through it.

    Returns:
        What was found, for the person; empty for a job on one node.

    Raises:
        UserError: rank 0's address is wrong or this machine's own, or a given interface is.
    """
    check_given_interfaces(environment, variables)
    if environment.launcher == "single":
        return ""
    addresses = resolve(environment.master_addr)
    if environment.num_nodes == 1:
        _stay_on_this_machine(variables)
        return ""
    if are_loopback(addresses):
        _check_same_machine(environment)
        return ""
    given = [f"{name}={variables[name]}" for name in (GLOO, NCCL) if name in variables]
    if len(given) == 2:
        return ", ".join(given)
    interface = interface_towards(addresses)
    if interface is None:
        return (
            f"no one interface leads to {environment.master_addr}: gloo and NCCL choose; set "
            f"{GLOO} and {NCCL} if they can't connect"
        )
    for name in (GLOO, NCCL):
        variables.setdefault(name, interface)
    return ", ".join([f"interface {interface}", *given])


def _stay_on_this_machine(variables: MutableMapping[str, str]) -> None:
    """Have gloo and NCCL listen on loopback alone: nobody else has to reach them."""
    for _, name in socket.if_nameindex():
        if name in _LOOPBACKS:
            variables.setdefault(GLOO, name)
            variables.setdefault(NCCL, f"={name}")


def check_given_interfaces(environment: Environment, variables: Mapping[str, str]) -> None:
    """Refuse interfaces that this machine doesn't have, or that only lead to itself.

    Raises:
        UserError: with the interfaces that there are.
    """
    present = [name for _, name in socket.if_nameindex()]
    for variable in (GLOO, NCCL):
        given = variables.get(variable, "")
        if not given or given.startswith("^"):
            continue
        exact = variable == GLOO or given.startswith("=")
        for name in given.removeprefix("=").split(","):
            matches = [
                item for item in present if item == name or (not exact and item.startswith(name))
            ]
            if not matches:
                raise UserError(
                    f"{variable} is {given!r}, but {environment.hostname} has no such network "
                    f"interface, only {', '.join(present)}: set it to one of these, or unset it"
                )
            if (
                matches == ["lo"]
                and environment.num_nodes > 1
                and not are_loopback(resolve(environment.master_addr))
            ):
                raise UserError(
                    f"{variable} is {given!r}, the loopback interface: the other nodes of this "
                    f"job can't be reached through it; unset it, or choose one of "
                    f"{', '.join(item for item in present if item != 'lo')}"
                )


def resolve(host: str) -> list[str]:
    """The host's addresses as this machine sees them, IPv4 first.

    Raises:
        UserError: the name isn't known here.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"MASTER_ADDR is {host!r}, which {socket.gethostname()} can't resolve ({error}): set "
            "it to a name or address of rank 0's machine that all nodes know"
        ) from None
    addresses = [str(address[0]).removeprefix("::ffff:") for *_, address in found]
    return sorted(dict.fromkeys(addresses), key=lambda address: ":" in address)


def are_loopback(addresses: list[str]) -> bool:
    """Whether all of the addresses mean the machine that uses them."""
    return all(ipaddress.ip_address(item.partition("%")[0]).is_loopback for item in addresses)


def _check_same_machine(environment: Environment) -> None:
    """Let a loopback address pass only where rank 0 is really found at it.

    Rank 0's own name may be loopback on its machine (Debian's 127.0.1.1) and known to others by
    DNS. Rank 0 can't know who will come; if nobody does it ends by `loopback_error` later.

    Raises:
        UserError: rank 0 isn't on this machine.
    """
    named_after_us = environment.master_addr in (environment.hostname, socket.getfqdn())
    if environment.node_rank == 0 and (named_after_us or not environment.nodes):
        return
    if environment.nodes or not _listens(environment):
        raise loopback_error(environment)


def loopback_error(environment: Environment) -> UserError:
    """What to say when other nodes were told that rank 0 is on their own machine."""
    return UserError(
        f"MASTER_ADDR is {environment.master_addr!r}, which on {environment.hostname} (node "
        f"{environment.node_rank} of {environment.num_nodes}) is loopback, that is, this machine "
        "itself: rank 0 can't be reached from other nodes so. Set MASTER_ADDR to the name or "
        "address of rank 0's machine as the others know it (torchrun: --rdzv-endpoint or "
        "--master-addr; deepspeed: --master_addr)"
    )


def _listens(environment: Environment) -> bool:
    end = time.monotonic() + SAME_MACHINE_SECONDS
    while True:
        try:
            with socket.create_connection((environment.master_addr, environment.master_port), 5):
                return True
        except OSError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.2)


def who_answers(host: str, port: int) -> str | None:
    """What someone who listens there says first, or when asked; None if nobody listens."""
    try:
        with socket.create_connection((host, port), 5) as connection:
            connection.settimeout(1.0)
            said = b""
            for question in (b"", b"GET / HTTP/1.0\r\n\r\n"):
                connection.sendall(question)
                with contextlib.suppress(TimeoutError):
                    said = connection.recv(80)
                    break
    except OSError:
        return None
    words = said.decode("ascii", "replace").partition("\n")[0].strip()
    return f"it says {words!r}" if words else "it says nothing"


def interface_towards(addresses: list[str]) -> str | None:
    """The interface by which the first of the addresses is reached; None if that can't be told.

    On the machine that has the address it is the interface that carries it, not loopback.
    """
    own = _own_addresses()
    for target in [*addresses, _ELSEWHERE]:
        local = _local_address(target)
        if local is not None and (name := own.get(local)) not in (None, "lo"):
            return name
    names = sorted({name for name in own.values() if name != "lo"})
    return names[0] if len(names) == 1 else None


def _local_address(target: str) -> str | None:
    """This machine's address on the way to the target; sends nothing."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _own_addresses() -> dict[str, str]:
    """Interface by address, for addresses of both kinds (Linux; elsewhere none are found)."""
    found: dict[str, str] = {}
    if sys.platform != "linux":
        return found
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue
            found[socket.inet_ntoa(request.tobytes()[20:24])] = name
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                digits, *_, name = line.split()
                found[str(ipaddress.IPv6Address(bytes.fromhex(digits)))] = name
    except OSError:
        pass
    return found
