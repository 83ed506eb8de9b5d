"""Xen's own tools inside the guest: what makes things happen, and what the ledger is held against."""

import shlex
from collections.abc import Sequence
from typing import Final, NamedTuple

from leasehold.services.poller import xltext
from leasehold.services.poller.xltext import Detail, Row
from tests.vm.guest import Guest
from tests.xen.image import DOMAINS_FILES

MEMORY_MB: Final = 128
_COMMAND_S: Final = 110.0
_PATH: Final = "/usr/lib/xen-4.17/bin"
_HIDDEN: Final = f"{_PATH}/xl.hidden"


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    text: str


class Xl:
    """The guest's `xl`."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    async def run(self, *words: str) -> Said:
        """Any of its commands."""
        done = await self._guest.ask("run", argv=["xl", *words], timeout_s=_COMMAND_S)
        return Said(done["code"], (done["out"] + done["err"]).strip())

    async def do(self, *words: str) -> str:
        """One that must do well; what it said."""
        code, text = await self.run(*words)
        assert code == 0, f"xl {shlex.join(words)}: {code} {text}"
        return text

    async def create(self, name: str, uuid: str, *, cards: Sequence[str] = (), on_crash: str = "destroy") -> Said:
        """Start a domain that has these devices; it may get others, too."""
        values: dict[str, object] = {
            "name": name,
            "uuid": uuid,
            "kernel": f"/{DOMAINS_FILES}/vmlinuz",
            "ramdisk": f"/{DOMAINS_FILES}/initrd.gz",
            "extra": "console=hvc0 iommu=soft sysrq_always_enabled panic=0",
            "memory": MEMORY_MB,
            "vcpus": 1,
            "on_crash": on_crash,
        }
        lines = [f"{key} = {value!r}" for key, value in values.items()]
        lines.append(f"pci = {list(cards)!r}" if cards else 'passthrough = "disabled"')
        await self._guest.write(f"/run/{name}.cfg", "\n".join(lines).replace("'", '"') + "\n")
        return await self.run("create", f"/run/{name}.cfg")

    async def rows(self) -> dict[str, Row]:
        """`xl list -v`, by uuid."""
        return {row.uuid: row for row in xltext.read_rows(await self.do("list", "-v"))}

    async def details(self) -> dict[str, Detail]:
        """`xl list -l`, by uuid."""
        out = await self._guest.run("xl", "list", "-l", timeout_s=_COMMAND_S)
        return {detail.uuid: detail for detail in xltext.read_details(out).values()}

    async def cards(self, name: str) -> list[str]:
        """The addresses of `xl pci-list`."""
        return sorted(line.split()[1] for line in (await self.do("pci-list", name)).splitlines()[1:])

    async def offered(self) -> list[str]:
        """The addresses of `xl pci-assignable-list`."""
        return sorted((await self.do("pci-assignable-list")).split())

    async def hide(self) -> None:
        """Take it away from whoever else uses it."""
        await self._guest.run("mv", f"{_PATH}/xl", _HIDDEN)

    async def unhide(self) -> None:
        """Put it back."""
        await self._guest.run("sh", "-c", f"[ ! -e {_HIDDEN} ] || mv {_HIDDEN} {_PATH}/xl")
