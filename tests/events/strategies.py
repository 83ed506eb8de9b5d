"""Values of our types by chance, made from what the types say of themselves."""

import types
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import strategies as st

INT_64 = st.integers(-(2**63), 2**63 - 1)
HOSTILE_TEXTS = st.text() | st.text("pciusb/:.-_@ \n\t*>0123456789abcdefABCDEF", max_size=300)
"""Anything, and what looks much like a name of ours."""
HOSTNAMES = st.from_regex(
    r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?){0,3}", fullmatch=True
)
PCI_TEXTS = st.from_regex(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True)
USB_TEXTS = st.builds(
    lambda generation, ports: f"{generation}-{'.'.join(map(str, ports)) or '0'}",
    st.sampled_from((2, 3)),
    st.lists(st.integers(1, 255), max_size=7),
)
CHILDREN = st.sampled_from(("", "/net/0", "/block/sda", "/interface/1.0", "/scsi_host/host0"))
KEYS = st.builds(lambda address, child: f"pci/{address}{child}", PCI_TEXTS, CHILDREN) | st.builds(
    lambda controller, path, child: f"usb/{controller}/{path}{child}",
    PCI_TEXTS | st.sampled_from(("dummy_hcd.0", "fe980000.usb")),
    USB_TEXTS,
    CHILDREN,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that can stand in a record."""
    kind = getattr(kind, "__supertype__", kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.one_of([values(argument) for argument in arguments])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*(values(argument) for argument in arguments))
    if origin in (tuple, list):
        return st.lists(values(arguments[0]), max_size=3).map(origin)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return st.sampled_from(list(kind))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        names = [field.name for field in msgspec.structs.fields(kind)]
        return st.fixed_dictionaries({name: values(hints[name]) for name in names}).map(lambda given: kind(**given))
    simple = {bool: st.booleans(), int: INT_64, str: st.text(max_size=20), type(None): st.none()}
    simple[msgspec.UnsetType] = st.just(msgspec.UNSET)
    return simple[kind]
