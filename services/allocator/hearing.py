"""Who has been heard: an agent that is silent too long makes its host stale, one that speaks again brings it back."""

from collections.abc import Iterator

from leasehold.events import limits
from leasehold.events.identities import HostName
from leasehold.events.inputs import HostHeard
from leasehold.projections.state import State


class Hearing:
    """When each agent's run was heard last, by this allocator's own clock."""

    def __init__(self) -> None:
        self._heard_ns: dict[tuple[HostName, str], tuple[int, int]] = {}
        self._since_ns: int | None = None

    def heard(self, state: State, host: HostName, agent: str, run: int, now_ns: int) -> None:
        """A heartbeat of this run arrived. What is not the run that the ledger knows says nothing about that one."""
        row = state.hosts.get(host)
        source = row.sources.get(agent) if row is not None else None
        if source is not None and source.run == run:
            self._heard_ns[host, agent] = (run, now_ns)

    def forget(self) -> None:
        """We may have been deaf ourselves: everybody gets time to speak."""
        self._since_ns = None

    def notes(self, state: State, now_ns: int) -> Iterator[HostHeard]:
        """What the ledger should take note of. An agent never heard counts as heard when we began to listen."""
        if self._since_ns is None:
            self._since_ns = now_ns
        for host, row in state.hosts.items():
            for agent, source in row.sources.items():
                run, heard_ns = self._heard_ns.get((host, agent), (0, 0))
                last_ns = max(self._since_ns, heard_ns if run == source.run else 0)
                is_silent = now_ns - last_ns > limits.HOST_SILENT_MS * 1_000_000
                if is_silent and source.complete and not source.stale:
                    yield HostHeard(host, agent, source.run, alive=False)
                elif source.complete and source.stale and run == source.run and not is_silent and heard_ns > 0:
                    yield HostHeard(host, agent, source.run, alive=True)
