"""Which source a poller has, as it is said on a command line: `xend:URL`, `libxl` or `libvirt:URI`."""

from leasehold.events.errors import InvalidInputError
from leasehold.services.poller.source import Source


def source_word(*, xend: str = "", libxl: bool = False, libvirt: str = "") -> str:
    """The one word for what was asked for; empty if nothing was.

    Raises:
        InvalidInputError: more than one was asked for, or it is none that can be.
    """
    asked = [
        *([f"xend:{xend}"] if xend else []),
        *(["libxl"] if libxl else []),
        *([f"libvirt:{libvirt}"] if libvirt else []),
    ]
    if len(asked) > 1:
        raise InvalidInputError("a host's domains are told from one source: xend, libxl or libvirt", field="source")
    for word in asked:
        open_source(word)
    return "".join(asked)


def open_source(word: str) -> Source:
    """The source of this word; nothing is connected yet.

    Raises:
        InvalidInputError: it is none.
        UnavailableError: what it needs is not installed.
    """
    # Each loads only what it needs: libvirt's library may not be there at all.
    kind, _, where = word.partition(":")
    match kind:
        case "xend":
            from leasehold.services.poller.xend import XendSource  # noqa: PLC0415

            return XendSource(where)
        case "libxl" if not where:
            from leasehold.services.poller.libxl import LibxlSource  # noqa: PLC0415

            return LibxlSource()
        case "libvirt":
            from leasehold.services.poller.libvirt import LibvirtSource  # noqa: PLC0415

            return LibvirtSource(where)
    raise InvalidInputError(f"{word[:80]!r} is none of xend:URL, libxl, libvirt:URI", field="source")
