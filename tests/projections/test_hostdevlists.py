"""Lists of host devices: active and inactive, by bus, host and domain, page by page, as a plain look finds them."""

import random

import pytest

from leasehold.events import inputs
from leasehold.events.hostdevs import STUBS
from leasehold.events.identities import DeviceKey, Holder
from leasehold.events.position import lease_id_text
from leasehold.events.views import HostdevView
from leasehold.projections.hostdevlists import list_hostdevs
from tests.projections.domains import OTHER, UUID, domain, key, polled_ledger, unused, used
from tests.projections.ledger import H1, H2, B, Ledger, device
from tests.projections.test_drifting import managed


def shown(ledger: Ledger, **how: str) -> dict[str, str]:
    """The last parts of the devices that are listed, with their state."""
    rows, more = list_hostdevs(ledger.state, **how)  # type: ignore[arg-type]
    assert not more
    assert [row.device for row in rows] == sorted(row.device for row in rows)
    return {row.device.rpartition("/")[2]: row.state for row in rows}


def test_nothing_is_listed_of_an_idle_host() -> None:
    """Devices of the host's own drivers, free ones, and those that are only configured, are on neither list."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.say(used("pci/0000:01:00.0", use="configured"))
    assert shown(ledger) == {}


def test_active_and_inactive() -> None:
    """Leased or attached is active; free and on a stub is inactive; behind a lease's end a stub's is inactive again."""
    ledger, polled = polled_ledger()
    polled.see()
    ledger.change("0a:00.0", driver="vfio-pci")
    ledger.change("03:10.1", driver="pciback")
    lease = ledger.granted("01:00.0", "2-2")
    polled.say(used("pci/0000:03:10.0"), used("usb-port/1-3"))
    active = {"0000:01:00.0": "active", "0000:03:10.0": "active", "2-2": "active", "2-3": "active"}
    inactive = {"0000:0a:00.0": "inactive", "0000:03:10.1": "inactive"}
    assert shown(ledger) == active | inactive
    assert shown(ledger, in_state="active") == active
    assert shown(ledger, in_state="inactive") == inactive
    assert shown(ledger, bus="usb") == {"2-2": "active", "2-3": "active"}
    assert shown(ledger, bus="pci", in_state="inactive") == inactive
    assert shown(ledger, host=H2) == {}
    ledger.release(lease)
    polled.say(unused("pci/0000:03:10.0"))
    assert shown(ledger) == {"2-3": "active"} | inactive
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:0a:00.0")))
    assert shown(ledger, bus="pci") == {"0000:03:10.1": "inactive"}


def test_who_uses_it() -> None:
    """Driver and domain, as libvirt's `used_by`: the domain that has it, or else the one that it is leased for."""
    ledger, polled, bound = managed()
    polled.see()
    lease = ledger.granted("01:00.0", holder=Holder("web-team"), domain=UUID, ttl_ms=600_000)
    bound.prepared(lease)
    (row,), _ = list_hostdevs(ledger.state)
    assert row == HostdevView(
        device=device("01:00.0"),
        name="pci_0000_01_00_0",
        bus="pci",
        state="active",
        lease=lease_id_text(lease),
        holder="web-team",
        hypervisor="xen",
        domain=UUID,
        domain_name="web",
        attached=False,
        driver="vfio-pci",
        was_driver="igb",
        prepared=True,
    )
    polled.see(OTHER, name="db")
    polled.say(used("pci/0000:01:00.0", OTHER))
    (row,), _ = list_hostdevs(ledger.state)
    assert (row.domain, row.domain_name, row.attached) == (OTHER, "db", True)


@pytest.mark.parametrize("called", ["web", UUID, UUID.upper(), key(), domain()])
def test_of_one_domain(called: str) -> None:
    """By name, uuid, key or id: what it has, and what is leased for it; not what it only claims."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.see(OTHER, name="db")
    ledger.granted("01:00.0", domain=UUID)
    ledger.granted("0a:00.0", domain=OTHER)
    polled.say(used("usb-port/1-3"), used("pci/0000:0a:00.0", OTHER), used("pci/0000:03:10.0", use="configured"))
    assert shown(ledger, domain=called) == {"0000:01:00.0": "active", "2-3": "active"}
    assert shown(ledger, domain=called, bus="usb") == {"2-3": "active"}
    assert shown(ledger, domain=called, in_state="inactive") == {}


def test_a_domain_that_is_not_there_yet() -> None:
    """A uuid that no domain has is one that leases may be for; any other word is nobody."""
    ledger, _ = polled_ledger()
    ledger.granted("01:00.0", domain=UUID)
    (row,), _ = list_hostdevs(ledger.state, domain=UUID)
    assert (row.domain, row.domain_name, row.hypervisor, row.attached) == (UUID, "", "", False)
    assert shown(ledger, domain="nobody") == {}


def test_pages() -> None:
    """Pages behind one another come to the whole list, each device once, whatever their size; as a plain look finds."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger, polled = polled_ledger()
    polled.see()
    for _ in range(12):
        name = chance.choice(("01:00.0", "0a:00.0", "03:10.0", "03:10.1", "2-2", "2-1.1"))
        ledger.change(name, driver=chance.choice((*STUBS, "igb")))
        ledger.lease(chance.choice(("01:00.0", "0a:00.0", "2-2", "2-1.1")), principal=B)
    state = ledger.state
    plain = {
        name: "active" if row.lease or state.attached_to(row) else "inactive"
        for name, row in state.devices.items()
        if row.lease or state.attached_to(row) or (row.description.driver in STUBS and not row.missing)
    }
    for limit in (1, 2, 3, 100):
        found: dict[str, str] = {}
        after, more = "", True
        while more:
            rows, more = list_hostdevs(state, host=H1, after=after, limit=limit)
            assert len(rows) == limit or not more
            assert found.keys().isdisjoint(row.device for row in rows)
            found |= {row.device: row.state for row in rows}
            after = rows[-1].device if rows else ""
        assert found == plain
