"""What is different between two descriptions of a device, each thing by itself, in words for people.

Where both can do the same, what differs of that is named with dots (`capability.link_state`); else the capability as a
whole is.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from leasehold.events.devices import DeviceDescription, changed_fields

_WHOLE: Final = ("protections", "in_use_by", "devnodes")
"""Lists that are short and are read as a whole; of others what the other side does not have is shown."""


class Difference(msgspec.Struct, frozen=True):
    """`name` with dots for what is nested; both values as texts, empty for nothing."""

    name: str
    before: str
    after: str


def differences(before: DeviceDescription, after: DeviceDescription) -> list[Difference]:
    """In the order of names; none if both are equal."""
    fields = dict.fromkeys(name.partition(".")[0] for name in changed_fields(before, after))
    return [each for name in fields for each in _of_field(name, getattr(before, name), getattr(after, name))]


def _of_field(name: str, before: Any, after: Any) -> Iterator[Difference]:
    if isinstance(before, msgspec.Struct) and type(before) is type(after):
        for field in sorted(before.__struct_fields__):
            values = getattr(before, field), getattr(after, field)
            if values[0] != values[1]:
                yield from _of_field(f"{name}.{field}", *values)
    elif name == "pci_class":
        yield Difference(name, *(f"{each:06x}" if each >= 0 else "" for each in (before, after)))
    else:
        yield Difference(name, _text(name, before, after), _text(name, after, before))


def _text(name: str, value: Any, other: Any) -> str:
    """A value as people read it; of attributes, features and the like what the other side does not have just so."""
    if isinstance(value, dict):
        others = other if isinstance(other, dict) else {}
        return ", ".join(f"{each}={text}" for each, text in sorted(value.items()) if others.get(each) != text)
    if isinstance(value, tuple):
        known = () if name in _WHOLE or not isinstance(other, tuple) else other
        return ", ".join(_text(name, each, None) for each in value if each not in known)
    if isinstance(value, msgspec.Struct):
        return " ".join(_words(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None or value == -1 else str(value)


def _words(value: msgspec.Struct) -> Iterator[str]:
    """What a part of a description says: its type, if it has one, and whatever is known of it."""
    tag = value.__struct_config__.tag
    if tag:
        yield str(tag)
    for field in msgspec.structs.fields(type(value)):
        inner = getattr(value, field.name)
        text = _text(field.name, inner, None)
        if text and (field.required or inner != field.default):
            yield f"{field.name}=({text})" if " " in text else f"{field.name}={text}"
