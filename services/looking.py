"""What may be asked of how it is: the half of the client that changes nothing."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.questions import (
    Explain,
    History,
    ListDevices,
    ListDomains,
    ListDrifts,
    ListHostdevs,
    ListHosts,
    ListLeases,
    ListOrders,
    Question,
    Reading,
    Show,
    Status,
    StatusView,
)
from leasehold.events.views import (
    DeviceView,
    DomainView,
    DriftView,
    HistoryRow,
    HostdevView,
    HostView,
    LeaseView,
    OrderView,
)

PAGES_MAX: Final = 10_000
NAMED_MAX: Final = 8
"""So many domains are named where a name could mean any of them."""

Row = TypeVar("Row", DeviceView, LeaseView, HostView, OrderView, DomainView, HostdevView, DriftView)


class Looking:
    """Asks whoever `question` reaches. Every method raises as that does."""

    async def question(self, verb: str, question: Question) -> Reading:
        """The answer to any question, which is `ok`."""
        raise NotImplementedError

    async def devices(
        self, *, host: str = "", cap: str = "", bus: str = "", parent: str = "", driver: str = "", present: bool = False
    ) -> list[DeviceView]:
        """Devices in the order of their ids: all, missing ones, too; or those that are there (`present`) and of all
        that is said: the capability `cap` (`net`; `pci,usb_device`: either), the `bus` (`pci`, `usb`), right below
        `parent` (any name; `computer`: below none), bound to `driver` (`none`: to none).
        """
        question = ListDevices(host=host, cap=cap, bus=bus, parent=parent, driver=driver, present=present)
        return await self._all("list_devices", question, lambda page: page.devices, lambda row: row.device)

    async def count(self, *, host: str = "", cap: str = "", bus: str = "", parent: str = "", driver: str = "") -> int:
        """How many devices are there, of all that is said; as `devices`."""
        question = ListDevices(host=host, cap=cap, bus=bus, parent=parent, driver=driver, count_only=True)
        return (await self.question("list_devices", question)).count

    async def device(self, name: str, *, host: str = "") -> DeviceView:
        """One device, by node-device name, key, address or sysfs path."""
        row = await self.show(name, host=host)
        if not isinstance(row, DeviceView):
            raise InvalidInputError(f"{name} is a lease", field="name")
        return row

    async def leases(self, *, holder: str = "", ended: bool = False) -> list[LeaseView]:
        """Leases in the order of their grants."""
        question = ListLeases(holder=holder, ended=ended)
        return await self._all("list_leases", question, lambda page: page.leases, lambda row: int(row.lease[1:]))

    async def domains(self, *, host: str = "", domain: str = "", state: str = "") -> list[DomainView]:
        """Domains in the order of their ids: all, or those that are so called (by name, uuid, key or id), in this state
        (one of `events.domains.STATES`).
        """
        question = ListDomains(host=host, domain=domain, state=state)
        return await self._all("list_domains", question, lambda page: page.domains, lambda row: row.domain)

    async def domain(self, name: str, *, host: str = "") -> DomainView:
        """One domain, by name, uuid, key or id.

        Raises:
            InvalidInputError: there is none, or there are several: name one of these by its id, or the host.
        """
        return the_one(name, await self.domains(host=host, domain=name))

    async def hostdevs(self, *, host: str = "", bus: str = "", state: str = "", domain: str = "") -> list[HostdevView]:
        """Devices that are in use (`state`: `active`) or bound to a stub and nobody's (`inactive`), in the order of
        their ids: all, of one `bus` (`pci`, `usb`), or only those that `domain` (its name, uuid, key or id) uses.
        """
        question = ListHostdevs(host=host, bus=bus, state=state, domain=domain)
        return await self._all("list_hostdevs", question, lambda page: page.hostdevs, lambda row: row.device)

    async def active_pci(self, *, host: str = "", domain: str = "") -> list[HostdevView]:
        """PCI devices that are in use; as `hostdevs`."""
        return await self.hostdevs(host=host, bus="pci", state="active", domain=domain)

    async def inactive_pci(self, *, host: str = "") -> list[HostdevView]:
        """PCI devices that are bound to a stub, and that nobody has."""
        return await self.hostdevs(host=host, bus="pci", state="inactive")

    async def active_usb(self, *, host: str = "", domain: str = "") -> list[HostdevView]:
        """USB devices that are in use; as `hostdevs`."""
        return await self.hostdevs(host=host, bus="usb", state="active", domain=domain)

    async def drifts(self, *, host: str = "", device: str = "") -> list[DriftView]:
        """Devices about which the ledger, the hypervisors and the host do not agree, or one of them by any name."""
        question = ListDrifts(host=host, device=device)
        return await self._all("list_drifts", question, lambda page: page.drifts, lambda row: row.device)

    async def hosts(self) -> list[HostView]:
        """All hosts."""
        return await self._all("list_hosts", ListHosts(), lambda page: page.hosts, lambda row: row.host)

    async def orders(self, *, host: str = "", ended: bool = False) -> list[OrderView]:
        """What hosts were told to do, oldest first; with `ended` also what is over, as far as it is remembered."""
        question = ListOrders(host=host, ended=ended)
        return await self._all("list_orders", question, lambda page: page.orders, lambda row: row.order)

    async def _all(
        self,
        verb: str,
        question: Question,
        rows_of: Callable[[Reading], list[Row]],
        name_of: Callable[[Row], str | int],
    ) -> list[Row]:
        """All pages of a list; the next one begins behind `name_of` the last row."""
        rows: list[Row] = []
        for _ in range(PAGES_MAX):
            reading = await self.question(verb, question)
            rows.extend(rows_of(reading))
            if not reading.more:
                break
            question = msgspec.structs.replace(question, after=name_of(rows[-1]))
        return rows

    async def history(self, name: str, *, host: str = "", kind: str = "", after: int = 0) -> AsyncIterator[HistoryRow]:
        """What happened to a device, domain, lease, holder, host or principal, oldest first, from behind `after`."""
        for _ in range(PAGES_MAX):
            reading = await self.question("history", History(name=name, host=host, kind=kind, after=after))
            for row in reading.history:
                yield row
            if not reading.more or not reading.history:
                return
            after = reading.history[-1].position

    async def show(self, name: str, *, host: str = "") -> DeviceView | LeaseView:
        """One device or lease."""
        reading = await self.question("show", Show(name=name, host=host))
        return reading.devices[0] if reading.devices else reading.leases[0]

    async def explain(self, name: str, *, host: str = "", holder: str = "") -> Reading:
        """Why a device can or cannot be leased now, or how a request was decided."""
        return await self.question("explain", Explain(name=name, host=host, holder=holder))

    async def status(self) -> StatusView:
        """How it stands."""
        reading = await self.question("status", Status())
        assert reading.status is not None
        return reading.status


def the_one(name: str, rows: list[DomainView]) -> DomainView:
    """The domain that is called so.

    Raises:
        InvalidInputError: none is, or several are.
    """
    if not name:
        raise InvalidInputError("'' is no domain's: say its name, uuid, key or id", field="name")
    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise InvalidInputError(f"no domain {name} is known", field="name")
    raise InvalidInputError(several_text(name, [row.domain for row in rows]), field="name")


def several_text(text: str, domains: Sequence[str]) -> str:
    """What is said of a name that could mean any of these ids."""
    more = f" and {len(domains) - NAMED_MAX} more" if len(domains) > NAMED_MAX else ""
    return f"{text} could be {', '.join(domains[:NAMED_MAX])}{more}: name one of these, or the host"
