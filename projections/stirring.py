"""What has become better for those who wait: noted by each event that made it so, and looked at by the next tick.

A note is a few words under the position of the event:

| word | what is new |
|---|---|
| `device:ID` | a device is free, there again, or another than it was; or one that is kept is none of that any more |
| `host:NAME` | something of all devices of a host: its picture is up to date again, it is no longer cordoned |
| `class:NAME`, `tenant:NAME` | a device class; a quota of a tenant, or how much of it is used |
| `QPOSITION` | one waiting request alone: what was kept for it is not any more |
| `*` | so much that all who wait are looked at |

What nobody waits for is not noted. What is new while a note waits to be looked at is added to it, so that many changes
at once cost one look at each who waits. Who takes notes up: `waiting`.
"""

from collections.abc import Iterator
from typing import Final

from leasehold.events import limits
from leasehold.events.identities import DeviceId, HostName
from leasehold.events.position import parse_queued_id
from leasehold.projections import buckets, conflicts, ties
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.state import State

WORDS_MAX: Final = 64
"""Of one note."""
RELATIVES_MAX: Final = 256
"""Of one device, met by any way; what has more stands for its whole host."""
DEVICE: Final = "device:"
HOST: Final = "host:"


def stir(state: State, position: int, *words: str, behind: tuple[int, int] | None = None) -> None:
    """Note what the event at `position` has made better, as far as somebody waits for it.

    `behind`: only for those who come behind this place of the queue; they may be looked at with what is looked at now.
    """
    if state.queue:
        found = sorted({word for word in words if _is_waited_for(state, word)})
        if found:
            _note(state, position, found, behind)


def take_news(state: State, position: int) -> None:
    """Note what the event at `position`, over which the state was just moved, has told of devices and hosts."""
    news, state.news = state.news, []
    stir(state, position, *(each for word in dict.fromkeys(news) for each in with_relatives(state, word)))


def with_relatives(state: State, word: str) -> set[str]:
    """A word, and those of the devices that are tied to what it says."""
    if not word.startswith(DEVICE):
        return {word}
    device = DeviceId(word.removeprefix(DEVICE))
    if device not in state.devices:
        return set()
    found = {word}
    for number, other in enumerate(relatives(state, device)):
        found.add(f"{DEVICE}{other}")
        if number >= RELATIVES_MAX:
            return {f"{HOST}{state.devices[device].host}"}
    return found


def relatives(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The known devices that may be had, or not, because of how `device` stands; some more than once."""
    line = [device, *_kin(state, device)]
    yield from line[1:]
    for each in line:
        for tie in ties.ties_of(state, each):
            for mate in conflicts.mates(state, each, tie):
                yield mate
                yield from _kin(state, mate)


def _kin(state: State, device: DeviceId) -> Iterator[DeviceId]:
    return (each for each in conflicts.kin(state, device) if each in state.devices)


def _is_waited_for(state: State, word: str) -> bool:
    if word.startswith(DEVICE):
        device = DeviceId(word.removeprefix(DEVICE))
        row = state.devices.get(device)
        if row is None:
            return False
        return device in state.indexes.kept or any(
            bucket in state.indexes.queued for bucket in buckets.of_device(device, row)
        )
    if word.startswith(HOST):
        return HostName(word.removeprefix(HOST)) in state.indexes.on_host
    if word.startswith("Q"):
        return parse_queued_id(word) in state.queue
    return word in state.indexes.queued


def _note(state: State, position: int, words: list[str], behind: tuple[int, int] | None) -> None:
    stirs = state.indexes.stirs
    for at in _open_notes(state, behind):
        before = state.stirred[at]
        after = before if before == (EVERYBODY,) else tuple(sorted({*before, *words}))
        if after == before:
            return
        if len(after) <= WORDS_MAX:
            state.stirred.put(at, after)
            return
    is_full = len(stirs) >= limits.STIRRED_MAX
    note = (EVERYBODY,) if is_full or len(words) > WORDS_MAX else tuple(words)
    if stirs and stirs[-1] == position:
        note = (EVERYBODY,)
    else:
        stirs.push(position)
    state.stirred.put(position, note)


def _open_notes(state: State, behind: tuple[int, int] | None) -> Iterator[int]:
    """The notes to which something may be added: nobody whom it concerns was looked at yet for their sake."""
    stirs, head = state.indexes.stirs, state.head
    if not stirs:
        return
    is_begun = head.looked_queued != 0
    if not is_begun or (behind is not None and (head.looked_rank_ns, head.looked_queued) <= behind):
        yield stirs[0]
    if len(stirs) > 1:
        yield stirs[-1]
