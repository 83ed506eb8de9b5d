"""Deliberate faults in how orders to hosts are given and ended. Each must be found, too."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import msgspec

from leasehold.events.event_types import OrderCarriedOut
from leasehold.events.inputs import Observed, OrderDone, OrderNotDone
from leasehold.projections import conflicts, observing, ordering
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


def order_ends_twice() -> AbstractContextManager[Any]:
    """What is told of an order that is over is taken once more."""

    def done(state: State, given: Observed, said: OrderDone) -> Any:
        row = state.orders.get(said.order)
        return None if row is None else OrderCarriedOut(host=row.host, order=said.order, late=not row.is_open)

    return patch.dict(observing._HANDLERS, {OrderDone: done})


def late_word_lost() -> AbstractContextManager[Any]:
    """That an order was carried out behind its time is not told."""
    original = ordering.done

    def done(state: State, given: Observed, said: OrderDone) -> Any:
        event = original(state, given, said)
        return None if isinstance(event, OrderCarriedOut) and event.late else event

    return patch.dict(observing._HANDLERS, {OrderDone: done})


def failure_taken_for_done() -> AbstractContextManager[Any]:
    """Whatever is told of an order, it counts as carried out."""
    original = ordering.done
    return patch.dict(
        observing._HANDLERS,
        {OrderNotDone: lambda state, given, said: original(state, given, OrderDone(said.order))},
    )


def early_deadline() -> AbstractContextManager[Any]:
    """Orders time out three seconds before their time."""
    original = ordering.overdue
    return patch.object(
        ordering, "overdue", lambda state, now_ns, *, limit: original(state, now_ns + 3 * 10**9, limit=limit)
    )


def orders_wait_for_ever() -> AbstractContextManager[Any]:
    """An order of which nothing is heard never ends."""
    return patch.object(ordering, "overdue", lambda *_words, **_how: [])


def others_parent_taken() -> AbstractContextManager[Any]:
    """It does not matter who has leased what an order is about, or whether its agent runs."""
    return patch.object(ordering, "_kept_from", lambda _state, _ref, _device, _parent=None: None)


def leased_device_destroyed() -> AbstractContextManager[Any]:
    """It does not matter whether what is to be destroyed is leased."""
    return patch.object(ordering, "_needed", lambda _state, _device: None)


@contextmanager
def one_name_ordered_twice() -> Iterator[None]:
    """A device is made, or taken away, while an order about it is open."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(ordering, "_taken", lambda *_words: None))
        stack.enter_context(patch.object(ordering, "_ordered_already", lambda *_words: None))
        yield


def granted_while_ordered() -> AbstractContextManager[Any]:
    """A device is granted while its host makes something on it, or takes it away."""
    original = conflicts.blockers

    def blockers(*words: Any, **how: Any) -> Iterator[Any]:
        return (each for each in original(*words, **how) if each.rule != "ordered")

    return patch.object(conflicts, "blockers", blockers)


MUTATIONS: Final[tuple[Callable[[], AbstractContextManager[Any]], ...]] = (
    order_ends_twice,
    late_word_lost,
    failure_taken_for_done,
    early_deadline,
    orders_wait_for_ever,
    others_parent_taken,
    leased_device_destroyed,
    one_name_ordered_twice,
    granted_while_ordered,
)
