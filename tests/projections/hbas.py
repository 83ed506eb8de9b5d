"""A ledger with a host whose devices can have others made on them, and with the agent that makes them."""

from typing import Any

import msgspec

from leasehold.events import capabilities, codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.capabilities import (
    FcHost,
    Mdev,
    MdevParent,
    MdevType,
    NewMdev,
    NewVport,
    Pci,
    ScsiHost,
    ScsiTarget,
    VportOps,
)
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName, Principal
from leasehold.events.inputs import CREATOR, Observation, Observed
from tests.projections.ledger import H1, H2, SECOND, A, Ledger, pci

FABRIC, OTHER_FABRIC = "2001000dec9877c1", "2002000dec9877c1"
UUID, UUID2 = "c2177883-f1bb-47f0-914d-32a22e3a8804", "c2177883-f1bb-47f0-914d-32a22e3a8805"
GPU = DeviceKey("pci/0000:0c:00.0")
MTTY = DeviceKey("virtual/mtty/mtty")
GVT = "i915-GVTg_V5_4"


def wwn(number: int) -> str:
    """A world wide name."""
    return f"2101001b32{number:06x}"


def hba_key(number: int) -> DeviceKey:
    """Of the port of the HBA 05:00.x."""
    return DeviceKey(f"pci/0000:05:00.{number}/scsi_host/0")


def hba(
    number: int, *, room: int = 3, vports: int = 0, fabric: str = FABRIC, state: str = "Online"
) -> DeviceDescription:
    """A port of the HBA 05:00.x: its node name is 0x10 + x, its port name 0x20 + x."""
    return DeviceDescription(
        key=hba_key(number),
        name=f"scsi_host{number}",
        kind="scsi_host",
        parent=f"pci/0000:05:00.{number}",
        capability=ScsiHost(
            host=number,
            fc_host=FcHost(wwnn=wwn(0x10 + number), wwpn=wwn(0x20 + number), fabric_wwn=fabric, port_state=state),
            vport_ops=VportOps(max_vports=room, vports=vports),
        ),
    )


def vport(wwpn: str, on: int = 0, **fields: Any) -> DeviceDescription:
    """A virtual HBA on the port of 05:00.x."""
    return DeviceDescription(
        **{
            "key": DeviceKey(f"pci/0000:05:00.{on}/scsi_host/{wwpn}"),
            "name": f"scsi_host_{wwpn}",
            "kind": "scsi_host",
            "parent": hba_key(on),
            "capability": ScsiHost(host=9, fc_host=FcHost(wwnn=wwn(0x30), wwpn=wwpn), is_vport=True),
            **fields,
        }
    )


def gpu(free: int = 2, **fields: Any) -> DeviceDescription:
    """A GPU that offers mediated devices."""
    offered = MdevType(id=GVT, name="GVTg_V5_4", device_api="vfio-pci", available_instances=free)
    return pci("0c:00.0", iommu_group=20, capability=Pci(mdev_types=(offered,)), **fields)


def mdev_key(uuid: str) -> DeviceKey:
    """Of a mediated device of the GPU."""
    return DeviceKey(f"{GPU}/mdev/{uuid}")


def mdev(uuid: str = UUID, **fields: Any) -> DeviceDescription:
    """A mediated device of the GPU."""
    return DeviceDescription(
        **{
            "key": mdev_key(uuid),
            "name": f"mdev_{uuid.replace('-', '_')}_0000_0c_00_0",
            "kind": "mdev",
            "parent": GPU,
            "physical_function": GPU,
            "iommu_group": 30,
            "capability": Mdev(uuid=uuid, mdev_type=GVT),
            **fields,
        }
    )


DEVICES = (
    pci("05:00.0", iommu_group=10),
    pci("05:00.1", iommu_group=11),
    hba(0),
    hba(1, room=5),
    DeviceDescription(
        key=DeviceKey("pci/0000:05:00.0/scsi_target/0"),
        name="scsi_target0_0_0",
        kind="scsi_target",
        parent=hba_key(0),
        capability=ScsiTarget(target="target0:0:0", remote_wwpn=wwn(0x99)),
    ),
    pci("0a:00.0", iommu_group=13),
    gpu(),
    DeviceDescription(
        key=MTTY,
        name="mtty",
        kind="mdev_types",
        capability=MdevParent(mdev_types=(MdevType(id="mtty-1", available_instances=-1),)),
    ),
    DeviceDescription(key=DeviceKey("computer"), name="computer", kind="system", capability=capabilities.System()),
)


class Creator:
    """The agent that makes and destroys devices on a host."""

    def __init__(self, ledger: Ledger, host: HostName = H1, run: int = 1) -> None:
        self.ledger = ledger
        self.host = host
        self.run = run
        self.counter = 0

    def start(self) -> None:
        """It is there, and has asked what there is to do."""
        self._send(0, inputs.SourceStarts())
        self.say(inputs.PictureComplete(since=1))

    def say(self, *observations: Observation) -> None:
        """It reports."""
        self.counter += 1
        self._send(self.counter, *observations)

    def _send(self, counter: int, *observations: Observation) -> None:
        message = Observed(host=self.host, agent=CREATOR, run=self.run, counter=counter, observations=observations)
        self.ledger.observe_message(codec.decode_observed(codec.encode(message)))

    def done(self, order: int, device: str = "") -> None:
        """An order has been carried out."""
        self.say(inputs.OrderDone(order, device))

    def not_done(self, order: int, reason: str = "it cannot be done") -> None:
        """An order has not been carried out."""
        self.say(inputs.OrderNotDone(order, reason))


class HbaLedger(Ledger):
    """A ledger past its grace time with the host above, which allows devices to be made."""

    def __init__(self, *, with_creator: bool = True) -> None:
        super().__init__()
        self.note(inputs.DeciderStarts("alloc", "start"))
        self.start_host(H1, *DEVICES)
        self.start_host(H2, pci("05:00.0", iommu_group=10), hba(0))
        self.creator = Creator(self)
        if with_creator:
            self.creator.start()
        self.now_ns += 31 * SECOND

    def create(self, new: NewVport | NewMdev, principal: Principal = A, **fields: Any) -> Answer:
        """Ask for a device to be made; on the first host, unless told otherwise."""
        request = inputs.CreateDeviceRequest(
            **{"request_id": self.new_id(), "issued_at_ns": self.now_ns, "device": new, "host": H1, **fields}
        )
        return self._asked("create_device", request, principal)

    def destroy(self, name: str, principal: Principal = A, **fields: Any) -> Answer:
        """Ask for a device to be taken away."""
        request = inputs.DestroyDeviceRequest(
            **{"request_id": self.new_id(), "issued_at_ns": self.now_ns, "device": name, **fields}
        )
        return self._asked("destroy_device", request, principal)

    def _asked(self, verb: str, request: Any, principal: Principal) -> Answer:
        read = codec.decode_request(verb, codec.encode(request))
        assert read == request
        return self.ask(read, principal)

    def ordered(self, answer: Answer) -> int:
        """The order that a request has led to."""
        assert answer.outcome == "ordered", answer
        assert answer.order == answer.position
        return answer.order

    def make_mdev(self, uuid: str = UUID) -> DeviceId:
        """A mediated device is made, and seen."""
        order = self.ordered(self.create(NewMdev(parent=GPU, mdev_type=GVT, uuid=uuid)))
        self.see(mdev(uuid))
        self.creator.done(order, mdev_key(uuid))
        return DeviceId(f"{H1}/{mdev_key(uuid)}")

    def again(self, answer: Answer, new: NewVport | NewMdev, **fields: Any) -> Answer:
        """The same request once more."""
        return self.create(new, request_id=answer.request_id, **fields)

    def describe(self, key: DeviceKey, **changes: Any) -> None:
        """The watcher sees a known device of the first host otherwise."""
        before = self.state.devices[DeviceId(f"{H1}/{key}")].description
        self.see(msgspec.structs.replace(before, **changes))
