"""`python -m tests.bench.queries`: what lists by capability, bus, parent and driver cost, with 100,000 devices.

Beside each question stands what a plain walk over the state takes. One thread, no bus.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import msgspec

from leasehold.events.capabilities import Net, Pci, Storage
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName, Principal, device_id
from leasehold.events.questions import ListDevices
from leasehold.projections.nodedev import is_wanted, wanted_by
from leasehold.projections.rows import DeviceState, HostState, SourceState
from leasehold.projections.state import State
from leasehold.services.query.answering import Answerer

ROUNDS = 7
ASKER = Principal("bench")
QUESTIONS = {
    "all, a page of 1,000": ListDevices(),
    "--count": ListDevices(count_only=True),
    "--cap net --count": ListDevices(cap="net", count_only=True),
    "--cap net, a page": ListDevices(cap="net"),
    "--cap fc_host (there is none)": ListDevices(cap="fc_host"),
    "--cap removable (one a host)": ListDevices(cap="removable"),
    "--cap net,storage --count": ListDevices(cap="net,storage", count_only=True),
    "--driver vfio-pci --bus pci --count": ListDevices(driver="vfio-pci", bus="pci", count_only=True),
    "--parent (a name that all hosts have)": ListDevices(parent="pci/0000:00:00.0"),
    "--parent computer --count": ListDevices(parent="computer", count_only=True),
    "--host --cap net": ListDevices(host="h7", cap="net"),
}


def devices(cards: int) -> list[DeviceDescription]:
    """Cards, each with an interface and a disk below it."""
    found = []
    for number in range(cards):
        key = f"pci/{number >> 13:04x}:{number >> 5 & 255:02x}:{number & 31:02x}.0"
        driver = "vfio-pci" if number % 2 else "igb"
        net = Net(interface=f"eth{number}", medium="80203")
        disk = Storage(block=f"/dev/nvme{number}n1", size_bytes=1, removable=not number)
        found += [
            DeviceDescription(key=DeviceKey(key), name=key, kind="pci", driver=driver, capability=Pci()),
            DeviceDescription(key=DeviceKey(f"{key}/net/0"), name=key, kind="net", parent=key, capability=net),
            DeviceDescription(key=DeviceKey(f"{key}/block/0"), name=key, kind="block", parent=key, capability=disk),
        ]
    return found


def state_of(hosts: int, per_host: int) -> State:
    """Hosts that all have the same devices."""
    state = State()
    for number in range(hosts):
        host = HostName(f"h{number}")
        state.hosts.put(host, HostState(mode="watched", sources={"watcher": SourceState(run=1)}))
        for device in devices(per_host // 3):
            state.devices.put(device_id(host, device.key), DeviceState(host=host, description=device))
    state.index_anew()
    return state


def best_ms(work: Callable[[], object]) -> float:
    """The least of some rounds: what is above it is the neighbours'."""
    took = []
    for _ in range(ROUNDS):
        begun_s = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun_s)
    return min(took) * 1_000


def change(state: State, count: int) -> None:
    """As many devices get another driver, as behind a record."""
    for device in list(state.devices)[:count]:
        row = state.devices[device]
        description = msgspec.structs.replace(row.description, driver=f"{row.description.driver}x")
        state.devices.put(device, msgspec.structs.replace(row, description=description))
    state.set_head(msgspec.structs.replace(state.head, sequence=state.head.sequence + 1))


def walked(state: State, question: ListDevices) -> list[DeviceId]:
    """What is found by looking at every device."""
    wanted = wanted_by(state, question)
    return [device for device, row in state.devices.items() if is_wanted(wanted, row)]


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--per-host", type=int, default=1_000)
    given = parser.parse_args()
    state = state_of(given.hosts, given.per_host)
    answerer = Answerer(state)
    answerer.answer(ListDevices(), ASKER)
    print(f"{len(state.devices)} devices on {given.hosts} hosts")
    begun_s = time.perf_counter()
    answerer.answer(ListDevices(count_only=True), ASKER)
    print(f"  {'the first question':<40} {(time.perf_counter() - begun_s) * 1_000:8.1f} ms")
    for what, question in QUESTIONS.items():
        reading = answerer.answer(question, ASKER)
        took_ms = best_ms(partial(answerer.answer, question, ASKER))
        walk_ms = best_ms(partial(walked, state, question))
        print(
            f"  {what:<40} {took_ms:8.1f} ms (a walk: {walk_ms:.0f} ms), {reading.count or len(reading.devices)} found"
        )
    for count in (0, 1, 64, 1_000, 20_000):
        change(state, count)
        begun_s = time.perf_counter()
        answerer.answer(ListDevices(cap="fc_host"), ASKER)
        took_ms = (time.perf_counter() - begun_s) * 1_000
        print(f"  {f'the next question behind {count} changes':<40} {took_ms:8.1f} ms")


if __name__ == "__main__":
    main()
