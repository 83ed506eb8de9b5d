"""Machines in network namespaces of their own, on a network of their own, whose cables can be pulled.

A namespace has no name and is held by one process, which ends when its standard input does: so whatever ends the
tests, nothing is left behind, and nothing outside is touched. Each has mounts of its own, too.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from leasehold.services.lifeline import tied_to_us
from tests.support.not_run import not_run

NETWORK: Final = "10.77.0"
_HOLD: Final = "mount --make-rprivate / && ip link set lo up && echo ready && exec cat"


class Machine:
    """One namespace. Its address is `10.77.0.<number>`."""

    def __init__(self, number: int) -> None:
        """Raises OSError, or AssertionError with what was said, where namespaces cannot be made."""
        self.address = f"{NETWORK}.{number}"
        self._number = number
        self._processes: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", _HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        if said != b"ready\n":
            self.close()
            raise AssertionError(said.decode(errors="replace"))

    @property
    def pid(self) -> int:
        """Of the process that holds the namespaces."""
        return self._holder.pid

    def _inside(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", "--net", "--mount", "--target", str(self.pid), *command]

    def do(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a command to its end; what it wrote. Raises CalledProcessError."""
        env = {**os.environ, **(environment or {})}
        done = subprocess.run(self._inside(command), check=True, capture_output=True, text=True, timeout=60, env=env)
        return done.stdout

    def ask(self, *command: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command that may fail."""
        env = {**os.environ, **(environment or {})}
        return subprocess.run(self._inside(command), check=False, capture_output=True, text=True, timeout=60, env=env)

    def start(self, *command: str, output: Path) -> "subprocess.Popen[bytes]":
        """Start a process that is ended with the machine."""
        with output.open("wb") as file:
            process = subprocess.Popen(
                self._inside(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                preexec_fn=tied_to_us(),  # noqa: PLW1509 - nothing here has threads
            )  # fmt: skip
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End all that runs there, and with it the namespaces."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait(10)


class Network:
    """A machine with a switch (the first), and further ones on cables to it."""

    def __init__(self, machines: list[Machine]) -> None:
        self.machines = machines
        hub = machines[0]
        hub.do("ip", "link", "add", "switch", "type", "bridge")
        hub.do("ip", "address", "add", f"{hub.address}/24", "dev", "switch")
        hub.do("ip", "link", "set", "switch", "up")
        for machine in machines[1:]:
            cable = self._cable(machine)
            far_end = ("peer", "name", "eth0", "netns", str(machine.pid))
            hub.do("ip", "link", "add", "name", cable, "type", "veth", *far_end)
            hub.do("ip", "link", "set", cable, "master", "switch", "up")
            machine.do("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
            machine.do("ip", "link", "set", "eth0", "up")

    def _cable(self, machine: Machine) -> str:
        return f"to{machine.address.rpartition('.')[2]}"

    def pull(self, machine: Machine) -> None:
        """Cut a machine off."""
        self.machines[0].do("ip", "link", "set", self._cable(machine), "down")

    def plug_in(self, machine: Machine) -> None:
        """The end of `pull`."""
        self.machines[0].do("ip", "link", "set", self._cable(machine), "up")


@contextlib.contextmanager
def network_of(count: int) -> Iterator[Network]:
    """So many machines; the test is not run where this may not be done."""
    if os.geteuid() != 0:
        not_run("network namespaces need root")
    with contextlib.ExitStack() as stack:
        machines: list[Machine] = []
        try:
            for number in range(1, count + 1):
                machines.append(Machine(number))
                stack.callback(machines[-1].close)
            network = Network(machines)
        except (OSError, AssertionError, subprocess.CalledProcessError) as error:
            not_run(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
        yield network
