"""What a long run takes: no more memory, files and threads than a short one, disk by a rule; and what it shows."""

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from test_kill import start
from test_train import TINY

import train
from magnet.run import checkpoint
from magnet.run.logger import LOG_EVERY

WATCH = """
import gc, json, os, torch
import train
from magnet.run.logger import LOG_EVERY
from magnet.maddpg import MADDPG

def watched(trainer, step=MADDPG.step):
    metrics = step(trainer)
    if trainer.steps in {moments}:
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        tensors = [x.untyped_storage() for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
        print("found", json.dumps({{
            "memory": int(status["VmRSS"].split()[0]),
            "tensors": sum({{x.data_ptr(): x.nbytes() for x in tensors}}.values()),
            "disk": sum(entry.stat().st_size for entry in os.scandir("models/long/checkpoints")),
            "threads": int(status["Threads"]), "files": len(os.listdir("/proc/self/fd")),
        }}))
    return metrics

MADDPG.step = watched
sys.exit(train.main({words}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("early", "late", "every"), [(100, 200, 50), pytest.param(1000, 20_000, 500, marks=pytest.mark.long)]
)
def test_a_long_run_takes_what_a_short_one_took(place, early, late, every):
    per_epoch = 13  # 40 images, 3 fresh rows a step
    words = [*TINY, "--batch-size", "4", "--gamma", "0", "--epochs", "1000000", "--keep", "2"]
    words += ["--steps", str(late), "--sample-every", str(every), "--evaluate-every", str(every), "--name", "long"]
    words += ["--checkpoint-every", str(every // per_epoch)]
    output, _ = start(place, WATCH.format(moments=(early, late), words=words)).communicate()
    before, after = map(json.loads, re.findall("found (.*})", output))
    assert {name: (before[name], after[name]) for name in before if after[name] > 1.02 * before[name]} == {}

    run = place / "models" / "long"
    assert len(list((run / "checkpoints").iterdir())) == 3  # --keep, and the best
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    saves = late // (every // per_epoch * per_epoch) + late // every
    assert late / LOG_EVERY <= len(lines) <= late / LOG_EVERY + saves
    assert len(list((run / "samples").iterdir())) == 2 * (1 + late // every)
    metrics, events, grids = (sum(p.stat().st_size for p in run.glob(n)) for n in ("*.jsonl", "events*", "samples/*"))
    assert metrics <= 1500 * len(lines) and events <= grids + 2000 * len(lines)


def shown(run: Path, kind: str) -> list[int]:
    """The steps at which TensorBoard shows scalars or images of a run."""
    events = EventAccumulator(str(run), size_guidance={IMAGES: 0}).Reload()
    return [event.step for event in (events.Scalars("generator/reward") if kind == "return" else events.Images(kind))]


def test_tensorboard_has_on_the_disk_what_comes_before_a_checkpoint(place, monkeypatch):
    save, write, flush, result, waiting = checkpoint.save, RecordWriter.write, RecordWriter.flush, {}, []

    def look(path, contents):
        run = path.parent.parent
        result[path.name] = shown(run, "prior"), shown(run, "return") if path.stem != "000000" else []
        save(path, contents)

    def flush_late(self):  # as if the thread that writes came to it no sooner than it must
        while waiting:
            write(self, waiting.pop(0))
        flush(self)

    monkeypatch.setattr(checkpoint, "save", look)
    monkeypatch.setattr(RecordWriter, "write", lambda self, record: waiting.append(record))
    monkeypatch.setattr(RecordWriter, "flush", flush_late)
    assert train.main([*TINY, "--steps", "10", "--name", "slow"]) == 0
    assert result == {"000000.pt": ([0], []), "000006.pt": ([0, 5], [6]), "000010.pt": ([0, 5, 10], [6, 10])}
