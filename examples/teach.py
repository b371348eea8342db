"""The tab Teach of explore.py: the user clicks faces, and the run of the page trains by this taste.

taste.py has the marks and the preference model. lesson.py has the training.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from examples.lesson import WEIGHT, Lesson
from examples.taste import Marking, measure_liked_share, select_best
from magnet.evaluation.pictures import GRID_IMAGES, ROW, grid
from magnet.support.errors import Diverged, UserError

WIDTH = 800  # of the pictures, pixels, about
TABLE = "| liked, says the model | before | best of 4 | best of 16 | after |\n| --- | --- | --- | --- | --- |\n"
Drawing = tuple[Tensor, Tensor]  # the result of Lesson.draw


def draw_picture(images: Tensor) -> np.ndarray:
    """Arranges the first 64 images of (N, 3, S, S) uint8 in rows of 8."""
    return grid(images[:GRID_IMAGES], ROW, max(1, WIDTH // (ROW * images.shape[-1])))


def draw_pictures(lesson: Lesson, before: Drawing, after: Drawing) -> list[np.ndarray]:
    """Draws samples before and after, the best of each 4 before, and answers before and after."""
    best, _ = select_best(lesson.extra, before[0], 4)
    return [draw_picture(images) for images in (before[0], after[0], best, before[1], after[1])]


def format_table(lesson: Lesson, before: Drawing, after: Drawing) -> str:
    """Formats the shares of images that the preference model likes, in Markdown."""
    lines = []
    for kind, old, new in zip(("from noise", "G_a's answers"), before, after, strict=True):
        shares = [measure_liked_share(lesson.extra, old, tries) for tries in (1, 4, 16)]
        shares.append(measure_liked_share(lesson.extra, new))
        lines.append(f"| {kind} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return TABLE + "\n".join(lines)


def build_tab(gr, model, run: Path, folder: Path, blocks, image) -> None:
    """Fills the tab. model: the Model of `run`; folder: where runs are saved; image: makes a gr.Image."""
    gr.Markdown(
        "**1.** Click the faces that you like, then **Next faces**. Faces without a click count as not liked. About a "
        "hundred faces are enough for a small model of your taste: a logistic regression on 8 x 8 averages."
    )
    marking, lesson = gr.State(), gr.State()
    faces = image(elem_id="faces", height=560)
    with gr.Row():
        turn, back = gr.Button("Next faces", variant="primary"), gr.Button("Undo the last page")
    summary = gr.Markdown()
    gr.Markdown(
        f"**2.** Train, from the networks of {run.name}. The extra reward of an image is the log-probability that you "
        "like it, by the model. With less weight the faces stay nearer to the training images. With much weight, or "
        "after a long time, they please the model alone."
    )
    with gr.Row():
        seconds = gr.Slider(5, 600, value=60, step=1, label="Seconds")
        weight = gr.Slider(0.5, 20, value=WEIGHT, step=0.5, label="Weight of your taste")
        data = gr.Textbox(model.config.data, label="Training images", placeholder="a folder of faces")
    with gr.Row():
        begin, stop = gr.Button("Train", variant="primary"), gr.Button("Stop")
        drop = gr.Button("Undo the training")
    status = gr.Markdown()
    with gr.Column(visible=False) as result:
        gr.Markdown("From noise. Left: before. Middle: after, from the same noise. Right: before, the best of each 4.")
        with gr.Row():
            grids = [image(), image(), image()]
        gr.Markdown("G_a's answers to the same training images. Left: before. Right: after.")
        with gr.Row():
            grids += [image(), image()]
        shares = gr.Markdown()
        gr.Markdown(
            "Best of k is the image that the model likes best among each k images before the training. If the model "
            "likes nearly all images after it, the networks may please the model alone: look at the faces."
        )
        with gr.Row():
            name = gr.Textbox(label="Name of the run", placeholder="empty: the time")
            keep = gr.Button("Save as a run")
        message = gr.Markdown()

    def start() -> tuple[Marking, np.ndarray, str]:
        marks = Marking(model.sample)
        return marks, marks.draw(), marks.describe()

    def click(marks: Marking, event: gr.SelectData) -> np.ndarray:
        height, width, _ = marks.draw().shape
        marks.click(event.index[0] / width, event.index[1] / height)
        return marks.draw()

    def advance(marks: Marking) -> tuple[np.ndarray, str]:
        marks.turn_page()
        return marks.draw(), marks.describe()

    def return_to_last(marks: Marking) -> tuple[np.ndarray, str]:
        marks.undo()
        return marks.draw(), marks.describe()

    def train(marks: Marking, seconds: float, weight: float, data: str):
        """Trains. It shows the progress, then the result."""
        marks.is_stopped = False
        try:
            source = "" if data == model.config.data else data
            new_lesson = Lesson(run, marks.taste, source, model.config.device, weight)
            before = new_lesson.draw()
            for spent in new_lesson.train(seconds):
                yield {status: f"{spent:.0f} of {seconds:.0f} s, {new_lesson.trainer.steps:,} steps"}
                if marks.is_stopped:
                    break
            after = new_lesson.draw()
        except UserError as error:
            raise gr.Error(str(error)) from error
        words = f"Trained for {new_lesson.trainer.steps:,} steps by the marks on {marks.taste.count} faces."
        values = *draw_pictures(new_lesson, before, after), format_table(new_lesson, before, after)
        update = {lesson: new_lesson, status: words, message: "", result: gr.update(visible=True)}
        yield update | dict(zip([*grids, shares], values, strict=True))

    def interrupt(marks: Marking) -> None:
        marks.is_stopped = True

    def undo() -> tuple[None, str, dict]:
        return None, "The training is undone. The marks stay.", gr.update(visible=False)

    def save(new_lesson: Lesson, name: str) -> str:
        try:
            place = new_lesson.save(folder, name)
        except (UserError, Diverged, OSError) as error:
            raise gr.Error(str(error)) from error
        return f"Go on with `python3 train.py --resume {place} --extra-reward {place / 'reward.py'}`."

    private = {"api_visibility": "private", "show_progress": "minimal"}
    draws = private | {"concurrency_id": "model", "concurrency_limit": 1}  # all samples come from one random stream
    trains = private | {"concurrency_id": "lesson", "concurrency_limit": 1}
    blocks.load(start, None, [marking, faces, summary], **draws)
    faces.select(click, [marking], [faces], trigger_mode="multiple", **draws)  # no click is lost while a page is drawn
    turn.click(advance, [marking], [faces, summary], **draws)
    back.click(return_to_last, [marking], [faces, summary], **draws)
    outputs = [lesson, status, message, result, *grids, shares]
    begin.click(train, [marking, seconds, weight, data], outputs, **trains)
    stop.click(interrupt, [marking], None, **private)
    drop.click(undo, None, [lesson, status, result], **private)
    keep.click(save, [lesson, name], [message], **trains)
