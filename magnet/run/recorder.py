"""What a run writes and shows while it trains: metrics, grids, checkpoints, its progress."""

import dataclasses
from pathlib import Path

from magnet.evaluation.sampling import FixedGrids
from magnet.run import checkpoint
from magnet.run.logger import RunLogger
from magnet.run.progress import Progress


class Recorder:
    """Records the steps of `trainer` in the folder `run`, as a context. Methods raise Diverged and UserError."""

    def __init__(self, run: Path, trainer, evaluation, total: int):
        """evaluation: the scores so far; total: the step at which the run ends."""
        self.run, self.trainer, self.evaluation, self.config = run, trainer, evaluation, trainer.config
        self.grids = FixedGrids(trainer.generators, trainer.faces, self.config.seed)
        self.logger = RunLogger(run, trainer.steps, self.config.batch_size)
        self.progress = Progress(trainer, total, "point" if self.config.points else "image")
        self.saved_at = trainer.steps

    def begin(self) -> None:
        """Of a new run the first grids and the checkpoint before step 1: a run killed at any moment can go on."""
        if self.trainer.steps == 0:
            self.draw()
            self.save()

    def log(self, metrics: dict, scores: dict[str, float]) -> None:
        """Takes the metrics of the step that was made, and its scores if there are some."""
        self.progress.show(self.logger.add(metrics, scores))
        self.progress.advance()

    def draw(self) -> None:
        """Draws the fixed grids."""
        for kind, images in self.grids.draw().items():
            self.logger.picture(kind, images)

    def save(self, name: str | None = None) -> None:
        """Saves a checkpoint, by default under the step's number."""
        self.progress.show(self.logger.flush())  # first: what is not finite is not saved
        # TensorBoard writes in a thread, and what goes on from this checkpoint does not write it again.
        self.logger.tensorboard.flush()
        state = {"config": dataclasses.asdict(self.config), "faces": self.trainer.faces.fingerprint}
        state |= {"trainer": self.trainer.state_dict(), "best": self.evaluation.best}
        checkpoint.save(self.run / "checkpoints" / (name or f"{self.trainer.steps:06d}.pt"), state)
        checkpoint.prune(self.run / "checkpoints", self.config.keep)
        if not name:
            self.saved_at = self.trainer.steps

    def finish(self) -> None:
        """Saves what the last checkpoint lacks."""
        if self.trainer.steps != self.saved_at:
            self.save()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        self.progress.close()
        self.logger.tensorboard.close()
