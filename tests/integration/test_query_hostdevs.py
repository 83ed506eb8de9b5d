"""What the query service answers of devices that are handed over, on a real server: lists, drifts, a binder's sync."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from leasehold.events import inputs, limits
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.inputs import BINDER, POLLER, Observation, Observed
from leasehold.events.questions import Explain, History, ListDrifts, ListHostdevs, Reading, Show, Sync
from leasehold.projections import bindings
from tests.integration.asking import Running, asking_at
from tests.integration.growing import pci
from tests.past.domains import UUIDS, domain, key_of

HOST = HostName("h1")
CARD, OTHER, THIRD = (DeviceKey(f"pci/0000:00:0{slot}.0") for slot in (5, 6, 7))
WEB = UUIDS[1]


class Stage:
    """A host with a poller and a binder, and a domain that is called `web1`."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.grower = running.grower
        self._said: dict[str, int] = {}

    async def tell(self, agent: str, *observations: Observation) -> None:
        """One message of an agent of the host."""
        counter = self._said.get(agent, 0)
        self._said[agent] = counter + 1
        self.grower.sequencer.observe(
            10_000 + sum(self._said.values()),
            Observed(host=HOST, agent=agent, run=1, counter=counter, observations=observations),
        )
        await self.grower.commit()

    async def lease(self, key: str, uuid: str = "") -> int:
        """A lease, for a domain if one is said."""
        request = msgspec.structs.replace(self.grower.lease(f"h1/{key}", holder="vm:web1"), domain=uuid)
        granted = await self.grower.ask("alice", request)
        assert granted.outcome == "granted", granted
        return granted.lease

    async def see(self, *observations: Observation) -> None:
        """The watcher tells of cards."""
        source = self.grower.state.hosts[HOST].sources["watcher"]
        self._said["watcher"] = source.counter + 1
        await self.tell("watcher", *observations)


def on(driver: str, *slots: int) -> list[inputs.DeviceSeen]:
    """Cards on this driver."""
    return [inputs.DeviceSeen(pci(slot, driver=driver)) for slot in slots]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with asking_at(tmp_path) as running:
        stage = Stage(running)
        await stage.see(*on("igb", *range(1, 9)))
        await stage.tell(POLLER, inputs.SourceStarts())
        await stage.tell(POLLER, inputs.DomainSeen(domain(WEB, name="web1", domid=7)), inputs.PictureComplete(since=1))
        await stage.tell(BINDER, inputs.SourceStarts(manages=True))
        await stage.tell(BINDER, inputs.PictureComplete(since=1))
        yield stage


def devices(reading: Reading) -> list[tuple[str, str]]:
    """Device and state of each row."""
    return [(row.device, row.state) for row in reading.hostdevs]


async def test_lists_as_the_draft_has_them(stage: Stage) -> None:
    """What a lease holds or a domain has is active, with its user; what is on a stub and nobody's is inactive; of one
    bus, of one domain, in pages.
    """
    running = stage.running
    lease = await stage.lease(CARD, WEB)
    await stage.see(*on("vfio-pci", 5, 6))
    await stage.tell(BINDER, inputs.Prepared(CARD, lease, "vfio-pci", "igb", "flr"))
    await stage.tell(POLLER, inputs.DeviceUsed(key_of(WEB), THIRD, "attached"))
    expected = [(f"h1/{CARD}", "active"), (f"h1/{OTHER}", "inactive"), (f"h1/{THIRD}", "active")]
    whole = await running.ok(ListHostdevs())
    assert devices(whole) == expected
    first, _, third = whole.hostdevs
    assert (first.lease, first.holder, first.domain, first.domain_name) == (f"L{lease}", "vm:web1", WEB, "web1")
    assert (first.driver, first.was_driver, first.prepared, first.attached) == ("vfio-pci", "igb", True, False)
    assert (third.lease, third.hypervisor, third.domain_name, third.attached) == ("", "xen", "web1", True)
    assert devices(await running.ok(ListHostdevs(bus="pci", state="active"))) == [expected[0], expected[2]]
    assert devices(await running.ok(ListHostdevs(state="inactive"))) == [expected[1]]
    assert devices(await running.ok(ListHostdevs(bus="usb"))) == []
    for name in ("web1", WEB, f"xen/{WEB}", f"h1/xen/{WEB}"):
        assert devices(await running.ok(ListHostdevs(domain=name, host="h1"))) == [expected[0], expected[2]], name
    page = await running.ok(ListHostdevs(limit=1))
    assert (devices(page), page.more) == (expected[:1], True)
    rest = await running.ok(ListHostdevs(after=page.hostdevs[0].device))
    assert (devices(rest), rest.more) == (expected[1:], False)


async def test_what_cannot_be_asked(stage: Stage) -> None:
    """A bus or state that is none is named; so are a host, a domain and a device that are not known."""
    running = stage.running
    for question, field in ((ListHostdevs(bus="scsi"), "bus"), (ListHostdevs(state="leased"), "state")):
        reading = await running.ask(question)
        assert (reading.outcome, reading.field) == ("invalid", field)
    missing = {
        "no host h9 is known": (ListHostdevs(host="h9"), ListDrifts(host="h9")),
        "no domain nobody is known": (ListHostdevs(domain="nobody"),),
        "no device 0000:0f:00.0 is known": (ListDrifts(device="0000:0f:00.0"),),
    }
    for said, questions in missing.items():
        for each in questions:
            reading = await running.ask(each)
            assert (reading.outcome, reading.message) == ("not_found", said)
    assert devices(await running.ok(ListHostdevs(domain=UUIDS[3]))) == []


async def test_a_drift_is_listed_told_and_over(stage: Stage) -> None:
    """A device that a domain has without a lease: the three truths with their positions, and what to do; also in its
    history, and gone from the list when it is over.
    """
    running = stage.running
    await stage.tell(POLLER, inputs.DeviceUsed(key_of(WEB), THIRD, "attached"))
    await stage.grower.pass_time(limits.DRIFT_MS // 1_000 + 1)
    (row,) = (await running.ok(ListDrifts())).drifts
    assert (row.device, row.kind) == (f"h1/{THIRD}", "foreign")
    assert "web1" in row.attached.says or WEB in row.attached.says
    assert 0 < row.attached.position < row.since_position
    assert row.help
    for name in (f"h1/{THIRD}", "0000:00:07.0"):
        assert (await running.ok(ListDrifts(device=name, host="h1"))).drifts == [row]
    assert (await running.ok(ListDrifts(device=f"h1/{CARD}"))).drifts == []
    (shown,) = (await running.ok(Show(name=f"h1/{THIRD}"))).devices
    assert shown.drift == "foreign"
    await stage.tell(POLLER, inputs.DeviceUnused(key_of(WEB), THIRD, "attached"))
    await stage.grower.pass_time(limits.DRIFT_MS // 1_000 + 1)
    assert (await running.ok(ListDrifts())).drifts == []
    told = [each.text for each in (await running.ok(History(name=f"h1/{THIRD}"))).history]
    assert sum("a domain has it, and no lease" in text for text in told) == 2


async def test_histories_and_reasons(stage: Stage) -> None:
    """What was handed over stands in the history of device, lease, holder, domain and host; a device in quarantine says
    why, and what would help.
    """
    running = stage.running
    lease = await stage.lease(CARD, WEB)
    await stage.tell(BINDER, inputs.Prepared(CARD, lease, "vfio-pci", "igb", "flr"))
    (shown,) = (await running.ok(Show(name=f"L{lease}"))).leases
    assert shown.prepared == "prepared"
    request = inputs.RevokeRequest(
        request_id=stage.grower.lease("x", holder="x").request_id, issued_at_ns=stage.grower.now_ns, lease=lease,
        reason="to be emptied", force=True,
    )  # fmt: skip
    revoked = await stage.grower.ask("olga", request)
    assert revoked.outcome == "revoked", revoked
    await stage.tell(BINDER, inputs.Stuck(CARD, lease, "its reset hangs", "switch the host off and on"))
    expected = ["lease_granted", "device_prepared", "lease_revoked", "device_quarantined"]
    for name, kind in ((f"L{lease}", "lease"), ("vm:web1", "holder"), (f"h1/{CARD}", "device"), ("h1", "host")):
        reading = await running.ok(History(name=name, kind=kind))
        assert [each for each in _types(reading) if each in expected] == expected, name
    of_domain = _types(await running.ok(History(name=f"h1/xen/{WEB}", kind="domain")))
    assert [each for each in of_domain if each in expected] == expected
    assert _types(await running.ok(History(name="olga", kind="principal"))) == ["lease_revoked"]
    texts = [each.text for each in (await running.ok(History(name=f"L{lease}"))).history]
    assert texts[1].endswith("bound to vfio-pci, was igb, reset by a function level reset")
    assert "taken even from a domain that has them: to be emptied (asked by olga" in texts[2]
    assert texts[3].endswith("its reset hangs (what helps: switch the host off and on)")
    why = await running.ok(Explain(name=f"h1/{CARD}"))
    assert "quarantined" in [blocker.rule for blocker in why.blockers] or why.devices[0].state == "ending"
    (shown_device,) = (await running.ok(Show(name=f"h1/{CARD}"))).devices
    assert shown_device.binding is not None
    assert (shown_device.binding.state, shown_device.binding.reason) == ("quarantined", "its reset hangs")


async def test_what_a_binder_needs_to_know(stage: Stage) -> None:
    """It is given all devices that are there, and what is held, in pages of any size, each once; what is held and not
    there, too. Nobody else is told what is held.
    """
    running = stage.running
    first = await stage.lease(CARD, WEB)
    await stage.lease(THIRD)
    await stage.tell(BINDER, inputs.Prepared(CARD, first, "vfio-pci", "igb", "flr"))
    await stage.see(inputs.DeviceGone(THIRD), inputs.DeviceGone(DeviceKey("pci/0000:00:08.0")))
    expected = bindings.holds_of(stage.grower.state, HOST)
    assert [(hold.key, hold.prepared, bool(hold.token)) for hold in expected] == [
        (CARD, True, True), (THIRD, False, True)
    ]  # fmt: skip
    for limit in (1, 2, 5, 100):
        holds: list[Hold] = []
        keys: list[str] = []
        more = True
        while more:
            reading = await running.ok(Sync(host="h1", agent=BINDER, after=keys[-1] if keys else "", limit=limit))
            holds += reading.holds
            keys += [each.key for each in reading.descriptions]
            more = reading.more
        assert holds == expected, limit
        assert [key for key in keys if key.count("/") == 1] == [f"pci/0000:00:0{slot}.0" for slot in range(1, 7)]
    assert (await running.ok(Sync(host="h1"))).holds == []


def _types(reading: Reading) -> list[str]:
    return [row.type.rpartition(".")[0] for row in reading.history]
