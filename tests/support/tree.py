"""The project's own files."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ("events", "projections", "services")
_NOT_OURS = frozenset({".git", ".venv", "build", "dist", "__pycache__"})


def files(*, tracked_only: bool = False) -> list[str]:
    """Paths from the root of all files that belong to the project, sorted.

    As git knows them (with `tracked_only`, without new ones that it has not been given yet); where there is no git, or
    it does not trust the owner of the tree, as they lie there.
    """
    others = [] if tracked_only else ["--others", "--exclude-standard"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", *others], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        names = {name for name in listed.stdout.split("\0") if name}
    else:
        names = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_symlink() or path.is_file()}
        names = {name for name in names if not any(_is_foreign(part) for part in Path(name).parts)}
    return sorted(name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file())


def _is_foreign(part: str) -> bool:
    return part in _NOT_OURS or part.endswith(("_cache", ".egg-info", ".pyc")) or part == ".hypothesis"
