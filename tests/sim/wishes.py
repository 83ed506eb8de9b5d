"""What schedulers of the simulator wish for, and what that means, in the simulator's own words: its judge needs no CEL.

Descriptions and requests are plain JSON, as they stand in the log.
"""

from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import chain, combinations
from typing import Any, Final

from tests.sim.world import APART, GPU, UUIDS, host_devices, short

Wish = dict[str, Any]
"""A request for a lease, or one of its needs, as in the log."""
Description = dict[str, Any]
Match = Callable[[str, Description], bool]
"""Of a host's name and a device's description."""

SELECTORS: Final[dict[str, Match]] = {
    'device.vendor == "8086"': lambda _, it: it.get("vendor_id") == "8086",
    'device.vendor == "0403"': lambda _, it: it.get("vendor_id") == "0403",
    'device.product == "10c9" && device.iommu_group < 3': lambda _, it: (
        it.get("product_id") == "10c9" and 0 <= it.get("iommu_group", -1) < 3
    ),
    'device.kind == "pci" && device.iommu_group in [1, 2]': lambda _, it: (
        it["kind"] == "pci" and it.get("iommu_group") in (1, 2)
    ),
    "device.iommu_group == 2": lambda _, it: it.get("iommu_group") == 2,
    'device.key == "pci/0000:01:00.0"': lambda _, it: it["key"] == "pci/0000:01:00.0",
    'device.key.startsWith("pci/0000:0") && device.host == "h1"': lambda host, it: (
        it["key"].startswith("pci/0000:0") and host == "h1"
    ),
    'device.host in ["h2"] && !(device.vendor == "0403")': lambda host, it: (
        host == "h2" and it.get("vendor_id") != "0403"
    ),
    # It cannot be said of any device here, and so matches none.
    'device.attributes["nothing"] == "here"': lambda _host, _it: False,
}
CLASSES: Final = ("net", "any")


def attribute(name: str, device: str, description: Description) -> object:
    """The value that a constraint compares; `None`: it has none."""
    host = device.partition("/")[0]
    match name:
        case "host":
            return host
        case "iommu_group":
            group = description.get("iommu_group", -1)
            return (host, group) if group >= 0 else None
        case "vendor":
            return description.get("vendor_id")
        case _:
            raise KeyError(name)


def options_of(need: Wish) -> list[Wish]:
    """The ways to satisfy a need, in order."""
    return list(need.get("first_of", ())) or [need]


def needs_of(wish: Wish) -> list[tuple[str, Wish]]:
    """The needs of a request, by name."""
    return [(need.get("name") or str(number), need) for number, need in enumerate(wish.get("needs", ()), 1)]


def matches(option: Wish, classes: dict[str, str], device: str, description: Description) -> bool:
    """Whether a device is what an option wants."""
    texts = [option["select"]] if option.get("select") else []
    if option.get("device_class"):
        if option["device_class"] not in classes:
            return False
        texts.append(classes[option["device_class"]])
    return all(SELECTORS[text](device.partition("/")[0], description) for text in texts)


def is_a_thing(description: Description) -> bool:
    """Whether it can be handed out at all."""
    is_physical = description["kind"] in ("pci", "usb_device")
    return is_physical and not description.get("bridge") and not description.get("hub")


def unmet(constraint: Wish, chosen: dict[str, list[str]], descriptions: dict[str, Description]) -> bool:
    """Whether devices, chosen for needs, are not as a constraint across them wants."""
    needs = constraint.get("needs") or list(chosen)
    devices = list(chain.from_iterable(chosen[need] for need in needs if need in chosen))
    values = [attribute(constraint["attribute"], each, descriptions[each]) for each in devices]
    if None in values:
        return True
    if constraint["kind"] == "same":
        return len(set(values)) > 1
    return len(set(values)) < len(values)


def wrong_choice(
    wish: Wish, chosen: dict[str, list[str]], option: dict[str, int], classes: dict[str, str],
    descriptions: dict[str, Description], missing: set[str],
) -> str:  # fmt: skip
    """Why these devices, chosen for these needs by these options (from 1; 0: it has none), are not what was asked for;
    empty: they are.
    """
    if set(chosen) != {name for name, _ in needs_of(wish)}:
        return f"devices for {sorted(chosen)} are no answer to what was needed"
    for name, need in needs_of(wish):
        wanted = need["first_of"][option[name] - 1] if need.get("first_of") else need
        devices = chosen[name]
        count = wanted.get("count", 1)
        if len(devices) < count or (len(devices) > count and not wanted.get("every")):
            return f"{len(devices)} devices for need {name}, which wants {count}"
        for device in devices:
            if wish.get("host") and device.partition("/")[0] != wish["host"]:
                return f"{device} is not on {wish['host']}"
            if not matches(wanted, classes, device, descriptions[device]):
                return f"{device} is not what need {name} wants"
        if wanted.get("every"):
            whole = _all_of(wish, wanted, classes, descriptions, missing, devices[0].partition("/")[0])
            taken = set(chain.from_iterable(each for other, each in chosen.items() if other != name))
            if whole - taken - set(devices):
                return f"{sorted(whole - set(devices))} match, too, and all were wanted"
    for constraint in wish.get("constraints", ()):
        if unmet(constraint, chosen, descriptions):
            return f"the devices are not of {constraint}"
    return ""


def _all_of(
    wish: Wish, wanted: Wish, classes: dict[str, str], descriptions: dict[str, Description], missing: set[str],
    host: str,
) -> set[str]:  # fmt: skip
    """What `every` means: all that is there, on the one host if there is to be one."""
    kinds = {(each["kind"], each["attribute"]) for each in wish.get("constraints", ())}
    hosts = {host} if wish.get("host") or ("same", "host") in kinds else {"h1", "h2"}
    return {
        device
        for device, description in descriptions.items()
        if device.partition("/")[0] in hosts
        and device not in missing
        and is_a_thing(description)
        and not description.get("protections")
        and matches(wanted, classes, device, description)
    }


def choices(
    wish: Wish, can_have: Callable[[str], bool], classes: dict[str, str], descriptions: dict[str, Description],
    missing: set[str],
) -> Iterator[tuple[str, ...]]:  # fmt: skip
    """All ways to satisfy a request with devices that can be had, by trying out. Not bounded: worlds here are small."""
    if not wish.get("needs"):
        names = tuple(sorted(wish["devices"]))
        if all(device in descriptions and can_have(device) for device in names):
            yield names
        return
    needs = needs_of(wish)
    free = [device for device in sorted(descriptions) if device not in missing and can_have(device)]

    def place(number: int, chosen: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
        if any(unmet(each, chosen, descriptions) for each in wish.get("constraints", ())):
            return
        if number == len(needs):
            yield tuple(sorted(chain.from_iterable(chosen.values())))
            return
        name, need = needs[number]
        taken = set(chain.from_iterable(chosen.values()))
        for option in options_of(need):
            fit = [
                device
                for device in free
                if device not in taken
                and (not wish.get("host") or device.partition("/")[0] == wish["host"])
                and matches(option, classes, device, descriptions[device])
            ]
            for devices in _of_option(option, fit, taken):
                yield from place(number + 1, {**chosen, name: devices})

    def _of_option(option: Wish, fit: list[str], taken: set[str]) -> Iterator[list[str]]:
        if not option.get("every"):
            # What cannot be owned apart is never two of the things that somebody needs.
            together = (each for each in combinations(fit, option.get("count", 1)) if not _overlap((*each, *taken)))
            yield from map(list, together)
            return
        for host in sorted({device.partition("/")[0] for device in fit}):
            whole = _all_of(wish, option, classes, descriptions, missing, host) - taken
            if whole <= set(fit) and len(whole) >= option.get("count", 1):
                yield sorted(whole)

    yield from place(0, {})


def _overlap(devices: tuple[str, ...]) -> bool:
    return any(by == "lease" and other in devices for device in devices for other, by in tied_to(device, devices))


def tied_to(device: str, devices: Collection[str]) -> Iterator[tuple[str, str]]:
    """Of these devices those at the other ends of what ties a device to others on its host, each with who may have
    both: `holder`, `lease`.
    """
    return ((other, by) for other, by in _other_ends(device) if other in devices)


@cache
def _other_ends(device: str) -> tuple[tuple[str, str], ...]:
    host, known = device.partition("/")[0], (*host_devices(), GPU, *(f"{GPU}/mdev/{uuid}" for uuid in UUIDS))
    found = []
    for pair, by in APART.items():
        if short(device) in pair:
            (other_end,) = pair - {short(device)}
            found += [(f"{host}/{key}", by) for key in known if short(key) == other_end]
    return tuple(found)
