"""SXP against the genuine reader and printer: their own vectors, and a slow second reader for everything else."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leasehold.events import limits
from leasehold.events.errors import SxpError
from leasehold.services.xend import sxp
from leasehold.services.xend.sxp import Sxp

ORACLE: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "data" / "xend" / "sxp-oracle.json").read_text(encoding="utf-8")
)
RIGHTED = {r"'\xff'": [b"\xff"], r"'\xAF'": [b"\xaf"], "(a": None}
"""Where the genuine reader is wrong, and ours is so only as xend. None: an error."""
NOT_OURS = ("1L", "18446744073709551616L", "{'a': 1}", "u'x'", "u'\\xe9'")
"""Types of Python 2 that Python 3 has no word for; the second is tried below."""

PIECES = [*rb"()'\"\#{}[]<>;!@ ab019xXfFnq", *b"\t\n\v\f\r\x04\x00\x7f\xc3\xa9\xff"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.integers(0, 255), max_size=60).map(bytes)
LEAVES = st.binary(max_size=12)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5), max_leaves=25)


def as_latin(value: Sxp) -> Any:
    """As the vectors have it: bytes are the characters of the same number."""
    return [as_latin(each) for each in value] if isinstance(value, list) else value.decode("latin-1")


@pytest.mark.parametrize("vector", ORACLE["parse"], ids=lambda vector: repr(vector["in"])[:40])
def test_vectors_are_read_as_xend_reads_them(vector: dict[str, Any]) -> None:
    """Each text gives the genuine reader's values, or an error in its words."""
    data = vector["in"].encode("latin-1")
    if "values" in vector:
        assert as_latin(list(sxp.read_all(data, as_xend=True))) == (vector["values"] or [])
        return
    with pytest.raises(SxpError) as caught:
        sxp.read_all(data, as_xend=True)
    if "ParseError" in vector:
        assert caught.value.message == vector["ParseError"]


@pytest.mark.parametrize("vector", ORACLE["parse"], ids=lambda vector: repr(vector["in"])[:40])
def test_vectors_are_read_right(vector: dict[str, Any]) -> None:
    """Without xend's faults, all is read the same but what these faults are about."""
    data = vector["in"].encode("latin-1")
    expected: Any = vector.get("values") or []
    if vector["in"] in RIGHTED:
        righted = RIGHTED[vector["in"]]
        expected = None if righted is None else as_latin(list(righted))
    if "values" in vector and expected is not None:
        assert as_latin(list(sxp.read_all(data))) == expected
    else:
        with pytest.raises(SxpError):
            sxp.read_all(data)


@pytest.mark.parametrize("vector", ORACLE["show"], ids=lambda vector: vector["python"][:40])
def test_vectors_are_shown_as_xend_prints_them(vector: dict[str, Any]) -> None:
    """Each value of Python 2 that Python 3 has, too, is printed to the byte."""
    if vector["python"] in NOT_OURS:
        return
    value = ast.literal_eval(vector["python"])
    printable = value.encode("latin-1") if isinstance(value, str) else value
    assert sxp.show(printable).decode("latin-1") == vector["sxp"]


def test_printing_of_numbers() -> None:
    """Floats have twelve digits, and from 1e11 on an exponent; whole numbers beyond 64 bits are quoted."""
    shown = {1e11: "1e+11", 99999999999.0: "99999999999.0", 1795219951.0: "1795219951.0", 1 << 63: f"'{1 << 63}'"}
    assert {value: sxp.show(value).decode() for value in shown} == shown
    assert sxp.show(-(1 << 63)) == b"-9223372036854775808"
    assert sxp.show(["a", None, True, "é"]) == rb"(a 'None' True '\xc3\xa9')"


class Machine:
    """A second reader, one character at a time, written from the description of the grammar."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def values(self) -> list[Sxp] | None:
        """All values; None: an error."""
        top: list[Sxp] = []
        stack: list[list[Sxp]] = [top]
        while True:
            if self.at >= len(self.data):
                return top if len(stack) == 1 else None
            char = self.data[self.at]
            self.at += 1
            if char in b" \t\n\v\f\r":
                continue
            if char == ord("#"):
                while self.at < len(self.data) and self.data[self.at] != ord("\n"):
                    self.at += 1
                if self.at >= len(self.data):
                    # The comment hears of the end, and no list does.
                    return top if len(stack) == 1 else top[:-1]
            elif char == ord("("):
                inner: list[Sxp] = []
                stack[-1].append(inner)
                stack.append(inner)
            elif char == ord(")"):
                if len(stack) == 1:
                    return None
                stack.pop()
            elif char in b"'\"":
                text = self.text(char)
                if text is None:
                    return None
                stack[-1].append(text)
            elif char == 4:
                return top if len(stack) == 1 else None
            elif 32 < char < 127:
                begin = self.at - 1
                while self.at < len(self.data) and self.data[self.at] not in b" \t\n\v\f\r#{}()<>[];":
                    self.at += 1
                stack[-1].append(self.data[begin : self.at])
                if self.at >= len(self.data):
                    return top if len(stack) == 1 else top[:-1]
            else:
                return None

    def next(self) -> int:
        """The next character; -1: there is none."""
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else -1

    def text(self, quote: int) -> bytes | None:
        """The rest of a text in quotes."""
        out = bytearray()
        while (char := self.next()) != quote:
            if char == -1:
                return None
            if char != ord("\\"):
                out.append(char)
                continue
            char = self.next()
            if char == -1:
                return None
            simple = dict(zip(b"abtnvfr\\'\"", b"\a\b\t\n\v\f\r\\'\"", strict=True))
            if char in simple:
                out.append(simple[char])
            elif char == ord("x"):
                digits = [self.next(), self.next()]
                if any(each == -1 or chr(each) not in "0123456789abcdefABCDEF" for each in digits):
                    return None
                high, low = (each - 48 if each < 58 else (each & ~32) - 65 for each in digits)
                out.append(high * 16 + low)
            elif 48 <= char < 56:
                value = 0
                for _ in range(3):
                    value = value * 8 + char - 48
                    char = self.next()
                    if not 48 <= char < 56:
                        break
                self.at -= 1
                if value > 255:
                    return None
                out.append(value)
            else:
                out.append(ord("\\"))
        return bytes(out)


@given(TEXTS)
@example(b"(a 'b\\18' \"\\x4f\")#")
@example(b"(a b)(c #d")
@example(b"'\\377\\400'")
@settings(max_examples=700, deadline=None)
def test_any_text_is_read_as_by_a_second_reader(data: bytes) -> None:
    """Whatever the bytes, both readers give the same values, or both an error; ours within the text, and no other."""
    expected = Machine(data).values()
    try:
        read = sxp.read_all(data, as_xend=True)
    except SxpError as error:
        assert expected is None, f"{error}; the second reader has {expected}"
        assert 0 <= error.position <= len(data)
    else:
        assert read == expected


@given(st.sampled_from(ORACLE["parse"]).map(lambda vector: vector["in"].encode("latin-1")), TEXTS, st.data())
@settings(max_examples=400, deadline=None)
def test_changed_vectors_give_values_or_an_error(vector: bytes, piece: bytes, data: st.DataObject) -> None:
    """A vector with some bytes replaced is read the same by both readers, and nothing but SxpError comes of it."""
    begin = data.draw(st.integers(0, len(vector)))
    end = data.draw(st.integers(begin, min(len(vector), begin + 4)))
    changed = vector[:begin] + piece[:6] + vector[end:]
    expected = Machine(changed).values()
    try:
        assert sxp.read_all(changed, as_xend=True) == expected
    except SxpError:
        assert expected is None
    try:
        sxp.read(changed)
    except SxpError as error:
        assert 0 <= error.position <= len(changed)


@given(VALUES)
@settings(max_examples=250, deadline=None)
def test_what_is_written_is_read_again(value: Sxp) -> None:
    """`write` is read to the same value by both ways of reading, `show` by ours, and both without a tail."""
    assert sxp.read_all(sxp.write(value), as_xend=True) == [value]
    assert sxp.read(sxp.write(value)) == value
    assert sxp.read_all(sxp.show(value)) == [value]
    assert b"\\x" not in sxp.write(value).replace(b"\\\\", b"")


def test_the_first_value_is_read_and_its_tail_is_not() -> None:
    """Two stray quotes, or anything at all, may follow."""
    assert sxp.read(b"(ls  node domain vnet)''") == [b"ls", b"node", b"domain", b"vnet"]
    assert sxp.read(b"(a))") == [b"a"]
    assert sxp.read(b"''") == b""


def test_a_text_that_ends_early_is_an_error_that_says_where() -> None:
    """An answer of which the end is missing is never taken for a shorter one, at whichever byte it is cut."""
    whole = sxp.show(["domain", ["name", "it's"], ["cpus", [[0, 1], []]], ["VDI", ""]])
    for end in range(len(whole)):
        with pytest.raises(SxpError) as caught:
            sxp.read(whole[:end])
        assert f"byte {caught.value.position}: " in str(caught.value)
    with pytest.raises(SxpError, match=r"byte 10: unexpected EOF \(here begins a list that does not end: b'\(b c'"):
        sxp.read(b"(a '\\x41' (b c")


def test_depth_and_size_are_bounded() -> None:
    """Lists as deep as is allowed are read and written; deeper ones, and more than is allowed, are errors at once."""
    most = b"(" * limits.SXP_DEPTH_MAX + b")" * limits.SXP_DEPTH_MAX
    assert sxp.write(sxp.read(most)) == most
    for reading in (True, False):
        with pytest.raises(SxpError, match="lists within one another"):
            sxp.read_all(b"(" + most + b")", as_xend=reading)
    deep: list[Any] = []
    deep.append(deep)
    with pytest.raises(SxpError, match="lists within one another"):
        sxp.write(deep)
    with pytest.raises(SxpError, match="longer than"):
        sxp.read(b"a" * (limits.SXP_BYTES_MAX + 1))


@pytest.mark.parametrize("piece", [b"'\\", b"\\'", b"#", b"'\"", b"a#", b"\\x", b"(#\n"])
def test_no_text_takes_more_than_its_length(piece: bytes) -> None:
    """Texts made to try every way in vain are read in time: each test has a time-out, which this must not meet."""
    for data in (piece * 400_000, b"('" + piece * 400_000):
        try:
            sxp.read_all(data[: limits.SXP_BYTES_MAX], as_xend=True)
        except SxpError:
            continue


def test_finding_ones_way() -> None:
    """Names, repeated names, leaves that are no text, and lists where a leaf was expected."""
    value = sxp.read(rb"(domain (name web1) (device (vbd (dev a))) (device (vif)) (empty) (odd '\xff') (list (1)))")
    assert sxp.text(sxp.child(value, "name")) == "web1"
    assert len(sxp.children(value, "device")) == 2
    assert sxp.child(value, "empty") is None and sxp.child(b"leaf", "name") is None
    assert sxp.text(sxp.child(value, "odd")) == r"\xff" and sxp.text(sxp.child(value, "list")) == ""
    assert sxp.fields(value)[b"name"] == b"web1" and sxp.fields(b"x") == {}
