"""What happens on the stand-in's host, with time as an argument: starts, reboots, crashes, deaths.

The moments a domain's life goes through by itself (`Domain.doing`):

| `doing` | how it came there | what is next |
|---|---|---|
| `asked <reason>` | the guest was asked to shut down; it does not hear it while it is paused, or deaf | `ended` |
| `ended <reason>` | the guest has stopped; the letter is `s` for a moment | by `on_poweroff` or `on_reboot` |
| `crashed` | the guest crashed; xend writes its notes | by `on_crash`: nothing, or `ending` |
| `ending <how>` | xend destroys it; the letters are `--p-c-` | gone, or `starting` |
| `starting` | it is gone and to be started again | runs, with another number |
"""

import copy
from collections.abc import Iterator
from typing import Final

from leasehold.events.errors import XendSimError
from leasehold.services.xendsim.configuring import Maker
from leasehold.services.xendsim.state import (
    DOMAINS_MAX,
    LOG_LINES_MAX,
    ZERO_UUID,
    Device,
    Domain,
    Dying,
    Parsed,
    PciFunction,
    State,
    next_domid,
)

HALTED, PAUSED, RUNNING, SUSPENDED, SHUTTING_DOWN, CRASHED, UNKNOWN = range(7)
STATE_WORDS: Final = {
    "halted": HALTED,
    "paused": PAUSED,
    "running": RUNNING,
    "suspended": SUSPENDED,
    "crashed": CRASHED,
    "unknown": UNKNOWN,
}
REASONS: Final = ("poweroff", "reboot", "suspend", "crash", "halt")
_OWNERS: Final = ("pciback", "pci-stub")
_FIRST_SLOT: Final = 4
_AUTO: Final = 0x100
"""The bit of a `vdevfn` that leaves the slot to the hypervisor."""
_KIND_ORDER: Final = {"vif": 0, "console": 1, "vbd": 2, "tap": 2, "vfb": 3, "vkbd": 4, "pci": 5, "vusb": 6}
DMESG: Final = (
    "(XEN) Xen version 4.4.4 (root@buildhost) (gcc (Debian 4.9.2-10) 4.9.2) debug=n Tue Mar 28 18:57:52 UTC 2017\n"
    "(XEN) Latest ChangeSet: Tue Mar 28 18:57:52 2017 +0100 git:6bf0560\n"
    "(XEN) Bootloader: GRUB 2.02\n"
    "(XEN) Command line: placeholder dom0_mem=4096M\n"
    "(XEN) I/O virtualisation enabled\n"
)


class Host:
    """The hypervisor, and what xend knows of it. `advance` before each use: all else happens at that moment."""

    def __init__(self, state: State, now_ms: int) -> None:
        self.state = state
        self.now_ms = now_ms
        self.make = Maker(state)
        self.changes = 0
        """Rises with each change: what there is must then be written down."""
        self.empty_until_ms = 0
        """Until then xend, which has just been started again, shows nothing but Domain-0."""
        if not any(each.domid == 0 for each in state.domains):
            state.domains.insert(0, _dom0(state, now_ms))
            state.dmesg = DMESG

    # --- finding ----------------------------------------------------------------------------------------------------

    def shown(self) -> list[Domain]:
        """What xend knows of, as it lists them: in no order but that in which they came."""
        if self.now_ms < self.empty_until_ms:
            return self.state.domains[:1]
        return [each for each in self.state.domains if not each.hidden]

    def find(self, name: str) -> Domain:
        """The domain of this name, number or uuid; in this order, as xend looks for it.

        Raises:
            XendSimError: there is none.
        """
        shown = self.shown()
        live = [each for each in shown if each.domid >= 0]
        for group in (live, shown):
            for each in group:
                if each.name == name:
                    return each
        if name.isascii() and name.isdigit():
            for each in live:
                if each.domid == int(name):
                    return each
        for group in (live, shown):
            for each in group:
                if each.uuid == name:
                    return each
        raise XendSimError(name, kind="missing")

    def status(self, domain: Domain) -> int:
        """Its `status`, as xend numbers them."""
        if domain.domid < 0:
            return SUSPENDED if domain.suspended else HALTED
        if domain.crashed:
            return CRASHED
        if domain.ended:
            return HALTED
        return PAUSED if domain.paused else RUNNING

    def cpu_s(self, domain: Domain) -> float:
        """Seconds on a CPU: a hundredth of the time that it was not paused; all of Domain-0 is busier."""
        ran_ms = domain.cpu_ms
        if self.status(domain) == RUNNING:
            ran_ms += self.now_ms - domain.cpu_at_ms
        return ran_ms / 100_000 + (123.456789 if domain.domid == 0 else 0.0)

    # --- time -------------------------------------------------------------------------------------------------------

    def advance(self, now_ms: int) -> None:
        """Let time go on to `now_ms`; it never goes back."""
        self.now_ms = max(self.now_ms, now_ms)
        while self._step():
            self.changes += 1

    def next_ms(self) -> int | None:
        """When something happens by itself, if anything does."""
        return min(
            [each.due_ms for each in self.state.domains if each.doing and each.due_ms > 0]
            + [each.due_ms for each in self.state.dying if each.due_ms >= 0],
            default=None,
        )

    def _step(self) -> bool:
        due = [each for each in self.state.domains if each.doing and 0 < each.due_ms <= self.now_ms]
        dead = [each for each in self.state.dying if 0 <= each.due_ms <= self.now_ms]
        for each in dead:
            self.state.dying.remove(each)
        for domain in sorted(due, key=lambda each: each.due_ms):
            self._go_on(domain)
        return bool(due or dead)

    def _go_on(self, domain: Domain) -> None:
        timing = self.state.timing
        doing, _, how = domain.doing.partition(" ")
        domain.doing, domain.due_ms = "", 0
        match doing:
            case "asked" if how == "crash":
                self.crash(domain)
            case "asked":
                self._note_cpu(domain)
                domain.ended = how
                self._later(domain, f"ended {how}", timing.ended_ms)
            case "ended":
                self._after_end(domain, how)
            case "crashed":
                self._after_crash(domain)
            case "ending":
                self._end(domain, again=how == "restart")
            case "starting":
                self._start_again(domain)

    def _later(self, domain: Domain, doing: str, after_ms: int) -> None:
        domain.doing, domain.due_ms = doing, max(1, self.now_ms + after_ms)
        self.changes += 1

    def _after_end(self, domain: Domain, reason: str) -> None:
        if reason == "suspend":
            return
        action = domain.on_reboot if reason == "reboot" else domain.on_poweroff
        if action == "preserve":
            return
        self._end(domain, again=action in {"restart", "rename-restart"})

    def _after_crash(self, domain: Domain) -> None:
        match domain.on_crash:
            case "preserve":
                return
            case "rename-restart":
                self._rename_and_restart(domain)
            case action:
                domain.ending = True
                again = "restart" if action.endswith("restart") else "destroy"
                self._later(domain, f"ending {again}", self.state.timing.destroy_ms)

    def _rename_and_restart(self, domain: Domain) -> None:
        """The dead one is kept, with another name and uuid; another starts in its place. Its devices go to that."""
        if self._too_fast(domain):
            return
        fresh = copy.deepcopy(domain)
        domain.uuid = self.make.uuid()
        domain.name = f"Domain-{domain.uuid}"
        domain.managed = False
        domain.devices = []
        self._add(fresh)
        self._stop(fresh)
        fresh.hidden = not fresh.managed
        self._later(fresh, "starting", self.state.timing.gap_ms)

    def _too_fast(self, domain: Domain) -> bool:
        fast = self.now_ms - domain.start_ms < self.state.timing.restart_after_ms
        if fast:
            self.log(
                f"VM {domain.name} restarting too fast ({(self.now_ms - domain.start_ms) / 1000:f} seconds since "
                "the last restart).  Refusing to restart to avoid loops."
            )
        return fast

    def _end(self, domain: Domain, *, again: bool) -> None:
        again = again and not self._too_fast(domain)
        self.destroy(domain)
        if not again:
            return
        if domain not in self.state.domains:
            domain.hidden = True
            self.state.domains.append(domain)
        # It is started again when Xen has let go of what it had.
        self._later(domain, "starting", max(self.state.timing.gap_ms, self._dying_ms(domain)))

    def _dying_ms(self, domain: Domain) -> int:
        return self.state.timing.dying_ms if domain.dying_ms is None else domain.dying_ms

    def _start_again(self, domain: Domain) -> None:
        domain.hidden = False
        try:
            self.start(domain)
        except XendSimError as error:
            self.log(f"Failed to restart domain {domain.name}: {error}")
            if not domain.managed:
                self.state.domains.remove(domain)
            return
        self.unpause(domain)

    # --- beginnings and ends ----------------------------------------------------------------------------------------

    def check_free(self, domain: Domain) -> None:
        """Raises XendSimError if a domain that runs, or another that is known, has its name or uuid."""
        for each in self.shown():
            if each.domid >= 0 and (each.name == domain.name or each.uuid == domain.uuid):
                raise XendSimError(f"Domain '{domain.name}' already exists with ID '{each.domid}'")
            if each.name == domain.name and each.uuid != domain.uuid:
                raise XendSimError(f"VM name '{domain.name}' already exists")

    def create(self, domain: Domain) -> None:
        """Start a domain that is not known yet, paused.

        Raises:
            XendSimError: it cannot be; nothing is left of it.
        """
        self.check_free(domain)
        old = next((each for each in self.state.domains if each.uuid == domain.uuid), None)
        domain.managed = old is not None and old.managed
        self._add(domain)
        try:
            self.start(domain)
        except XendSimError:
            self.state.domains.remove(domain)
            raise
        if old is not None:
            self.state.domains.remove(old)

    def define(self, domain: Domain) -> None:
        """Keep a domain's configuration, whoever has the devices that it names.

        Raises:
            XendSimError: its name is taken.
        """
        for each in self.shown():
            if each.name == domain.name and each.uuid != domain.uuid:
                running = f" as domain {each.domid}" if each.domid >= 0 else ""
                raise XendSimError(f"VM name '{domain.name}' already exists{running}")
            if each.uuid == domain.uuid and each.domid >= 0:
                raise XendSimError(f"Domain '{each.name}' already exists with ID '{each.domid}'")
        self.state.domains = [each for each in self.state.domains if each.uuid != domain.uuid]
        domain.managed = True
        self._add(domain)

    def _add(self, domain: Domain) -> None:
        if len(self.state.domains) >= DOMAINS_MAX:
            raise XendSimError(f"(12, 'Cannot allocate memory'): more than {DOMAINS_MAX} domains")
        self.state.domains.append(domain)
        self.changes += 1

    def start(self, domain: Domain) -> None:
        """Give a domain a number and its devices; it is paused then.

        Raises:
            XendSimError: a PCI function of it cannot be had; it stays halted.
        """
        functions = [function for each in domain.devices for function in each.functions]
        domain.boot_pci = [_boot_entry(each) for each in functions]
        self.changes += 1
        for function in functions:
            self.check_assignable(function, None)
        domain.domid = next_domid(self.state)
        domain.start_ms = domain.cpu_at_ms = self.now_ms
        domain.cpu_ms = 0
        domain.paused = domain.ran = True
        domain.suspended = False
        if not any(each.kind == "console" for each in domain.devices):
            kept = {"protocol": "vt100", "location": "7"}
            domain.devices.append(Device(kind="console", uuid=self.make.uuid(), attributes=kept))
        for device in sorted(domain.devices, key=order):
            self.bring_up(domain, device)
        self.log(f"Domain {domain.name} ({domain.domid}) created.")

    def bring_up(self, domain: Domain, device: Device) -> None:
        """Connect a device of a domain that runs."""
        device.live = True
        self.state.channels += 1
        device.channel = self.state.channels
        if domain.hvm:
            used = {int(each.vdevfn, 16) >> 3 for each in _live_functions(domain) if not int(each.vdevfn, 16) & _AUTO}
            for function in device.functions:
                if int(function.vdevfn, 16) & _AUTO:
                    slot = next(each for each in range(_FIRST_SLOT, 1_000) if each not in used)
                    used.add(slot)
                    function.vdevfn = f"0x{slot << 3:02x}"
        self.changes += 1

    def check_assignable(self, function: PciFunction, domain: Domain | None) -> None:
        """Raises XendSimError if a PCI function cannot be given to `domain`."""
        address = function.address
        if domain is not None and address in {each.address for each in _live_functions(domain)}:
            raise XendSimError("device is already inserted")
        driver = self.state.pci.get(address)
        if driver is None:
            raise XendSimError(
                f"pci: failed to locate device and parse its resources - {address}: the device doesn't exist?"
            )
        if driver not in _OWNERS:
            raise XendSimError(f"pci: PCI Backend and pci-stub don't own device {address}")
        if address in self.assigned():
            raise XendSimError(f"failed to assign device {address} that has already been assigned to other domain.")

    def assigned(self) -> dict[str, int]:
        """The PCI functions that some domain has, and its number; those of dying ones, too."""
        found = {
            function.address: each.domid
            for each in self.state.domains
            if each.domid >= 0
            for function in _live_functions(each)
        }
        return found | {address: each.domid for each in self.state.dying for address in each.functions}

    def assignable(self) -> Iterator[str]:
        """The PCI functions that could be given to a domain now."""
        assigned = self.assigned()
        return (each for each, driver in sorted(self.state.pci.items()) if driver in _OWNERS and each not in assigned)

    def destroy(self, domain: Domain, *, dies: bool = True) -> None:
        """End a domain at once. xend forgets it, or shows it as halted; if it `dies`, Xen holds its PCI functions for a
        while.
        """
        held = [each.address for each in _live_functions(domain)]
        after_ms = self._dying_ms(domain)
        if after_ms and dies:
            due_ms = self.now_ms + after_ms if after_ms > 0 else -1
            self.state.dying.append(
                Dying(domid=domain.domid, uuid=domain.uuid, name=domain.name, functions=held, due_ms=due_ms)
            )
        self.log(f"Domain {domain.name} ({domain.domid}) destroyed.")
        self._stop(domain)
        if not domain.managed:
            self.state.domains.remove(domain)

    def _stop(self, domain: Domain) -> None:
        self._note_cpu(domain)
        domain.domid = -1
        domain.paused = domain.crashed = domain.ending = False
        domain.ended = domain.doing = ""
        domain.due_ms = 0
        for device in domain.devices:
            device.live = False
            for function in device.functions:
                if domain.hvm:
                    function.vdevfn = "0x100"
        self.changes += 1

    def _note_cpu(self, domain: Domain) -> None:
        if self.status(domain) == RUNNING:
            domain.cpu_ms += self.now_ms - domain.cpu_at_ms
        domain.cpu_at_ms = self.now_ms

    # --- what is done to those that run -----------------------------------------------------------------------------

    def pause(self, domain: Domain) -> None:
        """Take it off the CPU."""
        self._note_cpu(domain)
        domain.paused = True
        if domain.doing.startswith("asked"):
            domain.due_ms = 0
        self.changes += 1

    def unpause(self, domain: Domain) -> None:
        """Let it run; if it was asked for something in the meantime, it hears it now."""
        self._note_cpu(domain)
        domain.paused = False
        if domain.doing.startswith("asked"):
            self._later(domain, domain.doing, self.state.timing.guest_ms)
        self.changes += 1

    def ask(self, domain: Domain, reason: str) -> None:
        """Ask the guest to shut down, reboot, suspend or crash."""
        if domain.deaf:
            return
        self._later(domain, f"asked {reason}", self.state.timing.guest_ms)
        if domain.paused:
            domain.due_ms = 0

    def crash(self, domain: Domain) -> None:
        """The guest crashes now.

        Raises:
            XendSimError: it does not run.
        """
        if domain.domid <= 0 or domain.crashed:
            raise XendSimError(f"{domain.name} does not run")
        self._note_cpu(domain)
        domain.crashed, domain.paused = True, False
        self._later(domain, "crashed", self.state.timing.crash_ms)
        self.log(f"Domain has crashed: name={domain.name} id={domain.domid}.")

    def suspend(self, domain: Domain) -> None:
        """Keep a managed domain's memory in a file: it is `suspended` then, without a number."""
        self.destroy(domain)
        domain.suspended = True

    def log(self, line: str) -> None:
        """Write a line into xend's log."""
        self.state.log.append(line)
        del self.state.log[:-LOG_LINES_MAX]
        self.changes += 1


def order(device: Device) -> int:
    """Where its kind stands among a domain's devices."""
    return _KIND_ORDER.get(device.kind, len(_KIND_ORDER))


def _live_functions(domain: Domain) -> list[PciFunction]:
    return [function for each in domain.devices if each.live for function in each.functions]


def _boot_entry(function: PciFunction) -> list[Parsed]:
    opts: list[Parsed] = [[*pair] for pair in function.opts]
    return [function.domain, function.bus, function.slot, function.func, function.vdevfn, opts]


def _dom0(state: State, now_ms: int) -> Domain:
    return Domain(
        uuid=ZERO_UUID,
        name="Domain-0",
        domid=0,
        cpu_at_ms=now_ms,
        vcpus=state.cpus,
        memory_mib=4_096,
        maxmem_mib=16_777_215,
        pins=[list(range(state.cpus)) for _ in range(state.cpus)],
    )
