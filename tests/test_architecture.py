"""The rooms and the arrow: what may import what, that the contracts can fail, and that imports are light."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agents
import mimgenv

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "vllm", "peft", "accelerate", "stable_baselines3", "openai")


def python(code: str, *arguments: str) -> str:
    """What a fresh process prints."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    """Import-linter's verdict on the packages of a folder."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environ = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True)


# Light imports


@pytest.mark.parametrize("package", ["mimgenv", "agents"])
def test_importing_a_room_that_knows_no_models_pulls_in_none(package: str) -> None:
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(code, package).split()}
    assert package in loaded
    assert not loaded & set(HEAVY)


def test_playing_an_episode_pulls_in_no_models() -> None:
    code = """
import sys, gymnasium as gym
env = gym.make("mimgenv:MultiImageTiny-v0")
env.reset(seed=0)
env.step((0,))
print(*sys.modules)
"""
    assert not {name.partition(".")[0] for name in python(code).split()} & set(HEAVY)


def test_the_test_for_heavy_imports_finds_one() -> None:
    loaded = python("import sys; sys.modules['torch.nn'] = sys; print(*sys.modules)").split()
    assert {name.partition(".")[0] for name in loaded} & set(HEAVY) == {"torch"}


def test_the_packages_are_ours_and_lie_side_by_side() -> None:
    """`openai-agents` installs a package of the name `agents`, too."""
    code = "import agents, mimgenv; print(agents.__file__); print(mimgenv.__file__)"
    for here, beside in ((agents.__file__, mimgenv.__file__), python(code).split("\n")[:2]):
        assert here is not None
        assert Path(here).resolve().parents[1] == Path(beside).resolve().parents[1]
    assert agents.OracleAgent.__module__ == "agents.oracle"


@pytest.mark.parametrize("package", [mimgenv, agents])
def test_a_name_that_a_package_does_not_export_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name  # type: ignore[attr-defined]


def test_every_name_that_mimgenv_exports_is_there_and_is_no_module_of_the_same_name() -> None:
    for name in mimgenv.__all__:
        assert not isinstance(getattr(mimgenv, name), type(sys))
        assert not (Path(mimgenv.__file__).parent / f"{name}.py").exists()


# The arrow


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and their contracts, to be broken."""
    for package in ("mimgenv", "agents", "rl"):
        ignored = shutil.ignore_patterns("__pycache__", "assets", "*.json", "*.safetensors")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contracts_hold() -> None:
    verdict = contracts(ROOT)
    assert verdict.returncode == 0, verdict.stdout
    assert "0 broken" in verdict.stdout


def test_the_copy_that_is_to_be_broken_is_whole_at_first(copy: Path) -> None:
    verdict = contracts(copy)
    assert (verdict.returncode, "0 broken" in verdict.stdout) == (0, True), verdict.stdout


@pytest.mark.parametrize(
    ("path", "line", "named"),
    [
        ("mimgenv/broken.py", "import rl", "mimgenv.broken -> rl"),
        ("mimgenv/scenes/broken.py", "from agents import types", "mimgenv.scenes.broken -> agents"),
        ("agents/broken.py", "import rl.loss", "agents.broken -> rl"),
        ("mimgenv/broken.py", "import torch", "mimgenv.broken -> torch"),
        ("mimgenv/tasks/broken.py", "def f():\n    import transformers", "mimgenv.tasks.broken -> transformers"),
        ("rl/broken.py", "from mimgenv.rewards import REWARDS", "rl.broken -> mimgenv.rewards"),
        ("rl/broken.py", "from mimgenv import geometry", "rl.broken -> mimgenv.geometry"),
    ],
)
def test_an_import_against_the_arrow_is_caught_and_named(copy: Path, path: str, line: str, named: str) -> None:
    (copy / path).write_text(f'"""Breaks a contract."""\n\n{line}\n')
    verdict = contracts(copy)
    assert verdict.returncode != 0
    assert named in verdict.stdout
