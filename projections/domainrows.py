"""The rows of the read models that tell of domains: a part of the fold in `intervals`.

A row holds all that was known of a domain from a position on, with all that it used: a domain changes seldom, and one
row is all that it takes to show it as it was.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from leasehold.events import codec, event_types
from leasehold.events.domains import Use
from leasehold.events.identities import DomainId, HostName, domain_id
from leasehold.projections.bonds import has_devices
from leasehold.projections.modelrows import DomainRow

DomainEvent = (
    event_types.DomainAppeared
    | event_types.DomainChanged
    | event_types.DomainStarted
    | event_types.DomainVanished
    | event_types.AttachmentSeen
    | event_types.AttachmentGone
)
_uses: Final = msgspec.json.Decoder(set[Use])
_replace: Final = msgspec.structs.replace


class DomainRows:
    """The domains that are there, each with its last row."""

    def __init__(self) -> None:
        self._rows: dict[DomainId, DomainRow] = {}

    def resume(self, rows: Iterable[DomainRow]) -> None:
        """Go on from the last rows of all domains that are there."""
        self._rows = {row.domain: row for row in rows}

    def move(self, position: int, at_ns: int, event: DomainEvent) -> DomainRow:
        """The row from this event on. Raises KeyError or AssertionError if it cannot follow here."""
        match event:
            case event_types.DomainAppeared():
                domain = domain_id(event.host, event.domain.key)
                assert domain not in self._rows, f"{domain} is known already"
                row = DomainRow(
                    domain=domain,
                    from_position=position,
                    at_ns=at_ns,
                    host=event.host,
                    agent=event.agent,
                    there=has_devices(event.domain),
                    name=event.domain.name,
                    state=event.domain.state,
                    since_position=position,
                    since_ns=at_ns,
                    body=codec.encode(event.domain),
                    uses=codec.encode(()),
                )
            case event_types.DomainChanged() | event_types.DomainStarted():
                row = _replace(
                    self._moved(domain_id(event.host, event.domain.key), position, at_ns),
                    there=has_devices(event.domain),
                    name=event.domain.name,
                    state=event.domain.state,
                    body=codec.encode(event.domain),
                )
                if isinstance(event, event_types.DomainStarted):
                    row = _replace(row, since_position=position, since_ns=at_ns)
            case event_types.DomainVanished():
                return self._gone(domain_id(event.host, event.key), position, at_ns)
            case _:
                row = self._moved(domain_id(event.host, event.domain), position, at_ns)
                uses, use = _uses.decode(row.uses), Use(event.device, event.use)
                uses = uses | {use} if isinstance(event, event_types.AttachmentSeen) else uses - {use}
                row = _replace(row, uses=codec.encode(sorted(uses)))
        self._rows[row.domain] = row
        return row

    def retire(self, position: int, at_ns: int, host: HostName, agent: str) -> Iterator[DomainRow]:
        """The rows of all domains that only this agent told of: they are forgotten."""
        gone = [row.domain for row in self._rows.values() if (row.host, row.agent) == (host, agent)]
        return (self._gone(domain, position, at_ns) for domain in gone)

    def _moved(self, domain: DomainId, position: int, at_ns: int) -> DomainRow:
        return _replace(self._rows[domain], from_position=position, at_ns=at_ns)

    def _gone(self, domain: DomainId, position: int, at_ns: int) -> DomainRow:
        row = _replace(self._moved(domain, position, at_ns), gone=True, there=False, uses=codec.encode(()))
        del self._rows[domain]
        return row
