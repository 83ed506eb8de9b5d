"""The wheel holds the package, all of it and nothing else, and works where only it is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import tree

SHIPPED = (".py", ".sql", ".typed")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a program says; it must succeed."""
    ran = subprocess.run(
        [str(each) for each in command],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the files that git has, built apart from the tree; needs no network."""
    copy = tmp_path_factory.mktemp("copy")
    for name in tree.files(tracked_only=True):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree.ROOT / name, copy / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=copy)
    (built,) = (copy / "dist").iterdir()
    return built


def names_in(wheel: Path) -> set[str]:
    """The files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_exactly_the_package_is_shipped(wheel: Path) -> None:
    """Every module, statement file and type marker that git has is in the wheel, and the server's configuration."""
    shipped = {name for name in names_in(wheel) if ".dist-info/" not in name}
    tracked = tree.files(tracked_only=True)
    expected = {_shipped_as(name) for name in tracked if name.endswith(SHIPPED)} - {""}
    expected |= {f"leasehold/nats/{Path(name).name}" for name in tracked if name.startswith("deploy/nats/")}
    assert shipped == expected
    assert len(expected) > 40
    assert {"leasehold/__init__.py", "leasehold/py.typed"} < expected


def _shipped_as(name: str) -> str:
    """Where a file of the tree stands in the wheel; empty if it does not."""
    if name.startswith(tuple(f"{layer}/" for layer in tree.LAYERS)):
        return f"leasehold/{name}"
    return name.removeprefix("src/") if name.startswith("src/leasehold/") else ""


def test_the_configuration_goes_with_it(wheel: Path) -> None:
    """The server's configuration and the table of permissions are in the wheel."""
    assert {"leasehold/nats/server.conf", "leasehold/nats/permissions.toml"} < names_in(wheel)


def test_the_licence_goes_with_it(wheel: Path) -> None:
    """The licence's text is in the wheel."""
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names_in(wheel))


def test_it_works_where_only_it_is(wheel: Path, tmp_path: Path) -> None:
    """Installed by itself, `leasehold` is there with its layers, and no global `events`, `projections`, `services`."""
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target)
    run(*pip, wheel, cwd=tmp_path)
    assert {path.name.partition("-")[0] for path in target.iterdir() if path.name != "bin"} == {"leasehold"}
    program = f"""
import importlib.util, sys
sys.path.insert(0, {str(target)!r})
import leasehold, leasehold.projections.sequencer
assert leasehold.__file__.startswith({str(target)!r}), leasehold.__file__
assert leasehold.__version__
found = [name for name in ("events", "projections", "services") if importlib.util.find_spec(name)]
assert not found, found
"""
    # Without the tree's own path file (-S), but with the dependencies' folder.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    run(sys.executable, "-S", "-c", program, cwd=tmp_path, PYTHONPATH=packages)


def test_links_that_were_unpacked_as_texts(tmp_path: Path) -> None:
    """Where a copy of the tree has lost its links (some archives keep them as texts), the package still finds all."""
    package = tmp_path / "src" / "leasehold"
    package.mkdir(parents=True)
    shutil.copy(tree.ROOT / "src" / "leasehold" / "__init__.py", package)
    for layer in tree.LAYERS:
        (package / layer).write_text(f"../../{layer}")
        shutil.copytree(tree.ROOT / layer, tmp_path / layer)
    program = "import leasehold.events.limits, leasehold.projections.state as state; print(state.__file__)"
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    where = run(
        sys.executable, "-S", "-c", program, cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(package.parent), packages])
    )
    assert where.strip() == str(tmp_path / "projections" / "state.py")
