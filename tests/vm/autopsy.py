"""What is told of a guest in which a scenario has failed: where its agents are, and what its kernel and QEMU say.

One that answers is asked inside. Of one that does not, only QEMU can tell: whether its processors run, or halt and wait
for an interrupt that cannot come.
"""

import asyncio
import re
import signal
import textwrap
from collections.abc import Awaitable, Callable
from typing import Final

from tests.vm.guest import Guest, GuestHungError
from tests.vm.watched import Watched

ANSWER_S: Final = 30.0
"""A guest that does not answer for this long is taken for hung."""
PART_S: Final = 60.0
_ABORT_S: Final = 2.0
"""An agent says within this where its threads are, if it can at all."""
_WORDS_CHARS_MAX: Final = 1_500
_STACKS_CHARS_MAX: Final = 6_000
_DMESG_LINES: Final = 30
_OF_PROCESSORS: Final = re.compile(r"CPU#|RIP=|ISR|IRR")


async def autopsy(watched: Watched, agent: str, say: Callable[[str], None]) -> bool:
    """Tell all that can be known; whether the guest answers. Its agents are aborted for it; nothing that fails here is
    raised.

    Args:
        watched: the guest, and its agents.
        agent: whose last words are told.
        say: takes what is told, piece by piece.
    """
    guest = watched.guest
    parts: dict[str, Callable[[], Awaitable[str]]] = {
        f"the {agent}'s last words": lambda: _last_words(watched, agent),
        "where its tasks are": lambda: _tasks(guest),
        "where its agents are, in Python": lambda: _stacks(watched),
        "the kernel's last words": lambda: _kernel(guest),
    }
    answers = await _answers(guest)
    if not answers:
        parts = {"the guest does not answer; its processors": lambda: _processors(guest)}
    for title, part in parts.items():
        try:
            async with asyncio.timeout(PART_S):
                text = await part()
        except Exception as error:  # the other parts are still worth seeing
            text = f"not to be had: {error!r}"
        say(textwrap.indent(f"{title}:\n{textwrap.indent(text, '  ')}", "    "))
    return answers


async def _answers(guest: Guest) -> bool:
    try:
        async with asyncio.timeout(ANSWER_S):
            await guest.ask("clock")
    except (GuestHungError, TimeoutError):
        return False
    return True


async def _last_words(watched: Watched, agent: str) -> str:
    return (await watched.log(agent))[-_WORDS_CHARS_MAX:]


async def _tasks(guest: Guest) -> str:
    lines = []
    for who, files in (await guest.ask("tasks"))["tasks"].items():
        lines += [who, *(f"    {name}: {' '.join(text.split())}" for name, text in files.items())]
    return "\n".join(lines)


async def _stacks(watched: Watched) -> str:
    """A process that aborts writes the stacks of its threads to its output: `PYTHONFAULTHANDLER`."""
    texts = []
    for name in await watched.agents():
        await watched.guest.ask("signal", name=name, number=signal.SIGABRT)
        await asyncio.sleep(_ABORT_S)
        texts.append(f"{name}: {(await watched.output(name))[-_STACKS_CHARS_MAX:]}")
    return "\n".join(texts)


async def _kernel(guest: Guest) -> str:
    return "\n".join((await guest.run("dmesg")).splitlines()[-_DMESG_LINES:])


async def _processors(guest: Guest) -> str:
    """Where each is (`HLT=1`: it halts), and which interrupts are in service and wait; then the console."""
    registers = await guest.hmp("info registers -a")
    texts = [registers, *[await guest.hmp(f"info lapic {number}") for number in range(registers.count("CPU#"))]]
    lines = [line for text in texts for line in text.splitlines() if _OF_PROCESSORS.match(line)]
    return "\n".join([*lines, guest.console()])
