"""Scenarios, played one after the other in one guest: what is common to all guests."""

import asyncio
import functools
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from tests.vm import image
from tests.vm.autopsy import autopsy
from tests.vm.figures import Figures
from tests.vm.guest import GuestHungError
from tests.vm.image import Parts
from tests.vm.packages import CannotBuildError
from tests.vm.stage import Stage

EXIT_NOT_RUN: Final = 77
"""As automake has it for tests that cannot run."""
SCENARIO_S: Final = 900.0
"""An emulated guest on a machine that does other things, too, may be ten times as slow as alone."""
GUESTS_MAX: Final = 3
"""So many are booted for one after the other, should they hang or be lost."""

Scenario = Callable[[Stage], Awaitable[None]]
"""The first line of its docstring is its claim."""
Play = Callable[[Parts, list[str], Figures], Coroutine[None, None, list[str]]]
"""Boots a guest and plays scenarios; returns the names of those that have not shown what they claim."""


async def play_all(
    names: Sequence[str],
    staged: Callable[[], AbstractAsyncContextManager[Stage]],
    play: Callable[[Stage, str], Awaitable[bool]],
) -> list[str]:
    """Play scenarios; the names of those that have not shown what they claim.

    QEMU's emulated guests hang now and then, at boot or later, and nobody inside answers. (Seen: a processor that halts
    while its timer's interrupt counts as in service, so that none comes any more.) That says nothing of Leasehold, so
    what was being played is played again in another guest. One that answers, but cannot be brought back, is replaced
    for those that are still to be played.

    Args:
        names: of the scenarios.
        staged: boots a guest.
        play: plays one, as `shown` does.
    """
    waiting, failed = deque(names), []
    for number in range(GUESTS_MAX):
        if not waiting:
            break
        if number:
            print(f"in another guest: {', '.join(waiting)}", flush=True)
        try:
            async with staged() as stage:
                while waiting and not stage.is_lost:
                    is_shown = await play(stage, waiting[0])
                    if not stage.is_hung:
                        name = waiting.popleft()
                        failed += [] if is_shown else [name]
        except GuestHungError:
            traceback.print_exc()
    return [*failed, *waiting]


async def shown(
    name: str,
    scenario: Scenario,
    stage: Stage,
    agent: str,
    recover: Callable[[], Awaitable[None]],
    before: Scenario | None = None,
) -> bool:
    """Play one; whether it has shown what it claims.

    Args:
        name: how it is called.
        scenario: it.
        stage: on which.
        agent: whose last words are told if it fails.
        recover: then brings the guest back to how scenarios find it.
        before: what it stands on, played first.
    """
    print(f"{name}: {(scenario.__doc__ or '').splitlines()[0]}", flush=True)
    stage.scenario = name
    begun = time.monotonic()
    try:
        async with asyncio.timeout(SCENARIO_S):
            if before is not None:
                await before(stage)
            await stage.guest.set_clock()
            await scenario(stage)
    except Exception:  # the others are still worth seeing
        traceback.print_exc()
        print(f"    NOT SHOWN, after {time.monotonic() - begun:.1f} s", flush=True)
        stage.is_hung = not await autopsy(stage.watched, agent, functools.partial(print, flush=True))
        stage.is_lost = stage.is_hung or not await _recovered(recover)
        return False
    print(f"    shown in {time.monotonic() - begun:.1f} s", flush=True)
    return True


async def _recovered(recover: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(SCENARIO_S):
            await recover()
    except Exception:
        traceback.print_exc()
        print("    the guest is lost: it cannot be brought back to how scenarios find it", flush=True)
        return False
    return True


def main(
    scenarios: Mapping[str, Scenario],
    build: Callable[[Callable[[str], None]], Parts],
    play: Play,
    told: Callable[[Figures], list[str]] = lambda _figures: [],
) -> int:
    """Exit code 0: all was shown; 1: something was not; 2: no such scenario; 77: no guest can run here.

    Args:
        scenarios: all, by name; the command line may name some.
        build: makes the guest's parts.
        play: plays them.
        told: what is told of the figures in the end.
    """
    names = sys.argv[1:] or list(scenarios)
    if unknown := [name for name in names if name not in scenarios]:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(scenarios)}")
        return 2
    reason = image.cannot_run()
    try:
        parts = None if reason else build(print)
    except CannotBuildError as error:
        reason, parts = f"its parts cannot be had: {error}", None
    if parts is None:
        print(f"NOT RUN: no guest can run here: {reason}")
        return EXIT_NOT_RUN
    begun = time.monotonic()
    figures = Figures()
    # Told to end, we take everything down, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = asyncio.run(play(parts, names, figures))
    print("\n".join(("", "what was shown", *(f"  {name}: {sentence}" for name, sentence in figures.shown))))
    print("\n".join(told(figures)))
    print(f"\n{len(names) - len(failed)} of {len(names)} scenarios shown in {time.monotonic() - begun:.0f} s")
    if failed:
        print(f"NOT SHOWN: {', '.join(failed)}")
    return 1 if failed else 0
