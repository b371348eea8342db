"""Games on the pretended GPU: each is played, drawn, scored, saved, and goes on from there on GPU, CPU and GPU."""

import warnings

import numpy as np
import pytest
import torch
from conftest import small_config
from gpu_games import DEFAULT, TEAM, data, going_on, on, step
from pretended_gpu import CUDA, PretendedGPU, needs_compiler

from magnet.evaluation.drawing import draw
from magnet.evaluation.equilibrium import report_equilibrium
from magnet.evaluation.sampling import FixedGrids, Guide, Sampler
from magnet.evaluation.scores import Evaluation

pytestmark = needs_compiler
GAMES = {
    "default": {}, "fp32": {"precision": "fp32"}, "fp16": {"precision": "fp16"}, "gan": {"algorithm": "gan"},
    "2x2": TEAM,
    "original": {"gamma": 0.95, "tau": 0.01, "diversity_weight": 0.0, "replay_fraction": 0.5, "r1": 0.0},
    "2x2 gamma half": TEAM | {"gamma": 0.95},
    "2x2 specialised": TEAM | {"specialise": 1.0}, "no critics": {"critics": "none"},
    "gamma": {"gamma": 0.95}, "minimax": {"reward_function": "minimax"}, "hinge": {"reward_function": "hinge"},
    "least-squares": {"reward_function": "least-squares"},
    "wasserstein": {"reward_function": "wasserstein", "gradient_penalty": 10.0, "r1": 0.0},
    "relativistic": {"reward_function": "relativistic", "r2": 0.1}, "no replay": {"replay_fraction": 0.0},
    "spectral norm": {"spectral_norm": True, "r1": 0.0},
    "points": {"data": "gaussians-8", "precision": "fp32", "width": 8, "nz": 2, "batch_size": 16},
    "points gan": {"data": "gaussians-25", "precision": "fp32", "width": 8, "nz": 2, "algorithm": "gan"},
}  # fmt: skip


@pytest.mark.parametrize("name", GAMES)
def test_a_game_is_played_and_goes_on_from_gpu_to_gpu_and_cpu_and_back(name, tmp_path):
    config = small_config(**DEFAULT | GAMES[name], device="cuda", r1_every=2)
    with PretendedGPU(referee=True) as gpu, warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = on("cuda", config)
        grids, evaluation = (
            FixedGrids(trainer.generators, trainer.dataset, 0),
            Evaluation(trainer.generators, trainer.dataset, config),
        )
        for _ in range(2):
            trainer.step()
        gpu.forget()
        for _ in range(6):  # over the end of an episode and of the order of images, and from there on as graphs
            trainer.step()
        assert not gpu.waits and not gpu.unseeded
        assert trainer.graphs.is_recordable and trainer.graphs.steps
        assert all(images.isfinite().all() for images in grids.draw().values())
        assert evaluation.score(2)
        if not config.points:
            faces = None if config.algorithm == "gan" else trainer.dataset
            samplers = [Sampler(agent, faces) for agent in trainer.generators]
            for kind in ["prior", "guided", "interpolation"] + ["policy"] * (faces is not None):
                draw(samplers, kind, 9, Guide(trainer.discriminators))
        again = going_on(trainer, "cuda", tmp_path / "a.pt")
        assert step(trainer) == step(again)
        on_cpu = going_on(again, "cpu", tmp_path / "b.pt")
        on_cpu.step()
        back = going_on(on_cpu, "cuda", tmp_path / "c.pt")
        assert all(np.isfinite(value) for value in step(back).values())


@pytest.mark.parametrize("algorithm", ["magnet", "gan"])
def test_images_that_do_not_fit_on_the_gpu_stay_in_pinned_memory(algorithm):
    with PretendedGPU(free=1000) as gpu:
        trainer = on("cuda", small_config(**DEFAULT, device="cuda", algorithm=algorithm))
        pinned = [step(trainer) for _ in range(6)]
        assert trainer.dataset._pixels.device.type == "cpu"
        gpu.forget()
        trainer.step()
        assert sum(gpu.waits.values()) == 2  # for the indices of replayed and of new images
    with PretendedGPU():
        trainer = on("cuda", small_config(**DEFAULT, device="cuda", algorithm=algorithm))
        assert [step(trainer) for _ in range(6)] == pinned
        assert trainer.dataset._pixels.device.type == "cuda"


def test_the_equilibrium_report_on_a_gpu_is_that_on_the_cpu():
    fakes = torch.randint(256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = small_config(**DEFAULT | {"precision": "fp32"}, device="cuda")
    with PretendedGPU():
        trainer, reports = on("cuda", config), []
        trainer.step()
        on_cpu = on("cpu", config)
        on_cpu.load_state_dict(trainer.state_dict())
        for one in (trainer, on_cpu):
            report = report_equilibrium(
                one.discriminators[0], fakes=fakes, draw=lambda n: fakes[torch.arange(n) % 48], training=one.dataset,
                held_out=data(config, one.device, 20), steps=2,
            )  # fmt: skip
            reports.append(report)
    assert reports[0] == pytest.approx(reports[1], abs=1e-5)


def test_the_pretended_gpu_refuses_what_a_gpu_refuses():
    with PretendedGPU():
        on_gpu = torch.ones(3, device=CUDA)
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device=CUDA, generator=torch.Generator())
        with pytest.raises((TypeError, RuntimeError)):
            on_gpu.numpy()
        with pytest.raises(RuntimeError, match="wrong size"):
            torch.Generator("cuda").set_state(torch.Generator().get_state())
        parameter = torch.nn.Parameter(torch.ones(2, 3, device=CUDA))
        parameter.grad = torch.ones(3, 2, device=CUDA).T
        with pytest.raises(RuntimeError, match="layout"):
            torch.optim.Adam([parameter], fused=True).step()
