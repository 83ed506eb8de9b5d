"""Messages held against their published schemas."""

import functools
from typing import Any

import jsonschema

from leasehold.services.describing.asyncapi import headers
from leasehold.services.describing.schemas import schemas


@functools.cache
def _reader(name: str) -> Any:
    return jsonschema.Draft202012Validator(schemas()[name])


def check(name: str, said: object) -> None:
    """Raises jsonschema.ValidationError if `said` (decoded JSON) is not what the message `name` is described to be."""
    _reader(name).validate(said)


@functools.cache
def _header_reader() -> Any:
    return jsonschema.Draft202012Validator(headers(), format_checker=jsonschema.FormatChecker())


def check_headers(said: dict[str, str]) -> None:
    """Raises jsonschema.ValidationError if these are not the headers of a message of the feed."""
    _header_reader().validate(said)
