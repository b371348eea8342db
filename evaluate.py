#!/usr/bin/env python3
"""Scores what a run has learned: samples of its averaged G against the images that it learned from.

    python3 evaluate.py models/2026-11-22_14-03-59                     FID, KID, precision, recall, SWD on 5,000 images
    python3 evaluate.py RUN --held-out                                 against images that training never saw
    python3 evaluate.py RUN --features imagenet                        with another feature network than Inception
    python3 evaluate.py RUN --no-features                              the sliced Wasserstein distance (SWD) alone
    python3 evaluate.py RUN --equilibrium                              and how near equilibrium the two players are
    python3 evaluate.py RUN --extra-reward resemble                    and how well the policy answers, by that reward

RUN is a run folder (its newest checkpoint) or a checkpoint file. Samples are of two kinds, prior (z from noise) and
policy (z from G_a), with --guided a third (noise led by D_a: see sample.py); real images against other real ones are
the floor. What a number was measured on stands below it.
Exit status 2: a mistake in the settings or files, said in one sentence.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from magnet.data.cache import add_cache_flag
from magnet.support.errors import UserError, one_line
from magnet.support.output import as_program
from magnet.support.paths import expand, user_path

# What imports torch is imported where it is needed: --help and a wrong word are immediate.

SHOWN = 16  # samples, or up to as many, whose nearest real image is drawn
LITTLE = 0.01  # recall
FEWEST = 32  # images to score against: half of them are the floor, whose neighbourhoods must not be all of it


def evaluate(options: argparse.Namespace) -> dict:
    """Scores options.run: {"scores": by kind of sample, "protocol": what they were measured on, "nearest": a picture}.

    With options.equilibrium also "equilibrium", what `equilibrium_report` found. Writes the picture, and into a run
    folder the scores for TensorBoard. Raises UserError.
    """
    import torch

    from magnet.evaluation.answers import score_policy
    from magnet.evaluation.comparison import MOST, compare, described, nearest, pick, spread
    from magnet.evaluation.drawing import pieces
    from magnet.evaluation.metrics import streamed_features
    from magnet.evaluation.pictures import write
    from magnet.evaluation.sampling import Guide, Sampler
    from magnet.game.extra_rewards import load_extra_reward
    from magnet.run.checkpoint import WEIGHTS
    from magnet.run.saved_runs import load_agents, load_checkpoint, load_states, only_pictures
    from magnet.support.random_streams import stream

    extra = load_extra_reward(options.extra_reward) if options.extra_reward else None
    picture = options.nearest or (options.run / "nearest.png" if options.run.is_dir() else Path("nearest.png"))
    if not picture.parent.is_dir():
        raise UserError(f"There is no folder {picture.parent} for {picture.name}; make it, or name another --nearest.")
    path, saved = load_checkpoint(options.run)
    generators, discriminators, config = load_agents(path, saved, options.device)
    only_pictures(options.run, config)
    if extra and config.algorithm == "gan":
        raise UserError(f"{options.run} is a plain GAN, whose images answer no state; leave out --extra-reward.")
    if options.equilibrium and saved["format"] == WEIGHTS:
        raise UserError(
            f"{path} holds running averages alone, --equilibrium is about the trained G; give a run folder."
        )
    device = generators[0].device
    embed, network = feature_network(options, device)
    faces, reference, kind_of_reference = load_images(options, config, saved["faces"])

    count, half = min(options.count, len(reference)), min(options.count, len(reference) // 2)
    if count < options.count:
        print(f"Scoring {count} samples of a kind: there are no more images to compare with.")
    order = torch.randperm(len(reference), generator=stream(options.seed, "reference"))
    order = order[: max(count, 2 * half)]
    embedded = streamed_features(embed, pick(reference, order), len(order)) if embed else None

    def real(start: int, stop: int) -> dict:
        images = torch.cat(list(pick(reference, order[start:stop][spread(stop - start)])))
        found = {"count": stop - start, "images": images}
        return found | ({"features": embedded[start:stop]} if embed else {})

    frechet = "fd" if options.features else "fid"
    kinds = ["prior"] + ["policy"] * (config.algorithm != "gan") + ["guided"] * options.guided
    scores, shown, guide = {}, [], Guide(discriminators)
    for kind in kinds:
        states = faces if kind == "policy" else None
        samplers = [Sampler(agent, states, seed=options.seed) for agent in generators]
        drawn = (images for images, _ in pieces(samplers, kind, count, guide))
        fakes = described(drawn, count, embed)
        scores[kind] = compare(fakes, real(0, count), frechet, device)
        shown.append(fakes["images"][: SHOWN // len(kinds) // 4 * 4])  # whole rows of 4
    scores["real"] = compare(real(0, half), real(half, 2 * half), frechet, device)

    shown = torch.cat(shown)
    beside = nearest(shown, faces, embed)
    write([(beside, shown)], (len(shown), *shown.shape[2:]), picture)
    step = saved["trainer"]["steps"]
    if options.run.is_dir():
        log(options, step, scores, strange=kind_of_reference.startswith("not"))
    protocol = {
        "checkpoint": str(path), "step": step, "images_seen": step * config.batch_size,
        "algorithm": config.algorithm, "reward_function": config.reward_function, "generators": config.generators,
        "samples": f"of the running average, seed {options.seed}" + f", SWD of {MOST:,}" * (count > MOST),
        "size": f"{config.image_size}x{config.image_size}",
        "crop": "short side resized to the size (bilinear), centre cut out, not mirrored",
        "reference": options.data or config.data, "reference_set": f"{kind_of_reference}, {len(reference)} images",
        "fingerprint": reference.fingerprint, "features": network, "torch": torch.__version__,
    }  # fmt: skip
    report = {"scores": scores, "protocol": protocol, "nearest": str(picture)}
    report["remarks"] = remarks(scores, len(beside.flatten(1).unique(dim=0)), len(shown), picture)
    if options.equilibrium:
        report["equilibrium"] = equilibrium(options, generators, discriminators, faces, count)
    if extra:
        shown = load_states(config, options.data, held_out=True) if config.hold_out else faces
        states = torch.cat(list(pick(shown, torch.arange(min(count, len(shown))))))
        report["extra_reward"] = score_policy(extra, Sampler(generators[0], faces, seed=options.seed), states)
        report["extra_reward"]["states"] = f"{len(states)} {'held-out' if config.hold_out else 'training'} images"
    return report


def equilibrium(options: argparse.Namespace, generators, discriminators, faces, count: int) -> dict[str, float]:
    """The equilibrium report on `count` images of noise, at most MOST, by the trained G, not by its average, which D_a
    never met; of several D_a's the first one's.
    """
    from magnet.evaluation.comparison import MOST
    from magnet.evaluation.drawing import draw
    from magnet.evaluation.equilibrium import equilibrium_report
    from magnet.evaluation.sampling import Sampler
    from magnet.run.saved_runs import load_states

    config = generators[0].config
    samplers = [Sampler(agent, None, seed=options.seed, averaged=False) for agent in generators]

    def played(count: int):
        return draw(samplers, "prior", count)[0]

    return equilibrium_report(
        discriminators[0], fakes=played(min(count, MOST)), draw=played, training=faces,
        held_out=load_states(config, options.data, held_out=True) if config.hold_out else None,
        seed=options.seed,
    )  # fmt: skip


def feature_network(options: argparse.Namespace, device) -> tuple:
    """What turns images into features, and its name; None and None if none is wanted. Raises UserError."""
    from magnet.evaluation.feature_networks import IMAGENET, exported_network, imagenet, inception

    if options.no_features:
        return None, None
    if str(options.features) == IMAGENET:
        return imagenet(device)
    if options.features:
        return exported_network(options.features, device)
    return inception(options.inception_weights, device)


def load_images(options: argparse.Namespace, config, fingerprint: str) -> tuple:
    """The images of the states, those to score against, both ImageDatasets, and what the latter are.

    fingerprint: of the images that the run learned from. Raises UserError.
    """
    from magnet.run.saved_runs import load_states

    if options.held_out and not config.hold_out:
        raise UserError(f"{options.run} held no images out of its training; `train.py --hold-out 0.1` does.")
    faces = load_states(config, options.data, learned=fingerprint)
    known = faces.fingerprint == fingerprint
    if (options.held_out or options.equilibrium) and not known:
        raise UserError(f"{options.data or config.data} is not what {options.run} learned from; give that with --data.")
    reference = load_states(config, options.data, held_out=True) if options.held_out else faces
    if len(reference) < FEWEST:
        raise UserError(
            f"{len(reference)} images are too few to score against, {FEWEST} the fewest: name more with --data, or "
            f"give train.py a larger --hold-out."
        )
    return faces, reference, "held out" if options.held_out else "training" if known else "not those of training"


def log(options: argparse.Namespace, step: int, scores: dict[str, dict[str, float]], strange: bool) -> None:
    """The scores as scalars for TensorBoard, in a file of their own beside the run's: evaluate/prior/fid and so on.

    What other options measured has other tags: evaluate-held-out-count-1000-seed-1/prior/fid. strange: the reference is
    not what the run learned from.
    """
    from magnet.run.tensorboard import new_writer

    usual = parse([str(options.run)])
    parts = {
        "held-out": options.held_out,
        f"data-{Path(options.data or 'changed').name}": strange,
        f"features-{options.features and options.features.stem}": options.features,
        f"count-{options.count}": options.count != usual.count,
        f"seed-{options.seed}": options.seed != usual.seed,
    }
    name = one_line("-".join(["evaluate", *(part for part, there in parts.items() if there)]))
    with new_writer(options.run) as board:
        for kind, numbers in scores.items():
            for metric, value in numbers.items():
                board.add_scalar(f"{name}/{kind}/{metric}", value, step)


def table(scores: dict[str, dict[str, float]]) -> str:
    """The scores for people: a line for each kind of sample."""
    names = {
        "samples": ("samples", "d"), "references": ("against", "d"), "swd": ("SWD", ".2f"), "fid": ("FID", ".2f"),
        "fd": ("FD", ".2f"), "kid_x1000": ("KID x 1000", ".2f"), "precision": ("precision", ".3f"),
        "recall": ("recall", ".3f"),
    }  # fmt: skip
    columns = [(key, *name) for key, name in names.items() if key in scores["real"]]
    lines = [" " * 9 + "".join(f"{title:>12}" for _, title, _ in columns)]
    for kind, numbers in scores.items():
        title = "real/real" if kind == "real" else kind
        lines.append(f"{title:<9}" + "".join(f"{numbers[key]:>12{form}}" for key, _, form in columns))
    return "\n".join(lines)


def remarks(scores: dict[str, dict[str, float]], different: int, shown: int, picture: Path) -> list[str]:
    """What a reader of the scores may overlook. different: of the nearest images of `shown` samples."""
    found = [
        f"Recall of {kind} samples is {numbers['recall']:.3f}: they hardly vary, and their precision says nothing."
        for kind, numbers in scores.items()
        if numbers.get("recall", 1) < LITTLE
    ]
    if different <= shown // 4:
        found.append(f"{picture} has {different} different real images beside {shown} samples: these hardly vary.")
    return found


def at_equilibrium(key: str, rewards: str) -> str:
    """A remark: which value a number of the equilibrium report has there, if it has one."""
    from magnet.game.rewards import reward_function

    expected = {"accuracy": 0.5, "value": reward_function(rewards).equilibrium, "from": 0.0, "calibration": 0.0}
    kind = key.removeprefix("fresh_").split("_")[0]
    return f"   ({expected[kind]:.3f} at equilibrium)" if kind in expected else ""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with 2 on a bad word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=user_path, help="run folder or checkpoint file")
    parser.add_argument("--held-out", action="store_true", help="against the images that training never saw")
    parser.add_argument("--count", type=int, default=5000, help="samples (default 5000), at most the real images")
    parser.add_argument("--seed", type=int, default=0, help="of samples and of which real images (default 0)")
    parser.add_argument(
        "--data", type=expand, help="the run's images, if they lie elsewhere now: a folder or synthetic"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--guided", action="store_true", help="score guided samples too")
    parser.add_argument("--equilibrium", action="store_true", help="can D_a still tell, and could a fresh one?")
    parser.add_argument(
        "--extra-reward",
        type=expand,
        metavar="NAME_OR_FILE",
        help="score the policy's answers by it; a file is executed",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    parser.add_argument(
        "--nearest", type=user_path, metavar="FILE", help="16 samples, each beside the nearest real image"
    )
    add_cache_flag(parser)
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--inception-weights", type=user_path, metavar="FILE", help="instead of a download")
    network.add_argument(
        "--features",
        type=user_path,
        metavar="NET",
        help="imagenet, EfficientNet-Lite0 as trained on ImageNet; or a "
        "file.pt2 of torch.export: uint8 (N,3,64,64) -> (N,F)",
    )
    network.add_argument("--no-features", action="store_true", help="the sliced Wasserstein distance alone")
    options = parser.parse_args(arguments)
    if options.count < FEWEST:
        parser.error(f"--count is {options.count}, but must be at least {FEWEST}")
    if options.nearest and options.nearest.suffix.lower() != ".png":
        parser.error(f"--nearest is {options.nearest}, but must end in .png")
    return options


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the scores
            report = evaluate(options)
    except (UserError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report))
    else:
        print(table(report["scores"]) + "\n")
        for key, value in report.get("equilibrium", {}).items():
            print(
                f"{key.replace('_', ' '):<32}{value:>7.3f}{at_equilibrium(key, report['protocol']['reward_function'])}"
            )
        for key, value in report.get("extra_reward", {}).items():
            number = f"{value:>9.3f}" if isinstance(value, float) else value
            print(f"{f'extra reward, {key}'.replace('_', ' '):<30}{number}")
        for remark in report["remarks"]:
            print(f"{remark}\n")
        for key, value in (report["protocol"] | {"nearest": report["nearest"]}).items():
            print(f"{key.replace('_', ' '):<16}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
