"""What a selector means: types, which attributes it reads, how much an evaluation costs, and the text to evaluate.

Everything has a type that is known before: so a mistake is told when it is written, with its place, and not by devices
that do not match. Attributes become plain variables of the text that is evaluated (`a0`, `a1`, …), and only those that
are read are ever given to it.
"""

import re
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import SelectorError
from leasehold.projections import attributes, celparser
from leasehold.projections.attributes import NUMBER, TEXT, TEXTS, TRUTH, Attribute
from leasehold.projections.celparser import (
    Binary,
    Call,
    Choice,
    Field,
    Has,
    Index,
    ListOf,
    Literal,
    Logic,
    Loop,
    Name,
    Tree,
    Unary,
)

_NUMBERS: Final = "list of numbers"
_TRUTHS: Final = "list of yes or no"
_EMPTY: Final = "empty list"
_ENTRY: Final = {
    TEXTS: TEXT,
    _NUMBERS: NUMBER,
    _TRUTHS: TRUTH,
    _EMPTY: TEXT,
    attributes.NETS: "NIC",
    attributes.DISKS: "disk",
}
_LIST_OF: Final = {TEXT: TEXTS, NUMBER: _NUMBERS, TRUTH: _TRUTHS}
_FIELDS: Final = {_ENTRY[name]: fields for name, fields in attributes.FIELDS.items()}
_SCALARS: Final = (TEXT, NUMBER, TRUTH)
_CHARACTER_COST: Final = 10
_WIDE_COST: Final = 100
"""A pattern is compiled at each evaluation. What stands for most characters there are takes long: 15 µs were seen."""
_WIDE: Final = re.compile(r"\.|\[^dDwWsS]|\\[dDwWsS]")


class Reading(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A selector that can be evaluated."""

    tree: Tree
    text: str
    """For the library."""
    reads: tuple[Attribute, ...]
    """What the variables `a0`, `a1`, … stand for; whether it is there, `h0`, `h1`, … say."""
    cost: int


class _Typed(msgspec.Struct, frozen=True, gc=False):
    type: str
    text: str
    cost: int = 1
    size: int = 0
    """How many entries a list has at most."""
    reads: Attribute | None = None


def understood(text: str) -> Reading:
    """What a selector means.

    Raises:
        SelectorError: it means nothing, or costs too much.
    """
    tree = celparser.read(text)
    checks = _Checks()
    typed = checks.type_of(tree)
    if typed.type != TRUTH:
        raise SelectorError(0, f"it says {_a(typed.type)}, and not yes or no; compare it with something")
    if typed.cost > limits.SELECTOR_COST_MAX:
        raise SelectorError(0, f"it would take {typed.cost} steps; at most {limits.SELECTOR_COST_MAX} are taken")
    return Reading(tree=tree, text=typed.text, reads=tuple(checks.reads), cost=typed.cost)


def path_of(tree: Tree) -> str | None:
    """The name of an attribute as `attributes` has it, if that is what stands here: `device.pci.class`."""
    parts: list[str] = []
    while True:
        if isinstance(tree, Field):
            parts.append(f".{tree.name}")
            tree = tree.of
        elif isinstance(tree, Index) and isinstance(tree.index, Literal) and isinstance(tree.index.value, str):
            parts.append(f'["{tree.index.value}"]')
            tree = tree.of
        else:
            break
    if not (isinstance(tree, Name) and tree.name == "device" and parts):
        return None
    return "".join(reversed(parts)).removeprefix(".")


def _a(type_name: str) -> str:
    return type_name if type_name == TRUTH else f"{'an' if type_name[0] in 'aeiou' else 'a'} {type_name}"


class _Checks:
    """One walk over a tree, whose depth is bounded."""

    def __init__(self) -> None:
        self.reads: list[Attribute] = []
        self._variables: dict[str, tuple[str, str]] = {}
        """What loops around here call their entries: in the text to evaluate, and their types."""
        self._loops = 0

    def type_of(self, tree: Tree) -> _Typed:
        """Type, text and cost of what stands here."""
        match tree:
            case Literal():
                return _literal(tree)
            case ListOf():
                return self._list(tree)
            case Name():
                return self._name(tree)
            case Field() | Index():
                return self._reached(tree)
            case Call():
                return self._call(tree)
            case Has():
                return self._has(tree)
            case Loop():
                return self._loop(tree)
            case Unary():
                of = self._wants(tree.of, TRUTH if tree.sign == "!" else NUMBER, f"behind {tree.sign}")
                return _Typed(of.type, f"{tree.sign}({of.text})", of.cost + 1)
            case Binary():
                return self._binary(tree)
            case Logic():
                parts = [self._wants(item, TRUTH, f"beside {tree.sign}") for item in tree.items]
                text = f" {tree.sign} ".join(f"({part.text})" for part in parts)
                return _Typed(TRUTH, text, sum(part.cost for part in parts) + len(parts))
            case Choice():
                return self._choice(tree)

    def _wants(self, tree: Tree, type_name: str, where: str) -> _Typed:
        typed = self.type_of(tree)
        if typed.type != type_name:
            raise SelectorError(tree.at, f"this is {_a(typed.type)}; {where} stands {_a(type_name)}")
        return typed

    def _name(self, tree: Name) -> _Typed:
        known = self._variables.get(tree.name)
        if known is not None:
            return _Typed(known[1], known[0])
        if tree.name == "device":
            raise SelectorError(tree.at, "say what of the device is meant, like device.vendor")
        hint = f"; meant is device.{tree.name}" if attributes.named(tree.name) is not None else ""
        raise SelectorError(
            tree.at, f"there is no {tree.name[:40]} here{hint or '; all begins with device, like device.vendor'}"
        )

    def _reached(self, tree: Field | Index) -> _Typed:
        path = path_of(tree)
        if path is not None:
            return self._attribute(tree, path)
        of = self.type_of(tree.of)
        if isinstance(tree, Field):
            fields = _FIELDS.get(of.type)
            if fields is None:
                raise SelectorError(tree.at, f"this is {_a(of.type)}, which has no parts like .{tree.name[:40]}")
            if tree.name not in fields:
                raise SelectorError(tree.at, f"{_a(of.type)} has no .{tree.name[:40]}; it has {', '.join(fields)}")
            return _Typed(fields[tree.name], f"{of.text}.{tree.name}", of.cost + 1)
        if of.type not in _ENTRY:
            raise SelectorError(tree.at, f"this is {_a(of.type)}, and no list")
        index = self._wants(tree.index, NUMBER, "between [ and ]")
        return _Typed(_ENTRY[of.type], f"{of.text}[{index.text}]", of.cost + index.cost + 1)

    def _attribute(self, tree: Tree, path: str) -> _Typed:
        attribute = attributes.named(path)
        if attribute is None:
            raise SelectorError(tree.at, _unknown(path))
        number = next((at for at, read in enumerate(self.reads) if read.name == attribute.name), len(self.reads))
        if number == len(self.reads):
            self.reads.append(attribute)
        size = limits.SELECTOR_LIST_MAX if attribute.type in _ENTRY else 0
        return _Typed(attribute.type, f"a{number}", 1, size, attribute)

    def _list(self, tree: ListOf) -> _Typed:
        items = [self.type_of(item) for item in tree.items]
        if not items:
            return _Typed(_EMPTY, "[]")
        for item, typed in zip(tree.items, items, strict=True):
            if typed.type not in _LIST_OF:
                raise SelectorError(item.at, f"this is {_a(typed.type)}; lists are of texts, numbers, or yes and no")
            if typed.type != items[0].type:
                raise SelectorError(item.at, f"this is {_a(typed.type)}, and the list is of others ({items[0].type})")
        text = f"[{', '.join(typed.text for typed in items)}]"
        return _Typed(_LIST_OF[items[0].type], text, sum(typed.cost for typed in items) + 1, len(items))

    def _has(self, tree: Has) -> _Typed:
        of = self.type_of(tree.of)
        if of.reads is None and not isinstance(tree.of, Field):
            raise SelectorError(tree.at, "has() asks for one attribute, like has(device.numa_node)")
        if of.type == TEXT:
            return _Typed(TRUTH, f'({of.text} != "")', of.cost + 1)
        if of.type in _ENTRY:
            return _Typed(TRUTH, f"(size({of.text}) > 0)", of.cost + 2)
        if of.type == NUMBER and of.reads is not None:
            return _Typed(TRUTH, f"h{of.text[1:]}")
        return _Typed(TRUTH, f"({of.text} != 0)" if of.type == NUMBER else "true", of.cost + 1)

    def _loop(self, tree: Loop) -> _Typed:
        self._loops += 1
        if self._loops > limits.SELECTOR_LOOPS_MAX:
            raise SelectorError(tree.at, f"loops stand within each other at most {limits.SELECTOR_LOOPS_MAX} deep")
        over = self.type_of(tree.over)
        if over.type not in _ENTRY:
            raise SelectorError(
                tree.over.at, f"this is {_a(over.type)}; {tree.name} goes over a list, like device.nets"
            )
        outer = self._variables.get(tree.variable)
        variable = f"v{len(self._variables)}"
        if outer is not None:
            raise SelectorError(tree.at, f"{tree.variable[:40]} is the name of an outer loop's variable already")
        self._variables[tree.variable] = (variable, _ENTRY[over.type])
        body = self._wants(tree.body, TRUTH, f"in {tree.name}")
        del self._variables[tree.variable]
        self._loops -= 1
        cost = over.cost + over.size * (body.cost + 2) + 1
        if tree.name == "filter":
            return _Typed(over.type, f"{over.text}.filter({variable}, {body.text})", cost, over.size)
        return _Typed(TRUTH, f"{over.text}.{tree.name}({variable}, {body.text})", cost)

    def _choice(self, tree: Choice) -> _Typed:
        test = self._wants(tree.test, TRUTH, "before ?")
        then = self.type_of(tree.then)
        other = self._wants(tree.other, then.type, "behind : as before it")
        cost = test.cost + then.cost + other.cost + 1
        text = f"(({test.text}) ? ({then.text}) : ({other.text}))"
        return _Typed(then.type, text, cost, max(then.size, other.size))

    def _call(self, tree: Call) -> _Typed:
        first = tree.arguments[0]
        if tree.name == "size":
            of = self.type_of(first)
            if of.type not in _ENTRY:
                raise SelectorError(first.at, f"this is {_a(of.type)}; size counts the entries of a list")
            return _Typed(NUMBER, f"size({of.text})", of.cost + 1)
        if tree.name in ("int", "string"):
            wanted, result = (TEXT, NUMBER) if tree.name == "int" else (NUMBER, TEXT)
            of = self._wants(first, wanted, f"in {tree.name}()")
            return _Typed(result, f"{tree.name}({of.text})", of.cost + 1)
        text = self._wants(first, TEXT, f"before .{tree.name}()")
        part = self._wants(tree.arguments[1], TEXT, f"in {tree.name}()")
        cost = text.cost + part.cost + 2
        if tree.name == "matches":
            pattern = tree.arguments[1]
            if not isinstance(pattern, Literal) or not isinstance(pattern.value, str):
                raise SelectorError(pattern.at, "a pattern is written out, like matches('^e[0-9]+$')")
            part = _Typed(TEXT, quoted(_pattern(pattern.value, pattern.at)))
            cost += _CHARACTER_COST * (len(pattern.value) + 1) + _WIDE_COST * len(_WIDE.findall(pattern.value))
        return _Typed(TRUTH, f"({text.text}).{tree.name}({part.text})", cost)

    def _binary(self, tree: Binary) -> _Typed:
        left, right = self.type_of(tree.left), self.type_of(tree.right)
        cost = left.cost + right.cost + 1
        text = f"({left.text}) {tree.sign} ({right.text})"
        if tree.sign == "in":
            if right.type not in (*_LIST_OF.values(), _EMPTY):
                raise SelectorError(
                    tree.right.at, f"this is {_a(right.type)}; in looks into a list, like in ['a', 'b']"
                )
            if right.type not in (_LIST_OF.get(left.type, ""), _EMPTY):
                raise SelectorError(tree.left.at, f"this is {_a(left.type)}, which is never in {_a(right.type)}")
            items = tree.right.items if isinstance(tree.right, ListOf) else ()
            for item in items:
                _check_value(left.reads, item)
            return _Typed(TRUTH, text, cost + right.size)
        if tree.sign in ("+", "-", "*", "/", "%"):
            for side, typed in ((tree.left, left), (tree.right, right)):
                if typed.type != NUMBER:
                    raise SelectorError(side.at, f"this is {_a(typed.type)}; beside {tree.sign} stand numbers")
            return _Typed(NUMBER, text, cost)
        if left.type != right.type:
            says = f"{_a(left.type)} on one side of {tree.sign} and {_a(right.type)} on the other"
            raise SelectorError(
                tree.at, f"{says}: they are never {'equal' if tree.sign in ('==', '!=') else 'compared'}"
            )
        if left.type not in (_SCALARS if tree.sign in ("==", "!=") else (TEXT, NUMBER)):
            raise SelectorError(tree.at, f"{_a(left.type)} is not compared by {tree.sign}")
        if tree.sign in ("==", "!="):
            _check_value(left.reads, tree.right)
            _check_value(right.reads, tree.left)
        return _Typed(TRUTH, text, cost)


def _literal(tree: Literal) -> _Typed:
    value = tree.value
    if isinstance(value, bool):
        return _Typed(TRUTH, "true" if value else "false")
    return _Typed(NUMBER, f"({value})") if isinstance(value, int) else _Typed(TEXT, quoted(value))


def quoted(text: str) -> str:
    """A text as a literal of the language."""
    return '"' + "".join(_as_literal(each) for each in text) + '"'


def _as_literal(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _check_value(attribute: Attribute | None, other: Tree) -> None:
    if attribute is None or not attribute.pattern or not isinstance(other, Literal):
        return
    if other.value and not re.fullmatch(attribute.pattern, str(other.value)):
        raise SelectorError(other.at, f"device.{attribute.name} is never like that; it looks like {attribute.example}")


_UNBOUNDED: Final = re.compile(r"\\(?:[^dDwWsSnrt.\\+*?()|\[\]{}^$/-])|\{|\(\?(?!:)|[*+?][*+?]{2}")
_CLASSES: Final = re.compile(r"\[[^\]]*(?:\[|&&|--|~~|\|\|)")


_ASCII: Final = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r"}
_SHORT: Final = re.compile(r"(?P<list>\[\^?\]?)|(?P<end>\])|\\(?P<of>.)|.", re.DOTALL)


def _pattern(pattern: str, at: int) -> str:
    r"""A pattern as the library is to have it: only what compiles to little, and means the same to whoever reads it.

    What `\d`, `\w` and `\s` stand for is ASCII, as in the language's definition; the library's are a thousand times
    as large.
    """
    _check_pattern(pattern, at)
    is_in_list = False
    found = []
    for match in _SHORT.finditer(pattern):
        part, of = match[0], match["of"] or ""
        if of.lower() in _ASCII:
            if is_in_list and of.isupper():
                raise SelectorError(at, f"{part!r} does not stand between [ and ]")
            inside = _ASCII[of.lower()]
            part = inside if is_in_list else f"[{'^' if of.isupper() else ''}{inside}]"
        elif match["list"] is not None:
            is_in_list = True
        elif match["end"] is not None:
            is_in_list = False
        found.append(part)
    return "".join(found)


def _check_pattern(pattern: str, at: int) -> None:
    if len(pattern) > limits.SELECTOR_PATTERN_CHARS_MAX:
        raise SelectorError(at, f"a pattern has at most {limits.SELECTOR_PATTERN_CHARS_MAX} characters")
    if not pattern.isascii() or not pattern.isprintable():
        raise SelectorError(at, "a pattern is of printable ASCII characters")
    plain = pattern.removeprefix("(?i)")
    found = _UNBOUNDED.search(plain.replace(r"\\", "--")) or _CLASSES.search(plain.replace("\\", "-"))
    if found is not None:
        known = r". [] () | * + ? ^ $ \d \w \s, and (?i) at the beginning"
        raise SelectorError(at, f"{found[0]!r} is not among what patterns know: {known}")
    try:
        re.compile(plain)
    except (re.error, RecursionError, OverflowError) as error:
        raise SelectorError(at, f"it is no pattern: {error}") from None


def not_compared(path: str) -> str:
    """Why devices cannot be compared by what is called so; empty: they can."""
    attribute = attributes.named(path)
    if attribute is None:
        return _unknown(path)
    return "" if attribute.type in _SCALARS else f"device.{path} is a list: devices are compared by one value"


def _unknown(path: str) -> str:
    head = path.rpartition(".")[0]
    if path in attributes.GROUPS:
        names = [name.removeprefix(f"{path}.") for name in attributes.BY_NAME if name.startswith(f"{path}.")]
        return f"say what of device.{path} is meant: {', '.join(names)}"
    whole = attributes.named(head)
    if whole is not None:
        of = f"a list: one of them is meant by device.{head}.exists(x, …)" if whole.type in _ENTRY else _a(whole.type)
        return f"device.{head} is {of}"
    if path == "attributes" or path.startswith("attributes["):
        known = ", ".join(name for name in attributes.BY_NAME if name.startswith("attributes["))
        return f'a name stands in brackets, like device.attributes["model"]; of the standard ones there are {known}'
    tail = path.rpartition(".")[2]
    near = [name for name in attributes.BY_NAME if name.rpartition(".")[2].startswith(tail) and "[" not in name]
    if near:
        return f"there is no device.{path[:60]}; meant is device.{near[0]}"
    if head in attributes.GROUPS:
        return f"there is no device.{path[:60]}; {_unknown(head)}"
    names = sorted({name.partition(".")[0] for name in attributes.BY_NAME if "[" not in name})
    return f"there is no device.{path[:60]}; there are {', '.join(names)}, attributes"
