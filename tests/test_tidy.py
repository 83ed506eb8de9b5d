"""The house rules, held by tests. Each failure names file, line and rule."""

import ast
import builtins
import functools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from leasehold.events import errors
from tests.support import tree

LINE_CHARS_MAX = 120
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
PURE = ("events", "projections")
PRINTS = ("docs/examples/", "services/cli", "deploy/", "tests/")
IMPURE_MODULES = frozenset(
    {
        *("aiosqlite", "asyncio", "concurrent", "datetime", "io", "logging", "multiprocessing", "nats", "os"),
        *("pathlib", "pyudev", "random", "secrets", "signal", "socket", "sqlite3", "subprocess", "sys", "tempfile"),
        *("threading", "time", "uuid"),
    }
)
IMPURE_CALLS = frozenset({"open", "print", "input", "id", "hash", "exec", "eval"})
NOT_DEPENDING_ON_ORDER = {
    ("projections/state.py", "old - new"): "rows of tables are removed, each by its own key",
    ("projections/state.py", "new - old"): "rows of tables are inserted, each by its own key",
}
"""Loops over sets whose effects come to the same in any order."""
PACED = {("tests/watcher/test_monitor.py", "0.001"): "the pace of a storm of kernel events"}
"""Sleeps that are a load's pace, not a wait for something to have happened."""
# Cut in two, so that this file does not hold what it looks for.
MARKERS = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")
WORDS = ("issue" + " #", "Cla" + "ude", "AI assist" + "ant", "helper ag" + "ent")


class Module(NamedTuple):
    """A module of ours."""

    path: str
    text: str
    root: ast.Module

    @property
    def is_pure(self) -> bool:
        """Whether it belongs to the core."""
        return self.path.startswith(tuple(f"{layer}/" for layer in PURE))

    @property
    def is_layer(self) -> bool:
        """Whether it is shipped."""
        return self.path.startswith(tuple(f"{layer}/" for layer in tree.LAYERS))

    @property
    def is_test(self) -> bool:
        """Whether it holds tests."""
        return self.path.startswith("tests/") and self.path.rpartition("/")[2].startswith("test_")


@functools.cache
def modules() -> tuple[Module, ...]:
    """All modules of the project."""
    found = []
    for path in tree.files():
        if path.endswith(".py"):
            text = (tree.ROOT / path).read_text(encoding="utf-8")
            found.append(Module(path, text, ast.parse(text, path)))
    assert len(found) > 50, "the project's files were not found"
    return tuple(found)


Found = Iterator[tuple[int, str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(root: ast.AST) -> Iterator[Function]:
    """All functions below `root`."""
    return (node for node in ast.walk(root) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_sizes() -> None:
    """Lines, functions and modules stay small enough to be read at once."""
    found = []
    for module in modules():
        lines = module.text.splitlines()
        if len(lines) > MODULE_LINES_MAX:
            found.append(f"{module.path}: {len(lines)} lines")
        found += [
            f"{module.path}:{at}: {len(x)} characters" for at, x in enumerate(lines, 1) if len(x) > LINE_CHARS_MAX
        ]
        for function in functions(module.root):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > FUNCTION_LINES_MAX:
                found.append(f"{module.path}:{function.lineno}: {function.name} has {length} lines")
    assert not found, "\n".join(found)


def relative_imports(module: Module) -> Found:
    """Imports that say where they are instead of what they want, or reach a layer past the package's name."""
    for node in ast.walk(module.root):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "relative import"
            elif (node.module or "").partition(".")[0] in tree.LAYERS:
                yield node.lineno, f"import from {node.module} instead of leasehold.{node.module}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] in tree.LAYERS:
                    yield node.lineno, f"import of {name.name} instead of leasehold.{name.name}"


def prints(module: Module) -> Found:
    """Prints outside of what talks to people."""
    if module.path.startswith(PRINTS):
        return
    for node in ast.walk(module.root):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "print"


def unfinished(module: Module) -> Found:
    """Marks of what is left to do."""
    for at, line in enumerate(module.text.splitlines(), 1):
        yield from ((at, f"{marker} in it") for marker in MARKERS if marker in line)


def undocumented(module: Module) -> Found:
    """Public functions, methods and classes of the three layers that do not say what they are for."""
    if not module.is_layer:
        return
    waiting: list[ast.AST] = [module.root]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            is_overload = any(
                "overload" in ast.unparse(each) or ".setter" in ast.unparse(each) for each in node.decorator_list
            )
            if not ast.get_docstring(node) and not is_overload:
                yield node.lineno, f"{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                waiting.append(node)


def errors_elsewhere(module: Module) -> Found:
    """Exception classes outside of the one module that has them."""
    if not module.is_layer or module.path == "events/errors.py":
        return
    for node in ast.walk(module.root):
        if isinstance(node, ast.ClassDef) and any(_is_exception(ast.unparse(base)) for base in node.bases):
            yield node.lineno, f"{node.name} belongs into events/errors.py"


def _is_exception(base: str) -> bool:
    name = base.rpartition(".")[2]
    known = getattr(builtins, name, None)
    return name.endswith("Error") or (isinstance(known, type) and issubclass(known, BaseException))


def claimless_tests(module: Module) -> Found:
    """Tests that do not say what they claim."""
    if not module.is_test:
        return
    for function in functions(module.root):
        if function.name.startswith("test_") and not ast.get_docstring(function):
            yield function.lineno, f"{function.name} states no claim"


def silent_tests(module: Module) -> Found:
    """Tests left out by other means than `not_run`, or expected to fail."""
    if not module.path.startswith("tests/") or module.path in {"tests/support/not_run.py", "tests/test_not_run.py"}:
        return
    for node in ast.walk(module.root):
        if isinstance(node, ast.Attribute) and node.attr in {"skip", "skipif", "xfail", "importorskip"}:
            yield node.lineno, f"{node.attr} instead of tests.support.not_run"


def sleeping_tests(module: Module) -> Found:
    """Tests that hope that enough time has passed; a measurement may wait for the machine to be calm."""
    if not module.path.startswith("tests/") or module.path.startswith("tests/bench/"):
        return
    for node in ast.walk(module.root):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "sleep" and node.args:
            value = node.args[0]
            paces = (module.path, ast.unparse(value)) in PACED
            if isinstance(value, ast.Constant) and value.value and not paces:
                yield node.lineno, f"sleeps for {value.value!r} s instead of waiting for a signal"


def impure(module: Module) -> Found:
    """What the core must not have: waiting, the outside, clocks, chance, floats."""
    if not module.is_pure:
        return
    for node in ast.walk(module.root):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield node.lineno, "async"
            case ast.Import():
                for name in node.names:
                    if name.name.partition(".")[0] in IMPURE_MODULES:
                        yield node.lineno, f"import of {name.name}"
            case ast.ImportFrom() if (node.module or "").partition(".")[0] in IMPURE_MODULES:
                yield node.lineno, f"import from {node.module}"
            case ast.Constant() if isinstance(node.value, float | complex):
                yield node.lineno, f"float {node.value!r}"
            case ast.Name(id="float"):
                yield node.lineno, "float"
            case ast.Call(func=ast.Name() as called) if called.id in IMPURE_CALLS:
                yield node.lineno, f"call of {called.id}"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield node.lineno, "true division makes floats"


def order_of_sets(module: Module) -> Found:
    """Walks over sets in the core: their order is not the same in two processes."""
    if not module.is_pure:
        return
    for node in ast.walk(module.root):
        match node:
            case ast.For() | ast.comprehension():
                walked = node.iter
            case ast.Call(func=ast.Name(id="list" | "tuple" | "iter" | "enumerate" | "map" | "zip"), args=[*_, walked]):
                pass
            case ast.Call(func=ast.Attribute(attr="join"), args=[walked]):
                pass
            case _:
                continue
        if _is_set(walked) and (module.path, ast.unparse(walked)) not in NOT_DEPENDING_ON_ORDER:
            yield walked.lineno, f"the order of {ast.unparse(walked)} is chance"


def _is_set(node: ast.expr) -> bool:
    """Whether it looks like a set: written as one, made by `set`, or by an operator that lists do not have."""
    match node:
        case ast.Set() | ast.SetComp() | ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.BinOp(op=ast.Sub() | ast.BitAnd() | ast.BitOr() | ast.BitXor()):
            return True
    return False


RULES = (
    relative_imports,
    prints,
    unfinished,
    undocumented,
    errors_elsewhere,
    claimless_tests,
    silent_tests,
    sleeping_tests,
    impure,
    order_of_sets,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: object) -> None:
    """No module of the project breaks this rule."""
    assert callable(rule)
    found = [f"{module.path}:{line}: {what}" for module in modules() for line, what in rule(module)]
    assert not found, "\n".join(found)


BROKEN = {
    relative_imports: ("events/x.py", "from . import y\nfrom events import z\nimport services.cli", 3),
    prints: ("projections/x.py", "print(1)", 1),
    unfinished: ("events/x.py", f"# {MARKERS[0]}: later", 1),
    undocumented: ("services/x.py", "class A:\n    def b(self): ...\nasync def c(): ...\ndef _d(): ...", 3),
    errors_elsewhere: ("services/x.py", "class A(ValueError): ...\nclass B(errors.LeaseholdError): ...", 2),
    claimless_tests: ("tests/test_x.py", "def test_a(): ...\nasync def test_b(): ...\ndef help(): ...", 2),
    silent_tests: ("tests/test_x.py", "@pytest.mark.xfail\ndef test_a(): pytest.skip('no')", 2),
    sleeping_tests: ("tests/test_x.py", "time.sleep(0.1)\nawait asyncio.sleep(1)\nawait asyncio.sleep(0)", 2),
    impure: ("events/x.py", "import time\nfrom os import path\nasync def f(): await g(1.5 / 2, float(3), open(4))", 8),
    order_of_sets: ("projections/x.py", "for a in {1, 2}: [b for b in set(c)]\nlist(d - e)\n','.join({f})", 4),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_finds_what_it_looks_for(rule: object) -> None:
    """Each rule finds every breach in a module that is made of them; a rule that finds nothing says nothing."""
    assert callable(rule)
    path, text, count = BROKEN[rule]
    found = list(rule(Module(path, text, ast.parse(text))))
    assert len(found) == count, found


def test_codes_of_errors() -> None:
    """Every exception has a code of its own, which programs can rely on, and a sentence for people."""
    waiting, found = [errors.LeaseholdError], []
    while waiting:
        each = waiting.pop()
        if each in found:  # it is one of two kinds
            continue
        found.append(each)
        waiting += each.__subclasses__()
        assert "code" in vars(each), f"{each.__name__} inherits its code"
        assert each.__doc__, f"{each.__name__} has no text"
        assert each.__module__ == errors.__name__, f"{each.__name__} is not in events/errors.py"
    doubled = [code for code, count in Counter(each.code for each in found).items() if count > 1]
    assert not doubled, f"codes used twice: {doubled}"


def test_links() -> None:
    """The package's name leads to the three folders by relative links, so that any copy of the tree works."""
    for layer in tree.LAYERS:
        link = tree.ROOT / "src" / "leasehold" / layer
        assert link.is_symlink(), f"{link} is no link"
        assert str(link.readlink()) == f"../../{layer}"
        assert (link / "__init__.py").is_file()
    nats = tree.ROOT / "src" / "leasehold" / "nats"
    assert str(nats.readlink()) == "../../deploy/nats"
    assert (nats / "server.conf").is_file()


def test_words() -> None:
    """The files speak of the project only."""
    found = []
    for path in tree.files():
        if (tree.ROOT / path).is_symlink():
            continue
        text = (tree.ROOT / path).read_bytes().decode(errors="replace").casefold()
        found += [f"{path}: {word}" for word in WORDS if word.casefold() in text]
    assert not found, "\n".join(found)
