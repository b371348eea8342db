"""experiments/tables.py: the tables in the documents are those of their lines."""

import json
import re
import shutil
from pathlib import Path

import pytest

from experiments import tables

ROOT = Path(tables.__file__).parents[1]
DOCUMENTS = sorted({table.document for table in tables.TABLES.values()})


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_documents_have_what_their_lines_give(name):
    table = tables.TABLES[name]
    text = (ROOT / table.document).read_text(encoding="utf-8")
    rendered = tables.render(table, tables.read_scores(ROOT))
    assert f"<!-- table: {name} -->\n{rendered}\n" in text, "`python3 experiments/tables.py` writes the tables anew"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_comments_name_tables(document):
    names = re.findall("<!-- table: (.*) -->", (ROOT / document).read_text(encoding="utf-8"))
    assert sorted(names) == sorted(name for name, table in tables.TABLES.items() if table.document == document)


@pytest.mark.parametrize("document", ["README.md", "docs/results.md", "docs/extra-rewards.md"])
def test_every_table_with_a_distance_has_its_lines(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    heads = re.findall(r"^(.*)\n(\|.*)\n\| ---", text, re.MULTILINE)
    assert all(before.startswith("<!-- table: ") for before, head in heads if "FD" in head)


def test_a_changed_line_changes_the_documents(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png", "*.svg"))
    shutil.copy(ROOT / "README.md", tmp_path)
    assert tables.write_tables(tmp_path) == []
    path = tmp_path / "docs" / "faces.jsonl"
    before = path.read_text(encoding="utf-8")
    changed = before.replace('"fd": 4.29,', '"fd": 4.99,').replace('"fd": 2.22,', '"fd": 2.99,')
    path.write_text(changed, encoding="utf-8")
    assert tables.write_tables(tmp_path) == ["README.md", "docs/results.md"]
    row = "| plain GAN, `--architecture dcgan` | 236,112 | 4.99 |"
    assert row in (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "| 560,000 | 2.99 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    tables.write_tables(tmp_path)
    for document in DOCUMENTS:
        assert (tmp_path / document).read_bytes() == (ROOT / document).read_bytes()


LINES = [
    {"table": "t", "setting": "a", "seed": 0, "images": 990, "checkpoint": 1000, "kind": "prior", "fd": 6.0},
    {"table": "t", "setting": "a", "seed": 1, "images": 1000, "checkpoint": 1000, "kind": "prior", "fd": 7.0},
    {"table": "t", "setting": "a", "seed": 0, "images": 990, "checkpoint": 1000, "kind": "policy", "fd": -0.5},
    {"table": "t", "setting": "a", "seed": 1, "images": 1000, "checkpoint": 1000, "kind": "policy", "fd": 0.5},
    {"table": "t", "setting": "b", "seed": 2, "images": 2000, "checkpoint": 2000, "kind": "prior", "fd": 12345.678},
    {
        "table": "t",
        "setting": "b",
        "seed": 2,
        "images": 2000,
        "checkpoint": 2000,
        "kind": "policy",
        "fd": 3,
        "digits": 1,
    },
    {"table": "u", "setting": "a", "seed": 9, "images": 1, "checkpoint": 1, "kind": "prior", "fd": 99.0},
]
COLUMNS = [
    tables.Column("FD", "fd", 2, {"kind": "prior"}),
    tables.Column("policy", "fd", 2, {"kind": "policy"}),
    tables.Column("seeds", "seed"),
    tables.Column("gap", "gap", 3),
]


def test_cells_have_the_mean_and_the_range_of_their_lines():
    table = tables.Table("x.md", {"table": "t"}, COLUMNS, by_images=True, title="setting")
    assert tables.render(table, LINES).splitlines() == [
        "| images | setting | FD | policy | seeds | gap |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 1,000 | a | 6.50 (6.00-7.00) | 0.00 (-0.50 to 0.50) | 0, 1 |  |",
        "| 2,000 | b | 12,345.68 | 3.0 | 2 |  |",
    ]


def test_values_that_print_alike_have_no_range():
    lines = [line | {"fd": 6.0 + line["seed"] / 1000} for line in LINES[:2]]
    table = tables.Table("x.md", {"table": ("t", "u")}, COLUMNS[:1], {"a": "**A**"})
    assert tables.render(table, lines).splitlines()[2:] == ["| **A** | 6.00 |"]


def test_what_is_missing_is_named(tmp_path):
    table = tables.Table("x.md", {"table": "t"}, COLUMNS, {"c": "C"})
    with pytest.raises(tables.UserError, match=r"x.md needs lines of c: add them to docs/\*.jsonl"):
        tables.render(table, LINES)
    with pytest.raises(tables.UserError, match="README.md has 0 comments `<!-- table: faces -->`"):
        tables.replace("# MAGNET\n", "faces", "| a |")
    (tmp_path / "lines.jsonl").write_text(json.dumps(LINES[0]) + "\nno line\n", encoding="utf-8")
    with pytest.raises(tables.UserError, match="lines.jsonl holds no JSON lines"):
        tables.read_lines(tmp_path / "lines.jsonl")
