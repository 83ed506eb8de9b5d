"""Selectors: which devices somebody means, as an expression over a device's attributes.

They are written in the Common Expression Language, within limits (`celparser`, `celchecks`), and evaluated by the
library `common-expression-language`, which bounds nothing by itself: a selector is read, typed and priced here first,
and what the library gets is written anew from that. A result depends on nothing but the selector and the attributes it
reads, so it is kept by these: of a thousand equal cards one is evaluated.

What cannot be said of a device (it has no such number, a list is shorter, a number is too large) does not match, with
that as its reason.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError, SelectorError
from leasehold.events.identities import DeviceId
from leasehold.events.inputs import LeaseRequest
from leasehold.events.schedule_inputs import ReserveRequest, SetClassRequest
from leasehold.projections import attributes, celchecks, narrowing
from leasehold.projections.attributes import Value
from leasehold.projections.celchecks import Reading
from leasehold.projections.celparser import Fault
from leasehold.projections.state import State

Compile = Callable[[str], Any]
_FIELDS_OF: Final = {name: tuple(fields) for name, fields in attributes.FIELDS.items()}


class Selector:
    """A selector that can be evaluated. Equal texts give the same one, as long as it is kept."""

    __slots__ = ("_program", "_reading", "facts", "text")

    def __init__(self, text: str, reading: Reading, program: Any) -> None:
        self.text = text
        self.facts = narrowing.facts_of(reading.tree)
        """What is certain of whatever matches."""
        self._reading = reading
        self._program = program

    def matches(self, state: State, device: DeviceId) -> bool | str:
        """Whether a known device matches; why that cannot be said, as a text, which counts as no."""
        row = state.devices[device]
        values = tuple(attribute.read(state, device, row) for attribute in self._reading.reads)
        return self.holds(values)

    def holds(self, values: tuple[Value, ...]) -> bool | str:
        """Whether it is true of these values of `reads`."""
        key = (self, values)
        known = _RESULTS.get(key)
        if known is None:
            if len(_RESULTS) >= limits.SELECTOR_RESULTS_KEPT_MAX:
                _RESULTS.clear()
            known = _RESULTS[key] = self._evaluated(values)
        return known

    @property
    def cost(self) -> int:
        """How many steps an evaluation takes at most, each some tens of nanoseconds."""
        return self._reading.cost

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the attributes that it reads."""
        return tuple(attribute.name for attribute in self._reading.reads)

    def _evaluated(self, values: tuple[Value, ...]) -> bool | str:
        given: dict[str, Any] = {}
        absent = []
        for number, (attribute, value) in enumerate(zip(self._reading.reads, values, strict=True)):
            given[f"h{number}"] = value is not None
            if value is None:
                absent.append(attribute.name)
                continue
            fields = _FIELDS_OF.get(attribute.type)
            given[f"a{number}"] = (
                [dict(zip(fields, row, strict=True)) for row in value]  # type: ignore[union-attr]
                if fields is not None
                else (list(value) if isinstance(value, tuple) else value)
            )
        try:
            return bool(self._program.execute(given))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception, and no end of ours
            return _why(error, absent)


_RESULTS: Final[dict[tuple[Selector, tuple[Value, ...]], bool | str]] = {}


def _why(error: BaseException, absent: list[str]) -> str:
    """Why it cannot be said, in words that do not depend on the library's."""
    match error:
        case IndexError():
            return "a list has no entry of that number"
        case ZeroDivisionError():
            return "it divides by zero"
        case OverflowError():
            return "a number is too large"
        case RuntimeError() if absent:
            return f"it has no {absent[0]}"
        case _:
            return "a text is no number, or a pattern is too large"


def check(text: str) -> Fault | None:
    """What is wrong with a selector, without loading what evaluates it; `None`: nothing."""
    read = _understood(text)
    return read if isinstance(read, Fault) else None


def check_request(request: object) -> None:
    """Whether all selectors and attributes that a request names are such.

    Raises:
        InvalidInputError: with the field, the place in it, and what would be right.
    """
    match request:
        case SetClassRequest():
            _check(request.select, "select")
        case LeaseRequest() | ReserveRequest():
            for number, need in enumerate(request.needs):
                _check(need.select, f"needs[{number}].select")
                for way, option in enumerate(need.first_of):
                    _check(option.select, f"needs[{number}].first_of[{way}].select")
            for number, constraint in enumerate(request.constraints):
                said = celchecks.not_compared(constraint.attribute)
                if said:
                    raise InvalidInputError(said, field=f"constraints[{number}].attribute")


def _check(text: str, field: str) -> None:
    fault = check(text) if text else None
    if fault is not None:
        raise InvalidInputError(str(fault), field=field)


def compiled(text: str) -> Selector | Fault:
    """The selector of this text, or what is wrong with it."""
    return _compiled(text)


def _printable(message: str) -> str:
    """It may name parts of the selector, which stand on terminals then."""
    return "".join(each if each.isprintable() else "?" for each in message)


@functools.lru_cache(maxsize=limits.SELECTORS_KEPT_MAX)
def _understood(text: str) -> Reading | Fault:
    try:
        return celchecks.understood(text)
    except SelectorError as error:
        return Fault(text, error.at, _printable(error.message))


@functools.lru_cache(maxsize=limits.SELECTORS_KEPT_MAX)
def _compiled(text: str) -> Selector | Fault:
    reading = _understood(text)
    if isinstance(reading, Fault):
        return reading
    compile_text = load()  # that it cannot be loaded is no fault of the text
    try:
        program = compile_text(reading.text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - it takes less than the grammar has, or panics; no text is known that does
        return Fault(text, 0, "it cannot be evaluated; say it more simply")
    return Selector(text, reading, program)


@functools.cache
def load() -> Compile:
    """What compiles selectors. Loading it takes about 0.2 s, so who decides does that at his start."""
    import cel  # noqa: PLC0415 - it brings a command line of its own, which clients and agents do not need

    compile_text: Compile = cel.compile
    return compile_text
