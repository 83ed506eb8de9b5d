"""Words for asking without naming a device: needs, constraints, modes of leases, taints, policies, reasons of a choice.

How a selector is written stands in `docs/selectors.md`. What people know from Kubernetes' device requests (`count`,
`all`, `firstAvailable`, `matchAttribute`, `distinctAttribute`, tolerations) is meant alike; sources in
`docs/scheduling.md`.
"""

from typing import Final

import msgspec

from leasehold.events.identities import DeviceId

MODES: Final = ("", "shared", "admin")
"""Of a lease: alone (the empty one); together with other `shared` ones, where the device's policy allows that; or as
somebody who only looks on, which keeps nobody away and is not kept away."""
EFFECTS: Final = ("no_grant", "evict")
"""Of a taint: nothing more is granted to who does not tolerate it; and living leases that do not, end."""
DRAIN: Final = "drain"
"""The taint that `leasehold drain` puts on a host or a device, with the effect `evict`."""
CONSTRAINTS: Final = ("same", "distinct")


class Option(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """One way to satisfy a need: `count` devices, or (`every`) all that match and at least so many.

    A device must be of the class, if one is named, and match the selector, if there is one; one of both there must be.
    """

    select: str = ""
    device_class: str = ""
    count: int = 1
    every: bool = False


class Need(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """Devices that are needed: as of an `Option`, or the first of `first_of` that can be had."""

    name: str = ""
    """For constraints and reasons; empty: its place in the request, from `1`."""
    select: str = ""
    device_class: str = ""
    count: int = 1
    every: bool = False
    first_of: tuple[Option, ...] = ()
    """In the order of preference; with it, nothing else but `name` is said."""


class Constraint(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """Across the devices of a request: all have the same value of an attribute, or no two have.

    What has no such attribute satisfies neither. Numbers that count on one host only (NUMA nodes, IOMMU groups, PCIe
    roots) are the same only on one host.
    """

    kind: str
    """One of `CONSTRAINTS`."""
    attribute: str
    """`host`, `numa_node`, `pcie_root`, …: any that selectors know, without `device.` in front."""
    needs: tuple[str, ...] = ()
    """Of which needs, by name; empty: of all."""


class Taint(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """A mark on a host or a device that keeps away whoever does not tolerate it. `effect`: one of `EFFECTS`."""

    name: str
    value: str = ""
    effect: str = "no_grant"
    reason: str = ""
    evicts_at_ns: int = 0
    """When living leases that do not tolerate it end; 0: they do not."""


class Policy(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """How a device may be handed out."""

    share_max: int = 1
    """How many `shared` leases may have it at a time; 1: it is not shared."""
    clean: bool = False
    """Behind each lease somebody must confirm that it was cleaned up, before another tenant gets it."""


class Excluded(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """How many devices that a need looked at were out of the question by one rule, with one of them as an example."""

    rule: str
    """Of `projections.conflicts`; or `selector` (it does not match), `selector_error` (it cannot be said: see
    `why`), `class`, `constraint`, `taken` (by another need of this request), `quota`."""
    count: int
    example: str = ""
    """A device id."""
    why: str = ""
    help: str = ""


class Considered(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """How one need was looked for."""

    need: str
    devices: tuple[DeviceId, ...] = ()
    """Which were chosen; empty: none."""
    option: int = 0
    """Which of `first_of` it was, from 1; 0: the need has none."""
    looked: int = 0
    """How many devices were looked at, for all options together."""
    excluded: tuple[Excluded, ...] = ()


class Search(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """How devices for a request were searched for."""

    steps: int
    """How many candidates were tried, of at most `limits.SEARCH_STEPS_MAX`."""
    needs: tuple[Considered, ...] = ()
    is_cut_off: bool = False
    """The bound was hit before a solution was found, or before it was known that there is none."""
