"""What devices were like, and what orders led to: answers held against the raw records, these against the host."""

import asyncio
from collections import Counter
from typing import Any, Final

import msgspec

from leasehold.events.questions import Moment
from leasehold.events.views import DeviceView
from leasehold.projections.reporting import Picture
from leasehold.services.past import Past
from tests.bench.cluster import HOST
from tests.day.oracle import RawLog, Seen
from tests.day.running import Day

SETTLED_S: Final = 60.0
POLL_S: Final = 0.2


async def settled(day: Day) -> Picture:
    """Wait until the log has the host as it is, which nobody changes any more; that picture."""
    picture = await asyncio.to_thread(day.machine.picture)
    wanted = {(device.key, device.name, device.driver) for device in picture.values()}
    found: set[tuple[str, str, str]] = set()
    try:
        async with asyncio.timeout(SETTLED_S):
            while found != wanted:
                await asyncio.sleep(POLL_S)
                rows = await day.client.devices(host=HOST, present=True)
                found = {(row.key, row.name, row.driver) for row in rows}
    except TimeoutError:
        print(f"the log has not come to the host's picture: {sorted(found ^ wanted)[:6]}")
    return picture


def compare_host(day: Day, log: RawLog, picture: Picture) -> list[str]:
    """The log's last descriptions are what is there, to the last field, and orders have led to what is there."""
    here = {device: rows[-1] for device, rows in log.devices.items() if device.startswith(f"{HOST}/")}
    logged = {device.partition("/")[2]: row.description for device, row in here.items() if row.is_there}
    seen = {str(key): _plain(device) for key, device in picture.items()}
    wrong = [key for key in sorted(logged.keys() | seen.keys()) if logged.get(key) != seen.get(key)]
    problems = [f"{key}: the log has {logged.get(key)}, the host {seen.get(key)}" for key in wrong]
    made = {key for key in seen if "/mdev/" in key or seen[key].get("capability", {}).get("is_vport")}
    told = Counter(word for word in day.machine.kernel.told if not word.startswith("remove"))
    problems += [f"the kernel was told {count} times: {word}" for word, count in told.items() if count > 1]
    return problems + day.orders.check(log, made)


async def ask_devices(day: Day, log: RawLog, moments: list[Moment]) -> list[str]:
    """Each device at these moments is shown as it was described last, with its flaps; so many were there."""
    problems, past = [], Past(day.client)
    for moment in moments:
        position = moment.position or log.end_at(moment.ns)
        wanted = log.devices_at(position)
        rows = await past.devices(moment).all()
        problems += [
            f"{row.device} at {moment}: {_shown(row)}, expected {_expected(wanted.get(row.device))}"
            for row in rows
            if _shown(row) != _expected(wanted.get(row.device))
        ]
        if len(rows) != len(wanted):
            problems.append(f"devices at {moment}: {len(rows)}, expected {len(wanted)}")
        there, _ = await past.count(moment)
        if there != sum(row.is_there for row in wanted.values()):
            problems.append(f"devices that were there at {moment}: {there}")
    return problems


def _shown(row: DeviceView) -> tuple[Any, ...]:
    return row.name, row.driver, row.product_id, row.flaps, _plain(row.capability) or {}


def _plain(value: object) -> Any:
    """As it stands in JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _expected(seen: Seen | None) -> tuple[Any, ...]:
    if seen is None:
        return ()
    described = seen.description
    texts = [described.get(name, "") for name in ("name", "driver", "product_id")]
    return *texts, seen.flaps, described.get("capability", {})
