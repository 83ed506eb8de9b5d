r"""SXP, the notation that xend speaks: lists `(a b)`, atoms, quoted text. All leaves are bytes.

Facts from xend's own reader and printer (Xen 4.4, tools/python/xen/xend/sxp.py), tried on the genuine code:

- An atom begins with a printable ASCII character and runs to white space, `#`, or one of `{}()<>[];`. Beyond its first
  character it may hold any byte. A quote within an atom is an ordinary character.
- `#` begins a comment, also right after an atom; it ends with its line.
- Within quotes, which may hold line ends: `\a \b \t \n \v \f \r \\ \' \"`, `\ooo` of one to three octal digits, `\xHH`.
- A byte 4 where a value could begin ends the text.
- There are no numbers, booleans or nil: these are the printer's, and read as the bytes that they were printed as.

Where the genuine reader is wrong, ours is right unless it is asked to read `as_xend`, as a stand-in must:

- It takes the letters in `\xHH` for 0 to 5, so that what its own printer writes (`'\xc3\xa9'`) reads as something else.
- It takes a text that ends within a list, right after an atom or in a comment, for one without that list. What an
  answer lacks at its end would not be noticed.

Both drop the character after a backslash that begins no escape and keep the backslash, and both refuse `\x` without two
hexadecimal digits, which makes the genuine one fail.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from leasehold.events import limits
from leasehold.events.errors import SxpError

Sxp: TypeAlias = bytes | list["Sxp"]
"""What was read."""
Printable: TypeAlias = bytes | str | bool | int | float | Sequence["Printable"] | None
"""What can be written; text as UTF-8."""

_TOKEN: Final = re.compile(
    rb"(?:[ \t-\r]++|#[^\n]*+(?:\n|\Z))*+"
    rb"(?:(?P<atom>[!$-&*-~][^ \t-\r#{}()<>\[\];]*+)|(?P<open>\()|(?P<close>\))"
    rb"|'(?P<single>[^'\\]*+)'|\"(?P<double>[^\"\\]*+)\"|(?P<quote>['\"])"
    rb"|(?P<end>\Z|\x04)|(?P<other>[\x00-\xff]))"
)
"""White space and comments, and what follows them. Something always does."""
_QUOTED: Final = {
    b"'": re.compile(rb"'([^'\\]*+(?:\\[\x00-\xff][^'\\]*+)*+)'"),
    b'"': re.compile(rb'"([^"\\]*+(?:\\[\x00-\xff][^"\\]*+)*+)"'),
}
_ESCAPE: Final = re.compile(rb"\\(?:(?P<octal>[0-7]{1,3})|x(?P<hex>[0-9A-Fa-f]{2})|(?P<bad>x)|(?P<char>[\x00-\xff]))")
_ESCAPES: Final = {
    bytes((letter,)): bytes((meant,)) for letter, meant in zip(b"abtnvfr\\'\"", b"\a\b\t\n\v\f\r\\'\"", strict=True)
}
_BARE: Final = re.compile(rb"[A-Za-z0-9._:/~-]+|@")
_UNSENT: Final = re.compile(rb"[\x00-\x1f\x7f'\\]")
_LONG_FROM: Final = 1 << 63
"""Python 2 on 64 bits had another type for what does not fit, which xend's printer takes for text."""


def read(data: bytes) -> Sxp:
    """The first value in `data`. What follows is not looked at: some of xend's answers end with two stray quotes.

    Raises:
        SxpError: there is none, it is not well-formed, larger than `SXP_BYTES_MAX` or deeper than `SXP_DEPTH_MAX`.
    """
    values = _read(data, first=True, as_xend=False)
    if not values:
        raise SxpError("there is no value", position=len(data))
    return values[0]


def read_all(data: bytes, *, as_xend: bool = False) -> list[Sxp]:
    """All values in `data`; `as_xend`: with the genuine reader's faults, see above.

    Raises:
        SxpError: it is not well-formed, larger than `SXP_BYTES_MAX` or deeper than `SXP_DEPTH_MAX`.
    """
    return _read(data, first=False, as_xend=as_xend)


def _read(data: bytes, *, first: bool, as_xend: bool) -> list[Sxp]:
    if len(data) > limits.SXP_BYTES_MAX:
        raise SxpError(f"longer than {limits.SXP_BYTES_MAX} bytes", position=limits.SXP_BYTES_MAX)
    top: list[Sxp] = []
    inner = top
    outer: list[list[Sxp]] = []
    opened: list[int] = []
    before = kind = ""
    at = 0
    while not (first and top and not outer):
        match = _TOKEN.match(data, at)
        assert match is not None
        before, kind = kind, match.lastgroup or ""
        begin, at = match.start(kind), match.end()
        match kind:
            case "atom" | "single" | "double":
                inner.append(match[kind])
            case "open":
                if len(outer) >= limits.SXP_DEPTH_MAX:
                    raise _error(data, begin, f"more than {limits.SXP_DEPTH_MAX} lists within one another")
                new: list[Sxp] = []
                inner.append(new)
                outer.append(inner)
                opened.append(begin)
                inner = new
            case "close":
                if not outer:
                    raise _error(data, begin, "syntax error: )")
                inner = outer.pop()
                opened.pop()
            case "quote":
                value, at = _quoted(data, begin, as_xend=as_xend)
                inner.append(value)
            case "end":
                if not outer:
                    return top
                if as_xend and not match[kind] and _hides_end(before, data[match.start() : begin]):
                    return top[:-1]
                raise _error(data, opened[-1], "unexpected EOF", "here begins a list that does not end")
            case _:
                raise _error(data, begin, f"invalid character: code {match[kind][0]}")
    return top


def _hides_end(before: str, blank: bytes) -> bool:
    """Whether the genuine reader does not tell a list that the text ends, since something in it is told instead.

    `before`: the kind of the last token; `blank`: what followed it.
    """
    return (before == "atom" and not blank) or b"#" in blank.rpartition(b"\n")[2]


def _quoted(data: bytes, begin: int, *, as_xend: bool) -> tuple[bytes, int]:
    """The text whose opening quote is at `begin`, and where it ends."""
    match = _QUOTED[data[begin : begin + 1]].match(data, begin)
    if match is None:
        raise _error(data, begin, "unexpected EOF", "here begins a text that does not end")

    def meant(escape: re.Match[bytes]) -> bytes:
        position = match.start(1) + escape.start()
        if escape["octal"]:
            code = int(escape["octal"], 8)
            if code > 0xFF:
                raise _error(data, position, "invalid octal escape: out of range")
            return bytes((code,))
        if escape["hex"]:
            return bytes((_code_as_xend(escape["hex"]) if as_xend else int(escape["hex"], 16),))
        if escape["bad"]:
            raise _error(data, position, r"\x needs two hexadecimal digits")
        return _ESCAPES.get(escape["char"], b"\\")

    return _ESCAPE.sub(meant, match[1]), match.end()


def _code_as_xend(digits: bytes) -> int:
    high, low = (each - ord("0") if each <= ord("9") else (each | 0x20) - ord("a") for each in digits)
    return high * 16 + low


def _error(data: bytes, position: int, message: str, why: str = "") -> SxpError:
    where = f"{why or 'here'}: {data[position : position + 24]!r}"
    return SxpError(message, position=position, where=where)


# --- writing --------------------------------------------------------------------------------------------------------


def write(value: Printable) -> bytes:
    r"""`value` as SXP for xend to read: without `\xHH`, which its reader gets wrong.

    Raises:
        SxpError: it is deeper than `SXP_DEPTH_MAX`, or not a value.
    """
    return _written(value, _sent)


def show(value: Printable) -> bytes:
    """`value` as xend's own printer writes it, in the manner of Python 2: `(xend.err "can't")`, `(cpu_time 0.5)`.

    Whole numbers beyond 64 bits and None are quoted, True and False are not. Python 2's other longs, which are quoted
    too, have no type here: give them as text of which this knows nothing, or as they are.

    Raises:
        SxpError: it is deeper than `SXP_DEPTH_MAX`, or not a value.
    """
    return _written(value, _shown)


def _written(value: Printable, quoted: Callable[[bytes], bytes]) -> bytes:
    out: list[bytes] = []
    waiting: list[Iterator[Printable]] = [iter((value,))]
    is_first = True
    while waiting:
        for each in waiting[-1]:
            if not is_first:
                out.append(b" ")
            if isinstance(each, list | tuple):
                if len(waiting) > limits.SXP_DEPTH_MAX:
                    raise SxpError(f"more than {limits.SXP_DEPTH_MAX} lists within one another", position=len(out))
                out.append(b"(")
                waiting.append(iter(each))
                is_first = True
                break
            out.append(_leaf(each, quoted))
            is_first = False
        else:
            waiting.pop()
            if waiting:
                out.append(b")")
            is_first = False
    return b"".join(out)


def _leaf(value: Printable, quoted: Callable[[bytes], bytes]) -> bytes:
    match value:
        case bytes() | str():
            try:
                raw = value.encode() if isinstance(value, str) else value
            except UnicodeEncodeError as error:
                raise SxpError(f"{value[:40]!r} is no Unicode text", position=0) from error
            return raw if _BARE.fullmatch(raw) else quoted(raw)
        case None:
            return b"'None'"
        case bool():
            return b"True" if value else b"False"
        case int():
            return b"%d" % value if -_LONG_FROM <= value < _LONG_FROM else b"'%d'" % value
        case float():
            # Python 2's str(): twelve digits, and always a point or an exponent.
            return format(value, ".12").encode()
    raise SxpError(f"{type(value).__name__} is no value", position=0)


def _sent(raw: bytes) -> bytes:
    return b"'%s'" % _UNSENT.sub(lambda each: rb"\%s" % each[0] if each[0] in b"'\\" else b"\\%03o" % each[0][0], raw)


def _shown(raw: bytes) -> bytes:
    return repr(raw)[1:].encode()


# --- finding one's way in what was read -----------------------------------------------------------------------------


def text(value: Sxp | None) -> str:
    """A leaf as text; bytes that are no UTF-8 as xend's printer would show them. A list, or nothing, is ""."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else ""


def children(value: Sxp, name: str) -> list[list[Sxp]]:
    """All lists in `value` that begin with `name`, in their order: `(device …)` may stand there many times."""
    wanted = name.encode()
    if not isinstance(value, list):
        return []
    return [each for each in value if isinstance(each, list) and each and each[0] == wanted]


def child(value: Sxp, name: str) -> Sxp | None:
    """What follows `name` in the first list of `value` that begins with it: of `(name web1)`, `web1`; None: nothing."""
    found = children(value, name)
    return found[0][1] if found and len(found[0]) > 1 else None


def fields(value: Sxp) -> dict[bytes, Sxp]:
    """What follows each name in the lists of `value`; of those with the same name, in the first."""
    found: dict[bytes, Sxp] = {}
    for each in value if isinstance(value, list) else ():
        if isinstance(each, list) and len(each) > 1 and isinstance(each[0], bytes):
            found.setdefault(each[0], each[1])
    return found
