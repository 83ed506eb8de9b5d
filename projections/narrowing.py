"""What a selector says for certain of whatever matches, so that nobody looks at all devices: see `buckets`.

Only what stands at the top, joined by `&&`, or in each part of an `||`, is certain: an attribute that equals a text, or
is in a list of texts.
"""

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Final

from leasehold.events import limits
from leasehold.events.identities import DeviceKey, HostName, device_id
from leasehold.projections.celchecks import path_of
from leasehold.projections.celparser import Binary, ListOf, Literal, Logic, Tree

ANY: Final = "any"
Facts = dict[str, frozenset[str]]
"""By the name of an attribute: of which values it is one."""
_ADDRESSES: Final = ("pci.address", 'attributes["resource.kubernetes.io"].pciBusID')
_CERTAIN: Final = frozenset({"id", "host", "key", "vendor", "product", "pci.class", "kind", *_ADDRESSES})


def facts_of(tree: Tree) -> Facts:
    """What is certain of each device for which this is true."""
    match tree:
        case Logic(sign="&&", items=items):
            facts: Facts = {}
            for item in items:
                facts = both(facts, facts_of(item))
            return facts
        case Logic(items=items):
            some = [facts_of(item) for item in items]
            names = set(some[0]).intersection(*some[1:])
            return {name: frozenset().union(*(each[name] for each in some)) for name in sorted(names)}
        case Binary(sign="==", left=left, right=Literal(value=str(value))):
            return _fact(left, [value])
        case Binary(sign="==", left=Literal(value=str(value)), right=right):
            return _fact(right, [value])
        case Binary(sign="in", left=left, right=ListOf(items=items)):
            values = [item.value for item in items if isinstance(item, Literal) and isinstance(item.value, str)]
            return _fact(left, values) if len(values) == len(items) else {}
        case _:
            return {}


def _fact(tree: Tree, values: list[str]) -> Facts:
    name = path_of(tree)
    if name not in _CERTAIN or "" in values:  # what is not known of a device puts it into no bucket
        return {}
    if name in _ADDRESSES:
        return {"key": frozenset(f"pci/{value}" for value in values)}
    return {name: frozenset(values)}


def both(some: Facts, others: Facts) -> Facts:
    """What is certain if all of this is."""
    facts = dict(some)
    for name, values in others.items():
        facts[name] = facts[name] & values if name in facts else values
    return facts


def sets_of(facts: Facts) -> tuple[tuple[str, ...], ...]:
    """Sets of buckets, narrow ones first: in each of them, whatever these facts are true of is in at least one bucket.

    The last is all devices. An empty one: there can be no such device.
    """
    found = [
        _joined(facts, ("id",), "device:{}".format),
        _joined(facts, ("host", "key"), lambda host, key: f"device:{device_id(HostName(host), DeviceKey(key))}"),
        _joined(facts, ("vendor", "product"), "model:{}:{}".format),
        _joined(facts, ("pci.class",), "pci_class:{}".format),
        _joined(facts, ("host",), "host:{}".format),
        _joined(facts, ("kind",), "kind:{}".format),
    ]
    return (*(each for each in found if each is not None), (ANY,))


def _joined(facts: Facts, names: tuple[str, ...], bucket: Callable[..., str]) -> tuple[str, ...] | None:
    if any(name not in facts for name in names):
        return None
    if prod(len(facts[name]) for name in names) > limits.BUCKETS_PER_REQUEST_MAX:
        return None
    return tuple(sorted(bucket(*values) for values in product(*(facts[name] for name in names))))
