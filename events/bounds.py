"""Whether a number or a text is within its bounds."""

from leasehold.events.errors import InvalidInputError


def check_text(text: str, field: str, chars_max: int) -> None:
    """Whether it is a printable text of 1 to `chars_max` characters."""
    if not 1 <= len(text) <= chars_max or not text.isprintable():
        raise InvalidInputError(f"{text[:40]!r} is not a printable text of 1 to {chars_max} characters", field=field)


def check_range(value: int, low: int, high: int, field: str) -> None:
    """Whether it lies between `low` and `high`."""
    if not low <= value <= high:
        raise InvalidInputError(f"{value} is not between {low} and {high}", field=field)
