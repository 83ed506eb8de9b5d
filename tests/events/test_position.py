"""Positions order the log, name leases, and stay exact in readers that only have doubles."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leasehold.events import position
from leasehold.events.errors import InvalidInputError
from leasehold.events.limits import ERA_MAX, EVENTS_PER_RECORD_MAX, SEQUENCE_MAX
from tests.events.strategies import HOSTILE_TEXTS

PLACES = st.tuples(st.integers(1, SEQUENCE_MAX), st.integers(0, EVENTS_PER_RECORD_MAX - 1))


@given(PLACES)
def test_places_read_back(place: tuple[int, int]) -> None:
    """Sequence and index come back out of a position, and doubles hold it exactly."""
    at = position.position_of(*place)
    assert (position.sequence_of(at), position.index_of(at)) == place
    assert int(float(at)) == at < 2**47
    assert at <= position.end_of_record(place[0])


@given(PLACES, PLACES)
def test_order(one: tuple[int, int], other: tuple[int, int]) -> None:
    """A later place has a larger position; two places never share one."""
    assert (one < other) == (position.position_of(*one) < position.position_of(*other))


ERAS = st.integers(0, ERA_MAX)


@given(ERAS, PLACES)
def test_tokens_read_back(era: int, place: tuple[int, int]) -> None:
    """Era and position come back out of a token, and doubles hold it exactly; in era 0 it is the position."""
    at = position.position_of(*place)
    token = position.token_of(era, at)
    assert (position.era_of_token(token), position.position_of_token(token)) == (era, at)
    assert int(float(token)) == token < 2**53
    assert era or token == at


@given(ERAS, PLACES, ERAS, PLACES)
def test_tokens_of_a_newer_era_are_above_all_older_ones(
    era: int, place: tuple[int, int], other_era: int, other: tuple[int, int]
) -> None:
    """Tokens are ordered by their era, then by their positions."""
    token, other_token = position.token_of(era, position.position_of(*place)), position.token_of(
        other_era, position.position_of(*other)
    )
    assert (token < other_token) == ((era, place) < (other_era, other))


@pytest.mark.parametrize("wrong", [(-1, 256), (64, 256), (0, -1), (0, 2**47)])
def test_no_such_token(wrong: tuple[int, int]) -> None:
    """A token beyond a bound is never made."""
    with pytest.raises(AssertionError):
        position.token_of(*wrong)


@given(PLACES)
def test_lease_ids_read_back(place: tuple[int, int]) -> None:
    """A lease id reads back with and without its letter."""
    at = position.position_of(*place)
    assert position.parse_lease_id(position.lease_id_text(at)) == at == position.parse_lease_id(str(at))


@given(HOSTILE_TEXTS)
@example("L0")
@example("LL1")
@example("L-1")
@example("L1 ")
@example("L01")
@example("L1\n")
@example("L१")
@example(f"L{2**53}")
@example("L" + "9" * 5_000)
def test_hostile_lease_ids(text: str) -> None:
    """Anything else is refused as invalid input that names the field."""
    try:
        at = position.parse_lease_id(text)
    except InvalidInputError as error:
        assert error.field == "lease"
    else:
        assert position.lease_id_text(at).removeprefix("L") == text.removeprefix("L")


@pytest.mark.parametrize("place", [(0, 0), (1, 256), (1, -1), (2**39, 0)])
def test_no_such_place(place: tuple[int, int]) -> None:
    """A position beyond a bound is never made."""
    with pytest.raises(AssertionError):
        position.position_of(*place)
