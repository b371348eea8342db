#!/usr/bin/env python3
"""Makes pictures with a trained generator: a grid, single files, or an array for FID tools.

    python3 sample.py models/2026-11-22_14-03-59                          64 prior samples -> samples.png
    python3 sample.py RUN --kind policy --out policy.png                  states, each with the policy's image beside it
    python3 sample.py RUN --kind policy --data MY_PHOTOS --out mine.png   your photos in their order, each answered
    python3 sample.py RUN --kind guided --out guided.png                  noise led to what the discriminator believes
    python3 sample.py RUN --kind interpolation --out walk.gif             16 loops from face to face, side by side
    python3 sample.py RUN --count 1000000 --npz faces.npz                 uint8 (N, H, W, 3) under the key arr_0

RUN is a run folder (its newest checkpoint) or a checkpoint file. prior: z from noise; policy: z from G_a, which plays
an episode of the run's images, or with --data answers each photo once, as `Model.answer` does; guided: z from noise,
moved by Langevin steps to where D_a takes G(z) for real; interpolation: z on the arcs between points of noise and back
to the first: --count pictures of one such walk, or into a .gif or .mp4 (a sixth as large) --count walks side by side,
past 8 points each.
Of several generators each makes a share, one after another; photos are answered by the first. A large --count takes no
more memory than a small one.
Exit status 2: a mistake in the settings or files, said in one sentence.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from magnet.data.cache import add_cache_flag
from magnet.support.errors import UserError
from magnet.support.output import as_program
from magnet.support.paths import CELEBA_64, command_of, expand, user_path


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=user_path, nargs="?", help=f"run folder, checkpoint or exported weights (default {CELEBA_64.name})"
    )
    parser.add_argument(
        "--kind", choices=("prior", "policy", "guided", "interpolation"), default="prior", help="where z comes from"
    )
    parser.add_argument("--generator", type=int, metavar="I", help="one of several, from 0 (default: a share of each)")
    parser.add_argument(
        "--count",
        type=int,
        help="samples (default 64); of a .gif or .mp4: walks (default 16, up to 64); with --data: photos (default all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of the states (default 0)")
    parser.add_argument("--data", type=expand, help="photos for the policy to answer: a folder, .zip or synthetic")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--out", type=user_path, help="grid of the first 64, or of 32 pairs (default samples.png), or walks"
    )
    parser.add_argument(
        "--scale", type=int, metavar="N", help="pictures in --out N times as large (default: walks 512 wide)"
    )
    parser.add_argument("--images", type=user_path, metavar="DIR", help="one PNG file each")
    parser.add_argument("--npz", type=user_path, metavar="FILE", help="uint8 (N, H, W, 3), key arr_0")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="running averages (default)")
    add_cache_flag(parser)
    options = parser.parse_args(arguments)
    options.moving = options.out is not None and options.out.suffix.lower() in (".gif", ".mp4")
    if options.moving and (options.kind != "interpolation" or options.images or options.npz):
        parser.error(f"{options.out} shows walks: give --kind interpolation, without --images and --npz")
    options.answers = options.kind == "policy" and options.data is not None
    if options.count is None and not options.answers:
        options.count = 16 if options.moving else 64
    for name in ("count", "scale"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, but must be at least 1")
    if options.run is None:
        print(f"Sampling {CELEBA_64.name}, trained on CelebA at 64x64 (models/README.md); name a RUN for yours.")
        options.run = CELEBA_64
    if not (options.out or options.images or options.npz):
        options.out = Path("samples.png")
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


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    from magnet.evaluation.drawing import answer_photos, pieces, walks
    from magnet.evaluation.pictures import SHOWN, write, write_moving
    from magnet.evaluation.sampling import Guide, Sampler
    from magnet.run.checkpoint import WEIGHTS
    from magnet.run.saved_runs import load_agents, load_checkpoint, load_learned, load_states, only_pictures

    try:
        path, saved = load_checkpoint(options.run)
        generators, discriminators, config = load_agents(path, saved, options.device)
        only_pictures(options.run, config)
        if saved["format"] == WEIGHTS and not options.ema:
            raise UserError(f"{path} holds running averages alone; leave out --no-ema.")
        if options.generator is not None:
            if not 0 <= options.generator < len(generators):
                raise UserError(
                    f"--generator is {options.generator}, but {options.run} has {len(generators)}: 0 is the first."
                )
            generators = [generators[options.generator]]
        if options.kind == "policy" and config.algorithm == "gan":
            raise UserError(f"{options.run} is a plain GAN and has no policy; leave out --kind policy.")
        photos = find_photos(options, config) if options.answers else None
        faces = None
        if options.answers and saved["format"] != WEIGHTS:
            export = f"`{command_of('export')} {options.run} --data FOLDER --out faces.pt`"
            faces = load_learned(config, saved["faces"], options.data, f"write {export} and sample faces.pt.")
        elif options.kind == "policy" and not options.answers:
            faces = load_states(config, None)
        samplers = [Sampler(agent, faces, seed=options.seed, averaged=options.ema) for agent in generators]
        if options.moving:
            write_moving(walks(samplers, min(options.count, SHOWN)), options.out, options.scale)
        else:
            count, guide = len(photos) if options.answers else options.count, Guide(discriminators, options.ema)
            answers = options.answers and answer_photos(samplers[0], photos)
            drawn = answers or pieces(samplers, options.kind, count, guide)
            shape = (count, config.image_size, config.image_size)
            write(drawn, shape, options.out, options.images, options.npz, options.scale or 1)
    except KeyError as error:
        print(f"sample.py: Pillow cannot write {error} files; end {options.out} in .png.", file=sys.stderr)
        return 2
    except (UserError, OSError, ValueError) as error:  # ValueError: an ending that Pillow does not know
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    print(", ".join(str(path) for path in (options.out, options.images, options.npz) if path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
