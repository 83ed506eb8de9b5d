"""What was asked of the genuine xend, in order: the recordings that there are, and what went on between them.

A string names a recording; what is between them is done here. Of what lies in the gaps only this is known: what its
name says, and what the next recordings show of it.
"""

from typing import Final, NamedTuple


class Post(NamedTuple):
    """A request that was not kept."""

    path: str
    fields: dict[str, str]
    code: int


class Order(NamedTuple):
    """Something that happened on the host."""

    words: list[str]


class Pass(NamedTuple):
    """Time that passed."""

    ms: int


Step = str | Post | Order | Pass
_WEB1: Final = "/xend/domain/web1"
_HVM: Final = "/xend/domain/gpu-hvm"
_COLD: Final = "/xend/domain/cold-db"


def _op(path: str, op: str, code: int = 200, **fields: str) -> Post:
    return Post(path, {"op": op, **fields}, code)


_PCI: Final = "(pci (dev (domain 0x0000) (bus {}) (slot {}) (func {})) (state {}))"

MAIN: Final[tuple[Step, ...]] = (
    *("001-root", "002-node", "003-node-slash", "004-domain-list-empty-host", "005-create-pv"),
    *("006-domain-list-only-running", "007-domain-list-state-all", "008-domain-list-state-paused"),
    *("009-wait-for-devices", "010-unpause", "011-domain-get-pv", "012-domain-get-pv-detail"),
    *("013-domain-get-by-domid", "014-domain-get-by-uuid", "015-create-hvm-pci-usb", "016-unpause-hvm"),
    *("017-domain-get-hvm", "018-new-managed", "019-domain-get-halted", "020-domain-list-halted"),
    *("022-domain-list-detail", "023-pause", "025-list-while-one-paused", "026-pause-again"),
    _op(_WEB1, "unpause"),
    *("028-pause-domain0", "029-pause-halted"),
    _op(_WEB1, "rename", 202, name="web-one"),
    *("031-get-old-name-after-rename", "032-get-new-name"),
    _op("/xend/domain/web-one", "rename", 500, name="no good"),
    *("034-rename-duplicate", "035-rename-missing-field"),
    _op("/xend/domain/web-one", "rename", 202, name="web1"),
    *("037-sysrq-number", "038-sysrq-letter"),
    _op(_WEB1, "shutdown", 500, reason="tired"),
    *("040-shutdown-domain0", "041-mem-target-set"),
    _op(_WEB1, "mem_target_set", 500, target="4096"),
    *("043-mem-target-not-int", "044-mem-target-missing"),
    _op(_WEB1, "maxmem_set", memory="2048"),
    *("046-maxmem-too-small", "047-get-after-memory"),
    _op(_WEB1, "set_vcpus", vcpus="1"),
    *("049-vcpuinfo-get", "050-vcpuinfo-post"),
    _op(_WEB1, "devices", type="vbd"),
    *("052-devices-vif", "053-devices-pci-none"),
    _op(_HVM, "devices", type="pci"),
    *("055-devices-vusb-hvm", "056-devices-vbd-halted"),
    _op(_COLD, "devices", type="pci"),
    *("058-devices-bad-type", "059-devices-missing-type", "061-vbd-create", "062-vbd-create-wrapped-device"),
    _op(_WEB1, "device_create", 500, config="(vbd (uname phy:/dev/vg0/data) (dev xvde) (mode w))"),
    *("064-vbd-create-bad-mode", "065-vbd-create-bad-sxp"),
    _op(_WEB1, "device_create", 500, config="(vbd) (vbd)"),
    *("067-devices-vbd-two", "068-vbd-destroy-missing-fields"),
    _op(_WEB1, "device_destroy", type="vbd", dev="xvdb", force="0", rm_cfg="1"),
    *("070-vbd-destroy-again", "071-vif-create"),
    _op(_WEB1, "device_create", 500, config="(vif (mac 00:16:3e) (bridge xenbr0))"),
    *("073-vif-create-dup-mac", "074-vif-create-no-mac"),
    _op(_WEB1, "devices", type="vif"),
    *("076-vif-destroy-by-index", "077-vif-destroy-by-mac", "079-pci-attach-hvm", "080-devices-pci-after-attach"),
    _op(_HVM, "device_configure", 500, dev="0", config=_PCI.format("0x03", "0x00", "0x1", "Initialising")),
    *("082-pci-attach-in-use-by-other", "083-pci-attach-not-owned-by-pciback"),
    _op(_HVM, "device_configure", 500, dev="0", config=_PCI.format("0x55", "0x00", "0x0", "Initialising")),
    *("085-pci-attach-pv-first", "086-devices-pci-pv", "088-pci-detach-hvm", "089-pci-detach-not-attached"),
    _op(_WEB1, "device_configure", dev="0", config=_PCI.format("0x07", "0x00", "0x0", "Closing")),
    *("091-pci-detach-no-platform", "092-pci-configure-missing-dev-field"),
    _op(_HVM, "device_configure", 500, dev="0", config=_PCI.format("0x03", "0x00", "0x0", "Sleeping")),
    *("094-vusb-attach-port2", "095-devices-vusb-after"),
    _op(_HVM, "device_configure", dev="0", config="(vusb (port (2 '')))"),
    *("097-vusb-create-hc-pv", "098-usb-add-hvm", "100-node-op-pciinfo", "101-node-get-pciinfo", "103-dmesg-slash"),
    *("104-dmesg-clear", "107-node-shutdown"),
    _op("/xend/node", "reboot"),
    *("109-node-restart-unknown", "110-vnet", "112-missing-op", "113-two-ops", "115-post-no-content-type"),
    *("116-post-no-content-length",),
    _op(_WEB1, "pause"),
    *("118-unpause-3", "119-post-multipart", "121-create-bad-sxp", "122-create-no-config"),
    _op("/xend/domain", "create", 500, config="(vm (name x))"),
    *("124-create-duplicate-name", "125-put", "127-http10", "128-keep-alive-two-requests"),
    *("130-python-ua-star-accept", "131-ua-accept-sxp", "133-no-host-header", "134-not-found-top"),
    *("136-not-found-domain", "137-not-found-domid", "139-domain-trailing-slash", "140-list-detail-true"),
    *("142-domain-op-list", "143-get-domain0-by-id", "145-save-domain0", "146-save-bad-path", "148-restore-missing"),
    *("149-restore-no-file-field", "151-start-running", "152-delete-running"),
    _op(_COLD, "start", 202),
    *("154-get-cold-db-after-start", "155-wait-for-devices-2", "157-configure-unsupported", "158-destroy-domain0"),
    Order(["crash", "gpu-hvm"]),
    *("160-list-with-crashed", "161-list-crashed"),
    Pass(3_000),
    Pass(3_000),
    *("163-list-all-with-dying",),
    Pass(2_000),
    *("164-list-all-after-dead",),
    Order(["crash", "web1"]),
    *("167-destroy-crashed", "169-list-all-after-destroy", "170-create-pv-again"),
    _op(_WEB1, "unpause"),
    *("172-new-domid-same-uuid", "173-shutdown"),
    Pass(1_000),
    Pass(1_000),
    *("175-after-shutdown-done", "176-create-pv-third"),
    _op(_WEB1, "unpause"),
    *("178-reboot",),
    Pass(1_000),
    Pass(1_000),
    *("179-after-reboot-too-fast",),
    _op(_COLD, "delete", 500),
    *("181-after-delete", "182-final-list-all"),
    _op("/xend/domain", "create", 201, config="(vm (name web1) (memory 512) (vcpus 2))"),
    *("184-unpause-6",),
    Order(["vanish", "web1"]),
    *("185-list-before-vanish", "187-list-after-vanish", "188-create-hvm-again"),
    _op(_HVM, "unpause"),
    Order(["stick", "phy:/dev/vg0/slow"]),
    *("190-vbd-create-hotplug-timeout", "191-delete-halted-missing"),
    _op(_COLD, "destroy", 202),
    Pass(1_000),
    *("193-cold-after-destroy-still-managed", "194-delete-cold-2", "196-xmlrpc-domains-names"),
    *("197-xmlrpc-domains-with-state", "199-xmlrpc-domain", "200-xmlrpc-getDeviceSxprs-pci", "202-xmlrpc-node-pciinfo"),
    *("203-xmlrpc-node-info", "205-xmlrpc-node-dmesg", "206-hvm-for-r3"),
    _op(_HVM, "device_create", 500, config=_PCI.format("0x07", "0x00", "0x0", "Initialising")),
    *("208-pci-device-create-first-libvirt-style", "209-pci-device-destroy-whole-platform"),
    _op("/xend/domain/app2", "unpause"),
    *("211-create-with-pci-in-use", "212-list-all-after-thief", "214-new-with-pci-in-use-is-allowed"),
    "215-get-planner-claims-a-used-device",
    _op("/xend/domain/planner", "start", 500),
    "217-get-planner-after-failed-start",
)
"""The long run."""

CRASHES: Final[tuple[Step, ...]] = (
    *("005-create-pv", "010-unpause", "015-create-hvm-pci-usb", "016-unpause-hvm"),
    Order(["crash", "web1"]),
    *("218-list-crashed-preserved", "166-list-all-after-crash", "220-destroy-crashed-2"),
    Order(["crash", "gpu-hvm"]),
    Pass(2_000),
    "221-crashed-on_crash-destroy-in-progress",
)
"""Another run, on a host of its own."""
