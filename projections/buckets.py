"""Under what devices are found: by what selectors commonly name, so that nobody looks at all of them.

| bucket | of a device | of a request |
|---|---|---|
| `any` | each | who can be narrowed no further |
| `kind:pci` | its kind | `device.kind == "pci"` |
| `host:h1` | its host | `device.host`, or the request's own |
| `pci_class:0302` | class and subclass | `device.pci.class` |
| `model:8086:10d3` | vendor and product | both of `device.vendor`, `device.product` |
| `device:h1/pci/…` | its id | `device.id`, or host with key or address; a device that is named |
| `class:gpu`, `tenant:lab` | none | a class that it names, and its tenant, for what becomes better by their words |

Only what can be asked for has any: no functional children, no bridges and root hubs, nothing that is on neither bus.
"""

from leasehold.events import limits
from leasehold.events.identities import DeviceId, Principal
from leasehold.events.inputs import LeaseRequest
from leasehold.events.schedule_inputs import ReserveRequest
from leasehold.events.scheduling import Need, Option
from leasehold.projections import candidates, conflicts, narrowing, selectors
from leasehold.projections.naming import resolve
from leasehold.projections.narrowing import ANY
from leasehold.projections.rows import DeviceState
from leasehold.projections.selectors import Selector
from leasehold.projections.state import State


def of_device(device: DeviceId, row: DeviceState) -> tuple[str, ...]:
    """The buckets of a device; none, if nobody can ask for it."""
    if not candidates.is_leasable(row.description):
        return ()
    return (*candidates.buckets_of(candidates.cell_of_row(row)), f"device:{device}")


def of_option(state: State, option: Need | Option, host: str) -> tuple[tuple[str, ...], ...]:
    """Sets of buckets, narrow ones first: in each of them, whatever can satisfy `option` is in at least one bucket.

    `host`: where it must be; empty: anywhere. The last set is all devices; an empty one: there can be none.
    """
    facts: narrowing.Facts = {"host": frozenset((host,))} if host else {}
    texts = [option.select]
    if option.device_class in state.classes:
        texts.append(state.classes[option.device_class].select)
    for text in filter(None, texts):
        selector = selectors.compiled(text)
        if isinstance(selector, Selector):
            facts = narrowing.both(facts, selector.facts)
    return narrowing.sets_of(facts)


def of_request(state: State, request: LeaseRequest | ReserveRequest, tenant: Principal) -> tuple[str, ...]:
    """Under what a waiting request is found: sorted, at most `limits.BUCKETS_PER_REQUEST_MAX` and its tenant's."""
    found: set[str] = set()
    for text in request.devices:
        device = resolve(state, text, request.host).device
        found.add(f"device:{conflicts.physical_device(device)}" if device is not None else ANY)
    for need in request.needs:
        for option in need.first_of or (need,):
            found.update(of_option(state, option, request.host)[0])
            if option.device_class:
                found.add(f"class:{option.device_class}")
    if len(found) > limits.BUCKETS_PER_REQUEST_MAX:
        found = {ANY, *(bucket for bucket in found if bucket.startswith("class:"))}
    return tuple(sorted((*found, f"tenant:{tenant}")))
