#!/usr/bin/env python3
"""Makes pictures with a trained generator: a grid, single files, an array for FID tools, or an animation.

    python3 sample.py models/2026-11-22_14-03-59                          64 prior samples -> samples.png
    python3 sample.py RUN --kind policy --out policy.png                  states, each with the policy's image beside it
    python3 sample.py RUN --kind policy --data MY_PHOTOS --out mine.png   each of your photos with its answer beside it
    python3 sample.py RUN --kind guided --out guided.png                  noise refined with D_a's gradient
    python3 sample.py RUN --kind interpolation --out walk.gif             16 walks from face to face, side by side
    python3 sample.py RUN --count 1000000 --npz faces.npz                 uint8 (N, H, W, 3) under the key arr_0

RUN is a run folder (its last checkpoint), a checkpoint or exported weights. The kinds of samples are
  prior          G(z) of noise z
  policy         G(z) of G_a's actions z in an episode of the run's images, or on each photo of --data once
  guided         G(z) of noise that D_a's gradient has moved (Langevin steps)
  interpolation  G(z) of z on the arcs between 8 points of noise, back to the first
Several generators make equal shares of the samples, one after another. The first one answers photos. A large --count
takes no more memory than a small one. Exit status 2: a mistake in the settings or files, printed as one sentence.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from magnet.data.cache import add_cache_flag
from magnet.support.errors import UserError, as_sentence
from magnet.support.output import as_program
from magnet.support.paths import CELEBA_64, command_of, expand, user_path

# What imports torch is imported where it is needed: --help and a mistyped option are immediate.

ANIMATIONS = (".gif", ".mp4")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=user_path, nargs="?", help=f"run folder, checkpoint or exported weights (default {CELEBA_64.name})")
    kinds = ("prior", "policy", "guided", "interpolation")
    add("--kind", choices=kinds, default="prior", help="where z comes from")
    add("--count", type=int, help="samples (default 64), walks (default 16, up to 64) or photos (default all)")
    add("--seed", type=int, default=0, help="of the noise and of the states (default 0)")
    add("--data", type=expand, help="photos for the policy to answer: a folder, .zip or synthetic")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--out", type=user_path, help="grid of the first 64, or of 32 pairs (default samples.png); walks: .gif or .mp4")
    add("--images", type=user_path, metavar="DIR", help="folder for one PNG file of each sample")
    add("--npz", type=user_path, metavar="FILE", help="uint8 (N, H, W, 3), key arr_0")
    add_cache_flag(parser)
    options = parser.parse_args(arguments)
    options.has_walks, options.has_photos = options.kind == "interpolation", options.kind == "policy" and options.data
    if options.count is not None and options.count < 1:
        parser.error(f"--count is {options.count}, but must be at least 1")
    if options.count is None and not options.has_photos:
        options.count = 16 if options.has_walks else 64
    if not (options.out or options.images or options.npz):
        options.out = Path("walk.gif" if options.has_walks else "samples.png")
    is_animation = options.out is not None and options.out.suffix.lower() in ANIMATIONS
    if is_animation != options.has_walks or options.has_walks and (options.images or options.npz):
        parser.error("--kind interpolation makes an animation: give both it and --out FILE.gif (or .mp4), or neither")
    if options.run is None:
        print(f"Sampling {CELEBA_64.name}, trained on CelebA at 64x64 (models/README.md); name a RUN for yours.")
        options.run = CELEBA_64
    return options


def find_photos(options: argparse.Namespace, config) -> Sequence:
    """The photos of --data that are answered: files, or pixels of synthetic faces. Raises UserError."""
    from magnet.data.image_dataset import load_faces
    from magnet.data.image_files import find_images
    from magnet.evaluation.sampling import BATCH

    if options.data == "synthetic":
        photos = load_faces("synthetic", config.image_size)
    else:
        photos = find_images(Path(options.data), verbose=True, outputs=[config.models_dir])
    if not (options.images or options.npz):
        photos = photos[:BATCH]  # the grid shows fewer, but a batch of another size is rounded otherwise
    return photos[: options.count]


def sample(options: argparse.Namespace) -> None:
    """Draws the samples and writes them. Raises UserError, OSError, and Pillow's KeyError and ValueError."""
    from magnet.evaluation.drawing import answer_photos, draw_pieces, draw_walks
    from magnet.evaluation.pictures import GRID_IMAGES, write, write_animation
    from magnet.evaluation.sampling import Guide, Sampler
    from magnet.run.checkpoint import WEIGHTS
    from magnet.run.saved_runs import load_agents, load_checkpoint, load_states, load_training_images, refuse_points

    path, contents = load_checkpoint(options.run)
    generators, discriminators, config = load_agents(path, contents, options.device)
    refuse_points(options.run, config)
    if options.kind == "policy" and config.algorithm == "gan":
        raise UserError(f"{options.run} is a plain GAN and has no policy; leave out --kind policy.")
    photos = find_photos(options, config) if options.has_photos else None
    faces = None
    if options.has_photos and contents["format"] != WEIGHTS:
        export = f"`{command_of('export')} {shlex.quote(str(options.run))} --data FOLDER --out faces.pt`"
        faces = load_training_images(config, contents["faces"], options.data, f"write {export} and sample faces.pt.")
    elif options.kind == "policy" and not options.has_photos:
        faces = load_states(config, None)
    samplers = [Sampler(agent, faces, seed=options.seed) for agent in generators]
    if options.has_walks:
        write_animation(draw_walks(samplers, min(options.count, GRID_IMAGES)), options.out)
        return
    if options.has_photos:
        count, pieces = len(photos), answer_photos(samplers[0], photos)
    else:
        count = options.count
        pieces = draw_pieces(samplers, options.kind, count, Guide(discriminators))
    write(pieces, (count, config.image_size, config.image_size), options.out, options.images, options.npz)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program. Returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        sample(options)
    except (KeyError, ValueError) as error:  # an ending that Pillow cannot write or does not know
        print(f"sample.py: Pillow cannot write {options.out} ({error}); end it in .png.", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        print(f"sample.py: {as_sentence(error)}", file=sys.stderr)
        return 2
    print(", ".join(str(path) for path in (options.out, options.images, options.npz) if path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
