"""Questions about the past, for programs: asked of the archives on the bus, or of an archive's files, without a bus.

async with Client() as client:
    async for row in Past(client).owners(at=datetime(2026, 11, 3, 14, 5, tzinfo=UTC), host="h1"):
        print(row.device, row.holder)

async with OfflineArchive(directory) as archive:
    usage = await Past(archive).utilisation(since=4352, by="holder").all()
"""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.questions import (
    Archived,
    ArchiveView,
    Blame,
    DevicesAt,
    Diff,
    DomainsAt,
    Moment,
    Owners,
    Question,
    Reading,
    Utilisation,
    Who,
)
from leasehold.events.views import CauseView, ChangeView, DeviceView, DomainView, OwnerView, UsageView

PAGES_MAX: Final = 10_000
EVERY_MS_MIN: Final = 1_000
EVERY_MS_MAX: Final = 36_525 * 24 * 3_600_000
BEGINNING: Final = Moment(ns=1)
"""No record was there. `Moment()` would say "as far as was read"."""

Row = TypeVar("Row")
When = Moment | datetime | int
"""A moment, a time (with a zone), or a position (0: before everything)."""


class Source(Protocol):
    """Whoever answers questions: a `Client`, or an `OfflineArchive`."""

    async def question(self, verb: str, question: Question) -> Reading:
        """The answer, which is `ok`.

        Raises:
            InvalidInputError: the question cannot be taken as it is, or names nothing that is known.
            UnavailableError: nobody can answer it now.
        """
        ...


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which places in the log an answer is of; see `Reading` for each of them."""

    as_of: int
    at_position: int
    at_ns: int
    since_position: int
    since_ns: int


class Rows(Generic[Row]):
    """The rows of an answer, asked for page by page as they are walked; all of them of the same place in the log."""

    def __init__(self, pages: AsyncIterator[Reading], rows_of: Callable[[Reading], list[Row]]) -> None:
        self._pages = pages
        self._rows_of = rows_of
        self.place: Place | None = None
        """Known when the first page has come, also if it has no rows."""

    async def __aiter__(self) -> AsyncIterator[Row]:
        """The rows, once. Raises as `Source.question` does."""
        async for page in self._pages:
            self.place = self.place or msgspec.convert(page, Place, from_attributes=True)
            for row in self._rows_of(page):
                yield row

    async def all(self) -> list[Row]:
        """All rows that are left. Raises as `Source.question` does."""
        return [row async for row in self]


class Past:
    """Asks a source about the past. Every method that returns rows asks nothing before they are walked."""

    def __init__(self, source: Source) -> None:
        """`source` stays its owner's."""
        self._source = source

    def owners(self, at: When | None = None, *, host: str = "", device: str = "") -> Rows[OwnerView]:
        """Who had which device then; what had no owner is left out."""
        question = Owners(at=moment_of(at), host=host, device=device)
        return self._rows("owners", question, lambda page: page.owners, lambda row: row.device)

    def devices(
        self,
        at: When | None = None,
        *,
        host: str = "",
        device: str = "",
        cap: str = "",
        bus: str = "",
        parent: str = "",
        driver: str = "",
        present: bool = False,
    ) -> Rows[DeviceView]:
        """The devices as they were then, by what `Client.devices` takes; or the one that was called `device`."""
        question = DevicesAt(
            at=moment_of(at),
            host=host,
            device=device,
            cap=cap,
            bus=bus,
            parent=parent,
            driver=driver,
            present=present,
        )
        return self._rows("devices_at", question, lambda page: page.devices, lambda row: row.device)

    async def count(
        self,
        at: When | None = None,
        *,
        host: str = "",
        cap: str = "",
        bus: str = "",
        parent: str = "",
        driver: str = "",
    ) -> tuple[int, Place]:
        """How many devices were there then, as `Client.count`, and of which place that is."""
        reading = await self._source.question(
            "devices_at",
            DevicesAt(at=moment_of(at), host=host, cap=cap, bus=bus, parent=parent, driver=driver, count_only=True),
        )
        return reading.count, msgspec.convert(reading, Place, from_attributes=True)

    def domains(self, at: When | None = None, *, host: str = "", domain: str = "", state: str = "") -> Rows[DomainView]:
        """The domains as they were then, by what `Client.domains` takes."""
        question = DomainsAt(at=moment_of(at), host=host, domain=domain, state=state)
        return self._rows("domains_at", question, lambda page: page.domains, lambda row: row.domain)

    def diff(self, since: When, to: When | None = None, *, host: str = "") -> Rows[ChangeView]:
        """What was different at `to` from `since`."""
        question = Diff(since=moment_of(since), to=moment_of(to), host=host)
        return self._rows("diff", question, lambda page: page.changes, lambda row: row.device)

    def who(self, device: str, *, host: str = "", since: When = 0, to: When | None = None) -> Rows[OwnerView]:
        """Who had a device between two moments, oldest first; by default in all its past."""
        question = Who(device=device, host=host, since=moment_of(since), to=moment_of(to))
        return self._rows("who", question, lambda page: page.owners, lambda row: row.from_position)

    def blame(self, request_id: str, *, principal: str = "") -> Rows[CauseView]:
        """Why a request was decided as it was: the chain of causes, each below what it is a cause of."""
        question = Blame(request_id=request_id, principal=principal)
        return self._rows("blame", question, lambda page: page.causes)

    def utilisation(
        self,
        since: When,
        to: When | None = None,
        *,
        every_ms: int | None = None,
        by: str = "device",
        host: str = "",
        device: str = "",
        holder: str = "",
    ) -> Rows[UsageView]:
        """How much devices were held (`by="device"`), or holders held devices (`by="holder"`), in spans of `every_ms`.

        Raises:
            InvalidInputError: such spans cannot be.
        """
        if every_ms is not None and not EVERY_MS_MIN <= every_ms <= EVERY_MS_MAX:
            raise InvalidInputError(f"{every_ms} ms is not between a second and 100 years", field="every")
        question = Utilisation(
            by=by,
            since=moment_of(since),
            to=moment_of(to),
            every_ns=(every_ms or 0) * 10**6,
            host=host,
            device=device,
            holder=holder,
        )
        return self._rows("utilisation", question, lambda page: page.usage, lambda row: row.name)

    async def place(self, at: When | None = None) -> Place:
        """Which place in the log a moment is. Raises as `Source.question` does."""
        reading = await self._source.question("owners", Owners(at=moment_of(at), limit=1))
        return msgspec.convert(reading, Place, from_attributes=True)

    async def archive(self) -> ArchiveView:
        """How it stands with the archive that answers. Raises as `Source.question` does."""
        reading = await self._source.question("archived", Archived())
        assert reading.archive is not None
        return reading.archive

    def _rows(
        self,
        verb: str,
        question: Question,
        rows_of: Callable[[Reading], list[Row]],
        name_of: Callable[[Row], str | int] | None = None,
    ) -> Rows[Row]:
        """`name_of` a row is what the next page begins behind; without it all rows come in one page."""
        return Rows(self._pages(verb, question, rows_of, name_of), rows_of)

    async def _pages(
        self,
        verb: str,
        question: Question,
        rows_of: Callable[[Reading], list[Row]],
        name_of: Callable[[Row], str | int] | None,
    ) -> AsyncIterator[Reading]:
        for _ in range(PAGES_MAX):
            page = await self._source.question(verb, question)
            yield page
            if not page.more or name_of is None:
                return
            question = msgspec.structs.replace(question, after=name_of(rows_of(page)[-1]), **_pinned(question, page))
        raise UnavailableError(f"more than {PAGES_MAX} pages; ask for one host, or for a shorter span")


def _pinned(question: Question, page: Reading) -> dict[str, Moment]:
    """The question's moments that are the end of what was read, so that the next page is not of a later end.

    What lies before the end stays where it is, and a time there is not the time of the record before it.
    """
    names = {"at": page.at_position, "to": page.at_position, "since": page.since_position}
    return {
        name: Moment(position=position)
        for name, position in names.items()
        if position and position == page.as_of and name in question.__struct_fields__
    }


def moment_of(when: When | None) -> Moment:
    """A moment of any kind as questions hold it; none: as far as has been read.

    Raises:
        InvalidInputError: a time without a zone, or from before 1970, or a negative position.
    """
    if when is None:
        return Moment()
    if isinstance(when, Moment):
        return when
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise InvalidInputError(f"{when} has no zone; add one, like datetime.now(UTC)", field="at")
        ns = ns_of(when)
        if ns <= 0:
            raise InvalidInputError(f"{when} is before 1970", field="at")
        return Moment(ns=ns)
    if when < 0:
        raise InvalidInputError(f"{when} is no position; they begin at 0", field="at")
    return Moment(position=when) if when else BEGINNING


def ns_of(at: datetime) -> int:
    """A time with a zone as ns since 1970, exactly."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000
