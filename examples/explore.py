#!/usr/bin/env python3
"""Look at a trained run in the browser: samples, walks between images, answers to photos, progress.

    python3 examples/explore.py                  the trained weights of this repository, models/celeba-64.pt
    python3 examples/explore.py models/RUN       a run folder, a checkpoint or exported weights

On its tab Teach you click faces, and the run trains by this taste (teach.py, taste.py, lesson.py).

The program prints the address of the page, which only this machine can open. Ctrl-C ends it. It needs the package
gradio, 6 or later. It exits with 2 after one sentence if gradio is missing or a setting or file is wrong.
"""

import argparse
import os
import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from magnet.support.errors import UserError, one_line  # noqa: E402
from magnet.support.output import as_program  # noqa: E402
from magnet.support.paths import user_path  # noqa: E402

WIDTH = 800  # of the pictures, pixels, about
STRIP = 9  # images on the whole way of a walk


def enlarge(pixels: np.ndarray) -> np.ndarray:
    """Enlarges an image (H, W, 3) uint8 to about WIDTH. Each pixel becomes a square."""
    scale = max(1, round(WIDTH / pixels.shape[1]))
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def draw_picture(images, row: int = 8) -> np.ndarray:
    """Arranges images (N, 3, S, S) uint8 in rows of `row`, as one enlarged image."""
    from magnet.evaluation.pictures import grid  # here: --help answers at once

    return enlarge(grid(images, row))


def draw_samples(model, seed: int, count: int) -> np.ndarray:
    """Draws `count` samples of a Model."""
    return draw_picture(model.sample(count, seed))


def draw_walk(model, first: int, second: int, place: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws the image at `place` in [0, 1] on the way between those of two seeds, and the whole way."""
    places = [i / (STRIP - 1) for i in range(STRIP)]
    return draw_picture(model.walk(first, second, [place])), draw_picture(model.walk(first, second, places), STRIP)


def draw_answer(model, photo: str | None) -> np.ndarray | None:
    """Draws an image file as G_a sees it, with the answer to its right; None without a file. Raises UserError."""
    import torch

    from magnet.data.image_files import load_image

    if photo is None:  # the user took it away
        return None
    answer = model.answer([photo])
    return draw_picture(torch.cat([torch.from_numpy(load_image(Path(photo), model.config.image_size))[None], answer]))


def find_grids(run: Path) -> list[tuple[int, Path, Path]]:
    """Lists the step, the prior grid and the policy grid (a plain GAN has none) of all grids in a run's folder."""
    folder = (run.parents[1] if run.parent.name == "checkpoints" else run) / "samples"
    prior = sorted((int(path.stem), path) for path in folder.glob("*.png") if path.stem.isdecimal())
    return [(step, path, path.with_stem(f"{path.stem}-policy")) for step, path in prior]


def draw_grids(run: Path, index: int) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Names the step at `index` in `find_grids` and draws its two grids, None for one that is absent."""
    step, *paths = find_grids(run)[: index + 1][-1]  # the slider of a single grid goes one too far
    return f"After **{step:,}** steps", *[enlarge(np.asarray(Image.open(p))) if p.exists() else None for p in paths]


def list_runs(folder: Path) -> list[str]:
    """Lists the runs and the .pt files in a folder whose names a page can show."""
    names = (p.name for p in folder.glob("*") if p.suffix == ".pt" or (p / "checkpoints").is_dir())
    return sorted(name for name in names if name == one_line(name))


def compare(load, run: Path, folder: Path, other: str | None, seed: int, count: int) -> list[np.ndarray | None]:
    """Draws samples of `run` and of `other` in `folder`, None if the user chose none. Raises UserError."""
    return [path and draw_samples(load(path), seed, count) for path in (run, other and folder / other)]


def build_page(gr, run: Path, folder: Path, load):
    """Builds the page on a run, beside the others in `folder`, as gr.Blocks. load: Path -> Model or UserError."""
    model, name = load(run), one_line(run.name)
    image = partial(gr.Image, format="png", interactive=False, show_label=False, buttons=[])
    seed, count = partial(gr.Slider, 0, 999, step=1), partial(gr.Slider, 1, 64, value=64, step=1, label="Images")

    def show(function, inputs: list, outputs: list, at_once: bool = True) -> None:
        """Fills `outputs` with function(*inputs) when an input changes and, if `at_once`, when the page opens."""

        def call(*values):
            try:
                return function(*values)
            except UserError as error:
                raise gr.Error(str(error)) from error

        gr.on(  # one at a time: all samples of a Model come from one random stream
            [i.change for i in inputs] + [blocks.load] * at_once, call, inputs, outputs, concurrency_id="model",
            concurrency_limit=1, trigger_mode="always_last", show_progress="minimal", api_visibility="private",
        )  # fmt: skip

    with gr.Blocks(title=f"MAGNET: {name}", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# MAGNET: {name}")
        with gr.Tab("Samples"):
            gr.Markdown("The images G(z) of noise z. The same seed gives the same images.")
            with gr.Row():
                inputs = [seed(label="Seed"), count()]
            show(partial(draw_samples, model), inputs, [image()])
        with gr.Tab("Walk"):
            gr.Markdown("G(z) for a z on the arc between the z of two seeds. The whole way is at the bottom.")
            with gr.Row():
                inputs = [seed(label="First seed"), seed(label="Second seed", value=1)]
            inputs.append(gr.Slider(0, 1, value=0.5, step=0.01, label="Place between them"))
            show(partial(draw_walk, model), inputs, [image(height=400), image()])
        with gr.Tab("Answer"):
            if model.config.algorithm == "gan":
                gr.Markdown(f"{name} is a plain GAN: it has no G_a that answers images.")
            else:
                gr.Markdown("G_a sees the photo at the left and chooses z. The image G(z) is at the right.")
                photo = gr.File(file_types=["image"], label="Photo", height=120)
                show(partial(draw_answer, model), [photo], [image(height=400)], at_once=False)
        with gr.Tab("Training"):
            if grid_count := len(find_grids(run)):
                gr.Markdown(
                    "The grids of the run. Left: G(z) of fixed noise. Right: fixed states, each with G_a's answer."
                )
                index = gr.Slider(0, max(1, grid_count - 1), value=grid_count - 1, step=1, label="Grid")
                step = gr.Markdown()
                with gr.Row():
                    show(partial(draw_grids, run), [index], [step, image(), image()])
            else:
                gr.Markdown(f"{name} has no grids: only the folder of a run has them.")
        with gr.Tab("Compare"):
            gr.Markdown(f"Left: {name}. Right: another run in the folder {folder}, with the same seed.")
            with gr.Row():
                inputs = [gr.Dropdown(list_runs(folder), value=None, label="Other run"), seed(label="Seed"), count()]
            with gr.Row():
                show(partial(compare, load, run, folder), inputs, [image(), image()])
        with gr.Tab("Teach"):
            if model.config.algorithm == "gan":
                gr.Markdown(f"{run.name} is a plain GAN: it has no policy and critics to teach.")
            else:
                from examples import teach

                teach.build_tab(gr, model, run, folder, blocks, image)
    return blocks


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=user_path, nargs="?", default=ROOT / "models" / "celeba-64.pt", metavar="RUN")
    parser.add_argument("--port", type=int, help="of 127.0.0.1 (default: the first that is free from 7860)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: otherwise gradio reports to its makers
    try:
        import gradio as gr
    except ImportError:
        print("explore.py: the page needs Gradio: `pip3 install gradio` installs it.", file=sys.stderr)
        return 2
    import magnet

    try:
        blocks = build_page(gr, options.run, Path("models"), lru_cache(4)(partial(magnet.load, device=options.device)))
        try:
            blocks.launch(
                server_name="127.0.0.1", server_port=options.port, share=False, ssr_mode=False, footer_links=[],
                theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # downloads none
                css="img { image-rendering: pixelated }",
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            raise UserError(f"port {options.port} is taken or is none; name another with --port.") from error
    except UserError as error:
        print(f"explore.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
