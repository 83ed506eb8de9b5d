#!/usr/bin/python3
"""`xl`, before Xen's own in PATH: a domain gets no host device that it has no lease for.

It asks before `create`, `pci-attach` and `usbdev-attach`, and tells behind `pci-detach`, `destroy` and `shutdown -w`.
All else, and all that was let through, it leaves to Xen's own `xl`, which it becomes.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import syslog
import time
from collections.abc import Iterator, Sequence
from typing import Any

from asking import (
    UUID,
    AskingFailedError,
    RefusedError,
    Settings,
    decided,
    has_ended,
    let_go,
    limit,
    may_have,
    note,
    settings_of_this_host,
    unlimited,
)

PCI_DEVICES = "/sys/bus/pci/devices"
_PCI = re.compile(r"(?:([0-9a-fA-F]{1,4}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})\.([0-7])")


class Xl:
    """Xen's own `xl`, and what it is asked to do."""

    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        self.settings = settings
        self.arguments = list(arguments)
        at = next((at for at, each in enumerate(arguments) if not each.startswith("-")), len(arguments))
        self.globals, self.command, self.rest = arguments[:at], "".join(arguments[at : at + 1]), arguments[at + 1 :]
        self.given = [each for each in self.rest if not each.startswith("-")]
        self.is_dry = "-N" in self.globals or bool({"-h", "--help", "-n", "--dryrun"} & set(self.rest))
        self.deadline_s = time.monotonic() + settings.timeout_s

    def ask(self) -> None:
        """Return if it may be done. Raises RefusedError, AskingFailedError."""
        if self.is_dry:
            return
        match self.command:
            case "create":
                self._create()
            case "pci-attach":
                self._attach(pci_words(self.given[1]) if len(self.given) > 1 else [])
            case "usbdev-attach":
                self._attach(_usb_words(self.given[1:]))

    def become(self) -> int:
        """Be Xen's own `xl` from here on."""
        try:
            os.execv(self.settings.xl, [self.settings.xl, *self.arguments])
        except OSError as error:
            note(syslog.LOG_ERR, f"{self.settings.xl} (setting xl): {error.strerror}")
        return 1

    def run_and_tell(self) -> int:
        """Have it done, and tell of it if it went well. Nothing is kept from being taken away."""
        domain, words = None, []
        try:
            limit(self.settings)
            domain = self._domain(self.given[0]) if self.given else None
            words = pci_words(self.given[1]) if self.command == "pci-detach" and len(self.given) > 1 else []
        except AskingFailedError as error:
            note(syslog.LOG_WARNING, str(error))
        finally:
            unlimited()
        done = subprocess.run([self.settings.xl, *self.arguments], check=False)
        if domain is not None and done.returncode == 0:
            with contextlib.suppress(AskingFailedError):
                limit(self.settings)
                if self.command != "pci-detach":
                    has_ended(self.settings, domain)
                elif words and self.settings.releases:
                    let_go(self.settings, "detach", domain, words)
            unlimited()
        return done.returncode if done.returncode >= 0 else 128 - done.returncode

    @property
    def ends_something(self) -> bool:
        """Whether a domain has let go of something when it is done. `shutdown` waits for that if it is told to; the
        end of another is seen by the poller, as that of a domain that halts by itself.
        """
        waits = bool({"-w", "--wait"} & set(self.rest)) and not {"-a", "--all"} & set(self.rest)
        return not self.is_dry and (self.command in {"destroy", "pci-detach"} or (self.command == "shutdown" and waits))

    def _told(self, *arguments: str) -> str:
        """What Xen's own `xl` says. Raises AskingFailedError."""
        left_s = max(0.1, self.deadline_s - time.monotonic())
        try:
            done = subprocess.run(
                [self.settings.xl, *arguments],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=left_s, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AskingFailedError(f"{self.settings.xl} cannot be asked: {error}") from None
        if done.returncode != 0:
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            raise AskingFailedError("xl {}: {}".format(" ".join(arguments), said))
        return done.stdout.decode(errors="replace")

    def _json(self, *arguments: str) -> Any:
        text = self._told(*arguments)
        starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
        try:
            return json.loads(text[min(starts, default=0) :])
        except (ValueError, RecursionError):
            raise AskingFailedError("xl {} does not print JSON".format(" ".join(arguments))) from None

    def _domain(self, which: str) -> dict[str, str]:
        """A domain that is there, by name or number."""
        told = self._json("list", "-l", which)
        told = told[0] if isinstance(told, list) and told else told
        return self._named(_part(told, "config"), which)

    def _named(self, config: Any, otherwise: str) -> dict[str, str]:
        info = _part(config, "c_info")
        uuid = str(info.get("uuid", "")).lower()
        if not UUID.fullmatch(uuid):
            raise AskingFailedError(f"xl knows no uuid of {otherwise}")
        return {"hypervisor": "xen", "uuid": uuid, "name": str(info.get("name") or otherwise)}

    def _create(self) -> None:
        """The configuration is read by `xl` itself, which makes up a uuid where none is said: that one is kept."""
        if "-" in self.rest or any(os.path.exists(each) and not os.path.isfile(each) for each in self.given):
            raise AskingFailedError("a configuration on standard input or in a pipe cannot be read twice")
        config = self._json(*self.globals, "create", "-n", *self.rest)
        words = sorted(set(_xl_words(config)))
        if not words:
            return
        domain = self._named(config, "the domain")
        self.arguments.append(f'uuid="{domain["uuid"]}"')
        try:
            may_have(self.settings, "start", domain, words)
        except RefusedError as error:
            again = self._json(*self.globals, "create", "-n", *self.rest)
            if self._named(again, "the domain")["uuid"] == domain["uuid"]:
                raise
            why = "its configuration has no uuid, so that no lease can be for it"
            raise RefusedError(f"{error} ({why})") from None

    def _attach(self, words: Sequence[str]) -> None:
        if not words:
            raise AskingFailedError(f"it is not clear which device xl {' '.join(self.arguments)} means")
        may_have(self.settings, "attach", self._domain(self.given[0]), words)


def _part(value: Any, name: str) -> dict[str, Any]:
    part = value.get(name) if isinstance(value, dict) else None
    if not isinstance(part, dict):
        raise AskingFailedError(f"xl tells of no {name}")
    return part


def pci_words(text: str) -> list[str]:
    """The words of a PCI device as `xl` takes it: `[dddd:]bb:dd.f[@slot][,option=…]`; `.*` is each function there is.

    Raises:
        AskingFailedError: it is none, or goes by a name that only libxl knows.
    """
    address = text.partition(",")[0].partition("@")[0]
    address = address.removeprefix("bdf=")
    if address.endswith(".*"):
        return _slot(f"{address[:-2]}.0")
    found = _PCI.fullmatch(address)
    if found is None:
        raise AskingFailedError(f"{text[:80]!r} is no PCI address")
    domain, bus, slot, function = (int(part or "0", 16) for part in found.groups())
    return [f"pci/{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"]


def _slot(first: str) -> list[str]:
    """All functions of the slot of this one that there are."""
    (word,) = pci_words(first)
    slot = word[len("pci/") : -1]
    try:
        names = os.listdir(PCI_DEVICES)
    except OSError as error:
        raise AskingFailedError(f"PCI devices cannot be listed: {error.strerror}") from None
    return ["pci/" + each for each in names if each.startswith(slot)]


def _usb_words(options: Sequence[str]) -> list[str]:
    said = dict(each.partition("=")[::2] for part in options for each in part.split(","))
    if not {"hostbus", "hostaddr"} <= said.keys():
        return []
    try:
        return ["usb-address/{}.{}".format(int(said["hostbus"], 0), int(said["hostaddr"], 0))]
    except ValueError:
        return []


def _xl_words(config: dict[str, Any]) -> Iterator[str]:
    """The host devices of a `libxl_domain_config`, where what is zero is left out."""
    for device in config.get("pcidevs", ()):
        if device.get("name"):
            raise AskingFailedError("the PCI device {!r} goes by a name that only libxl knows".format(device["name"]))
        values = tuple(device.get(name, 0) for name in ("domain", "bus", "dev", "func"))
        one = "{:04x}:{:02x}:{:02x}.{:x}".format(*values)
        # More than its own function: `libxl_pci_parse` of libxl_pci.c makes `.*` a mask of all.
        more = device.get("vfunc_mask", 0) & ~(1 << values[3] | 1)
        yield from _slot(one) if more else pci_words(one)
    for device in config.get("usbdevs", ()):
        host = device.get("type.hostdev") or {}
        yield "usb-address/{}.{}".format(host.get("hostbus", 0), host.get("hostaddr", 0))
    hvm = config.get("b_info", {}).get("type.hvm") or {}
    for text in (hvm.get("usbdevice"), *(hvm.get("usbdevice_list") or ())):
        # As QEMU has it: `host:1.3`, `host:0529:0001`.
        if text and text.startswith("host:"):
            name = text[len("host:") :]
            yield "usb-id/" + name.lower() if ":" in name else "usb-address/" + name


def main() -> int:
    """What Xen's own `xl` says; 1: it was not let do it."""
    settings = settings_of_this_host()
    xl = Xl(settings, sys.argv[1:])
    if xl.ends_something:
        return xl.run_and_tell()
    return xl.become() if decided(settings, xl.ask) else 1


if __name__ == "__main__":
    sys.exit(main())
