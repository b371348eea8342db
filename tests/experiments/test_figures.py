"""experiments/figures.py: tables and curves of lines that were written by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import figures


def point(kind, step, fd, recall=0.5):
    others = {"swd": 20.0, "kid_x1000": 300.0, "precision": 0.9, "minutes": step / 10}
    return {"kind": kind, "step": step, "images": 64 * step, "fd": fd, "recall": recall} | others


RUNS = [
    {"setting": "a", "seed": 0, "diverged": False, "curve": [point("prior", 10, 9), point("prior", 20, 6.0, 0.7)]},
    {"setting": "b", "seed": 0, "diverged": False, "curve": [point("prior", 20, 5), point("policy", 20, 8)]},
    {"setting": "a", "seed": 1, "diverged": False, "curve": [point("prior", 10, 8), point("prior", 20, 7.5, 0.6)]},
    {"setting": "a", "seed": 2, "diverged": True, "curve": [point("prior", 10, 12.0, 0.2)]},
]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in RUNS))
    return path


def test_the_table_has_means_and_extents_of_the_last_points(lines):
    assert figures.table(figures.read(lines)).splitlines()[2:] == [
        "| a | prior | 3, 1 diverged | 1,067 | 20.00 (20.00-20.00) | 8.50 (6.00-12.00) | 300.0 (300.0-300.0) "
        "| 0.900 (0.900-0.900) | 0.500 (0.200-0.700) | 2 (1-2) |",
        "| b | prior | 1 | 1,280 | 20.00 | 5.00 | 300.0 | 0.900 | 0.500 | 2 |",
        "| b | policy | 1 | 1,280 | 20.00 | 8.00 | 300.0 | 0.900 | 0.500 | 2 |",
    ]


def test_the_table_compares_at_equal_images_if_told(lines):
    assert figures.table(figures.read(lines), images=1000).splitlines()[2:] == [
        "| a | prior | 3, 1 diverged | 640 | 20.00 (20.00-20.00) | 9.67 (8.00-12.00) | 300.0 (300.0-300.0) "
        "| 0.900 (0.900-0.900) | 0.400 (0.200-0.500) | 1 (1-1) |",
    ]


def test_curves_have_at_each_number_of_images_the_runs_that_got_there():
    points = [point for run in RUNS if run["setting"] == "a" for point in run["curve"]]
    assert [[p["fd"] for p in group] for group in figures.by_images(points)] == [[9, 8, 12.0], [6.0, 7.5]]
    near = points[-1] | {"images": 630, "checkpoint": 640, "fd": 1}
    assert [p["fd"] for p in figures.by_images([*points, near])[0]] == [9, 8, 12.0, 1]


def test_the_documents_figures_show_their_lines(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    line = {"seed": 0, "kind": "prior", "network": "face", "references": "training", "minutes": 2, "recall": 0.5}
    pictures = []
    for fd in (5.0, 6.0):
        lines = [
            line | {"table": table, "setting": "MAGNET", "images": images, "fd": fd * share}
            for table in ("32x32", "long trainings") for images, share in ((1000, 1), (2000, 0.5))
        ]  # fmt: skip
        (tmp_path / "docs" / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert figures.main(["--out", str(tmp_path)]) == 0
        pictures.append([np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in figures.FIGURES])
    assert all(not np.array_equal(*pair) for pair in zip(*pictures, strict=True))
    (tmp_path / "docs" / "lines.jsonl").write_text("{")
    assert figures.main(["--out", str(tmp_path)]) == 2
    assert "lines.jsonl holds no JSON lines" in capsys.readouterr().err


def test_figures_are_drawn_of_the_settings_asked_for(lines, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    sizes = []
    for names in (["a"], ["a", "b"]):
        assert figures.main([str(lines), "--out", str(tmp_path), "--draw", *names]) == 0
        drawn = [np.asarray(Image.open(tmp_path / f"scores-over-{over}.png")) for over in ("images", "minutes")]
        assert not np.array_equal(*drawn)
        sizes.append(drawn[0])
    assert not np.array_equal(*sizes)
    assert "| b | policy |" in capsys.readouterr().out  # the table has all


@pytest.mark.parametrize(("text", "words"), [(None, ["--draw", "a"]), ("{}\n", []), ("", []), (RUNS, ["--draw", "c"])])
def test_results_that_cannot_be_drawn_are_one_sentence(tmp_path, capsys, text, words):
    path = tmp_path / "lines.jsonl"
    if text is not None:
        path.write_text(text if isinstance(text, str) else "".join(json.dumps(run) + "\n" for run in text))
    assert figures.main([str(path), "--out", str(tmp_path), *words]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith("figures.py: ") and str(path) in error
