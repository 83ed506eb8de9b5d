"""Whatever an agent tells, what follows from one message of it is no larger than a record may be."""

from leasehold.events import inputs, limits
from leasehold.events.capabilities import UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey, HostName, domain_id
from leasehold.projections import domains
from tests.projections.domains import described, key, polled_ledger

UUIDS = [f"c0ffee00-0000-4000-8000-{number:012x}" for number in range(limits.OBSERVATIONS_PER_MESSAGE_MAX)]
PORTS, KIND = "2-" + ".".join(["255"] * limits.USB_PORT_DEPTH_MAX), "k" * 32


def test_uses_of_devices_with_long_keys_by_domains_with_long_names() -> None:
    """Each use is told with the devices that its word may mean, and with the name of its domain."""
    ledger, poller = polled_ledger()
    for number in range(limits.DEVICES_MEANT_MAX):
        own = f"{number:02}".ljust(64, "x")
        ledger.see(
            DeviceDescription(
                key=DeviceKey(f"usb/{'c' * 63}/{PORTS}/{KIND}/{own}"),
                name=f"stick_{number}",
                kind="usb_device",
                vendor_id="0bad",
                product_id="0bad",
                capability=UsbDevice(bus=1, device=number + 20),
            )
        )
    for uuid in UUIDS:
        poller.see(uuid, name="\0" * limits.DOMAIN_NAME_CHARS_MAX)
    poller.say(*(inputs.DeviceUsed(key(uuid), "usb-id/0bad:0bad", "attached") for uuid in UUIDS))
    assert max(map(len, ledger.bodies)) <= limits.RECORD_BYTES_MAX


def test_a_domain_with_many_words_that_mean_many_devices() -> None:
    """It is shown with all its words, and with as many of the devices that they mean as one row may name."""
    ledger, poller = polled_ledger()
    kinds = limits.DEVICES_MEANT_PER_MESSAGE_MAX // limits.DEVICES_MEANT_MAX + 4
    for kind in range(kinds):
        for number in range(limits.DEVICES_MEANT_MAX):
            ledger.see(
                DeviceDescription(
                    key=DeviceKey(f"usb/{'c' * 63}/{PORTS}/{KIND}/{kind:03}{number:02}"),
                    name=f"stick_{kind}_{number}",
                    kind="usb_device",
                    vendor_id="0bad",
                    product_id=f"{kind:04x}",
                    capability=UsbDevice(bus=1, device=number + 20),
                )
            )
    poller.see(UUIDS[0])
    poller.say(*(inputs.DeviceUsed(key(UUIDS[0]), f"usb-id/0bad:{kind:04x}", "attached") for kind in range(kinds)))
    view = domains.domain_view(ledger.state, domain_id(HostName("h1"), key(UUIDS[0])))
    assert len(view.uses) == kinds
    assert sum(len(use.devices) for use in view.uses) == limits.DEVICES_MEANT_PER_MESSAGE_MAX


def test_domains_with_long_names_are_renamed() -> None:
    """Each change is told with the name as it was and as it is, of as many domains as one message can name."""
    ledger, poller = polled_ledger()
    most = limits.OBSERVED_BYTES_MAX // (6 * limits.DOMAIN_NAME_CHARS_MAX + 200)
    for name in ("\0", "\1"):
        renamed = (described(uuid, name=name * limits.DOMAIN_NAME_CHARS_MAX) for uuid in UUIDS[:most])
        poller.say(*map(inputs.DomainSeen, renamed))
    assert len(ledger.events) == most + 1
    assert max(map(len, ledger.bodies)) <= limits.RECORD_BYTES_MAX
