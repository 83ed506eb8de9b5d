"""Domains, their devices and the node, as xend prints them."""

import random
from collections.abc import Callable
from typing import Final

from leasehold.services.xendsim.configuring import DISKS, NETWORKS, SCRIPT
from leasehold.services.xendsim.hypervisor import Host, order
from leasehold.services.xendsim.state import Device, Domain, PciFunction, Tree

Ordered = Callable[[list[Tree]], list[Tree]]
"""Puts the keys of a dictionary into some order."""

_PV_NOTES: Final[list[Tree]] = [
    "notes",
    ["FEATURES", "writable_page_tables|pae_pgdir_above_4gb"],
    ["VIRT_BASE", "18446744071562067968"],
    ["GUEST_OS", "linux"],
    ["LOADER", "generic"],
    ["SUSPEND_CANCEL", "1"],
    ["PAE_MODE", "yes"],
    ["XEN_VERSION", "xen-3.0"],
]
_PV_KEYS: Final = ("kernel", "ramdisk", "args", "superpages", "pci", "nomigrate", "tsc_mode")
_HVM_KEYS: Final = (
    *("kernel", "superpages", "hpet", "loader", "xen_platform_pci", "rtc_timeoffset", "pci", "timer_mode", "apic"),
    *("usbdevice", "vpt_align", "serial", "vncunused", "boot", "pae", "viridian", "acpi", "vnc", "nomigrate", "usb"),
    *("tsc_mode", "device_model"),
)
_DEFAULTS: Final[dict[str, Tree]] = {"superpages": 0, "nomigrate": 0, "tsc_mode": 0}
_HVM_DEFAULTS: Final[dict[str, Tree]] = {
    "kernel": "",
    "hpet": 0,
    "xen_platform_pci": 1,
    "rtc_timeoffset": 0,
    "timer_mode": 1,
    "vpt_align": 1,
    "viridian": 0,
}
_FIRST_RING_REF: Final = 768
_FIRST_CHANNEL: Final = 8


class Printer:
    """Shows a host's things. With a seed, keys stand in an order that is chance, as they may with the genuine one; the
    same each time for the same seed and object, as there.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seed = host.state.seed
        self._looks = 0

    def _ordered(self, entries: list[Tree], of: str) -> list[Tree]:
        if self._seed:
            random.Random(f"{self._seed}/{of}").shuffle(entries)  # noqa: S311 - no secret
        return entries

    # --- domains ----------------------------------------------------------------------------------------------------

    def domain(self, domain: Domain, *, devices: bool = True, as_configured: bool = False) -> list[Tree]:
        """`(domain (domid 1) …)`. `as_configured`: disks as the XML-RPC methods show them with `full`."""
        host, live = self._host, domain.domid >= 0
        online = domain.online or domain.vcpus
        pins: list[Tree] = [[*each] for each in domain.pins] or [[] for _ in range(domain.vcpus)]
        entries: list[Tree] = [["domid", domain.domid]] if live else []
        entries += [["cpu_weight", domain.weight], ["cpu_cap", domain.cap], ["pool_name", "Pool-0"]]
        entries += [["bootloader", ""], ["vcpus", domain.vcpus], ["cpus", pins], ["on_poweroff", domain.on_poweroff]]
        entries += [["description", ""]] if domain.domid else []
        entries += [["on_crash", domain.on_crash], ["uuid", domain.uuid], ["bootloader_args", ""]]
        entries += [["name", domain.name], ["on_reboot", domain.on_reboot], ["maxmem", domain.maxmem_mib]]
        entries += [["memory", domain.memory_mib], ["shadow_memory", _shadow_mib(domain)]]
        entries += [["vcpu_avail", (1 << online) - 1], ["features", ""], ["on_xend_start", "ignore"]]
        entries += [["on_xend_stop", "ignore"]]
        entries += [["start_time", domain.start_ms / 1000]] if domain.ran else []
        entries += [["cpu_time", host.cpu_s(domain)], ["online_vcpus", domain.vcpus]] if domain.ran or live else []
        entries += [["image", self._image(domain)], ["status", host.status(domain)]]
        entries += [["state", self.letters(domain)]] if live else []
        if domain.ran:
            entries += [["store_mfn", 1_044_476 if domain.hvm else 1_048_574]]
            entries += [] if domain.hvm else [["console_mfn", 1_048_573]]
        entries += self._devices(domain, as_configured=as_configured) if devices else []
        return ["domain", *self._ordered(entries, domain.uuid)]

    def letters(self, domain: Domain) -> str:
        """Six letters, `rbpscd`, as it is at this moment: one that runs is seldom seen on a CPU, or about to be."""
        if domain.crashed:
            return "--p-c-" if domain.ending else "----c-"
        if domain.ended:
            return "---s--"
        if domain.paused:
            return "--p---"
        if domain.domid == 0:
            return "r-----"
        if not self._seed:
            return "-b----"
        self._looks += 1
        chance = random.Random(f"{self._seed}/{self._looks}").random()  # noqa: S311 - no secret
        return "r-----" if chance < 0.1 else "------" if chance < 0.2 else "-b----"

    def _image(self, domain: Domain) -> Tree:
        values: dict[str, Tree] = dict(_DEFAULTS)
        if domain.domid == 0:
            return ["linux", ["kernel", ""], *([key, value] for key, value in values.items())]
        values |= _HVM_DEFAULTS if domain.hvm else {}
        values |= {key: _tree(value) for key, value in domain.image.items()}
        if domain.boot_pci is not None:
            values["pci"] = [_tree(each) for each in domain.boot_pci]
        known = _HVM_KEYS if domain.hvm else _PV_KEYS
        keys = [key for key in known if key in values] + [key for key in values if key not in known]
        entries: list[Tree] = [[key, values[key]] for key in keys]
        notes: list[Tree] = ["notes", ["SUSPEND_CANCEL", "1"]] if domain.hvm else _PV_NOTES
        return ["hvm" if domain.hvm else "linux", *entries, *([notes] if domain.ran else [])]

    # --- devices within a domain ------------------------------------------------------------------------------------

    def _devices(self, domain: Domain, *, as_configured: bool) -> list[Tree]:
        shown: list[Tree] = []
        for device in sorted(domain.devices, key=order):
            if domain.domid < 0 or (device.live and as_configured and device.kind in DISKS):
                shown.append(["device", self.configured(domain, device)])
            elif device.live:
                shown.append(["device", self.live(device)])
            elif device.kind in DISKS or device.kind in NETWORKS:
                # Its configuration is kept, and nothing of it is in xenstore.
                shown.append(["device", [device.kind, ["backend", 0]]])
        return shown

    def live(self, device: Device) -> Tree:
        """A device as its controller reads it from xenstore."""
        entries: list[Tree]
        backend: list[Tree] = ["backend", 0]
        match device.kind:
            case "pci":
                devs = [["dev", *self._function(each, of=device.uuid)] for each in device.functions]
                return ["pci", *devs, ["uuid", device.uuid], backend]
            case "vusb":
                ports: list[Tree] = [[f"port-{each}", plugged] for each, plugged in device.ports.items()]
                entries = [*ports, *_usb(device), backend]
                return ["vusb", *self._ordered(entries, device.uuid)]
            case kind if kind in DISKS:
                entries = [*self._disk(device, typed=True), backend, ["VDI", ""]]
                return [kind, *self._ordered(entries, device.uuid)]
            case kind:
                entries = [*self._plain(device), backend] if kind in NETWORKS else self._plain(device)
                return [kind, *self._ordered(entries, device.uuid)]

    def configured(self, domain: Domain, device: Device) -> Tree:
        """A device as it stands in the configuration."""
        match device.kind:
            case "pci":
                devs = [["dev", *self._function(each, of=device.uuid)] for each in device.functions]
                return ["pci", ["uuid", device.uuid], *devs]
            case "vusb":
                ports: list[Tree] = [[str(each), plugged] for each, plugged in device.ports.items()]
                return ["vusb", ["uuid", device.uuid], *_usb(device), ["port", *ports]]
            case kind if kind in DISKS:
                first, second, *rest = self._disk(device)
                number: list[Tree] = [["devid", device.devid]] if domain.ran else []
                entries: list[Tree] = [first, second, *number, ["driver", "paravirtualised"], *rest]
                return [kind, *self._ordered(entries, device.uuid)]
            case kind:
                return [kind, *self._ordered(self._plain(device), device.uuid)]

    def _disk(self, device: Device, *, typed: bool = False) -> list[Tree]:
        kept = dict(device.attributes)
        if typed and ":" not in kept.get("dev", ":"):
            kept["dev"] += ":disk"
        entries: list[Tree] = [["uuid", device.uuid], ["bootable", int(kept.get("bootable", "1"))]]
        entries += [[key, kept[key]] for key in ("dev", "uname", "mode") if key in kept]
        return entries

    def _plain(self, device: Device) -> list[Tree]:
        kept = dict(device.attributes)
        entries: list[Tree] = [["bridge", kept.pop("bridge")]] if "bridge" in kept else []
        if device.kind in NETWORKS:
            entries += [["uuid", device.uuid], ["script", kept.pop("script", SCRIPT)]]
            keys = ["ip", "mac", "vifname", "model", "type"]
            keys += [key for key in kept if key not in keys]
            return entries + [[key, kept[key]] for key in keys if key in kept]
        entries += [[key, value] for key, value in kept.items()]
        return [*entries, ["uuid", device.uuid]]

    def _function(self, function: PciFunction, *, of: str) -> list[Tree]:
        entries: list[Tree] = [["slot", function.slot], ["domain", function.domain], ["key", function.key]]
        entries += [["bus", function.bus], ["vdevfn", function.vdevfn], ["func", function.func]]
        entries += [["opts", [*pair]] for pair in function.opts]
        return self._ordered([*entries, ["uuid", function.uuid]], of)

    # --- `op=devices` -----------------------------------------------------------------------------------------------

    def devices(self, domain: Domain, kind: str) -> list[Tree]:
        """The devices of one kind; those of a domain that runs as their frontends stand in xenstore."""
        found = sorted((each for each in domain.devices if each.kind == kind), key=lambda each: each.devid)
        if kind == "pci":
            return [f"{_as_python(each)}" for each in self.functions(domain)]
        if domain.domid < 0:
            return [[each.devid, self.configured(domain, each)] for each in found]
        return [[each.devid, self._frontend(domain, each)] for each in found if each.live]

    def functions(self, domain: Domain) -> list[dict[str, Tree]]:
        """The PCI functions, each a dictionary."""
        found = []
        for device in domain.devices:
            if device.kind == "pci" and (device.live or domain.domid < 0):
                found += [_as_dictionary(each) for each in device.functions]
        return found

    def _frontend(self, domain: Domain, device: Device) -> list[Tree]:
        path = f"/local/domain/0/backend/{device.kind}/{domain.domid}/{device.devid}"
        channel, ring = _FIRST_CHANNEL + device.channel, _FIRST_RING_REF + device.channel
        entries: dict[str, Tree] = {"backend": path, "backend-id": 0, "state": 4}
        if device.kind == "vusb":
            ports: list[Tree] = [[each, plugged] for each, plugged in device.ports.items()]
            return [["backend-id", 0], ["state", 4], ["backend", path], *_usb(device), ["port", *ports]]
        entries["event-channel"] = channel
        if device.kind in DISKS:
            is_disk = not device.attributes.get("dev", "").endswith(":cdrom")
            entries |= {"device-type": "disk" if is_disk else "cdrom", "virtual-device": device.devid}
        if device.kind in NETWORKS:
            entries |= {"rx-ring-ref": ring + 100, "tx-ring-ref": ring}
            if device.attributes.get("type") != "ioemu":
                entries |= {"handle": device.devid, "mac": device.attributes["mac"]}
        else:
            entries["ring-ref"] = ring
        return [[key, entries[key]] for key in sorted(entries)]

    def vcpus(self, domain: Domain) -> Tree:
        """`(domain (domid 1) (name web1) (vcpu_count 2) (vcpu …) …)`."""
        host = self._host
        each_s = host.cpu_s(domain) / domain.vcpus
        runs = domain.domid == 0
        shown: list[Tree] = []
        for number in range(domain.vcpus):
            # Which of them are to be on is told to the guest, and the one here leaves them all on.
            blocked: list[Tree] = [["blocked", int(not runs)], ["running", int(runs)]]
            cpus: Tree = [*domain.pins[number]] if number < len(domain.pins) else [*range(host.state.cpus)]
            cpu = number % host.state.cpus
            shown.append(
                [
                    "vcpu",
                    ["number", number],
                    ["online", 1],
                    *blocked,
                    ["cpu_time", each_s],
                    ["cpu", cpu],
                    ["cpumap", cpus],
                ]
            )
        number_: list[Tree] = [["domid", domain.domid]] if domain.domid >= 0 else []
        return ["domain", *number_, ["name", domain.name], ["vcpu_count", domain.vcpus], *shown]

    # --- the node ---------------------------------------------------------------------------------------------------

    def node(self) -> list[Tree]:
        """The entries of `(node …)`."""
        state = self._host.state
        used = sum(each.memory_mib for each in state.domains if each.domid >= 0)
        rows = "".join(f"\n  {each}:{each:8}{0:9}{0:9}" for each in range(state.cpus))
        text: dict[str, Tree] = {
            "system": "Linux",
            "host": state.host,
            "release": "6.18.44-fc-v669",
            "version": "#1 SMP PREEMPT_DYNAMIC @0",
            "machine": "x86_64",
            "nr_cpus": state.cpus,
            "nr_nodes": 1,
            "cores_per_socket": state.cpus,
            "threads_per_core": 1,
            "cpu_mhz": 2400,
            "hw_caps": "bfebfbff:28100800:00000000:00003f00:0098e3fd:00000000:00000001:00000000",
            "virt_caps": "hvm hvm_directio",
            "total_memory": state.memory_mib,
            "free_memory": max(0, state.memory_mib - 64 - used),
            "free_cpus": 0,
            "cpu_topology": f"\ncpu:    core    socket     node{rows}",
            "numa_info": "none",
            "xen_major": 4,
            "xen_minor": 4,
            "xen_extra": ".4",
            "xen_caps": "xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ",
            "xen_scheduler": "credit",
            "xen_pagesize": 4096,
            "platform_params": "virt_start=0xffff800000000000",
            "xen_changeset": "Tue Mar 28 18:57:52 2017 +0100 git:6bf0560",
            "xen_commandline": "placeholder dom0_mem=4096M",
            "cc_compiler": "gcc (Debian 4.9.2-10) 4.9.2",
            "cc_compile_by": "root",
            "cc_compile_domain": "example.org",
            "cc_compile_date": "Tue Mar 28 18:57:52 UTC 2017",
            "xend_config_format": 4,
        }
        return [[key, value] for key, value in text.items()]

    def pciinfo(self) -> list[Tree]:
        """The PCI functions that no domain has and one could be given."""
        shown: list[Tree] = []
        for address in self._host.assignable():
            domain, bus, rest = address.split(":")
            slot, _, func = rest.partition(".")
            shown.append(
                ["dev", ["domain", f"0x{domain}"], ["bus", f"0x{bus}"], ["slot", f"0x{slot}"], ["func", f"0x{func}"]]
            )
        return shown


def _tree(value: object) -> Tree:
    return [_tree(each) for each in value] if isinstance(value, list) else str(value)


def _usb(device: Device) -> list[Tree]:
    kept = device.attributes
    return [["usb-ver", kept.get("usb-ver", "2")], ["num-ports", str(len(device.ports))]]


def _shadow_mib(domain: Domain) -> int:
    """What xend keeps for shadow page tables: a page for each vCPU's MiB, and two for each MiB."""
    return (4 * (256 * domain.vcpus + 2 * domain.maxmem_mib) + 1023) // 1024 if domain.hvm else 0


def _as_dictionary(function: PciFunction) -> dict[str, Tree]:
    opts: dict[str, Tree] = {"opts": [[*pair] for pair in function.opts]} if function.opts else {}
    return {
        "slot": function.slot,
        "domain": function.domain,
        "key": function.key,
        "bus": function.bus,
        "vdevfn": function.vdevfn,
        "func": function.func,
        **opts,
        "uuid": function.uuid,
    }


def _as_python(function: dict[str, Tree]) -> str:
    return "{" + ", ".join(f"{key!r}: {value!r}" for key, value in function.items()) + "}"
