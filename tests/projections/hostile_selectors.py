"""Texts made to crash, hang or fill memory, given to what reads selectors.

`python -m tests.projections.hostile_selectors` gives many, and bounds its own memory, so that whoever starts it sees
how it ends. With `--alone` one of the texts is given to the library without us.
"""

import argparse
import random
import resource
import sys
import time
from collections.abc import Iterator
from typing import Final

import cel

from leasehold.events import limits
from leasehold.projections import attributes, selectors
from leasehold.projections.attributes import DISKS, NETS, NUMBER, TEXT, TEXTS, TRUTH, Value
from leasehold.projections.celparser import Fault
from leasehold.projections.selectors import Selector
from tests.projections.selecting import Chance

MEMORY_BYTES: Final = 2**29
SLOW_S: Final = 0.5
"""No text may take longer, whatever machine this is: the largest ones take some milliseconds."""
ALONE: Final = {
    "chain": "1" + "+1" * 20_000,
    "doubling": '["aaaaaaaaaa"]' + ".map(x, x + x)" * 30 + ".size() == 1",
}
_TOKENS: Final = (
    *("(", ")", "[", "]", "{", "}", ".", ",", "?", ":", "&&", "||", "!", "-", "+", "*", "/", "%", "==", "<", " in "),
    *("device", "device.nets", "device.vendor", "device.numa_node", ".exists(x, ", ".all(y, ", ".filter(z, ", "has("),
    *("1", "0x7fffffffffffffff", "9223372036854775807", "'a'", '"', "'", '"""', "r'", "b'", "\\", "\\u", "\n", "//"),
    *(".matches('", "(.*)*", "\\d+", "[a-z]", "true", "null", "\x00", "\ud800", "ä", "😀", "for", "int(", "size("),
)


def _nested(depth: int) -> Iterator[str]:
    for opens, closes in (("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("has(", ")"), ("size(", ")"), ("{1:", "}")):
        yield opens * depth + "true" + closes * depth
    yield "[1].all(x, " * depth + "true" + ")" * depth
    yield "true ? 1 : " * depth + "1"
    yield "true ? " * depth + "1" + ": 1" * depth
    yield "[1]" + ".filter(x, true)" * depth + ".size() == 1"
    yield '["a"]' + ".map(x, x + x)" * depth + ".size() == 1"
    yield from ("1" + "+1" * depth, "1" + "==1" * depth, "true" + "&&true" * depth, "true" + "||true" * depth)
    yield "device" + ".a" * depth
    yield "device.nets" + "[0]" * depth
    yield "device.vendor.matches('" + "(" * depth + ")" * depth + "')"
    yield "device.vendor.matches('" + "(a*)*" * depth + "')"
    yield "device.vendor.matches('" + "." * depth + "')"
    yield "[" + ",".join(["1"] * depth) + "].all(x, [" + ",".join(["1"] * depth) + "].all(y, x + y > 0))"
    yield f"{'9' * depth} == 1"
    yield f"'{'a' * depth}' == 'b'"


def texts(chance: random.Random, count: int) -> Iterator[str]:
    """As many of them."""
    yield from ALONE.values()
    for depth in (1, 15, 16, 28, 29, 30, 31, 32, 33, 60, 120, 500, 1_000, 4_000, 100_000):
        yield from _nested(depth)
    for number in range(count):
        kind = number % 3
        if kind == 0:
            yield "".join(chance.choices(_TOKENS, k=chance.randint(1, 400)))
            continue
        text = Chance(chance.randrange(2**32)).truth(chance.randint(1, 6))[0]
        for _ in range(chance.randint(0, 3) if kind == 1 else 0):
            at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
            text = chance.choice(
                [
                    text[:at] + chance.choice(_TOKENS) + text[end if end - at < 4 else at :],
                    text[:at] + text[at:end] * chance.randint(1, 9) + text[end:],
                    text[:at] + text[end:],
                ]
            )
        yield text


def largest(selector: Selector) -> tuple[Value, ...]:
    """Values of what a selector reads that make it work hardest."""
    rows: dict[str, Value] = {
        TEXT: "aä" * 512, NUMBER: 2**63 - 1, TRUTH: True, TEXTS: ("a" * 1024,) * limits.SELECTOR_LIST_MAX,
        NETS: (("a" * 1024, "b" * 1024, "c" * 1024, 2**40, "d", "e"),) * limits.SELECTOR_LIST_MAX,
        DISKS: (("a" * 1024, "b", "c", "d", 2**63 - 1, "e", "f", True, False),) * limits.SELECTOR_LIST_MAX,
    }  # fmt: skip
    types = (attribute.type for name in selector.reads if (attribute := attributes.named(name)) is not None)
    return tuple(rows[each] for each in types)


def main() -> int:
    """Give them all; 0 if each was read in time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--alone", choices=ALONE)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if given.alone:
        cel.compile(ALONE[given.alone]).execute({})
        return 0
    print(f"seed {given.seed}")
    selectors.load()
    slowest, counts = (0.0, ""), {"selectors": 0, "faults": 0, "true": 0}
    for text in texts(random.Random(given.seed), given.texts):
        began_s = time.process_time()
        selector = selectors.compiled(text)
        if isinstance(selector, Fault):
            counts["faults"] += 1
            assert str(selector) and len(selector.shown) < 2_000, text
        else:
            counts["selectors"] += 1
            counts["true"] += selector.holds(largest(selector)) is True
        slowest = max(slowest, (time.process_time() - began_s, text))
        assert (selectors.check(text) is None) == isinstance(selector, Selector), f"the library cannot take {text!r}"
    print(counts, f"slowest {slowest[0] * 1e3:.1f} ms: {slowest[1][:200]!r}")
    return 0 if slowest[0] < SLOW_S else 1


if __name__ == "__main__":
    sys.exit(main())
