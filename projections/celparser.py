"""Reading selectors: the Common Expression Language, as far as selectors have it, as a tree within bounds.

The library that evaluates selectors bounds nothing and shows no tree. So each selector is read here first: texts that
are too long, too deep or too large go no further, and what is wrong is told with its place. Grammar and escapes are
those of the language's definition (https://github.com/google/cel-spec, `doc/langdef.md`); floating-point and unsigned
numbers, bytes, maps, messages, `null`, time and conversions other than `int` and `string` are left out: nothing that a
machine may round, or that depends on when it is asked.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import SelectorError


class _Node(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    at: int
    """Where it begins, in characters."""


class Literal(_Node, frozen=True):
    """A number, a text, `true` or `false`."""

    value: int | str | bool


class ListOf(_Node, frozen=True):
    """`[a, b]`."""

    items: tuple["Tree", ...]


class Name(_Node, frozen=True):
    """`device`, or the variable of a loop."""

    name: str


class Field(_Node, frozen=True):
    """`of.name`."""

    of: "Tree"
    name: str


class Index(_Node, frozen=True):
    """`of[index]`."""

    of: "Tree"
    index: "Tree"


class Call(_Node, frozen=True):
    """A function; as a method the target is its first argument."""

    name: str
    arguments: tuple["Tree", ...]


class Has(_Node, frozen=True):
    """`has(of.field)`."""

    of: "Tree"


class Loop(_Node, frozen=True):
    """`over.exists(variable, body)` and its like."""

    name: str
    over: "Tree"
    variable: str
    body: "Tree"


class Unary(_Node, frozen=True):
    """`!a`, `-a`."""

    sign: str
    of: "Tree"


class Binary(_Node, frozen=True):
    """Two things compared, searched or reckoned with."""

    sign: str
    left: "Tree"
    right: "Tree"


class Logic(_Node, frozen=True):
    """`a && b && c`, or with `||`: in one, so that a long list of conditions is not a deep one."""

    sign: str
    items: tuple["Tree", ...]


class Choice(_Node, frozen=True):
    """`test ? then : other`."""

    test: "Tree"
    then: "Tree"
    other: "Tree"


Tree = Literal | ListOf | Name | Field | Index | Call | Has | Loop | Unary | Binary | Logic | Choice


class Fault(msgspec.Struct, frozen=True, gc=False):
    """What is wrong with a selector, and where."""

    text: str
    """The selector."""
    at: int
    """In characters from its beginning."""
    message: str
    """What would be right."""

    @property
    def place(self) -> tuple[int, int]:
        """Line and column, both from 1."""
        before = self.text[: self.at]
        return before.count("\n") + 1, self.at - (before.rfind("\n") + 1) + 1

    def __str__(self) -> str:
        """In one line."""
        line, column = self.place
        before = f"line {line}, " if "\n" in self.text else ""
        return f"{before}column {column}: {self.message}"

    @property
    def shown(self) -> str:
        """In three lines: what is wrong, the line of the selector, and a mark below the place."""
        line, column = self.place
        source = "".join(each if each.isprintable() else " " for each in self.text.split("\n")[line - 1])
        first = max(0, column - 1 - _SHOWN_BEFORE)
        part = source[first : first + 2 * _SHOWN_BEFORE]
        return f"{self}\n  {part}\n  {' ' * (column - 1 - first)}^"


_SHOWN_BEFORE: Final = 60
_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\r\n\f]+|//[^\n]*)
    |(?P<number>(?:0[xX][0-9a-fA-F]+|[0-9]+)(?P<odd>[uU]|\.[0-9]+(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+|[A-Za-z_]\w*)?)
    |(?P<text>(?P<raw>[rR]?)(?P<quote>\"\"\"|'''|\"|'))
    |(?P<bytes>(?:[bB][rR]?|[rR][bB])(?=["']))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", "?": "?", '"': '"', "'": "'", "`": "`",
}  # fmt: skip
_ESCAPE: Final = re.compile(
    r"\\(?:[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.?))", re.DOTALL
)
_RESERVED: Final = frozenset(
    {
        *("as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package"),
        *("namespace", "return", "var", "void", "while", "null"),
    }
)
LOOPS: Final = ("exists", "all", "exists_one", "filter")
FUNCTIONS: Final = {"size": 1, "startsWith": 2, "endsWith": 2, "contains": 2, "matches": 2, "int": 1, "string": 1}
"""With how many arguments, the target counted."""
_BINDS: Final = {
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "!=", "in"), 1),
    **dict.fromkeys(("+", "-"), 2),
    **dict.fromkeys(("*", "/", "%"), 3),
}
_NUMBER_MAX: Final = 2**63 - 1


class _Token(msgspec.Struct, frozen=True, gc=False):
    kind: str
    """`number`, `text`, `name`, `sign`, or `end`."""
    value: int | str
    at: int


def read(text: str) -> Tree:
    """The tree of a selector: at most `limits.SELECTOR_NODES_MAX` nodes, and so deep as `limits.SELECTOR_DEPTH_MAX`.

    Raises:
        SelectorError: it is none, or too large.
    """
    if len(text) > limits.SELECTOR_BYTES_MAX or len(text.encode(errors="replace")) > limits.SELECTOR_BYTES_MAX:
        raise SelectorError(0, f"it is longer than {limits.SELECTOR_BYTES_MAX} bytes")
    return _Reader(_tokens(text)).whole()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise SelectorError(at, _unreadable(text, at))
        kind = match.lastgroup if match.lastgroup in ("blank", "name", "sign", "bytes") else ""
        if match["number"] is not None:
            found.append(_Token("number", _number(match, at), at))
        elif match["text"] is not None:
            value, end = _text(text, match)
            found.append(_Token("text", value, at))
            at = end
            continue
        elif kind == "bytes":
            raise SelectorError(at, "bytes are not among the things that selectors know; write a text, without the b")
        elif kind != "blank":
            found.append(_Token(kind, match[0], at))
        at = match.end()
    found.append(_Token("end", "", len(text)))
    return found


def _unreadable(text: str, at: int) -> str:
    character = text[at]
    if character in "&|=":
        return f"{character!r} alone is no sign here; meant is {'==' if character == '=' else character * 2}"
    return f"{character!r} has no meaning in a selector"


def _number(match: re.Match[str], at: int) -> int:
    if match["odd"]:
        raise SelectorError(
            at, f"{match[0][:40]!r}: numbers are whole, like 8 or 0x1f, and texts stand in quotation marks"
        )
    digits = match["number"]
    # Digits are counted before they are read: reading very many of them is slow.
    number = int(digits, 0 if digits[:2] in ("0x", "0X") else 10) if len(digits) <= 32 else _NUMBER_MAX + 1
    if number > _NUMBER_MAX:
        raise SelectorError(at, f"the largest number is {_NUMBER_MAX}")
    return number


_BODIES: Final = {quote: re.compile(rf"((?:\\.|[^\\])*?){quote}", re.DOTALL) for quote in ('"""', "'''", '"', "'")}
"""A text up to its end. Each character can be read in one way only, so that this takes no longer than it is long."""


def _text(text: str, match: re.Match[str]) -> tuple[str, int]:
    """The text that begins there, and where it ends."""
    quote, begin = match["quote"], match.end()
    if match["raw"]:
        end = text.find(quote, begin)
        body = text[begin:end]
    else:
        found = _BODIES[quote].match(text, begin)
        body, end = (found[1], found.end(1)) if found is not None else ("", -1)
    if end < 0 or (len(quote) == 1 and "\n" in body):
        more = '; one of several lines stands in """' if "\n" in text[begin:] else ""
        raise SelectorError(match.start(), f"this text has no end: a quotation mark is missing{more}")
    return body if match["raw"] else _unescaped(body, begin), end + len(quote)


def _unescaped(body: str, begin: int) -> str:
    def character(found: re.Match[str]) -> str:
        digits = found[1] or found[2] or found[3]
        if digits is None and found[4] is None:
            if found[5] not in _ESCAPES:
                said = rf'\{found[5]} stands for nothing; a backslash itself is \\, or write r"…"'
                raise SelectorError(begin + found.start(), said)
            return _ESCAPES[found[5]]
        code = int(digits, 16) if digits else int(found[4], 8)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise SelectorError(begin + found.start(), f"{found[0]} is no character")
        return chr(code)

    return _ESCAPE.sub(character, body)


class _Reader:
    """By descent, with a bound on how deep it goes."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._nodes = 0

    def whole(self) -> Tree:
        """All of it."""
        if self._peek().kind == "end":
            raise SelectorError(0, 'it is empty; a selector is like device.vendor == "8086"')
        tree = self._expression()
        token = self._peek()
        if token.kind != "end":
            raise SelectorError(token.at, f"{_shown(token)} cannot follow here; conditions are joined by && or ||")
        return tree

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next += 1
        return token

    def _takes(self, *signs: str) -> _Token | None:
        token = self._peek()
        if (token.kind == "sign" or token.value == "in") and token.kind != "text" and token.value in signs:
            return self._take()
        return None

    def _expect(self, sign: str, why: str) -> None:
        if self._takes(sign) is None:
            token = self._peek()
            raise SelectorError(token.at, f"here {sign} is missing{why}, before {_shown(token)}")

    def _count(self, at: int) -> int:
        self._nodes += 1
        if self._nodes > limits.SELECTOR_NODES_MAX:
            raise SelectorError(at, f"it has more than {limits.SELECTOR_NODES_MAX} parts")
        return at

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > limits.SELECTOR_DEPTH_MAX:
            raise SelectorError(self._peek().at, f"it is nested more than {limits.SELECTOR_DEPTH_MAX} deep")

    def _expression(self) -> Tree:
        self._deeper()
        tree = self._any()
        if (sign := self._takes("?")) is not None:
            then = self._any()
            self._expect(":", ", which parts the two cases of a choice")
            tree = Choice(at=self._count(sign.at), test=tree, then=then, other=self._expression())
        self._depth -= 1
        return tree

    def _any(self) -> Tree:
        return self._joined("||", lambda: self._joined("&&", lambda: self._compared(1)))

    def _joined(self, sign: str, part: Callable[[], Tree]) -> Tree:
        first = part()
        items = [first]
        while self._takes(sign) is not None:
            items.append(part())
        return first if len(items) == 1 else Logic(at=self._count(first.at), sign=sign, items=tuple(items))

    def _compared(self, binds: int) -> Tree:
        left = self._signed()
        chained = 0
        while True:
            token = self._peek()
            sign = str(token.value)
            if token.kind not in ("sign", "name") or _BINDS.get(sign, 0) < binds:
                self._depth -= chained
                return left
            self._take()
            # Each further one stands above the last: a chain is as deep as it is long.
            self._deeper()
            chained += 1
            right = self._compared(_BINDS[sign] + 1)
            left = Binary(at=self._count(token.at), sign=sign, left=left, right=right)

    def _signed(self) -> Tree:
        token = self._takes("!", "-")
        if token is None:
            return self._reached()
        self._deeper()
        sign = str(token.value)
        of = self._signed()
        self._depth -= 1
        if sign == "-" and isinstance(of, Literal) and type(of.value) is int and of.value >= 0:
            return Literal(at=token.at, value=-of.value)
        return Unary(at=self._count(token.at), sign=sign, of=of)

    def _reached(self) -> Tree:
        tree = self._primary()
        deeper = 0
        while True:
            if (dot := self._takes(".")) is not None:
                name = self._take()
                if name.kind != "name":
                    raise SelectorError(name.at, f"behind the dot a name is missing, before {_shown(name)}")
                if self._takes("(") is not None:
                    tree = self._method(tree, str(name.value), name.at)
                else:
                    tree = Field(at=self._count(tree.at), of=tree, name=str(name.value))
            elif (dot := self._takes("[")) is not None:
                index = self._expression()
                self._expect("]", "")
                tree = Index(at=self._count(tree.at), of=tree, index=index)
            else:
                self._depth -= deeper
                return tree
            assert dot is not None
            self._deeper()
            deeper += 1

    def _primary(self) -> Tree:
        token = self._take()
        if token.kind in ("number", "text"):
            return Literal(at=self._count(token.at), value=token.value)
        if token.kind == "name":
            return self._named(token)
        if token.value == "(" and token.kind == "sign":
            tree = self._expression()
            self._expect(")", " for the ( before")
            return tree
        if token.value == "[" and token.kind == "sign":
            return ListOf(at=self._count(token.at), items=self._list("]"))
        if token.value == "{" and token.kind == "sign":
            raise SelectorError(token.at, "maps are not among the things that selectors know; a list is [a, b]")
        raise SelectorError(token.at, f"here a value is missing, before {_shown(token)}")

    def _named(self, token: _Token) -> Tree:
        name = str(token.value)
        if name in ("true", "false"):
            return Literal(at=self._count(token.at), value=name == "true")
        if name == "null":
            raise SelectorError(token.at, "there is no null: whether a device has something, has(device.…) says")
        if name in _RESERVED or name == "in":
            raise SelectorError(token.at, f"{name} is a word of the language, and no name")
        if self._takes("(") is None:
            return Name(at=self._count(token.at), name=name)
        arguments = self._list(")")
        if name == "has":
            if len(arguments) != 1 or not isinstance(arguments[0], Field | Index):
                raise SelectorError(token.at, "has() asks for one attribute, like has(device.numa_node)")
            return Has(at=self._count(token.at), of=arguments[0])
        return self._called(name, arguments, token.at)

    def _method(self, target: Tree, name: str, at: int) -> Tree:
        arguments = self._list(")")
        if name not in LOOPS:
            return self._called(name, (target, *arguments), at)
        if len(arguments) != 2 or not isinstance(arguments[0], Name):
            raise SelectorError(at, f"{name} takes a name and a condition, like .{name}(x, x > 1)")
        variable = arguments[0].name
        if variable == "device":
            raise SelectorError(arguments[0].at, "device is what is asked about; call the variable otherwise")
        return Loop(at=self._count(at), name=name, over=target, variable=variable, body=arguments[1])

    def _called(self, name: str, arguments: tuple[Tree, ...], at: int) -> Tree:
        if name not in FUNCTIONS:
            known = ", ".join(sorted((*FUNCTIONS, "has", *LOOPS)))
            raise SelectorError(at, f"there is no function {name[:40]}; there are {known}")
        if len(arguments) != FUNCTIONS[name]:
            raise SelectorError(
                at, f"{name} takes {FUNCTIONS[name]} (with what stands before the dot), not {len(arguments)}"
            )
        return Call(at=self._count(at), name=name, arguments=arguments)

    def _list(self, end: str) -> tuple[Tree, ...]:
        items: list[Tree] = []
        while self._takes(end) is None:
            if items:
                self._expect(",", f" or {end}")
                if end == "]" and self._takes(end) is not None:
                    break
            items.append(self._expression())
        return tuple(items)


def _shown(token: _Token) -> str:
    return "the end" if token.kind == "end" else repr(str(token.value)[:40])
