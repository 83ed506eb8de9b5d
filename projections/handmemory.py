"""A binder's notes as they are to stand on disk."""

from collections.abc import Iterable, KeysView, Mapping

from msgspec.structs import replace

from leasehold.events.devices import DeviceDescription, same_thing
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey
from leasehold.projections.handnotes import PREPARED, PREPARING, Grant, Note
from leasehold.projections.handover import Before


class HandMemory:
    """The notes of all devices of which there are any."""

    def __init__(self, notes: Iterable[Note], boot: str) -> None:
        """`notes`: as the run before left them; of another boot than `boot` only the floors count."""
        self._boot = boot
        self._notes = {
            note.key: note if note.boot == boot else Note(key=note.key, floor=note.floor) for note in notes
        }

    @property
    def all(self) -> tuple[Note, ...]:
        """Sorted by key."""
        return tuple(self._notes[key] for key in sorted(self._notes))

    @property
    def keys(self) -> KeysView[DeviceKey]:
        """Of the devices."""
        return self._notes.keys()

    @property
    def newest_floor(self) -> int:
        """The highest of all; 0: there is none."""
        return max((note.floor for note in self._notes.values()), default=0)

    def of(self, key: DeviceKey) -> Note:
        """Of one device; an empty one if nothing was noted."""
        return self._notes.get(key) or Note(key=key)

    def of_grant(self, grant: Grant) -> list[DeviceKey]:
        """The devices with which something was begun for a lease."""
        return [note.key for note in self.all if note.step and note.grant == grant]

    def put(self, note: Note) -> Note:
        """Note this instead of what was noted."""
        self._notes[note.key] = note
        return note

    def raise_floors(self, holds: Iterable[Hold]) -> None:
        """Take in the log's floors. None goes back."""
        for hold in holds:
            note = self.of(hold.key)
            if hold.floor > note.floor:
                self.put(replace(note, floor=hold.floor))

    def begin(self, key: DeviceKey, grant: Grant, token: int) -> None:
        """The device is about to be prepared for a lease, by this token."""
        note = self.of(key)
        before = note.before if note.step and note.grant == grant else None
        self.put(
            Note(
                key=key, floor=max(note.floor, token), step=PREPARING, lease=grant.lease,
                granted_at_ns=grant.granted_at_ns, token=token, boot=self._boot, before=before, detached=note.detached,
            )
        )  # fmt: skip

    def writes_to(self, before: Before) -> None:
        """Something is about to be written to a device that is so now; what is noted of it already was before that."""
        note = self.of(before.key)
        if note.step:
            self.put(replace(note, before=note.before or before))
        else:
            self.put(replace(note, detached=note.detached or before, boot=self._boot))

    def is_another(self, key: DeviceKey, device: DeviceDescription | None) -> bool:
        """Whether what is there now is another thing than what was handed over."""
        before = self.of(key).before
        if before is None or not before.vendor_id or device is None:
            return False
        was = replace(device, kind=before.kind, vendor_id=before.vendor_id, product_id=before.product_id)
        return not same_thing(was, before.serial, device)

    def undone(self, picture: Mapping[DeviceKey, DeviceDescription]) -> list[DeviceKey]:
        """What was prepared, and is on other drivers than then, by the looks of it."""
        ready = [note for note in self.all if note.step == PREPARED and note.key in picture]
        return [
            note.key
            for note in ready
            if not self.is_another(note.key, picture[note.key]) and _is_undone(note, picture)
        ]

    def void(self, key: DeviceKey) -> None:
        """What was done to a prepared device is undone: it went away and came back, say."""
        note = self.of(key)
        if note.step == PREPARED:
            self.put(replace(note, step=PREPARING, prepared=None))

    def clear(self, key: DeviceKey) -> None:
        """Nothing is left of what was done for a lease."""
        note = self.of(key)
        self.put(Note(key=key, floor=note.floor, boot=self._boot, detached=note.detached))


def _is_undone(note: Note, picture: Mapping[DeviceKey, DeviceDescription]) -> bool:
    if note.prepared is None or note.before is None or note.before.unmanaged:
        return False
    if note.prepared.driver:
        return picture[note.key].driver != note.prepared.driver
    # A USB device stays with the driver of all USB devices; its interfaces do not stay with theirs.
    parts = (device for key, device in picture.items() if key.startswith(f"{note.key}/interface/"))
    return any(part.driver not in ("", "usbfs") for part in parts)
