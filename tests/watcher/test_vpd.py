"""Vital product data: what a maker and an owner wrote into a card."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.capabilities import Vpd
from leasehold.services.watcher.describing.vpd import BYTES_MAX, parse_vpd, read_vpd

NAME, READ_ONLY, READ_WRITE, END = 0x82, 0x90, 0x91, b"\x78"


def resource(tag: int, body: bytes) -> bytes:
    """A large resource: tag, length, body."""
    return bytes([tag]) + len(body).to_bytes(2, "little") + body


def field(keyword: str, value: bytes) -> bytes:
    """A field of a resource."""
    return keyword.encode() + bytes([len(value)]) + value


def card(read_only: bytes, read_write: bytes = b"", name: bytes = b"Gigabit ET Dual Port", wrong: int = 0) -> bytes:
    """The data of a card, with a checksum that is `wrong` by so much."""
    head = resource(NAME, name)
    body = read_only + b"RV\x01\x00"
    before = head + resource(READ_ONLY, body)
    checksum = (-sum(before) + wrong) % 256
    told = head + resource(READ_ONLY, body[:-1] + bytes([checksum]))
    return told + (resource(READ_WRITE, read_write) if read_write else b"") + END


GOOD = card(
    field("PN", b"E43709-003") + field("SN", b"0025900EAA10 ") + field("V0", b"FFV1.2"),
    field("YA", b"rack 7") + field("RW", b"\x00" * 9),
)


def test_a_card(tmp_path: Path) -> None:
    """The name and the fields by keyword, without the checksum and the room that is left."""
    expected = Vpd(
        name="Gigabit ET Dual Port",
        read_only={"PN": "E43709-003", "SN": "0025900EAA10", "V0": "FFV1.2"},
        read_write={"YA": "rack 7"},
    )
    assert parse_vpd(GOOD) == expected
    (tmp_path / "vpd").write_bytes(GOOD + b"\xff" * 30_000)
    assert read_vpd(str(tmp_path)) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        END,
        b"\xff" * 64,
        card(field("PN", b"X"), wrong=1),
        resource(NAME, b"no fields") + END,
        resource(NAME, b"x") + resource(READ_ONLY, field("PN", b"no checksum")) + END,
        GOOD[:40],
        resource(NAME, b"x") + b"\x93\x01\x00x" + END,
    ],
    ids=["empty", "end", "erased", "wrong sum", "no fields", "no sum", "cut", "unknown tag"],
)
def test_what_is_not_in_order_is_not_believed(tmp_path: Path, raw: bytes) -> None:
    """Erased chips, half-written ones, ones whose sum is wrong: nothing rather than something."""
    assert parse_vpd(raw) is None
    (tmp_path / "vpd").write_bytes(raw)
    assert read_vpd(str(tmp_path)) is None


def test_a_card_that_cannot_be_read(tmp_path: Path) -> None:
    """No file, or a folder in its place: none."""
    assert read_vpd(str(tmp_path)) is None
    (tmp_path / "vpd").mkdir()
    assert read_vpd(str(tmp_path)) is None


def test_only_what_belongs_to_it_is_read(tmp_path: Path) -> None:
    """A card answers slowly, and has a bound: a name of 60,000 bytes is not read through."""
    (tmp_path / "vpd").write_bytes(resource(NAME, b"x" * 60_000) + GOOD)
    assert read_vpd(str(tmp_path)) is None
    assert BYTES_MAX <= 4_096


@given(raw=st.one_of(st.binary(max_size=400), st.binary(max_size=60).map(lambda part: GOOD[:30] + part + GOOD[30:])))
def test_whatever_a_card_says_is_printable_and_bounded(raw: bytes) -> None:
    """Garbage gives nothing, or texts that can be sent."""
    found = parse_vpd(raw)
    if found is not None:
        texts = [found.name, *found.read_only.values(), *found.read_write.values()]
        assert all(text.isprintable() and len(text.encode()) <= 256 for text in texts)
