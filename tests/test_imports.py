"""Who may import whom (ARCHITECTURE.md), read from the source; and that data and environments need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("icrl", "envs", "agents", "scripts")
MAY_IMPORT = {
    "scripts": ("icrl", "envs", "agents", "scripts"),
    "agents": (
        "icrl.interfaces",
        "icrl.seeding",
        "icrl.rollout",
        "icrl.data",
        "icrl.registry",
        "icrl.config",
        "icrl.files",
        "agents",
    ),
    "envs": ("icrl.interfaces", "icrl.seeding", "icrl.registry", "envs"),
    "icrl": ("icrl",),
}
EXCEPTIONS = {
    "icrl/__main__.py": ("scripts",),  # the launcher
    "agents/collect.py": ("envs",),  # builds the family in its workers
    "agents/by_member.py": ("envs.mixed",),  # an agent in each of its environments
    "agents/rl2.py": ("envs.trial",),  # sees what trials show
    "agents/rl2_training.py": ("envs.trial",),
}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def project_imports(source: str, package: str) -> set[str]:
    """Full names of the project's modules that a file of ``package`` (dotted) imports, however deep in its functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" if module in PACKAGES else module for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def test_the_parser_sees_every_form_of_import():
    source = (
        "import envs.darkroom\nfrom icrl import seeding\ndef f():\n    from ..data import store\n    from . import x"
    )
    assert project_imports(source, "icrl.models") == {"envs.darkroom", "icrl.seeding", "icrl.data", "icrl.models"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_imports_only_what_it_may(path):
    relative = path.relative_to(ROOT)
    allowed = MAY_IMPORT[relative.parts[0]] + EXCEPTIONS.get(relative.as_posix(), ())
    imports = project_imports(path.read_text(), ".".join(relative.parts[:-1]))
    assert {name for name in imports if not within(name, allowed)} == set()


HOMES = {
    "stable_baselines3": ("agents/sb3.py", "agents/rl2_training.py", "scripts/train_oracle.py"),
    "sb3_contrib": "agents/rl2_training.py",
    "minigrid": "envs/",
    "jinja2": "icrl/report/",
    "tyro": "scripts/",
}


@pytest.mark.parametrize("library, home", HOMES.items())
def test_a_library_stays_where_it_is_needed(library, home):
    users = [p.relative_to(ROOT).as_posix() for p in FILES if library in _roots(p.read_text())]
    assert [user for user in users if not user.startswith(home)] == []


def _roots(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_envs_agents_data_and_the_launcher_load_no_torch():
    code = (
        "import sys, envs, envs.darkroom, envs.bandit, agents, agents.collect, icrl, icrl.data.store, icrl.data.sampling, "
        "icrl.rollout, icrl.recipes, scripts.cli; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
