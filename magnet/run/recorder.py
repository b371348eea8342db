"""What a run writes and shows while it trains: metrics, grids, checkpoints, its progress."""

import dataclasses
from pathlib import Path

from magnet.evaluation.answers import log_answers
from magnet.evaluation.sampling import FixedGrids
from magnet.run import checkpoint
from magnet.run.logger import RunLogger
from magnet.run.progress import Progress
from magnet.run.timing import StepClock


class Recorder:
    """Records the steps of `trainer` in the folder `run`, as a context. Methods raise Diverged and UserError."""

    def __init__(self, run: Path, trainer, evaluation, total: int):
        """evaluation: the scores so far; total: the step at which the run ends."""
        self.run, self.trainer, self.evaluation, self.config = run, trainer, evaluation, trainer.config
        self.grids = FixedGrids(trainer.generators, trainer.dataset, self.config.seed)
        self.clock = StepClock(trainer.device)
        self.logger = RunLogger(run, trainer.steps, self.config.batch_size, clock=self.clock)
        self.progress = Progress(trainer, total, "point" if self.config.points else "image")
        self.saved_at = trainer.steps

    def begin(self) -> None:
        """Draws the first grids of a new run and saves it before step 1, so that it can go on after any kill."""
        if self.trainer.steps == 0:
            self.draw()
            self.save()

    def log(self, metrics: dict) -> dict[str, float]:
        """Takes the metrics of the step that was just made. Returns its scores, if they were due."""
        config, steps, scores = self.config, self.trainer.steps, {}
        has_score = config.evaluate_every and steps % config.evaluate_every == 0
        has_answers = config.extra_reward and steps % config.sample_every == 0
        if has_score or has_answers:
            with self.clock.pause():
                scores = self.evaluation.score(steps) if has_score else {}
                if has_answers:
                    extra = self.trainer.environment.extra
                    scores |= log_answers(self.trainer.generators, self.trainer.dataset, self.grids.states, extra)
        self.progress.show(self.logger.add(metrics, scores))
        self.progress.advance()
        return scores

    def draw(self) -> None:
        """Draws the fixed grids."""
        with self.clock.pause():
            for kind, images in self.grids.draw().items():
                self.logger.save_grid(kind, images)

    def save(self, name: str | None = None) -> None:
        """Saves a checkpoint, by default under the step's number."""
        self.progress.show(self.logger.flush())  # first: what is not finite is not saved
        with self.clock.pause():
            # TensorBoard writes in a thread, and what goes on from this checkpoint does not write it again.
            self.logger.tensorboard.flush()
            state = {"config": dataclasses.asdict(self.config), "faces": self.trainer.dataset.fingerprint}
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
