"""Hosts in network namespaces of their own, one ledger: leases across them, and one that is cut off and comes back."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.netns import Machine, Network, network_of
from tests.support.tree import ROOT
from tests.watcher.trees import Tree

CLUSTER = "test"
PORT = 4222
WAIT_S = 60.0
BACK_S_MAX = 10.0
"""It takes one or two; who waits for the old TLS connection to be closed in good order needs up to 30."""
LEASEHOLD = (sys.executable, "-m", "leasehold")
CARD = "pci0000:00/0000:00:0{}.0"


class Hosts:
    """The bus, an allocator and a query service on one machine; on each of the others a watcher, and devices."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.bus, *self.hosts = network.machines
        self.folder = folder
        self._trees: list[Tree] = []

    def start(self) -> None:
        folder, server = self.folder, self.folder / "server"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        certificate = authority.issue_cert(self.bus.address)
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        agents = [("agent", f"h{number}") for number in range(1, len(self.hosts) + 1)]
        services = [(role, role) for role in ("keeper", "allocator", "query")]
        self._make_keys(*services, *agents, ("scheduler", "alice"))
        tls = ("--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.pem"))
        listen = ("--listen", f"{self.bus.address}:{PORT}")
        self._start(self.bus, "nats", "--data", str(server), *listen, *tls)
        # The server may just be starting.
        give_up_s = time.monotonic() + WAIT_S
        while self.run(self.bus, "keeper", "run", "keeper").returncode:
            assert time.monotonic() < give_up_s, "the bus does not start"
        for role in ("allocator", "query"):
            self._start(self.bus, role, *self._place(role))
        for number, machine in enumerate(self.hosts, 1):
            tree = Tree(folder / f"h{number}-tree")
            self._trees.append(tree)
            self.add_card(number, 1)
            self.add_card(number, 2)
            machine.do("mount", "--bind", str(tree.root.sys), "/sys")
            self._start(machine, "watcher", *self._place(f"h{number}"), "--host", f"h{number}")

    def _make_keys(self, *principals: tuple[str, str]) -> None:
        told = ("--url", f"tls://{self.bus.address}:{PORT}", "--tls-ca", str(self.folder / "ca.pem"))
        where = ("--data", str(self.folder / "server"), "--cluster", CLUSTER)
        making = [
            subprocess.Popen(
                [*LEASEHOLD, "credentials", "add", *where, *told, "--out", self._key_file(name), role, name]
            )
            for role, name in principals
        ]
        assert [process.wait(WAIT_S) for process in making] == [0] * len(making)

    def _key_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _place(self, name: str) -> tuple[str, ...]:
        return ("--data", str(self.folder / name), "--credentials", str(self._key_file(name)))

    def _start(self, machine: Machine, *arguments: str) -> None:
        machine.start(*LEASEHOLD, "run", *arguments, output=self.folder / f"{arguments[0]}-{machine.address}.txt")

    def run(self, machine: Machine, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command with somebody's key, on one of the machines."""
        return machine.ask(*LEASEHOLD, *arguments, "--credentials", str(self._key_file(name)))

    def add_card(self, host: int, slot: int) -> None:
        """Another card in a host."""
        self._trees[host - 1].pci(CARD.format(slot), group=host * 16 + slot)

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """What alice is told, row by row."""
        done = self.run(self.bus, "alice", *arguments, "--json")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def lease(self, holder: str, *devices: str) -> dict[str, Any]:
        """Ask for devices; the answer."""
        (answer,) = self.rows("lease", *devices, "--for", holder)
        return answer

    def until(self, **wanted: str) -> None:
        """Wait for these words: of hosts (`h2="stale"`), and of cards (`h2_3="free"`)."""
        words = [
            f"{card(*map(int, name[1:].split('_'))) if '_' in name else name}={word}" for name, word in wanted.items()
        ]
        command = (sys.executable, "-m", "tests.cluster.until", str(self._key_file("alice")), *words)
        self.bus.do(*command, environment={"PYTHONPATH": str(ROOT)})


def card(host: int, slot: int) -> str:
    """The id of a card."""
    return f"h{host}/pci/{CARD.format(slot).rpartition('/')[2]}"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with network_of(3) as network:
        hosts = Hosts(network, tmp_path)
        hosts.start()
        yield hosts


def test_a_host_that_is_cut_off_and_comes_back(hosts: Hosts) -> None:
    """Devices of two hosts are leased in one request. One host is cut off: it is stale, nothing of it is granted, its
    lease stays, and the other is granted from. It comes back: it reports what has changed, and is granted from.
    """
    _, second = hosts.hosts
    hosts.until(h1_2="free", h2_2="free")
    granted = hosts.lease("vm1", card(1, 1), card(2, 1))
    assert granted["devices"] == [card(1, 1), card(2, 1)], granted

    hosts.network.pull(second)
    hosts.add_card(2, 3)
    hosts.until(h1="fresh", h2="stale")
    refused = hosts.lease("vm2", card(2, 2))
    assert refused["code"] == "host_stale", refused
    assert [row["lease"] for row in hosts.rows("leases")] == [granted["lease"]]
    assert hosts.lease("vm2", card(1, 2))["outcome"] == "granted"
    assert card(2, 3) not in [row["device"] for row in hosts.rows("devices")], "nobody can have told"

    hosts.network.plug_in(second)
    back_s = time.monotonic()
    hosts.until(h1="fresh", h2="fresh", h2_3="free")
    assert time.monotonic() - back_s < BACK_S_MAX, "something still waited for the connection that was cut"
    assert hosts.lease("vm3", card(2, 2), card(2, 3))["outcome"] == "granted"
    assert len(hosts.rows("leases")) == 3

    posing = hosts.run(second, "h2", "run", "watcher", "--data", str(hosts.folder / "posing"), "--host", "h1")
    assert "the credential is for the agent of h2" in posing.stderr, posing
