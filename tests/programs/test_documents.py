"""Tests of what the documents point to: files, headings, commands."""

import re
from pathlib import Path

import pytest

import train
from magnet.run import command_line

ROOT = Path(train.__file__).parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")]
DOCUMENTS = [*PAGES, *sorted((ROOT / "docs").glob("*.md"))]


def anchors(path: Path) -> set[str]:
    """What a link may have behind `#`: headings in small letters, without punctuation, with hyphens for spaces."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_what_is_there(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_commands_for_training_are_understood():
    texts = (path.read_text(encoding="utf-8").replace("\n", " ") for path in (*DOCUMENTS, ROOT / "Makefile"))
    commands = re.findall(r"train\.py((?: +--?[a-z][\w-]*(?: [^\s`|#]+)?)*)", " ".join(texts))
    assert any("--preset" in command for command in commands)
    for command in commands:
        words = command.replace("FOLDER", "x").replace("RUN", "x").split()
        if "--help" not in words:
            command_line.parse(words)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_the_functions_that_contributing_names_exist():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "magnet").rglob("*.py"))
    tables = "\n".join(
        line for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines() if "|" in line
    )
    names = {name for names in re.findall(r"`([A-Za-z_][\w.]*)`", tables) for name in names.split(".")}
    names -= {"magnet", "py", "auto"}
    assert {"td_target", "MADDPG", "require_even_shares"} <= names
    assert not {name for name in names if not re.search(rf"\b{name}\b", code)}
