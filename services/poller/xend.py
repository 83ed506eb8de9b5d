"""xend as a source: by its XML-RPC, which is on by default, or else by its HTTP. It tells nothing by itself.

| | XML-RPC | HTTP |
|---|---|---|
| domains that run | all that are known in two requests | in two requests |
| others | with these | one request each; of those that rest, a few at each look |
| whether a device that was taken from a domain is free | asked when one was taken | cannot be told |

Neither can tell of: a USB device that was plugged into a running HVM guest by `usb_add`; whether a running domain's
device is also in the configuration that it will start with; a domain that is dying, which xend does not list (what
it holds is told by what is not free).
"""

import asyncio
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import quote

from leasehold.events import limits
from leasehold.events.domains import DomainPicture, SeenDomain
from leasehold.events.errors import (
    SourceUnavailableError,
    XendError,
    XendFailedError,
    XendNoReplyError,
    XendNotFoundError,
    XendUnavailableError,
    XendUnsupportedError,
)
from leasehold.projections.polling import Look
from leasehold.services.poller import xendtext
from leasehold.services.xend import answers, rpc
from leasehold.services.xend.address import TCP, UNIX, XMLRPC, XMLRPC_UNIX, Address, listed, parse
from leasehold.services.xend.http import Request, exchange
from leasehold.services.xend.rpc import Param
from leasehold.services.xend.sxp import Sxp

AUTO: Final = "auto"
TIMEOUT_S: Final = limits.POLL_TIMEOUT_MS / 1_000
RESTING_READ_MAX: Final = 32
"""Over HTTP, of domains that neither run nor are new, so many are read again at each look."""
SYSFS: Final = Path("/sys/bus/pci")
_BACKENDS: Final = ("pciback", "xen-pciback", "pci-stub")
"""Drivers of what may be given to domains."""


class XendSource:
    """A xend of this host."""

    rest_ms = limits.POLL_MS_MAX

    def __init__(self, url: str = AUTO, *, sysfs: Path = SYSFS) -> None:
        """`url`: as `services.xend.address` reads it; `auto`: where it usually is, XML-RPC first. `sysfs`: PCI's.

        Raises:
            InvalidInputError: that is no address.
        """
        self._addresses = [XMLRPC_UNIX, UNIX, TCP] if url in ("", AUTO) else [parse(url)]
        self._sysfs = sysfs
        self._resting: dict[str, SeenDomain] = {}
        """Domains that do not run, by name, as they were last read over HTTP; those read longest ago first."""

    @property
    def title(self) -> str:
        """For people."""
        return f"xend at {listed(self._addresses)}"

    async def look(self, watched: frozenset[str]) -> Look:
        """See `Source.look`."""
        unreached = []
        for address in self._addresses:
            try:
                look = await (self._by_rpc if address.protocol == XMLRPC else self._by_http)(address, watched)
            except XendNoReplyError as error:
                raise SourceUnavailableError(f"xend: {error}") from error
            except XendUnavailableError as error:
                unreached.append(str(error))
            except XendError as error:
                raise SourceUnavailableError(f"xend at {address}: {error}") from error
            else:
                # Where it was found it is looked for first.
                self._addresses.sort(key=lambda each: each != address)
                return look
        raise SourceUnavailableError(f"xend: {'; '.join(unreached)}")

    async def changed(self) -> NoReturn:
        """It never says so."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def close(self) -> None:
        """Nothing is kept open."""

    # --- XML-RPC ----------------------------------------------------------------------------------------------------

    async def _by_rpc(self, address: Address, watched: frozenset[str]) -> Look:
        # A domain that xend fails to describe is missing in the list of descriptions, and not among the names.
        generation = _generation(address)
        names = xendtext.all_names(await _call(address, "xend.domains_with_state", False, "all", False))
        described = await _call(address, "xend.domains_with_state", True, "all", True)
        domains, unclear = _read_all(described)
        found = {seen.domain.name for seen in domains.values()}
        return Look(
            domains=domains,
            held=await self._held(address, watched, domains),
            unclear_names=frozenset(unclear | (set(names) - found)),
            generation=generation,
        )

    async def _held(self, address: Address, watched: frozenset[str], domains: DomainPicture) -> frozenset[str] | None:
        """Which of the watched devices are not free, though no domain that is listed has them."""
        taken = {word for word in watched - _attached(domains) if word.startswith("pci/")}
        if not taken:
            return frozenset()
        try:
            free = xendtext.free_pci_words(await _call(address, "xend.node.pciinfo"))
        except (XendUnsupportedError, XendFailedError):
            return None
        return frozenset(word for word in taken - free if self._may_be_given(word))

    def _may_be_given(self, word: str) -> bool:
        """Whether a function is for domains; one that the host uses by now, or that is gone, no domain has."""
        drivers = self._sysfs / "drivers"
        if not any((drivers / name).is_dir() for name in _BACKENDS[:2]):
            # This is not where that xend runs.
            return True
        return (self._sysfs / "devices" / word.removeprefix("pci/") / "driver").resolve().name in _BACKENDS

    # --- HTTP -------------------------------------------------------------------------------------------------------

    async def _by_http(self, address: Address, _watched: frozenset[str]) -> Look:
        generation = _generation(address)
        names = xendtext.all_names(await _get(address, "?state=all"))
        domains, unclear = _read_all(await _get(address, "?detail=1"))
        running = {seen.domain.name for seen in domains.values()} | unclear
        others = [name for name in names if name not in running]
        resting: set[str] = set()
        for state in ("halted", "suspended") if others else ():
            resting.update(xendtext.names(await _get(address, f"?state={state}")))
        self._resting = {name: seen for name, seen in self._resting.items() if name in resting and name in others}
        again = set(list(self._resting)[:RESTING_READ_MAX])
        read = await _read_each(address, [name for name in others if name not in self._resting or name in again])
        for name, seen in read.items():
            self._resting.pop(name, None)
            if seen is None:
                unclear.add(name)
            elif name in resting:
                self._resting[name] = seen
        for seen in (*self._resting.values(), *read.values()):
            if seen is not None:
                domains.setdefault(seen.domain.key, seen)
        return Look(domains=domains, held=None, unclear_names=frozenset(unclear), generation=generation)


async def _read_each(address: Address, names: Iterable[str]) -> dict[str, SeenDomain | None]:
    """These domains, a few at a time; `None`: it cannot be read. Those that have gone by now are left out."""
    room = asyncio.Semaphore(limits.POLL_REQUESTS_MAX)
    found: dict[str, SeenDomain | None] = {}

    async def read(name: str) -> None:
        async with room:
            try:
                found[name] = xendtext.read_domain(await _get(address, f"/{quote(name, safe='')}"))
            except XendNotFoundError:
                pass
            except XendFailedError:
                found[name] = None

    try:
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(read(name))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
    return found


def _read_all(described: Sxp) -> tuple[DomainPicture, set[str]]:
    """Domains from a list of their expressions; and the names of those that cannot be read."""
    domains: DomainPicture = {}
    unclear = set()
    for expression in xendtext.listed(described):
        seen = xendtext.read_domain(expression)
        if seen is None:
            unclear.add(xendtext.name_of(expression))
        else:
            domains[seen.domain.key] = seen
    return domains, unclear


def _attached(domains: DomainPicture) -> set[str]:
    return {use.device for seen in domains.values() for use in seen.uses if use.use == "attached"}


def _generation(address: Address) -> str:
    """xend makes its socket anew each time that it starts; where there is none this cannot be told."""
    try:
        found = os.stat(address.path)
    except (OSError, ValueError):
        return str(address)
    return f"{address} {found.st_ino} {found.st_mtime_ns}"


async def _call(address: Address, method: str, *params: Param) -> Sxp:
    reply = await exchange(address, rpc.request_of(method, params)._replace(only_asks=True), timeout_s=TIMEOUT_S)
    return await asyncio.to_thread(rpc.value_of, reply, method)


async def _get(address: Address, rest: str) -> Sxp:
    reply = await exchange(address, Request("poll", "GET", f"/xend/domain{rest}"), timeout_s=TIMEOUT_S)
    return await asyncio.to_thread(partial(answers.value_of, reply, "poll", may_be_empty=False))
