"""The door alone: what is asked there, who may, and that nothing asked there takes for ever or too much."""

import asyncio
import json
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from leasehold.events import limits
from leasehold.events.capabilities import Mdev, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import StorageError
from leasehold.events.event_types import LeaseOutlived
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import LetGo
from leasehold.services.binder import door as doors
from leasehold.services.binder.door import Door
from tests.binder.course import GPU, HOST, NIC, UUID, Course, describe

START = {"op": "start", "hypervisor": "qemu", "uuid": UUID, "name": "web1"}
TWINS = tuple(DeviceKey(f"usb/0000:00:14.0/2-{port}") for port in (3, 4))
WAIT_S = 20.0


@pytest.fixture
def path() -> Iterator[Path]:
    """Where the door is: a short name, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="lh") as folder:
        yield Path(folder) / "door" / "d"


class Played:
    """A door of a binder whose log and machine are played, and whose clock is the real one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.course = Course()
        self.changed = asyncio.Condition()
        self.stirred = 0
        for number, key in enumerate(TWINS):
            self.course.fold.picture[key] = DeviceDescription(
                key=key, name=f"usb_1_{number + 3}", kind="usb_device", sysfs_path=f"/sys/devices/usb1/1-{number + 3}",
                vendor_id="0403", product_id="6001",
                capability=UsbDevice(bus=1, device=number + 5),
            )  # fmt: skip
        self.tick()
        assert self.course.sync()

    def tick(self) -> None:
        """It is now, and the log was heard."""
        self.course.now_ms = doors._now_ms()
        self.course.handing.contact(self.course.now_ms)

    def stir(self) -> None:
        """The door has moved something."""
        self.stirred += 1

    @asynccontextmanager
    async def opened(self, timeout_s: float = WAIT_S) -> AsyncIterator[None]:
        """The door is open."""
        async with Door(self.path, HOST, self.course.handing, self.changed, self.stir, timeout_s=timeout_s):
            yield

    async def raw(self, *lines: bytes) -> list[Any]:
        """What is answered to these lines, one behind the other, until the door is closed."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(b"".join(lines))
            writer.write_eof()
            read = await asyncio.wait_for(reader.read(), WAIT_S)
            return [json.loads(line) for line in read.splitlines()]
        finally:
            writer.close()

    async def asks(self, **question: Any) -> Any:
        """The answer to one question."""
        (answer,) = await self.raw(json.dumps(question).encode() + b"\n")
        return answer


@pytest.fixture
def played(path: Path) -> Played:
    """A door that is not open yet."""
    return Played(path)


async def test_what_is_no_question(played: Played) -> None:
    """It is answered by what is wrong with it, and the next one is heard; a line too long ends it."""
    async with played.opened():
        lines = [b"{", b"[]", b'{"op":"open"}', b'{"op":"check"}', b'{"op":"start","uuid":"x"}', b'{"o":1}']
        answers = await played.raw(*(line + b"\n" for line in lines), b'{"op":"status"}\n')
        assert [answer["code"] for answer in answers] == ["invalid"] * len(lines) + [""]
        assert "op is one of" in answers[2]["message"]
        (long,) = await played.raw(b"x" * (limits.DOOR_REQUEST_BYTES_MAX + 10) + b"\n")
        assert (long["code"], "bytes" in long["message"]) == ("invalid", True)
        assert await played.raw(b'{"op":"status"}') == []
        many = ["pci/0000:03:00.0"] * (doors.DEVICES_MAX + 1)
        if len(json.dumps(many)) < limits.DOOR_REQUEST_BYTES_MAX - 200:
            assert (await played.asks(**START, devices=many))["code"] == "invalid"


async def test_too_many_callers(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than may be heard at a time is told so at once."""
    monkeypatch.setattr(limits, "DOOR_CALLERS_MAX", 2)
    async with played.opened():
        held = [await asyncio.open_unix_connection(str(played.path)) for _ in range(2)]
        for reader, writer in held:
            writer.write(b'{"op":"status"}\n')
            await asyncio.wait_for(reader.readline(), WAIT_S)
        reader, writer = await asyncio.open_unix_connection(str(played.path))
        assert json.loads(await asyncio.wait_for(reader.readline(), WAIT_S))["code"] == "busy"
        writer.close()
        for _, writer in held:
            writer.close()


async def test_who_says_nothing(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """He is sent away after a while."""
    monkeypatch.setattr(doors, "IDLE_S", 0.05)
    async with played.opened():
        reader, writer = await asyncio.open_unix_connection(str(played.path))
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
        writer.close()


async def test_the_socket(played: Played) -> None:
    """Only its user and group may ask; what an earlier binder left is replaced, and nothing else is."""
    async with played.opened():
        assert stat.S_IMODE(played.path.stat().st_mode) == 0o660
    assert not played.path.exists()
    left = await asyncio.start_unix_server(lambda *_: None, str(played.path))
    left.close()
    assert played.path.exists()
    async with played.opened():
        assert (await played.asks(op="status"))["ok"]
    played.path.write_text("somebody's")
    with pytest.raises(StorageError, match="--door"):
        async with played.opened():
            pass
    assert played.path.read_text() == "somebody's"


async def test_a_token(played: Played) -> None:
    """It is checked by any name of the device; of one that nobody has leased all are stale."""
    course = played.course
    async with played.opened():
        assert (await played.asks(op="check", device=NIC, token=5))["code"] == "token_stale"
        assert (await played.asks(op="check", device="pci/0000:99:00.0", token=5))["code"] == "device_unknown"
        for token in (0, -1, 10**400):
            said = await played.asks(op="check", device=NIC, token=token)
            assert (said["code"], said["message"].partition(":")[0]) == ("invalid", "token")
        lease = course.grant(NIC)
        for name in (NIC, f"{HOST}/{NIC}", "0000:03:00.0", "pci_0000_03_00_0"):
            said = await played.asks(op="check", device=name, token=lease)
            assert (said["ok"], said["leases"], said["devices"]) == (True, [f"L{lease}"], [NIC]), name
        assert (await played.asks(op="check", device=NIC, token=lease + 1))["code"] == "token_stale"
        assert (await played.asks(op="check", device=NIC, token=lease - 1))["code"] == "token_stale"
        course.release(lease)
        assert (await played.asks(op="check", device=NIC, token=lease))["code"] == "token_stale"
        assert (await played.asks(op="check", device="usb-id/0403:6001", token=lease))["code"] == "device_ambiguous"


async def test_a_domain_that_may_not_have_something(played: Played) -> None:
    """Who has it, or that nobody has, is said; so is what is not known here."""
    async with played.opened():
        assert (await played.asks(**START))["ok"]
        said = await played.asks(**START, devices=[NIC])
        assert (said["code"], said["help"] != "") == ("lease_unknown", True)
        lease = played.course.grant(NIC, domain="00000000-0000-4000-8000-000000000001")
        said = await played.asks(**START, devices=[NIC])
        assert (said["code"], said["holder"]) == ("device_held", "web1")
        assert f"L{lease}" in said["message"]
        assert "for domain 00000000-0000-4000-8000-000000000001" in said["message"]
        assert f"release L{lease}" in said["help"]
        assert (await played.asks(**START, devices=["pci/0000:09:00.0"]))["code"] == "device_unknown"


async def test_a_lease_for_no_domain(played: Played) -> None:
    """It is its holder's, who may be a domain's name."""
    async with played.opened():
        played.course.grant(NIC)
        played.course.settle()
        assert (await played.asks(**START, devices=[NIC]))["ok"]
        said = await played.asks(**{**START, "name": "web2"}, devices=[NIC])
        assert said["code"] == "device_held"


async def test_a_lease_that_is_not_for_the_domain_says_so(played: Played) -> None:
    """Its own holder reads why it is not enough that he has it, and with which words it would be."""
    async with played.opened():
        lease = played.course.grant(NIC, holder="vm:web1")
        played.course.settle()
        said = await played.asks(**START, devices=[NIC])
        assert said["message"].endswith(f"vm:web1 holds it by L{lease}, which is for no domain")
        assert said["help"].startswith(f"release L{lease}; ")
        assert f"--domain {UUID}" in said["help"]
        played.course.release(lease)
        said = await played.asks(**START, devices=[NIC])
        assert ("given back" in said["message"], "wait until" in said["help"]) == (True, True)


async def test_twins(played: Played) -> None:
    """A word that means several needs them all, since a hypervisor may take any."""
    async with played.opened():
        played.course.grant(TWINS[0], domain=UUID)
        played.course.settle()
        assert (await played.asks(**START, devices=["usb-address/1.5"]))["ok"]
        said = await played.asks(**START, devices=["usb-id/0403:6001"])
        assert (said["code"], "bus and address" in said["help"]) == ("device_ambiguous", True)
        played.course.grant(TWINS[1], domain=UUID)
        played.course.settle()
        said = await played.asks(**START, devices=["usb-id/0403:6001"])
        assert (said["ok"], said["devices"]) == (True, list(TWINS))


async def test_a_start_waits_until_all_is_handed_over(played: Played) -> None:
    """And says so where that takes too long."""
    course = played.course
    course.grant(NIC, GPU, domain=UUID)
    async with played.opened():
        asking = asyncio.create_task(played.asks(**START, devices=[NIC, GPU]))
        status = await played.asks(op="status")
        assert [(row["device"], row["state"]) for row in status["held"]] == [(NIC, "preparing"), (GPU, "preparing")]
        assert not asking.done()
        course.settle()
        async with played.changed:
            played.changed.notify_all()
        assert (await asyncio.wait_for(asking, WAIT_S))["ok"]
    course.grant(TWINS[0], domain=UUID)
    async with played.opened(timeout_s=3.0):
        said = await played.asks(**START, devices=["usb-port/1-3"])
        assert (said["ok"], said["code"], TWINS[0] in said["message"]) == (False, "not_prepared", True)


async def test_cut_off(played: Played) -> None:
    """Nothing is vouched for; stale tokens are refused all the same."""
    course = played.course
    lease = course.grant(NIC, domain=UUID)
    course.settle()
    course.handing.contact(doors._now_ms() - limits.CUT_OFF_MS - 1)
    async with played.opened():
        assert (await played.asks(op="check", device=NIC, token=lease))["code"] == "cut_off"
        assert (await played.asks(op="check", device=NIC, token=lease - 1))["code"] == "token_stale"
        assert (await played.asks(**START, devices=[NIC]))["code"] == "cut_off"
        said = await played.asks(op="status")
        assert (said["code"], "not heard for 15 s" in said["message"], said["help"] != "") == ("cut_off", True, True)
        played.tick()
        assert (await played.asks(**START, devices=[NIC]))["ok"]


async def test_a_domain_stops(played: Played) -> None:
    """Its leases are let go of; of what is unplugged, only those of which nothing is left."""
    lease = played.course.grant(NIC, GPU, domain=UUID)
    async with played.opened():
        assert (await played.asks(**{**START, "op": "detach"}, devices=[NIC]))["leases"] == []
        assert (await played.asks(**{**START, "op": "detach"}, devices=[NIC, GPU]))["leases"] == [f"L{lease}"]
        assert (await played.asks(**{**START, "op": "stop"}))["leases"] == [f"L{lease}"]
    assert played.stirred == 3


async def test_what_it_fails_at(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook hears that the binder cannot tell, and no more than that."""

    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(doors, "check_token", fail)
    async with played.opened():
        said = await played.asks(op="check", device=NIC, token=1)
    assert (said["code"], "secret" in json.dumps(said)) == ("internal", False)


async def test_answers_stay_short(played: Played) -> None:
    """Hooks take 64 KiB: a refusal that they could not take whole would be no refusal to those that fail open."""
    for number in range(doors.DEVICES_MAX):
        key = DeviceKey(f"pci/{number:04x}:05:00.0")
        played.course.fold.picture[key] = describe(key)
        played.course.grant(key, holder="h" * limits.HOLDER_CHARS_MAX, domain="00000000-0000-4000-8000-000000000001")
    assert played.course.sync()
    words = [f"pci/{number:04x}:05:00.0" for number in range(doors.DEVICES_MAX)]
    async with played.opened():
        said = await played.asks(**{**START, "name": "n" * 50_000}, devices=words)
        assert (said["code"], len(json.dumps(said)) < 32_768) == ("device_held", True)
        said = await played.asks(**START, devices=words)
        assert f"and {len(words) - limits.BLOCKERS_PER_REFUSAL_MAX} more" in said["message"]
        said = await played.asks(op="check", device="x" * 60_000, token=5)
        assert len(json.dumps(said)) < 1_024


async def test_a_stop_before_the_log_was_heard(played: Played) -> None:
    """It cannot be told whose leases end, and that is said."""
    lease = played.course.grant(NIC, domain=UUID)
    played.course.handing.log.is_synced = False
    async with played.opened():
        assert (await played.asks(**{**START, "op": "stop"}))["code"] == "cut_off"
        played.course.handing.log.is_synced = True
        assert (await played.asks(**{**START, "op": "stop"}))["leases"] == [f"L{lease}"]


async def test_a_start_right_behind_a_stop(played: Played) -> None:
    """If the log has not been asked for the end of the lease yet, it is not; if it has, that is waited for, so that no
    domain starts with a lease that ends below it.
    """
    course = played.course
    lease = course.grant(NIC, domain=UUID)
    course.settle()
    async with played.opened():
        assert (await played.asks(**{**START, "op": "stop"}))["leases"] == [f"L{lease}"]
        assert (await played.asks(**START, devices=[NIC]))["ok"]
        assert course.handing.observations() == []
        await played.asks(**{**START, "op": "stop"})
        assert course.handing.observations() == [LetGo(lease)]
        asking = asyncio.create_task(played.asks(**START, devices=[NIC]))
        await played.asks(op="status")
        assert not asking.done()
        course.happens(LeaseOutlived(lease=lease, domain=UUID, gone_since_ns=1))
        async with played.changed:
            played.changed.notify_all()
        said = await asyncio.wait_for(asking, WAIT_S)
        assert (said["code"], "given back" in said["message"]) == ("device_held", True)


async def test_an_end_that_does_not_come(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log had no use for it: the domain starts a little later."""
    monkeypatch.setattr(doors, "ENDING_MS", 50)
    played.course.grant(NIC, domain=UUID)
    played.course.settle()
    async with played.opened():
        await played.asks(**{**START, "op": "stop"})
        played.course.handing.observations()
        assert (await played.asks(**START, devices=[NIC]))["ok"]


async def test_a_mediated_device(played: Played) -> None:
    """It is had by its own uuid, without the rest of the card; the card is not had with it."""
    uuid = "83c32df7-d52e-4ec1-9668-1f3c7e4df107"
    key = DeviceKey(f"{GPU}/mdev/{uuid}")
    mdev = describe(key, capability=Mdev(uuid=uuid, mdev_type="vgpu"))
    played.course.fold.picture[key] = replace(mdev, kind="mdev")
    assert played.course.sync()
    async with played.opened():
        assert (await played.asks(**START, devices=[f"mdev/{uuid}"]))["code"] == "lease_unknown"
        lease = played.course.grant(key, domain=UUID)
        played.course.settle()
        said = await played.asks(**START, devices=[f"mdev/{uuid}"])
        assert (said["ok"], said["devices"], said["leases"]) == (True, [key], [f"L{lease}"])
        assert (await played.asks(**START, devices=[GPU]))["code"] == "lease_unknown"
