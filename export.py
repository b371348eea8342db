#!/usr/bin/env python3
"""Writes the weights of a trained run into a small file to pass on, or its generator for use without MAGNET.

    python3 export.py RUN --out faces.pt               the running averages of G, G_a and D_a, parameters in float16
    python3 export.py RUN --onnx faces.onnx            G alone: z (B, nz) float32 -> images (B, 3, S, S) in [-1, 1]

RUN is a run folder (its last checkpoint), a checkpoint or, for --onnx, exported weights. sample.py, evaluate.py and
magnet.load read what --out writes; train.py --resume does not. That file holds no optimizers, replay buffer, images
or paths. --onnx writes the first of several generators, and needs the packages onnx and onnxscript.
Exit status 2: a mistake in the settings or files, printed as one sentence.
"""

import argparse
import sys
from pathlib import Path

from magnet.data.cache import add_cache_flag
from magnet.support.errors import Diverged, UserError, as_sentence
from magnet.support.output import as_program
from magnet.support.paths import expand, user_path

# What imports torch is imported where it is needed: --help and a mistyped option are immediate.


def write_onnx(path: Path, agent) -> None:
    """Writes the averaged G of a generator agent for ONNX, opset of PyTorch's choice. Raises UserError and OSError."""
    import torch

    from magnet.evaluation.sampling import Sampler
    from magnet.support.atomic_files import write_atomically

    network = Sampler(agent, None).generator.requires_grad_(False)
    try:
        program = torch.onnx.export(
            network, (torch.zeros(2, agent.config.nz, device=agent.device),), dynamo=True, input_names=["z"],
            output_names=["images"], dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        )  # fmt: skip
    except ImportError as error:
        raise UserError(f"--onnx needs two more packages ({error}): `pip3 install onnx onnxscript`.") from error
    write_atomically(path, lambda file: file.write(program.model_proto.SerializeToString()))


def export(options: argparse.Namespace) -> None:
    """Writes what `options` name. Raises UserError, Diverged and OSError."""
    from magnet.run.checkpoint import WEIGHTS
    from magnet.run.exported import export as export_weights
    from magnet.run.saved_runs import load_agents, load_checkpoint, load_states, refuse_points

    path, contents = load_checkpoint(options.run)
    generators, discriminators, config = load_agents(path, contents, "cpu")
    refuse_points(options.run, config)
    if options.out:
        if contents["format"] == WEIGHTS:
            raise UserError(f"{path} holds exported weights already; copy the file.")
        faces = None
        if config.algorithm != "gan":
            faces = load_states(config, options.data, fingerprint=contents["faces"])
            if faces.fingerprint != contents["faces"]:
                raise UserError(
                    f"{options.data or config.data} is not what {options.run} learned from; give that with --data."
                )
        export_weights(options.out, generators, discriminators, faces, contents["trainer"]["steps"], contents["faces"])
    if options.onnx:
        write_onnx(options.onnx, generators[0])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=user_path, help="run folder, checkpoint or exported weights")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="exported weights, a name that ends in .pt")
    parser.add_argument("--onnx", type=user_path, metavar="FILE", help="the generator alone, for ONNX")
    parser.add_argument("--data", type=expand, help="for --out: where the run's images lie now, if they were moved")
    add_cache_flag(parser)
    options = parser.parse_args(arguments)
    if not options.out and not options.onnx:
        parser.error("give --out FILE or --onnx FILE")
    return options


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program. Returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        export(options)
    except (UserError, Diverged, OSError) as error:
        print(f"export.py: {as_sentence(error)}", file=sys.stderr)
        return 2
    for path in filter(None, (options.out, options.onnx)):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
