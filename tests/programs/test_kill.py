"""Programs that are killed at random moments, again and again, and always started anew: they end as if nothing was."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from conftest import SEED, cases
from downloads import BODY, LIST, ROWS, assert_installed, tree
from downloads import TINY as ARCHIVE
from mortal import DEATH
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator
from test_train import PER_EPOCH, ROOT, TINY, differences

import train
from magnet.run import checkpoint

pytest_plugins = ["downloads"]
SOME = [*TINY, "--keep", "2", "--evaluate-every", "4", "--name", "killed"]
# What a start of train.py does to its files, and about how many operations on them that is; in one of these it dies.
OPERATIONS = {".npy": 8, ".json": 12, "tfevents": 100, "samples": 100, "gif": 30, "checkpoints": 6000, "": 60}


def start(place: Path, code: str, n: int = 0, part: str = "") -> subprocess.Popen:
    """A Python process that runs `code`, and dies in the `n`-th operation on a `part`."""
    plant = f"import mortal; mortal.die_in_operation({n}, {part!r})\n" if n else ""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", f"import sys\n{plant}{code}"]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def was_killed(process: subprocess.Popen) -> bool:
    """Whether it died as it should, once it has ended; else it was done with its work."""
    output, _ = process.communicate(timeout=120)
    assert abs(process.returncode) in (0, DEATH), output
    return process.returncode != 0


def end_of(run: Path) -> dict:
    return checkpoint.load_newest(run / "checkpoints")[1]


@cases(short=4, long=50)
def test_a_run_killed_at_random_moments_is_at_its_end_what_it_would_have_been(place, count):
    choose, run, kills = random.Random(SEED), place / "models" / "killed", 0

    def training(words: list[str], steps: int, *death) -> subprocess.Popen:
        return start(place, f"import train; sys.exit(train.main({[*words, '--steps', str(steps)]}))", *death)

    def so_far() -> tuple[list[str], int]:
        if checkpoint.list_checkpoints(run / "checkpoints"):
            return ["--resume", "models/killed"], end_of(run)["trainer"]["steps"]
        shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint: begun anew
        return SOME, 0

    while kills < count:
        words, reached = so_far()
        if choose.random() < 0.3:
            os.utime(place / "faces" / "00.png", (kills, kills))  # so that the array is made again
        part, steps = choose.choice([None, *OPERATIONS]), reached + choose.randint(1, 2 * PER_EPOCH)
        if part is None:
            process = training(words, steps)
            while (line := process.stdout.readline()) and not line.startswith("Run folder"):
                pass
            time.sleep(choose.random())
            os.kill(process.pid, DEATH)
        else:
            process = training(words, steps, choose.randint(1, OPERATIONS[part]), part)
        kills += was_killed(process)

    words, reached = so_far()
    total = (reached // PER_EPOCH + 2) * PER_EPOCH + 1
    assert not was_killed(training(words, total))
    names = ["best.pt", f"{total - 1:06d}.pt", f"{total:06d}.pt"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(names)
    for name in names:
        checkpoint.load(run / "checkpoints" / name)
    assert list(place.rglob("*.tmp")) == [] and (run / "progress.gif").exists()

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = [line["step"] for line in lines]
    assert [line["step"] - line["steps"] for line in lines] == [0, *ends[:-1]] and ends[-1] == total
    events = EventAccumulator(str(run), size_guidance={IMAGES: 0, SCALARS: 0}).Reload()
    assert [event.step for event in events.Scalars("generator/reward")] == ends
    grids = sorted(int(path.stem) for path in (run / "samples").iterdir() if path.stem.isdigit())
    assert [event.step for event in events.Images("prior")] == grids and {0, 5, total} <= set(grids)

    assert train.main([*SOME, "--steps", str(total), "--name", "straight"]) == 0
    killed, straight = end_of(run), end_of(place / "models" / "straight")
    assert killed["best"] == straight["best"] and differences(killed["trainer"], straight["trainer"]) == []


@cases(short=6, long=50)
def test_a_download_or_unpacking_killed_at_random_moments_completes(mirror, data_dir, tmp_path, count):
    choose, kills, url = random.Random(SEED), 0, ["--url", mirror.url]
    (tmp_path / "by hand.zip").write_bytes(BODY)
    sources = [  # what is fetched, how, and what the server has
        (ARCHIVE, url, BODY),
        (ARCHIVE, ["--from-zip", "by hand.zip"], b""),
        (LIST, ["--attributes", *url], ROWS),
    ]
    while kills < count:
        archive, words, mirror.body = choose.choice(sources)
        call = f"celeba.main({['--data-dir', str(data_dir), *words]}, celeba.{archive!r})"
        killed = True
        while killed:
            n = choose.randint(1, 65) if kills < count else 0
            killed = was_killed(start(tmp_path, f"import download_celeba as celeba\nsys.exit({call})", n, "data"))
            kills += killed
        if archive is ARCHIVE:
            assert_installed(data_dir)
        else:
            assert tree(data_dir.parent) == {"celeba/list_attr_celeba.txt": ROWS}
        assert not Path(f"{data_dir}.download").exists()
        shutil.rmtree(data_dir)
