"""A source of answers made by hand: pages as small as wanted, of a log that grows with every question."""

import msgspec

from leasehold.events.identities import DeviceId
from leasehold.events.position import end_of_record
from leasehold.events.questions import DevicesAt, Diff, Moment, Owners, Question, Reading, Utilisation, Who
from leasehold.events.views import ChangeView, DeviceView, OwnerView, UsageView

SECOND_NS = 10**9


def owner(number: int, **changes: object) -> OwnerView:
    """Who has device `number`, since record `number`."""
    row = OwnerView(
        device=DeviceId(f"h1/pci/0000:{number // 256:02x}:{number % 256:02x}.0"),
        lease=f"L{number * 256}",
        holder=f"vm:{number}",
        principal="alice@lab",
        tenant="lab",
        state="leased",
        from_position=number * 256,
        from_ns=number * SECOND_NS,
    )
    return msgspec.structs.replace(row, **changes)


def device(number: int, **changes: object) -> DeviceView:
    """A device without an owner."""
    row = DeviceView(
        name=f"pci_{number}",
        key=f"pci/0000:00:{number:02x}.0",
        host="h1",
        parent="",
        driver="",
        state="free",
        reason="",
        kind="pci",
        device=DeviceId(f"h1/pci/0000:00:{number:02x}.0"),
    )
    return msgspec.structs.replace(row, **changes)


def change(number: int, what: str = "owner") -> ChangeView:
    """Device `number` got an owner."""
    row = owner(number)
    return ChangeView(
        device=row.device, what=what, before="", after=row.holder, position=row.from_position, at_ns=row.from_ns
    )


def usage(number: int) -> UsageView:
    """Device `number` was held for half of two hours."""
    hour_ns = 3_600 * SECOND_NS
    return UsageView(
        name=owner(number).device, from_ns=0, to_ns=2 * hour_ns, leased_ns=hour_ns, ending_ns=1, leases=1, devices=1
    )


class GrowingSource:
    """Answers as an archive does. With every question a record more is there, with an owner and a device of its own."""

    def __init__(self, count: int, page: int = 3) -> None:
        self.sequence = count
        self.page = page
        self.asked: list[Question] = []

    async def question(self, verb: str, question: Question) -> Reading:
        """See `past.Source`."""
        self.asked.append(question)
        self.sequence += 1
        match question:
            case Owners() | DevicesAt():
                at = self._sequence_of(question.at)
                rows = [owner(number) for number in range(1, at + 1)]
                rows = [row for row in rows if row.device > question.after][: self.page]
                if isinstance(question, Owners):
                    return self._reading(at, owners=rows, more=rows[-1:] != [owner(at)] and bool(rows))
                views = [device(number) for number in range(1, at + 1)]
                views = [row for row in views if row.device > question.after][: self.page]
                return self._reading(at, devices=views, more=views[-1:] != [device(at)] and bool(views))
            case Who():
                at = self._sequence_of(question.to)
                rows = [owner(number) for number in range(1, at + 1) if number * 256 > question.after][: self.page]
                return self._reading(at, owners=rows, more=rows[-1].from_position < at * 256)
            case Diff():
                at, since = self._sequence_of(question.to), self._sequence_of(question.since)
                some = [number for number in range(since + 1, at + 1) if owner(number).device > question.after]
                changes = [change(number, what) for number in some[: self.page] for what in ("owner", "presence")]
                return self._reading(at, since, changes=changes, more=len(some) > self.page)
            case Utilisation():
                at, since = self._sequence_of(question.to), self._sequence_of(question.since)
                some = [number for number in range(1, at + 1) if owner(number).device > question.after]
                used = [usage(number) for number in some[: self.page]]
                return self._reading(at, since, usage=used, more=len(some) > self.page)
            case _:
                raise AssertionError(f"{verb} is not answered here")

    def _sequence_of(self, moment: Moment) -> int:
        if moment.ns:
            return min(moment.ns // SECOND_NS, self.sequence)
        return moment.position // 256 if moment.position else self.sequence

    def _reading(self, at: int, since: int = 0, **rows: object) -> Reading:
        reading = Reading(
            outcome="ok",
            as_of=end_of_record(self.sequence),
            at_position=end_of_record(at) if at else 0,
            at_ns=at * SECOND_NS,
            since_position=end_of_record(since) if since else 0,
            since_ns=since * SECOND_NS,
        )
        return msgspec.structs.replace(reading, **rows)
