"""However long names and reasons are, what is written of those who wait is no larger than a record may be.

A record that is too large can never be appended: nothing would be decided any more.
"""

from leasehold.events import inputs, limits
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName, device_id
from leasehold.events.schedule_events import QueuedMoved, WaitingEnded
from tests.projections.ledger import SECOND, Ledger, device, ledger_with_hosts
from tests.scheduling.words import cordon

LONG: HostName = HostName("h" * limits.NAME_CHARS_MAX)
_MOST = limits.DEVICES_PER_LEASE_MAX
_AT_ONCE = 128


def _stick(line: int, number: int) -> DeviceDescription:
    port = "2-" + ".".join(["255"] * (limits.USB_PORT_DEPTH_MAX - 2) + [str(line + 100), str(number + 100)])
    return DeviceDescription(
        key=DeviceKey(f"usb/{'c' * 63}/{port}"),
        name=f"usb_{line}_{number}",
        kind="usb_device",
        sysfs_path=f"/sys/devices/{line}/{number}/".ljust(limits.REQUEST_BYTES_MAX // _MOST - 16, "z"),
    )


def test_one_who_takes_a_device_from_each_of_many_who_keep_many() -> None:
    """Each of those who lose one is told with all that he keeps; by names as long as they can be."""
    ledger = Ledger()
    ledger.note(inputs.DeciderStarts("alloc", "start"))
    lines = [[_stick(line, number) for number in range(_MOST)] for line in range(_MOST)]
    seen = [inputs.DeviceSeen(each) for line in lines for each in line]
    ledger.observe(inputs.SourceStarts(), host=LONG)
    for start in range(0, len(seen), _AT_ONCE):
        ledger.observe(*seen[start : start + _AT_ONCE], host=LONG)
    ledger.observe(inputs.PictureComplete(since=1), host=LONG)
    ledger.now_ns += 31 * SECOND
    ids: list[list[DeviceId]] = [[device_id(LONG, each.key) for each in line] for line in lines]
    for line in ids:
        assert ledger.ask(ledger.request(*line)).outcome == "granted"
        assert len(ledger.ask(ledger.request(*line, holder="other", wait_ms=60_000)).kept) == _MOST
    request = ledger.request(*(line[0].sysfs_path for line in lines), holder="third", wait_ms=60_000, priority=100)
    assert len(ledger.ask(request).kept) == _MOST
    assert sum(isinstance(event, QueuedMoved) for event in ledger.events) >= _MOST
    assert max(map(len, ledger.bodies)) <= limits.RECORD_BYTES_MAX


def test_many_who_have_waited_in_vain_for_long_reasons() -> None:
    """All whose time is over at once are told why; by as many records as that takes."""
    ledger, names = ledger_with_hosts(), ("01:00.0", "03:00.0", "0a:00.0", "2-2")
    for name in names:
        cordon(ledger, device=device(name), reason="ü" * limits.REASON_CHARS_MAX)
    for _ in range(limits.EVENTS_PER_RECORD_MAX):
        assert ledger.lease(*names, wait_ms=60_000).outcome == "queued"
    ledger.now_ns += 61 * SECOND
    ended = 0
    while ledger.state.queue:
        ledger.commit()
        ended += sum(isinstance(event, WaitingEnded) for event in ledger.events)
    assert ended == limits.EVENTS_PER_RECORD_MAX
    assert max(map(len, ledger.bodies)) <= limits.RECORD_BYTES_MAX
