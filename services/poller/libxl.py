"""Xen's domains as libxl tells them, through Xen's own tools: the source where there is no xend.

| what | from |
|---|---|
| which domains there are, their names, numbers and states | `xl list -v` |
| memory, virtual CPUs, kind, PCI and USB devices | `xl list -l` |
| PCI devices that a domain has, whether it is listed or not | `xenstore-ls -f` of dom0's backend |
| PCI devices that libxl does not give away | bound to pciback and not in `xl pci-assignable-list` |
| that it is time to look | `xenstore-watch` |

That a device is in `xl pci-assignable-list` is no evidence that it is free: a refused `xl pci-attach` erases the key
by which libxl 4.17 knows the owner, and then the list offers a device that is in use. So a device counts as held if
any of these says so.

One trace is no sign: when a domain is destroyed that cannot give its device back, as one that has crashed, the
backend's folder stays in xenstore, while `xl` gives the device to the next domain that wants it. Such a folder is
passed over where Xen does not list the domain any more (it takes all devices back before it forgets a domain), the
folder's state is closed, and dom0's kernel serves no such backend.

What it cannot tell: domains that do not run, since libxl forgets them, and so what their files of configuration claim
(`configured` is what a running domain would have after a reboot); domains whose builder gave them no uuid; at once that
one is paused; whether a USB device is held by a domain that is not listed any more.

The tools come with Xen and fit it; they take no lock for reading. pyxs, the client library for xenstore, has had no
release since 2016, and what it could save is one child that waits.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from leasehold.events import limits
from leasehold.events.domains import DomainDescription, SeenDomain
from leasehold.events.errors import InvalidInputError, SourceUnavailableError
from leasehold.events.identities import domain_key, parse_pci_address, pci_key
from leasehold.projections.polling import Look
from leasehold.services.lifeline import tied_to_us
from leasehold.services.poller import xltext
from leasehold.services.poller.source import XEN, picture, uses_of
from leasehold.services.poller.xltext import Backend, Detail, Row

_log: Final = logging.getLogger(__name__)

BACKENDS: Final = "/local/domain/0/backend/pci"
PCIBACK: Final = Path("/sys/bus/pci/drivers/pciback")
SERVED: Final = Path("/sys/bus/xen-backend/devices")
"""What dom0's kernel does for domains, `pci-<domid>-<number>` among it."""
WATCHES: Final = ("@introduceDomain", "@releaseDomain", BACKENDS, "/libxl", "/vm")
"""Domains that begin and end or stop; PCI devices; devices of any kind, as libxl keeps them; names. Nothing in
xenstore tells that a domain is paused."""
OBSCURE_LOOKS: Final = 10
"""A domain that is listed without a configuration in so many looks is told without one. One that is just being made
has none either, for some seconds, and one whose creation is refused never gets one."""
_CHUNK_BYTES: Final = 1 << 16
_SAID_CHARS: Final = 200
_END_S: Final = 2.0

_Incarnation = tuple[str, int]
"""uuid and domid."""


class _Seen(NamedTuple):
    """What the tools said at one time."""

    rows: list[Row]
    details: dict[int, Detail]
    backends: Mapping[int, frozenset[str]] | None
    """By domid, also of domids that are not listed. `None`: there is no tool to ask."""
    withheld: frozenset[str]
    """Devices at pciback that libxl does not give away."""


class LibxlSource:
    """This host's libxl. It is used in dom0, as root."""

    def __init__(self, *, path: str = "", pciback: Path = PCIBACK, served: Path = SERVED) -> None:
        """`path`: folders, with colons, in which the tools are looked for before `PATH`."""
        search = os.pathsep.join(each for each in (path, os.environ.get("PATH", os.defpath)) if each)
        self._environment = {**os.environ, "LC_ALL": "C", "PATH": search}
        self._pciback = pciback
        self._served = served
        self._running: set[asyncio.subprocess.Process] = set()
        """Children that have not ended, of a look that may have been given up."""
        self._before: dict[_Incarnation, SeenDomain] = {}
        self._obscure: dict[_Incarnation, int] = {}
        """Of domains that were listed and never seen with a configuration: in how many looks."""
        self._watching: asyncio.Task[None] | None = None
        self._watcher: asyncio.subprocess.Process | None = None
        self._stirred = asyncio.Event()
        self._is_closed = False

    @property
    def title(self) -> str:
        """For people."""
        return "libxl, by xl"

    @property
    def rest_ms(self) -> int:
        """No more than where nothing is told: nobody tells that a domain is paused."""
        return limits.POLL_MS_MAX

    async def look(self, watched: frozenset[str]) -> Look:
        """See `Source.look`."""
        self._stirred.clear()
        for process in self._of_looks():
            await self._end(process)
        if self._of_looks():
            raise SourceUnavailableError("a tool of an earlier look does not end")
        try:
            return self._made_of(await self._ask(), watched)
        except InvalidInputError as error:
            raise SourceUnavailableError(f"what Xen's tools say cannot be read: {error}") from error

    async def changed(self) -> None:
        """See `Source.changed`. Where there is no `xenstore-watch`, or it has ended, nothing is told."""
        if (self._watching is None or self._watching.done()) and not self._is_closed:
            self._watching = asyncio.create_task(self._watch())
        await self._stirred.wait()

    async def close(self) -> None:
        """See `Source.close`."""
        self._is_closed = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for process in list(self._running):
            await self._end(process)

    # --- what is asked ----------------------------------------------------------------------------------------------

    async def _ask(self) -> _Seen:
        at_pciback = self._at_pciback()
        async with _Together() as tasks:
            rows = tasks.create_task(self._said("xl", "list", "-v"))
            details = tasks.create_task(self._said("xl", "list", "-l"))
            backends = tasks.create_task(self._backends())
            free = tasks.create_task(self._said("xl", "pci-assignable-list")) if at_pciback else None
        withheld = at_pciback - xltext.read_assignable(free.result()) if free is not None else frozenset()
        listed, backend = xltext.read_rows(rows.result()), backends.result()
        return _Seen(
            rows=listed,
            details=xltext.read_details(details.result()),
            # The kernel is asked last: it is done before it says in xenstore that it is.
            backends=None if backend is None else _had(backend, listed, _names(self._served)),
            withheld=withheld,
        )

    def _at_pciback(self) -> frozenset[str]:
        """Device words of what is bound to Xen's own driver; none where there is no such driver."""
        words = set()
        for name in _names(self._pciback):
            with contextlib.suppress(InvalidInputError):
                words.add(pci_key(parse_pci_address(name)))
        return frozenset(words)

    async def _backends(self) -> list[Backend] | None:
        if self._tool("xenstore-ls") is None:
            return None
        code, said, complaint = await self._run("xenstore-ls", "-f", BACKENDS)
        # There is no such folder until a device is given away for the first time.
        if code != 0 and "No such file or directory" not in complaint:
            raise _failed(("xenstore-ls",), code, complaint)
        return xltext.read_backends(said)

    async def _said(self, *command: str) -> str:
        """What a tool prints, that must do well."""
        code, said, complaint = await self._run(*command)
        if code != 0:
            raise _failed(command, code, complaint)
        return said

    def _tool(self, name: str) -> str | None:
        return shutil.which(name, path=self._environment["PATH"])

    async def _run(self, *command: str) -> tuple[int, str, str]:
        """Run a tool to its end: its exit code, what it printed and what it complained of."""
        program = self._tool(command[0])
        if program is None:
            raise SourceUnavailableError(f"{command[0]} is not installed here")
        process = await self._start(program, *command[1:], stderr=asyncio.subprocess.PIPE)
        try:
            async with _Together() as tasks:
                said = tasks.create_task(_read(process.stdout, command))
                complaint = tasks.create_task(_read(process.stderr, command))
            code = await process.wait()
        finally:
            if process.returncode is None:
                # It is reaped when it ends, which may be late where it waits for the kernel.
                process.kill()
            else:
                self._running.discard(process)
        return code, said.result(), complaint.result()

    async def _start(
        self, program: str, *words: str, stderr: int, tie: Callable[[], None] | None = None
    ) -> asyncio.subprocess.Process:
        """Start a tool. `tie`: for one that does not end by itself. Without it nothing of us is copied for the child,
        which takes long in dom0, where each page's entry is a matter for the hypervisor.
        """
        self._running = {each for each in self._running if each.returncode is None}
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *(program, *words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=self._environment,
                preexec_fn=tie,
            )
        )
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Given up while it starts: whoever is not waited for until then is lost to us.
            with contextlib.suppress(OSError):
                await self._end(await starting)
            raise
        except OSError as error:
            raise SourceUnavailableError(f"{program} cannot be started: {error.strerror}") from error
        self._running.add(process)
        return process

    def _of_looks(self) -> list[asyncio.subprocess.Process]:
        return [each for each in self._running if each is not self._watcher and each.returncode is None]

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await process.wait()
        self._running.discard(process)

    # --- what comes of it -------------------------------------------------------------------------------------------

    def _made_of(self, seen: _Seen, watched: frozenset[str]) -> Look:
        """What is not said of an incarnation now (a name while it is destroyed, its configuration) is as it was."""
        before, obscure = self._before, self._obscure
        self._before, self._obscure = {}, {}
        unclear: list[Row] = []
        for row in seen.rows:
            incarnation = (row.uuid, row.domid)
            detail = seen.details.get(row.domid)
            if detail is not None and detail.uuid != row.uuid:
                # Of another one: the first list was printed before the second.
                detail = None
            was = before.get(incarnation)
            if detail is None and was is None:
                looks = self._obscure[incarnation] = obscure.get(incarnation, 0) + 1
                if looks < OBSCURE_LOOKS and not _has_devices(seen, row.domid):
                    unclear.append(row)
                    continue
            # Whoever made a domain without a uuid gave it no identity: it has no place in the picture.
            if row.uuid != xltext.NO_UUID or row.domid == 0:
                self._before[incarnation] = _seen_domain(row, detail, seen.backends, was)
        return Look(
            domains=picture((each.domain, each.uses) for each in self._before.values()),
            held=_held(seen, watched),
            unclear_domids={row.domid: row.state for row in unclear},
            # One that begins anew has its name first; so it has not gone.
            unclear_names=frozenset(row.name for row in unclear if row.name),
        )

    # --- watching ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Tell that it is time to look, as long as `xenstore-watch` runs."""
        program = self._tool("xenstore-watch")
        if program is None:
            _log.info("xenstore-watch is not installed: Xen is asked from time to time only")
            # Nobody starts this anew.
            await asyncio.get_running_loop().create_future()
            return
        try:
            process = self._watcher = await self._start(
                program, *WATCHES, stderr=asyncio.subprocess.DEVNULL, tie=tied_to_us()
            )
        except SourceUnavailableError as error:
            _log.warning("%s", error)
            return
        try:
            assert process.stdout is not None
            while await process.stdout.read(_CHUNK_BYTES):
                self._stirred.set()
            _log.warning("xenstore-watch has ended with code %s; it is started anew", await process.wait())
        finally:
            await self._end(process)


class _Together(asyncio.TaskGroup):
    """A task group whose first trouble is raised as itself."""

    async def __aexit__(self, *how: object) -> None:
        try:
            await super().__aexit__(*how)  # type: ignore[arg-type]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


async def _read(stream: asyncio.StreamReader | None, command: Iterable[str]) -> str:
    assert stream is not None
    chunks: list[bytes] = []
    left = limits.XL_BYTES_MAX
    while chunk := await stream.read(_CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:
            raise SourceUnavailableError(f"{' '.join(command)} says more than {limits.XL_BYTES_MAX >> 20} MiB")
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def _names(folder: Path) -> frozenset[str]:
    """What is in a folder; nothing if there is none."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise SourceUnavailableError(f"{folder} cannot be read: {error.strerror}") from error


def _failed(command: Iterable[str], code: int, complaint: str) -> SourceUnavailableError:
    lines = complaint.strip().splitlines()
    said = lines[-1][:_SAID_CHARS] if lines else "it does not say why"
    return SourceUnavailableError(f"{' '.join(command)} ended with code {code}: {said}")


def _seen_domain(
    row: Row, detail: Detail | None, backends: Mapping[int, frozenset[str]] | None, was: SeenDomain | None
) -> SeenDomain:
    """One domain as it is now. `was`: this incarnation as it was told before."""
    last = was.domain if was else DomainDescription(key=domain_key(XEN, row.uuid))
    configured = set(detail.devices) if detail else {use.device for use in was.uses} if was else set()
    if backends is not None and not detail:
        # The backend tells of PCI devices without the configuration, too.
        configured = {word for word in configured if not word.startswith("pci/")}
    attached = configured | (backends.get(row.domid, frozenset()) if backends else frozenset())
    domain = msgspec.structs.replace(
        last,
        name=row.name or last.name,
        domid=row.domid,
        state=row.state,
        memory_bytes=(detail.memory_bytes if detail else last.memory_bytes) or row.memory_bytes,
        max_memory_bytes=detail.max_memory_bytes if detail else last.max_memory_bytes,
        vcpus=(detail.vcpus if detail else last.vcpus) or row.vcpus,
        kind=detail.kind if detail else last.kind,
    )
    return SeenDomain(domain, uses_of(configured, attached))


def _had(backends: Iterable[Backend], rows: Iterable[Row], served: frozenset[str]) -> Mapping[int, frozenset[str]]:
    """The devices of each domid, but for folders that were left behind."""
    listed = {row.domid for row in rows}
    had: dict[int, frozenset[str]] = {}
    for each in backends:
        is_served = f"pci-{each.domid}-{each.number}" in served
        if each.domid in listed or is_served or not each.is_closed:
            had[each.domid] = had.get(each.domid, frozenset()) | each.devices
    return had


def _has_devices(seen: _Seen, domid: int) -> bool:
    return bool(seen.backends and seen.backends.get(domid))


def _held(seen: _Seen, watched: frozenset[str]) -> frozenset[str] | None:
    """Those of these device words that some domain still has, by anybody's word; `None` if that cannot be told."""
    if seen.backends is None:
        return None
    held = set(seen.withheld)
    for words in seen.backends.values():
        held |= words
    for detail in seen.details.values():
        held.update(detail.devices)
    return frozenset(held & watched)
