"""xend's operations on domains, the same for both protocols, with its checks and words."""

import copy
from typing import Final

import msgspec

from leasehold.events.errors import XendSimError
from leasehold.services.xendsim import hotplug
from leasehold.services.xendsim.configuring import DEVICE_TYPES, check_memory, check_name, check_vcpus, domain_of
from leasehold.services.xendsim.hypervisor import (
    CRASHED,
    HALTED,
    PAUSED,
    REASONS,
    RUNNING,
    STATE_WORDS,
    SUSPENDED,
    Host,
)
from leasehold.services.xendsim.pictures import Printer
from leasehold.services.xendsim.state import SAVED_MAX, Device, Domain, Parsed, Tree

_NO_NUMBER: Final = "int() argument must be a string or a number, not 'NoneType'"
_DYNAMIC: Final = "Invalid Configuration: memory_dynamic_max must be less than or equal to memory_static_max"
_REFUSED: Final = "can't connect: [Errno 111] Connection refused"
_USB_OFF: Final = "Can't add usb device to a guest with usb disabled in configure file"


class Stuck(msgspec.Struct, frozen=True):
    """What an operation answers that waits for a device in vain: after `after_ms` it gives up."""

    domain: Domain
    device: Device
    after_ms: int


class Xend:
    """What xend can be asked for. All methods raise XendSimError for what it refuses."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.printer = Printer(host)

    # --- lists ------------------------------------------------------------------------------------------------------

    def listed(self, state: str) -> list[Domain]:
        """The domains in a state, or `all`, by name; of an unknown state: none."""
        wanted = STATE_WORDS.get(state)
        found = [each for each in self.host.shown() if state == "all" or self.host.status(each) == wanted]
        return sorted(found, key=lambda each: each.name)

    def listing_done(self, listed: list[Domain]) -> None:
        """What is to vanish right after it was listed does."""
        for each in listed:
            if each.vanishing:
                each.vanishing = False
                self.host.destroy(each)

    # --- running ----------------------------------------------------------------------------------------------------

    def pause(self, domain: Domain) -> None:
        """Take it off the CPU; once is as often as twice."""
        if domain.domid == 0:
            raise XendSimError("Cannot pause privileged domain 0")
        status = self._status_in(domain, (RUNNING, PAUSED, CRASHED))
        if status == RUNNING:
            self.host.pause(domain)

    def unpause(self, domain: Domain) -> None:
        """Let it run."""
        if domain.domid == 0:
            raise XendSimError("Cannot unpause privileged domain 0")
        if self._status_in(domain, (PAUSED, RUNNING)) == PAUSED:
            self.host.unpause(domain)

    def _status_in(self, domain: Domain, wanted: tuple[int, ...]) -> int:
        status = self.host.status(domain)
        if status not in wanted:
            shown = domain.domid if domain.domid >= 0 else domain.name
            raise XendSimError(f"Domain '{shown}' is not started")
        return status

    def rename(self, domain: Domain, name: str) -> None:
        """Give it another name; its uuid stays."""
        check_name(name)
        if domain.domid == 0:
            raise XendSimError("Domain 0 cannot be renamed")
        for each in self.host.shown():
            if each is not domain and each.name == name:
                running = f" as domain {each.domid}" if each.domid >= 0 else ""
                raise XendSimError(f"VM name '{name}' already exists{running}")
        domain.name = name
        self.host.changes += 1

    def shutdown(self, domain: Domain, reason: str) -> None:
        """Ask the guest; it does it later, or never."""
        if reason not in REASONS:
            raise XendSimError(f"Invalid reason: {reason}")
        if domain.domid == 0:
            raise XendSimError("Domain 0 cannot be shutdown")
        if self.host.status(domain) not in {RUNNING, PAUSED}:
            raise XendSimError("Domain cannot be shutdown")
        self.host.ask(domain, reason)

    def sysrq(self, domain: Domain, key: int) -> None:
        """Send a key to the guest's kernel."""
        if self.host.status(domain) not in {RUNNING, PAUSED}:
            raise XendSimError("Domain cannot be sent sysrq")
        self.host.log(f"sysrq {key} sent to {domain.name}")

    def destroy(self, domain: Domain) -> None:
        """End it at once."""
        if domain.domid == 0:
            raise XendSimError("Cannot destroy privileged domain 0")
        if domain.domid > 0:
            self.host.destroy(domain)

    def reset(self, domain: Domain) -> None:
        """Destroy it and start it again at once, as it was."""
        if domain.domid <= 0:
            raise XendSimError(f"Domain '{domain.name}' is not started")
        paused = domain.paused
        self.host.destroy(domain, dies=False)
        if domain not in self.host.state.domains:
            self.host.state.domains.append(domain)
        self.host.start(domain)
        if not paused:
            self.host.unpause(domain)

    def numbered(self, domain: Domain) -> Domain:
        """The domain, if it has a number: the HTTP server asks for domains by that, and fails where there is none."""
        if domain.domid < 0:
            raise XendSimError(_NO_NUMBER, kind="python")
        return domain

    # --- known domains ----------------------------------------------------------------------------------------------

    def create(self, config: Parsed) -> Domain:
        """Start a domain, paused."""
        domain = domain_of(config, self.host.make)
        self.host.create(domain)
        return domain

    def new(self, config: Parsed) -> None:
        """Keep a configuration."""
        self.host.define(domain_of(config, self.host.make))

    def start(self, domain: Domain, *, paused: bool = False) -> Stuck | None:
        """Start a managed domain."""
        if self.host.status(domain) != HALTED or domain.domid >= 0:
            raise XendSimError("Domain is already running")
        self.host.start(domain)
        if not paused:
            self.host.unpause(domain)
        return self.wait(domain)

    def delete(self, domain: Domain) -> None:
        """Forget a managed domain."""
        if self.host.status(domain) != HALTED or domain.domid >= 0:
            raise XendSimError("Domain is not halted.")
        self.host.state.domains.remove(domain)
        self.host.log(f"Domain {domain.name} ({domain.uuid}) deleted.")

    def suspend(self, domain: Domain) -> None:
        """Keep the memory of a managed domain, and stop it."""
        if domain.domid == 0:
            raise XendSimError("Cannot suspend privileged domain 0")
        if self.host.status(domain) != RUNNING:
            raise XendSimError("Domain is not running")
        if not domain.managed:
            raise XendSimError("Domain is not managed by Xend lifecycle support.")
        self.host.suspend(domain)

    def resume(self, domain: Domain, *, paused: bool = False) -> None:
        """Go on with a suspended domain, under another number."""
        if self.host.status(domain) != SUSPENDED:
            raise XendSimError("Error occurred when resuming: Cannot resume domain that is not suspended.")
        try:
            self.host.start(domain)
        except XendSimError as error:
            raise XendSimError(f"Error occurred when resuming: {error}") from error
        if not paused:
            self.host.unpause(domain)

    def save(self, domain: Domain, path: str, *, force: bool = False) -> None:
        """Write it into a file of the stand-in, which are none of the machine, and stop it."""
        if path in self.host.state.saved and not force:
            raise XendSimError(f"Save file:{path} exist!\n")
        if domain.domid == 0:
            raise XendSimError("Cannot save privileged domain 0")
        if self.host.status(domain) != RUNNING:
            raise XendSimError("Domain is not running")
        if path.rpartition("/")[0] not in self.host.state.directories:
            raise XendSimError(f"can't write guest state file {path}: No such file or directory")
        if len(self.host.state.saved) >= SAVED_MAX:
            raise XendSimError(f"can't write guest state file {path}: No space left on device")
        copied = copy.deepcopy(domain)
        self.host.destroy(domain)
        self.host.state.saved[path] = copied

    def restore(self, path: str, *, paused: bool = False) -> Domain:
        """Go on with a domain that was saved."""
        saved = self.host.state.saved.get(path)
        if saved is None:
            raise XendSimError(f"can't read guest state file {path}: No such file or directory")
        domain = copy.deepcopy(saved)
        for device in domain.devices:
            device.live = False
        domain.domid = -1
        self.host.create(domain)
        if not paused:
            self.host.unpause(domain)
        return domain

    def dump(self, domain: Domain, *, crash: bool, reset: bool) -> None:
        """Write its memory down."""
        if domain.domid == 0:
            raise XendSimError("Cannot dump core for privileged domain 0")
        self._status_in(domain, (PAUSED, RUNNING, CRASHED))
        if crash:
            self.destroy(domain)
        elif reset:
            self.reset(domain)

    def migrate(self, domain: Domain) -> None:
        """There is nobody to take it."""
        if domain.domid == 0:
            raise XendSimError("Cannot migrate privileged domain 0")
        if self.host.status(domain) != RUNNING:
            raise XendSimError("Domain is not running")
        raise XendSimError(_REFUSED)

    # --- sizes ------------------------------------------------------------------------------------------------------

    def set_max_memory(self, domain: Domain, memory_mib: int) -> Tree | None:
        """How far it may grow."""
        if memory_mib < domain.memory_mib:
            raise XendSimError(_DYNAMIC)
        domain.maxmem_mib = memory_mib
        self.host.changes += 1
        return 0 if domain.domid >= 0 else None

    def set_memory(self, domain: Domain, memory_mib: int) -> None:
        """What it is to have now; the guest follows at once."""
        if check_memory(memory_mib) > domain.maxmem_mib:
            raise XendSimError(_DYNAMIC)
        domain.memory_mib = memory_mib
        self.host.changes += 1

    def set_vcpus(self, domain: Domain, vcpus: int) -> None:
        """How many of its CPUs are on; while it is halted: how many it has."""
        check_vcpus(vcpus)
        if domain.domid < 0:
            domain.vcpus, domain.online, domain.pins = vcpus, 0, []
        elif vcpus > domain.vcpus:
            raise XendSimError("Cannot set vcpus greater than max vcpus on running domain")
        else:
            domain.online = vcpus
        self.host.changes += 1

    def pin(self, domain: Domain, vcpu: str, cpus: list[int]) -> int:
        """Which CPUs a virtual one, or `all`, may use."""
        pins = domain.pins or [[] for _ in range(domain.vcpus)]
        for number in range(domain.vcpus) if vcpu.lower() == "all" else [int(vcpu)]:
            if not 0 <= number < domain.vcpus or not all(0 <= each < self.host.state.cpus for each in cpus):
                raise XendSimError(f"Cannot pin vcpu: {number} to cpu: {cpus} - (22, 'Invalid argument')")
            pins[number] = cpus
        domain.pins = pins
        self.host.changes += 1
        return 0

    # --- devices ----------------------------------------------------------------------------------------------------

    def wait(self, domain: Domain) -> Stuck | None:
        """Wait for its devices; they are there at once, but for disks that were said to be stuck."""
        device = hotplug.stuck(self.host, domain)
        return None if device is None else Stuck(domain, device, self.host.state.timing.hotplug_timeout_ms)

    def devices(self, domain: Domain, kind: str) -> list[Tree]:
        """The devices of one kind."""
        self.check_kind(kind)
        return self.printer.devices(domain, kind)

    def check_kind(self, kind: str) -> None:
        """Raises XendSimError if there are no such devices."""
        if kind not in DEVICE_TYPES:
            raise XendSimError(f"Unknown device type: {kind}")

    def device_create(self, domain: Domain, config: Parsed) -> Tree | Stuck:
        """Add a device, and wait until it is there."""
        created = hotplug.create(self.host, domain, config)
        return self.wait(domain) or created

    def device_destroy(self, domain: Domain, kind: str, name: str, *, keep: bool) -> None:
        """Remove a device."""
        self.check_kind(kind)
        hotplug.destroy(self.host, domain, kind, name, keep=keep)

    def device_configure(self, domain: Domain, config: Parsed, name: str) -> Tree:
        """Change a device."""
        return hotplug.configure(self.host, domain, config, name)

    def gave_up(self, stuck: Stuck) -> XendSimError:
        """What is said after a device did not come up."""
        if stuck.device not in stuck.domain.devices:
            return XendSimError("Device not found.")
        return hotplug.give_up(self.host, stuck.domain, stuck.device)

    def usb(self, domain: Domain) -> None:
        """Hand a USB device to qemu, or take it away: what it has shows nowhere."""
        if not domain.image.get("usb"):
            raise XendSimError(_USB_OFF)
        if not domain.hvm:
            raise XendSimError("Can't add usb device to a non-hvm guest")
