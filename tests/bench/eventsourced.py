"""`python -m tests.bench.eventsourced write|log|aggregates FILE [EVENTS]`: leases as PyPI `eventsourcing` keeps them.

Its own aggregate, mapper (JSON) and SQLite recorder, as its documentation has them; written by the thousand. Prints how
many events they were.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

BATCH: Final = 999
PAGE: Final = 1_000
EVENTS_PER_LEASE: Final = 3


class Lease(Aggregate):
    """A lease: granted, renewed, released, with what stands in such events of ours."""

    @event("Granted")
    def __init__(
        self, principal: str, request_id: str, holder: str, devices: list[str], ttl_ms: int, expires_at_ns: int
    ) -> None:
        self.principal = principal
        self.request_id = request_id
        self.holder = holder
        self.devices = devices
        self.ttl_ms = ttl_ms
        self.expires_at_ns = expires_at_ns
        self.ended = ""

    @event("Renewed")
    def renew(self, request_id: str, expires_at_ns: int) -> None:
        """It lives on."""
        self.expires_at_ns = expires_at_ns

    @event("Released")
    def release(self, request_id: str) -> None:
        """It was given back."""
        self.ended = "released"


def _application(path: Path) -> Any:
    return Application({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)})


def write(path: Path, events: int) -> int:
    """So many events, three for each lease."""
    application = _application(path)
    batch: list[Any] = []
    written = 0
    for number in range(events // EVENTS_PER_LEASE):
        devices = [f"host-{number % 20:04}/pci/0000:03:{number % 32:02x}.0"]
        lease = Lease(f"scheduler-{number % 4}", f"request-{number}", f"vm:{number}", devices, 3_600_000, 10**18)
        lease.renew(f"request-{number}-renew", 10**18 + number)
        lease.release(f"request-{number}-release")
        batch += (application.mapper.to_stored_event(each) for each in lease.collect_events())
        if len(batch) >= BATCH:
            application.recorder.insert_events(batch)
            written += len(batch)
            batch.clear()
    application.recorder.insert_events(batch)
    application.close()
    return written + len(batch)


def log(path: Path) -> int:
    """Every event in the order in which it was recorded, applied to its aggregate."""
    application = _application(path)
    living: dict[UUID, Any] = {}
    done = 0
    while notifications := application.recorder.select_notifications(done + 1, PAGE):
        for notification in notifications:
            happened = application.mapper.to_domain_event(notification)
            lease = happened.mutate(living.pop(notification.originator_id, None))
            if not lease.ended:
                living[lease.id] = lease
        done = notifications[-1].id
    assert not living
    application.close()
    return done


def aggregates(path: Path) -> int:
    """Every aggregate as its repository gives it: its own events, applied one by one."""
    application = _application(path)
    done = 0
    while notifications := application.recorder.select_notifications(done + 1, PAGE):
        for notification in notifications:
            if notification.originator_version == EVENTS_PER_LEASE:
                assert application.repository.get(notification.originator_id).ended
        done = notifications[-1].id
    application.close()
    return done


def main(what: str, file: Path, *arguments: str) -> int:
    """One of these."""
    if what == "write":
        return write(file, int(arguments[0]))
    return log(file) if what == "log" else aggregates(file)


if __name__ == "__main__":
    print(json.dumps({"events": main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])}))
