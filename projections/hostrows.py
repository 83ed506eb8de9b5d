"""The rows of the read models that tell of hosts: a part of the fold in `intervals`.

A row holds what a host was from a position on: its mode, whether somebody has said that it is off, why each of its
agents could not be relied on, and what operators said of all of it.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from leasehold.events import codec, event_types
from leasehold.events.hostdev_events import HostDeclaredDead
from leasehold.events.identities import HostName
from leasehold.events.inputs import BINDER, CREATOR, POLLER
from leasehold.events.schedule_events import Cordoned, Tainted, Uncordoned, Untainted
from leasehold.projections import marking
from leasehold.projections.marking import Marking
from leasehold.projections.modelrows import Doubt, HostRow, marks_in, sources_in
from leasehold.projections.rows import HostState, Marks, SourceState

HostEvent = (
    event_types.HostRegistered
    | event_types.SourceStarted
    | event_types.SourceStopped
    | event_types.HostWentStale
    | event_types.HostCameBack
    | event_types.ReportRequested
    | event_types.PictureCompleted
    | event_types.SourceWentBlind
    | event_types.SourceSeesAgain
    | event_types.AgentRetired
    | HostDeclaredDead
)
_replace: Final = msgspec.structs.replace


class _Host(msgspec.Struct):
    mode: str
    sources: dict[str, Doubt]
    dead: str = ""
    marks: Marks | None = None

    @property
    def has_reported(self) -> bool:
        """Whether who acts there, or where nobody does, who tells of its devices, has told all."""
        if BINDER in self.sources:
            return not self.sources[BINDER].incomplete
        telling = (doubt for agent, doubt in self.sources.items() if agent not in (CREATOR, POLLER))
        return any(not doubt.incomplete for doubt in telling)


class HostRows:
    """All hosts, each as its last row has it."""

    def __init__(self) -> None:
        self._hosts: dict[HostName, _Host] = {}

    def resume(self, rows: Iterable[HostRow]) -> None:
        """Go on from the last rows of all hosts."""
        self._hosts = {
            row.host: _Host(row.mode, sources_in(row.sources), row.dead, marks_in(row.marks)) for row in rows
        }

    def is_stale(self, name: HostName) -> bool:
        """Whether what is known of a host may be out of date."""
        host = self._hosts[name]
        return bool(as_state(host.mode, host.sources, host.dead).stale)

    def marked(self, position: int, at_ns: int, event: Marking) -> list[HostRow]:
        """The row from where an operator said something of a whole host. Raises KeyError if there is none."""
        assert isinstance(event, Cordoned | Uncordoned | Tainted | Untainted)
        host = self._hosts[event.host]
        host.marks = marking.marks_after(host.marks, position, event)
        return [self._row(position, at_ns, event.host)]

    def restored(self, position: int, at_ns: int) -> list[HostRow]:
        """The rows of all hosts from where the ledger was restored."""
        told = {name: host for name, host in self._hosts.items() if host.sources}
        for host in told.values():
            doubts = host.sources.items()
            why = "the ledger was restored"
            host.sources = {agent: _replace(doubt, stale=why, incomplete=True) for agent, doubt in doubts}
        return [self._row(position, at_ns, name) for name in told]

    def move(self, position: int, at_ns: int, event: HostEvent) -> list[HostRow]:
        """The row from this event on, if it changes anything. Raises KeyError if it cannot follow here."""
        if isinstance(event, event_types.HostRegistered):
            self._hosts.setdefault(event.host, _Host(event.mode, {})).mode = event.mode
            return [self._row(position, at_ns, event.host)]
        host = self._hosts[event.host]
        before = dict(host.sources), host.mode, host.dead
        self._change(host, event)
        is_same = before == (host.sources, host.mode, host.dead)
        return [] if is_same else [self._row(position, at_ns, event.host)]

    def _change(self, host: _Host, event: HostEvent) -> None:
        sources = host.sources
        match event:
            case HostDeclaredDead():
                host.sources = dict.fromkeys(sources, Doubt(stale="the host was declared dead", incomplete=True))
                host.dead = f"declared dead by {event.request.principal}: {event.reason}"
            case event_types.SourceStarted():
                sources[event.agent] = Doubt(stale="it has just started", incomplete=True)
            case event_types.SourceStopped():
                sources[event.agent] = _replace(sources[event.agent], stale="it was stopped", incomplete=True)
            case event_types.ReportRequested():
                sources[event.agent] = _replace(sources[event.agent], stale=event.reason, incomplete=True)
            case event_types.HostWentStale():
                sources[event.agent] = _replace(sources[event.agent], stale=event.reason)
            case event_types.HostCameBack():
                sources[event.agent] = _replace(sources[event.agent], stale="")
            case event_types.PictureCompleted():
                sources[event.agent] = _replace(sources[event.agent], stale="", incomplete=False)
                host.dead = "" if host.has_reported else host.dead
            case event_types.SourceWentBlind():
                sources[event.agent] = _replace(sources[event.agent], blind=event.reason)
            case event_types.SourceSeesAgain():
                sources[event.agent] = _replace(sources[event.agent], blind="")
            case event_types.AgentRetired():
                del sources[event.agent]
                # Nobody hands over there any more.
                host.mode = "watched" if event.agent == BINDER else host.mode
                host.dead = "" if host.has_reported else host.dead

    def _row(self, position: int, at_ns: int, name: HostName) -> HostRow:
        host = self._hosts[name]
        marks = codec.encode(host.marks) if host.marks is not None else b""
        return HostRow(name, position, at_ns, host.mode, codec.encode(host.sources), host.dead, marks)


def as_state(mode: str, doubts: dict[str, Doubt], dead: str, **fields: Any) -> HostState:
    """A host as the state has it, as far as its row says."""
    return HostState(
        mode=mode,
        sources={agent: SourceState(run=1, stale=doubt.stale, blind=doubt.blind) for agent, doubt in doubts.items()},
        dead=dead,
        **fields,
    )
