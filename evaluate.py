#!/usr/bin/env python3
"""Scores what a run has learned: samples of its averaged G against the images that it learned from.

    python3 evaluate.py models/2026-11-22_14-03-59                     FID, KID, precision, recall, SWD on 5,000 images
    python3 evaluate.py RUN --held-out                                 against images that training never saw
    python3 evaluate.py RUN --features imagenet                        with another feature network than Inception
    python3 evaluate.py RUN --no-features                              the sliced Wasserstein distance (SWD) alone
    python3 evaluate.py RUN --equilibrium                              and how near equilibrium the two players are
    python3 evaluate.py RUN --extra-reward resemble                    and how well the policy answers, by that reward

RUN is a run folder (its last checkpoint), a checkpoint or exported weights. The program scores prior and policy
samples; --guided adds guided ones (see sample.py). The floor compares real images with other real images.
Exit status 2: a mistake in the settings or files, printed as one sentence.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from magnet.data.cache import add_cache_flag
from magnet.support.errors import UserError, as_sentence, one_line
from magnet.support.output import as_program
from magnet.support.paths import command_of, expand, user_path

# What imports torch is imported where it is needed: --help and a mistyped option are immediate.

SAMPLE_IMAGES = 16  # samples, or up to as many, whose nearest real image is drawn
MIN_IMAGES = 32  # images to score against: half of them are the floor, whose neighbourhoods must not be all of it


def evaluate(options: argparse.Namespace) -> dict:
    """Scores options.run. Writes the picture of nearest images, and into a run folder the scores for TensorBoard.

    Returns {"scores": by kind of sample, "protocol": what they were measured on, "nearest": the picture}, and what
    options.equilibrium and options.extra_reward ask for. Raises UserError.
    """
    import torch

    from magnet.evaluation.answers import score_policy
    from magnet.evaluation.comparison import MAX_IMAGES, find_nearest, pick
    from magnet.evaluation.drawing import draw
    from magnet.evaluation.equilibrium import report_equilibrium
    from magnet.evaluation.pictures import write
    from magnet.evaluation.sampling import Sampler
    from magnet.game.extra_rewards import load_extra_reward
    from magnet.run.checkpoint import WEIGHTS
    from magnet.run.saved_runs import load_agents, load_checkpoint, refuse_points

    extra = load_extra_reward(options.extra_reward) if options.extra_reward else None
    picture = options.nearest or (options.run / "nearest.png" if options.run.is_dir() else Path("nearest.png"))
    if not picture.parent.is_dir():
        raise UserError(f"There is no folder {picture.parent} for {picture.name}; make it, or name another --nearest.")
    path, contents = load_checkpoint(options.run)
    generators, discriminators, config = load_agents(path, contents, options.device)
    refuse_points(options.run, config)
    if extra and config.algorithm == "gan":
        raise UserError(f"{options.run} is a plain GAN, whose images answer no state; leave out --extra-reward.")
    if options.equilibrium and contents["format"] == WEIGHTS:
        raise UserError(f"{path} holds running averages alone, --equilibrium needs the trained G; give a run folder.")
    embed, network = load_network(options, generators[0].device)
    faces, held_out, origin = load_images(options, config, contents["faces"])
    reference = held_out if options.held_out else faces
    scores, samples = score_samples(options, generators, discriminators, faces, reference, embed)
    write([(find_nearest(samples, faces, embed), samples)], (len(samples), *samples.shape[2:]), picture)
    step, count = contents["trainer"]["steps"], scores["prior"]["samples"]
    if options.run.is_dir():
        log_scores(options, step, scores)
    protocol = {
        "checkpoint": str(path), "step": step, "images_seen": step * config.batch_size,
        "algorithm": config.algorithm, "reward_function": config.reward_function, "generators": config.generators,
        "samples": f"of the running average, seed {options.seed}" + f", SWD of {MAX_IMAGES:,}" * (count > MAX_IMAGES),
        "size": f"{config.image_size}x{config.image_size}",
        "crop": "short side resized to the size (bilinear), centre cut out, not mirrored",
        "reference": options.data or config.data, "reference_set": f"{origin}, {len(reference)} images",
        "fingerprint": reference.fingerprint, "features": network, "torch": torch.__version__,
    }  # fmt: skip
    report = {"scores": scores, "protocol": protocol, "nearest": str(picture)}
    if options.equilibrium:
        samplers = [Sampler(agent, None, options.seed, averaged=False) for agent in generators]  # D_a's opponents

        def draw_fakes(count: int):
            return draw(samplers, "prior", count)[0]

        report["equilibrium"] = report_equilibrium(
            discriminators[0], fakes=draw_fakes(min(count, MAX_IMAGES)), draw=draw_fakes, training=faces,
            held_out=held_out, seed=options.seed,
        )  # fmt: skip
    if extra:
        images = held_out or faces
        states = torch.cat(list(pick(images, torch.arange(min(count, len(images))))))
        report["extra_reward"] = score_policy(extra, Sampler(generators[0], faces, seed=options.seed), states)
        report["extra_reward"]["states"] = f"{len(states)} {'held-out' if held_out else 'training'} images"
    return report


def score_samples(options: argparse.Namespace, generators, discriminators, faces, reference, embed) -> tuple:
    """The scores by kind of sample, with those of real images against others, and some samples of each kind.

    faces: the states; reference: the images to score against; embed: the feature network or None.
    """
    import torch

    from magnet.evaluation.comparison import choose_evenly, collect_set, compare, pick
    from magnet.evaluation.drawing import draw_pieces
    from magnet.evaluation.metrics import compute_features_in_parts
    from magnet.evaluation.sampling import Guide, Sampler
    from magnet.support.random_streams import stream

    count, half = min(options.count, len(reference)), min(options.count, len(reference) // 2)
    if count < options.count:
        print(f"Scoring {count} samples of a kind: there are no more images to compare with.")
    order = torch.randperm(len(reference), generator=stream(options.seed, "reference"))[: max(count, 2 * half)]
    features = compute_features_in_parts(embed, pick(reference, order), len(order)) if embed else None

    def collect_reals(start: int, stop: int) -> dict:
        images = torch.cat(list(pick(reference, order[start:stop][choose_evenly(stop - start)])))
        return {"count": stop - start, "images": images} | ({"features": features[start:stop]} if embed else {})

    frechet, device = "fd" if options.features else "fid", generators[0].device
    kinds = ["prior"] + ["policy"] * (generators[0].config.algorithm != "gan") + ["guided"] * options.guided
    scores, samples, guide = {}, [], Guide(discriminators)
    for kind in kinds:
        states = faces if kind == "policy" else None
        samplers = [Sampler(agent, states, seed=options.seed) for agent in generators]
        fakes = collect_set((images for images, _ in draw_pieces(samplers, kind, count, guide)), count, embed)
        scores[kind] = compare(fakes, collect_reals(0, count), frechet, device)
        samples.append(fakes["images"][: SAMPLE_IMAGES // len(kinds) // 4 * 4])  # whole rows of 4
    scores["real"] = compare(collect_reals(0, half), collect_reals(half, 2 * half), frechet, device)
    return scores, torch.cat(samples)


def load_network(options: argparse.Namespace, device) -> tuple:
    """The network that turns images into features, and its name; None and None for none. Raises UserError."""
    from magnet.evaluation.feature_networks import IMAGENET, load_exported_network, load_imagenet, load_inception

    if options.no_features:
        return None, None
    if str(options.features) == IMAGENET:
        return load_imagenet(device)
    path = options.features
    return load_exported_network(path, device) if path else load_inception(options.inception_weights, device)


def load_images(options: argparse.Namespace, config, fingerprint: str) -> tuple:
    """The images that the run learned from, those held out (if they are needed), and the reference set in words.

    fingerprint: of the images that the run learned from. Raises UserError.
    """
    from magnet.run.saved_runs import load_states

    if options.held_out and not config.hold_out:
        command = f"`{command_of('train')} --hold-out 0.1`"
        raise UserError(f"{options.run} held no images out of its training; {command} does.")
    faces = load_states(config, options.data, fingerprint=fingerprint)
    is_own = faces.fingerprint == fingerprint
    if (options.held_out or options.equilibrium) and not is_own:
        raise UserError(f"{options.data or config.data} is not what {options.run} learned from; give that with --data.")
    needs_held_out = config.hold_out and (options.held_out or options.equilibrium or options.extra_reward)
    held_out = load_states(config, options.data, held_out=True) if needs_held_out else None
    count = len(held_out if options.held_out else faces)
    if count < MIN_IMAGES:
        raise UserError(
            f"{count} images are too few to score against, {MIN_IMAGES} the fewest: name more with --data, or give "
            f"train.py a larger --hold-out."
        )
    return faces, held_out, "held out" if options.held_out else "training" if is_own else "not those of training"


def log_scores(options: argparse.Namespace, step: int, scores: dict[str, dict[str, float]]) -> None:
    """Writes the scores for TensorBoard, in a file of their own beside the run's: evaluate/prior/fid and so on.

    Scores with other options have other tags: evaluate-held-out-count-1000-seed-1/prior/fid.
    """
    from magnet.run.logger import open_writer

    defaults, prefix = parse([str(options.run)]), "evaluate"
    for name in ("held_out", "data", "features", "count", "seed"):
        if (value := getattr(options, name)) != getattr(defaults, name):
            prefix += f"-{name.replace('_', '-')}" + ("" if value is True else f"-{Path(str(value)).stem}")
    with open_writer(options.run) as board:
        for kind, numbers in scores.items():
            for metric, value in numbers.items():
                board.add_scalar(f"{one_line(prefix)}/{kind}/{metric}", value, step)


def print_report(report: dict) -> None:
    """Prints a table of the scores, a line for each kind of sample, and all that was measured beside it."""
    from magnet.game.rewards import reward_function

    scores, protocol = report["scores"], report["protocol"]
    titles = {"samples": "samples", "references": "against", "swd": "SWD", "fid": "FID", "fd": "FD"}
    titles |= {"kid_x1000": "KID x 1000", "precision": "precision", "recall": "recall"}
    forms = {"samples": "d", "references": "d", "precision": ".3f", "recall": ".3f"}
    columns = [key for key in titles if key in scores["real"]]
    print(" " * 9 + "".join(f"{titles[key]:>12}" for key in columns))
    for kind, numbers in scores.items():
        title = "real/real" if kind == "real" else kind
        print(f"{title:<9}" + "".join(f"{numbers[key]:>12{forms.get(key, '.2f')}}" for key in columns))
    print()
    for key, value in report.get("equilibrium", {}).items():
        expected = reward_function(protocol["reward_function"]).equilibrium if key == "value" else 0.5
        print(f"{key.replace('_', ' '):<32}{value:>7.3f}   ({expected:.3f} at equilibrium)")
    for key, value in report.get("extra_reward", {}).items():
        number = f"{value:>9.3f}" if isinstance(value, float) else value
        print(f"{f'extra reward, {key}'.replace('_', ' '):<30}{number}")
    for key, value in (protocol | {"nearest": report["nearest"]}).items():
        print(f"{key.replace('_', ' '):<16}{value}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=user_path, help="run folder, checkpoint or exported weights")
    add("--held-out", action="store_true", help="against the images that training never saw")
    add("--count", type=int, default=5000, help="samples (default 5000), at most the real images")
    add("--seed", type=int, default=0, help="of samples and of which real images (default 0)")
    add(
        "--data",
        type=expand,
        help="where the run's images lie now, or other images: a folder, .zip or synthetic",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--guided", action="store_true", help="score guided samples too")
    add("--equilibrium", action="store_true", help="how well D_a and a fresh discriminator classify images")
    add("--extra-reward", type=expand, metavar="NAME", help="score the policy's answers by it; a file is executed")
    add("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    add("--nearest", type=user_path, metavar="FILE", help="16 samples, each beside the nearest real image")
    add_cache_flag(parser)
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--inception-weights", type=user_path, metavar="FILE", help="instead of a download")
    features = "imagenet (EfficientNet-Lite0), or a file.pt2 of torch.export: uint8 (N,3,64,64) -> (N,F)"
    network.add_argument("--features", type=user_path, metavar="NET", help=features)
    network.add_argument("--no-features", action="store_true", help="the sliced Wasserstein distance alone")
    options = parser.parse_args(arguments)
    if options.count < MIN_IMAGES:
        parser.error(f"--count is {options.count}, but must be at least {MIN_IMAGES}")
    if options.nearest and options.nearest.suffix.lower() != ".png":
        parser.error(f"--nearest is {options.nearest}, but must end in .png")
    return options


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program. Returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the scores
            report = evaluate(options)
    except (UserError, OSError) as error:
        print(f"evaluate.py: {as_sentence(error)}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report))
    else:
        print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
