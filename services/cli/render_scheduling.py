"""Classes, quotas, the queue, taints and reasons of choices, for people."""

import time
from collections.abc import Iterator, Sequence
from typing import Final

from leasehold.events.answers import Answer
from leasehold.events.position import queued_id_text
from leasehold.events.questions import Reading
from leasehold.events.schedule_views import Broken, ClassView, Explanation, QueuedView, QuotaView, TaintView
from leasehold.events.scheduling import Considered, Search
from leasehold.services.cli.render import line, table
from leasehold.services.cli.values import duration_text, time_text

_NAMED_MAX: Final = 4
_WORDS: Final = {
    "same_device": "are leased",
    "iommu_group": "share an IOMMU group with what is not the asker's",
    "acs": "are not kept apart from what is not the asker's",
    "slot": "are reset together with what is not the asker's",
    "physical_function": "are a part of what is not the asker's, or the other way round",
    "carried": "go with what is not the asker's",
    "usb_tree": "hang on, or carry, what is not the asker's",
    "usb_ports": "share USB ports with what is not the asker's",
    "ordered": "are just being changed by their hosts",
    "bridge": "carry others",
    "not_physical": "are on no bus",
    "host_not_managed": "are on hosts where no binder acts",
    "not_detached": "are bound to a host driver",
    "kept": "are kept for who waits and comes first",
    "missing": "are not there",
    "protected": "are needed by their hosts",
    "in_use": "are used without a lease",
    "host_stale": "are on hosts that may be out of date",
    "quarantined": "are in quarantine",
    "cordoned": "are cordoned",
    "tainted": "have a taint that is not tolerated",
    "unclean": "were not cleaned up behind another tenant",
    "shared": "are shared by others",
    "not_shareable": "are not to be shared",
    "selector": "do not match",
    "selector_error": "cannot be judged by the selector",
    "class": "are not of the class",
    "constraint": "do not go together with the others",
    "taken": "are chosen for another need",
    "quota": "are more than the quota allows",
}
"""What rules of a search, beside those of conflicts, say of the devices that they exclude."""


def classes(rows: list[ClassView]) -> None:
    """A table."""
    columns = ("class", "devices", "free", "leased", "kept", "out", "waiting", "selector")
    table(columns, (_class_cells(row) for row in rows))


def _class_cells(row: ClassView) -> tuple[str, ...]:
    more = "+" if row.is_cut_off else ""
    numbers = (f"{number}{more}" for number in (row.devices, row.free, row.leased, row.kept, row.out))
    return (row.name, *numbers, str(row.queued), row.select)


def quotas(rows: list[QuotaView]) -> None:
    """A table."""
    cells = ((row.tenant, row.device_class or "(all)", str(row.devices), str(row.devices_max)) for row in rows)
    table(("tenant", "class", "has", "may have"), cells)


def queue(rows: list[QueuedView]) -> None:
    """A table."""
    now_ns = time.time_ns()
    columns = ("place", "queued", "holder", "tenant", "needs", "priority", "waits", "ahead", "kept", "reason")
    cells = (
        (
            str(row.place),
            row.queued,
            row.holder,
            row.tenant,
            row.needs,
            str(row.priority),
            duration_text(max(0, now_ns - row.since_ns) // 10**6),
            str(row.ahead),
            _some(row.kept) or "-",
            row.why,
        )
        for row in rows
    )
    table(columns, cells)


def taints(rows: list[TaintView]) -> None:
    """A table."""
    cells = (
        (
            row.target,
            row.kind if row.kind == "cordon" else f"{row.name}={row.value}".rstrip("="),
            row.effect or "-",
            time_text(row.evicts_at_ns) if row.evicts_at_ns else "-",
            row.by,
            row.reason,
        )
        for row in rows
    )
    table(("of", "mark", "effect", "leases end", "by", "reason"), cells)


def _some(devices: Sequence[str]) -> str:
    """The first of many devices."""
    more = f" and {len(devices) - _NAMED_MAX} more" if len(devices) > _NAMED_MAX else ""
    return ", ".join(devices[:_NAMED_MAX]) + more


def waits(answer: Answer) -> None:
    """One line of progress, on standard error."""
    why = answer.refusal.message if answer.refusal is not None else ""
    ahead = f"{answer.ahead} ahead" if answer.ahead else "next in turn"
    kept = f"; kept for it: {_some(answer.kept)}" if answer.kept else ""
    line(f"{queued_id_text(answer.queued)} waits, {ahead}{kept}{f'; not yet: {why}' if why else ''}", err=True)


def queued(answer: Answer) -> None:
    """A request that waits, where nobody waits for it."""
    waits(answer)
    line(f"{queued_id_text(answer.queued)}  until {time_text(answer.until_ns)}")
    line(f"  how it stands: leasehold explain {queued_id_text(answer.queued)}; to take it back: leasehold withdraw")


def considered(reading: Reading) -> None:
    """What a request would lead to beside its answer: the leases that would end."""
    if not reading.broken:
        return
    line(f"{len(reading.broken)} living lease{'s' if len(reading.broken) > 1 else ''} would end:")
    table(("lease", "holder", "principal", "devices", "domain", "ends"), (_broken_cells(row) for row in reading.broken))


def _broken_cells(row: Broken) -> tuple[str, ...]:
    ends = time_text(row.ends_at_ns) if row.ends_at_ns > time.time_ns() else "at once"
    return (row.lease, row.holder, row.principal, ", ".join(row.devices), row.domain or "-", ends)


def search(found: Search, *, err: bool = False) -> None:
    """How devices were searched for, a few lines for each need."""
    for text in search_lines(found):
        line(text, err=err)


def search_lines(found: Search) -> Iterator[str]:
    """How devices were searched for."""
    for need in found.needs:
        chosen = f": {', '.join(need.devices)}" if need.devices else ""
        option = f" (by its choice {need.option})" if need.option else ""
        yield f"  need {need.need}{option}: {need.looked} devices looked at{chosen}"
        yield from _excluded_lines(need)
    if found.is_cut_off:
        yield f"  the search was given up behind {found.steps} steps: say more narrowly what is needed"


def _excluded_lines(need: Considered) -> Iterator[str]:
    for each in need.excluded:
        words = _WORDS.get(each.rule, f"are out by the rule {each.rule}")
        example = f", like {each.example}" if each.example else ""
        yield f"    {each.count} {words}{example}" + (f": {each.why}" if each.why else "")
        if each.help:
            yield f"      what helps: {each.help}"


def explanation(told: Explanation) -> None:
    """Why it stands as it does."""
    line(told.text)
    for heading, found in (("when it was decided", told.then), ("now", told.now)):
        if found is not None:
            line(f"{heading}:")
            search(found)
    if told.order:
        line("why these: " + "; ".join(told.order))
