"""The progress of a run on standard error: a bar on a terminal, elsewhere a plain line every 30 seconds."""

import math
import sys
import time

from tqdm import tqdm

LINE_EVERY = 30  # seconds


class Progress:
    """Shows how far `trainer` is on its way to step `total`. unit: what it counts, "image" or "point"."""

    def __init__(self, trainer, total: int, unit: str):
        self.trainer, self.total = trainer, total
        self.batch, self.per_epoch, self.unit = trainer.config.batch_size, trainer.steps_per_epoch, unit
        self.bar = tqdm(
            total=total * self.batch, initial=trainer.images_seen, unit=unit, dynamic_ncols=True,
            disable=None,  # where standard error is no terminal
        )  # fmt: skip
        self.metrics = ""
        self.began = self.last_line = time.monotonic(), trainer.steps

    def show(self, line: dict | None) -> None:
        """Takes a line of metrics.jsonl."""
        if line:
            g, d = self.trainer.generators[0].name, self.trainer.discriminators[0].name
            self.metrics = (
                f"reward G {line[f'{g}/reward']:.2f} D {line[f'{d}/reward']:.2f},"
                f" D right on real {line[f'{d}/accuracy_real']:.0%} fake {line[f'{d}/accuracy_fake']:.0%}"
            )
            self.bar.set_postfix_str(self.metrics)

    @property
    def epoch(self) -> str:
        """The epoch of the last step, and the number of epochs."""
        return f"epoch {1 + (self.trainer.steps - 1) // self.per_epoch}/{math.ceil(self.total / self.per_epoch)}"

    def advance(self) -> None:
        """Counts one step."""
        if not self.bar.disable:
            self.bar.update(self.batch)
            self.bar.set_description(self.epoch, refresh=False)
        elif time.monotonic() - self.last_line[0] >= LINE_EVERY:
            self.write_line()

    def write_line(self) -> None:
        """Prints the step, the epoch, images a second since the last line, metrics, and the time left."""
        now, steps = time.monotonic(), self.trainer.steps
        rate = (steps - self.last_line[1]) * self.batch / (now - self.last_line[0])
        left = (self.total - steps) * (now - self.began[0]) / (steps - self.began[1]) / 60  # by the mean rate
        self.last_line = now, steps
        parts = [f"step {steps}/{self.total}", self.epoch, f"trains on {rate:.0f} {self.unit}s/s", self.metrics]
        print(", ".join(filter(None, [*parts, f"{left:.0f} min left"])), file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        """Prints a line above the bar, at once."""
        self.bar.write(sentence)
        sys.stdout.flush()

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()
