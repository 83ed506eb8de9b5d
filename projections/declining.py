"""Why what is asked for is not done, as a value: what it was about, and the refusal."""

import msgspec

from leasehold.events.refusals import Refusal, RefusalCode


class Declined(msgspec.Struct, frozen=True):
    """`about`: the devices that were asked for, by their ids where they are known; or another thing's name."""

    about: tuple[str, ...]
    refusal: Refusal


def declined(about: tuple[str, ...], code: RefusalCode, message: str, help_text: str) -> Declined:
    """A refusal that names no blockers."""
    return Declined(about, Refusal(code=code, message=message, help=help_text))
