"""CloudEvents 1.0 over NATS, binary mode: what stands in the headers, and what is read from others' headers."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.cloudevents import (
    Attributes,
    decoded,
    encoded,
    header_lines,
    parse_time,
    raw_headers,
    read_attributes,
    time_text,
)
from leasehold.events.errors import InvalidInputError

SAID = Attributes(
    cluster="lab", ledger_id="0123456789abcdef", era=1, position=4352, part=1, parts=2, previous=4100,
    tag="lease_granted.v2", at_ns=1_700_000_000_000_000_007, subject="h1/pci/0000:01:00.0", tenant="team-a",
    cause="bob@team-a/r 1",
)  # fmt: skip
EXPECTED = {
    "ce-specversion": "1.0",
    "ce-id": "4352.1",
    "ce-source": "urn:leasehold:lab:0123456789abcdef:1",
    "ce-type": "org.leasehold.lease_granted.v2",
    "ce-time": "2023-11-14T22:13:20.000000007Z",
    "ce-datacontenttype": "application/json",
    "ce-dataschema": "urn:leasehold:schema:lease_granted.v2",
    "ce-sequence": "0000000000004352",
    "ce-position": "4352",
    "ce-prevposition": "4100",
    "ce-part": "1",
    "ce-parts": "2",
    "ce-subject": "h1/pci/0000:01:00.0",
    "ce-tenant": "team-a",
    "ce-causationid": "bob@team-a/r%201",
}


def test_the_headers_are_those() -> None:
    """All attributes, in lower case, as the specification and our extensions have them; and they are read back."""
    headers = raw_headers(f"NATS/1.0\r\n{header_lines(SAID)}\r\n".encode())
    assert headers == EXPECTED
    assert read_attributes(headers.items()) == SAID
    for name in headers:
        assert re.fullmatch(r"ce-[a-z0-9]{1,20}", name)


def test_names_in_upper_case_are_the_same() -> None:
    """Others' clients may have changed the case of names: NATS itself does not care for it, the binding does not."""
    assert read_attributes((name.title(), value) for name, value in EXPECTED.items()) == SAID


@pytest.mark.parametrize("name", ["ce-id", "ce-source", "ce-type", "ce-position", "ce-prevposition", "ce-time"])
def test_a_missing_attribute_is_named(name: str) -> None:
    """A message without one of these is not the feed's, and the error says which one is missing."""
    with pytest.raises(InvalidInputError) as caught:
        read_attributes((key, value) for key, value in EXPECTED.items() if key != name)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce-specversion", "0.3"),
        ("ce-source", "urn:leasehold:lab:0123456789abcdef"),
        ("ce-type", "com.example.other"),
        ("ce-position", "4_352"),
        ("ce-part", "-1"),
        ("ce-time", "2023-02-30T22:13:20.000000007Z"),
        ("ce-time", "2023-11-14 22:13:20Z"),
    ],
)
def test_a_wrong_attribute_is_named(name: str, value: str) -> None:
    """A value that the feed would not write is refused, by its header's name."""
    with pytest.raises(InvalidInputError) as caught:
        read_attributes((EXPECTED | {name: value}).items())
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ('say "so"', "say%20%22so%22"),
        ("100%", "100%25"),
        ("!#$&'()*+,-./:;<=>?@[]^_`{|}~", "!#$&'()*+,-./:;<=>?@[]^_`{|}~"),
        ("a\r\nce-id: 1", "a%0D%0Ace-id:%201"),
    ],
)
def test_values_are_encoded_as_the_binding_says(value: str, text: str) -> None:
    """The binding's own examples, and a line end, which would begin another header."""
    assert encoded(value) == text
    assert decoded(text) == value


def test_values_of_others() -> None:
    """Lower-case hex, needless encoding and quotes are read; what is not UTF-8 is refused."""
    assert decoded("Euro%20%e2%82%ac") == "Euro €"
    assert decoded("%41%2d") == "A-"
    assert decoded('"a \\" b"') == 'a " b'
    with pytest.raises(InvalidInputError):
        decoded("%C0%A0")


@given(st.text())
def test_any_value_comes_back(value: str) -> None:
    """Every text survives the way through a header, in which there are only printable characters of ASCII."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return
    text = encoded(value)
    assert re.fullmatch(r"[!-~]*", text)
    assert decoded(text) == value


@given(st.integers(0, 253_402_300_799_999_999_999))
def test_any_time_comes_back(at_ns: int) -> None:
    """Times up to the year 9999 are those of the calendar, to the nanosecond."""
    text = time_text(at_ns)
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_ns // 10**9)
    assert text == f"{expected:%Y-%m-%dT%H:%M:%S}.{at_ns % 10**9:09d}Z"
    assert parse_time(text) == at_ns
