"""A lesson: some seconds of training by a taste (taste.py), which begins with the networks of a run or a .pt file.

    lesson = Lesson(Path("models/synthetic-32.pt"), taste)
    for seconds in lesson.train(60):
        print(seconds)
    run = lesson.save(Path("models"), "dark-hair")

`python3 train.py --resume models/dark-hair --extra-reward models/dark-hair/reward.py` goes on with what is saved.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from examples.taste import Taste
from magnet.config import check
from magnet.data.image_dataset import to_uint8
from magnet.evaluation.drawing import draw
from magnet.evaluation.sampling import Sampler
from magnet.game.extra_rewards import load_extra_reward
from magnet.run.checkpoint_validation import restore_config
from magnet.run.logger import create_run, describe_environment, lock_run, write_json
from magnet.run.recorder import Recorder
from magnet.run.saved_runs import load_checkpoint
from magnet.run.session import build, load_pixels
from magnet.support.atomic_files import write_atomically
from magnet.support.devices import settle
from magnet.support.errors import UserError

WEIGHT = 2.0  # of the taste, in its deviations, beside log D_a; with 5 synthetic faces break up within a minute
COUNT = 512  # images in the comparison
FILE = "reward.py"  # in the folder of a saved run


class Lesson:
    """A training by a taste, which begins with the networks of a run or of exported weights.

    G_a and G follow the critic of the taste. There is no G_c, so they follow log D_a itself: exported weights have no
    G_c, and a new one would have to learn first. Epsilon is 0, since random actions do not follow the taste: with 0.1
    a long training lowered the share of prior samples that are liked.
    """

    def __init__(self, run: Path, taste: Taste, data: str = "", device: str = "auto", weight: float = WEIGHT):
        """data: a folder of images to train on; "" takes the run's own. weight: of the taste. Raises UserError."""
        path, saved = load_checkpoint(run)
        config = restore_config(path, saved["config"])
        if not (data or config.data):
            raise UserError(
                f"{run} holds no images to train on: name a folder of faces, such as data/celeba, which "
                f"`python3 download_celeba.py` makes."
            )
        if data:
            config = dataclasses.replace(config, data=data, hold_out=0.0)
        self.source = taste.format_source()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / FILE
            file.write_bytes(self.source.encode())  # as `save` writes it: the digest is of the bytes
            self.extra = load_extra_reward(str(file))
        config = dataclasses.replace(
            config, init=str(run), name="", steps=0, evaluate_every=0, patience=0, device=device, gamma=0.0,
            cuda_graphs="off",  # the page may use the GPU while one is recorded
            critics="none", epsilon=0.0,
            extra_reward=self.extra.name, extra_weight=float(weight), extra_to="both",
        )  # fmt: skip
        check(config)
        self.trainer, self.evaluation = build(settle(config), load_pixels(config), extra=self.extra)
        self.states = to_uint8(self.trainer.dataset.batch(torch.arange(min(COUNT, len(self.trainer.dataset))))).cpu()

    def train(self, seconds: float, steps: int = 10**9) -> Iterator[float]:
        """Trains for so many seconds or steps. Yields the seconds so far about once a second. Raises UserError."""
        start, reported, last_step = time.monotonic(), 0.0, self.trainer.steps + steps
        while self.trainer.steps < last_step and (spent := time.monotonic() - start) < seconds:
            metrics = self.trainer.step()
            if spent - reported > 1:
                if not torch.stack([value.float() for value in metrics.values()]).isfinite().all():
                    raise UserError("The training diverged: undo it, and train again with a smaller weight.")
                reported = spent
                yield spent

    def draw(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draws COUNT prior samples and the policy's answers to the first real images, by the averaged weights.

        Both are uint8 (N, 3, S, S). The noise and the states are the same before and after the training.
        """
        samplers = [Sampler(agent, self.trainer.dataset, seed) for agent in self.trainer.generators]
        return draw(samplers, "prior", COUNT)[0], samplers[0].answer(self.states)

    def save(self, models_dir: Path, name: str = "") -> Path:
        """Writes the run and its reward.py into a new folder of models_dir. Returns it. Raises UserError, Diverged.

        `python3 train.py --resume RUN --extra-reward RUN/reward.py` goes on with it.
        """
        check(dataclasses.replace(self.trainer.config, name=name))
        run = create_run(models_dir, name)
        with lock_run(run):
            file, trainer = run / FILE, self.trainer
            write_atomically(file, lambda out: out.write(self.source.encode()))
            trainer.config = dataclasses.replace(
                trainer.config, extra_reward=str(file), models_dir=str(models_dir), name=name
            )
            write_json(run / "config.json", dataclasses.asdict(trainer.config))
            write_json(run / "environment.json", describe_environment(trainer.device))
            with Recorder(run, trainer, self.evaluation, trainer.steps) as recorder:
                recorder.draw()
                recorder.save()
        return run
