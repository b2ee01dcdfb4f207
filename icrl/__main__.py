"""The launcher of the command ``icrl``: makes sure that envs, agents and scripts are ours, then hands over to scripts.

The three are common names, and another installed package (or a folder that Python happens to stand in) may own them.
``import icrl`` needs none of them; the command does. This is the only module of icrl that imports one.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("envs", "agents", "scripts")
ROOT = Path(__file__).resolve().parent.parent  # the folder that icrl lies in, and the three with it


def package_path(name: str) -> Path | None:
    """Where Python would import the top-level package ``name`` from; None if from nowhere. Imports nothing."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [spec.origin or name])
    return Path(places[0]).resolve()


def obstacle() -> str | None:
    """One line that says which package is in the way and what to do about it; None if all three are ours."""
    for name in PACKAGES:
        path = package_path(name)
        if path is None:
            return f"the package `{name}` is missing beside {ROOT / 'icrl'}: install icrl again (pip install -e .)"
        if path != ROOT / name:
            return (
                f"another package `{name}` is in the way: {path} (expected {ROOT / name}); "
                "start icrl from another folder, take that one off PYTHONPATH, or uninstall it"
            )
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; ``argv`` without the program's name (default: the process's). Returns the exit status."""
    message = obstacle()
    if message is not None:
        print(f"icrl: error: {message}", file=sys.stderr)
        return 2
    from scripts.cli import main as command_line

    return command_line(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
