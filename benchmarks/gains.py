#!/usr/bin/env python3
"""What each means of making the step fast is worth: the step without it, over the step as it is.

    python3 benchmarks/gains.py --preset cpu --threads 1 --cpu-time
    python3 benchmarks/gains.py --image-size 64 --width 64 --batch-size 32 --device cpu --threads 2

All further words are train.py's flags; the images are random. The trainers take turns in one process; a step is the
mean over the k = --r1-every steps of which one has R1. Printed are medians and, in brackets, the lowest and the highest
over the turns; the last line is JSON, whose `ratio` is the step without any of them over the step as it is.
Exit status: 0 done, 2 a mistake in the settings, said in one sentence.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import new_parser, parse  # noqa: E402
from benchmarks.step import new_trainer  # noqa: E402
from magnet.config import Config  # noqa: E402
from magnet.support.errors import UserError  # noqa: E402
from magnet.support.output import as_program  # noqa: E402

# What imports torch is imported where it is needed: --help is immediate.


def rows_in_memory(trainer) -> None:
    """Images and weights lie in memory map by map, PyTorch's default, and not pixel by pixel (channels_last)."""
    import torch

    for agent in trainer.agents:
        for network in (*agent.networks.values(), *agent.targets.values()):
            network.to(memory_format=torch.contiguous_format)


def other_adam(trainer, **kind) -> None:
    """Adam in another of PyTorch's forms than the fused one."""
    import torch

    for agent in trainer.agents:
        for key, optimizer in agent.optimizers.items():
            moments = optimizer.state_dict()["state"]
            parameters = agent.networks[key].parameters()
            fresh = torch.optim.Adam(parameters, lr=agent.config.lr, betas=optimizer.defaults["betas"], **kind)
            fresh.load_state_dict(fresh.state_dict() | {"state": moments})
            agent.optimizers[key] = fresh


def targets_one_by_one(trainer) -> None:
    """Targets move tensor by tensor, and not all in one call."""
    import torch

    @torch.no_grad()
    def update_targets(agent, steps: int) -> None:
        for key, target in agent.targets.items():
            online = agent.networks[key]
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.lerp_(new, 1 - (1 - agent.config.tau) ** steps)
            for old, new in zip(target.buffers(), online.buffers(), strict=True):
                old.copy_(new)

    for agent in trainer.agents:
        agent.update_targets = lambda steps, made, agent=agent: update_targets(agent, steps)


def read_at_once(trainer) -> None:
    """Each step's metrics are read back from the device before the next step begins."""
    step = trainer.step
    trainer.step = lambda: {key: float(value) for key, value in step().items()}


def all_of_these(trainer) -> None:
    """None of the means."""
    rows_in_memory(trainer)
    other_adam(trainer, foreach=False, fused=False)
    targets_one_by_one(trainer)
    read_at_once(trainer)


WITHOUT = {  # what is done to a trainer, and to its config
    "as it is": (lambda trainer: None, {}),
    "float32 throughout": (lambda trainer: None, {"precision": "fp32"}),
    "maps in rows (no channels_last)": (rows_in_memory, {}),
    "Adam with foreach": (lambda trainer: other_adam(trainer, foreach=True), {}),
    "Adam in a plain loop": (lambda trainer: other_adam(trainer, foreach=False, fused=False), {}),
    "targets one by one": (targets_one_by_one, {}),
    "metrics read back each step": (read_at_once, {}),  # as it is they are not read back here at all
    "none of these means": (all_of_these, {"precision": "fp32"}),
}


def measure(config: Config, repeats: int, cpu_time: bool) -> dict:
    """The step without each means, over the step as it is."""
    import torch

    from benchmarks.floor import period, steps
    from benchmarks.measure import in_turns, new_clock, ratios, spread

    works = {}
    for name, (change, settings) in WITHOUT.items():
        trainer = new_trainer(dataclasses.replace(config, **settings))
        change(trainer)
        works[name] = lambda trainer=trainer: steps(trainer)
    spent = in_turns(works, new_clock(torch.device(config.device), cpu_time), repeats)
    spent = {name: [s / period(config) for s in seconds] for name, seconds in spent.items()}
    as_it_is = spent["as it is"]
    without = {name: ratios(seconds, as_it_is) for name, seconds in spent.items() if name != "as it is"}
    return {
        "ratio": without["none of these means"]["median"], "without": without, "step_seconds": spread(as_it_is),
    }  # fmt: skip


@as_program
def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    try:
        options, _, config = parse(new_parser(__doc__, repeats=7), sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"gains.py: {error}", file=sys.stderr)
        return 2
    import torch

    from benchmarks.measure import shown
    from magnet.run.logger import describe_environment

    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_environment(torch.device(config.device))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    result = measure(config, options.repeats, options.cpu_time)
    print(f"the step {shown(result['step_seconds'], 1e-3)} ms, in {config.precision}; times as long with")
    for name, ratio in result["without"].items():
        print(f"  {name:<34}{shown(ratio, digits=3)}")
    print(json.dumps({"benchmark": "gains", **result, "machine": machine, "config": dataclasses.asdict(config)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
