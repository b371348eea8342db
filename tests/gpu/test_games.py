"""Games on the pretended GPU: each is played, sampled, scored, saved, and goes on from there on GPU, CPU and GPU."""

import math
import warnings

import pytest
import torch
from conftest import run, small_config
from gpu_games import DEFAULT, TEAM, make_trainer, new_data, restore_on
from pretended_gpu import CUDA, PretendedGPU, needs_both

from magnet.evaluation.drawing import draw
from magnet.evaluation.equilibrium import report_equilibrium
from magnet.evaluation.sampling import FixedGrids, Guide, Sampler
from magnet.evaluation.scores import Evaluation

pytestmark = needs_both
POINTS = {"precision": "fp32", "width": 8, "nz": 2}
GAMES = {
    "default": {},
    "original": {"gamma": 0.95, "tau": 0.01, "diversity_weight": 0.0, "replay_fraction": 0.5, "r1": 0.0},
    "fp32, minimax": {"precision": "fp32", "reward_function": "minimax"},
    "fp16, gamma, hinge": {"precision": "fp16", "gamma": 0.95, "reward_function": "hinge"},
    "gan, least-squares": {"algorithm": "gan", "reward_function": "least-squares"},
    "2x2 specialised, gamma": TEAM | {"specialise": 1.0, "gamma": 0.95},
    "no critics, no replay": {"critics": "none", "replay_fraction": 0.0},
    "wasserstein": {"reward_function": "wasserstein", "gradient_penalty": 10.0, "spectral_norm": True, "r1": 0.0},
    "relativistic": {"reward_function": "relativistic", "r2": 0.1},
    "points": POINTS | {"data": "gaussians-8", "batch_size": 16},
    "points gan": POINTS | {"data": "gaussians-25", "algorithm": "gan"},
}


@pytest.mark.parametrize("name", GAMES)
def test_a_game_is_played_and_goes_on_from_gpu_to_gpu_and_cpu_and_back(name, tmp_path):
    config = small_config(**DEFAULT | GAMES[name], device="cuda", r1_every=2)
    with PretendedGPU(referee=True) as gpu, warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make_trainer("cuda", config)
        grids = FixedGrids(trainer.generators, trainer.dataset, 0)
        evaluation = Evaluation(trainer.generators, trainer.dataset, config)
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
        restored = restore_on("cuda", trainer, tmp_path / "a.pt")
        assert run(trainer, 1) == run(restored, 1)
        on_cpu = restore_on("cpu", restored, tmp_path / "b.pt")
        on_cpu.step()
        back = restore_on("cuda", on_cpu, tmp_path / "c.pt")
        assert all(map(math.isfinite, run(back, 1)[0].values()))


def test_images_that_do_not_fit_on_the_gpu_stay_in_pinned_memory():
    config = small_config(**DEFAULT, device="cuda")
    with PretendedGPU(free=1000) as gpu:
        trainer = make_trainer("cuda", config)
        pinned = run(trainer, 6)
        assert trainer.dataset._pixels.device.type == "cpu"
        gpu.forget()
        trainer.step()
        assert sum(gpu.waits.values()) == 2  # for the indices of replayed and of new images
    with PretendedGPU():
        trainer = make_trainer("cuda", config)
        assert run(trainer, 6) == pinned
        assert trainer.dataset._pixels.device.type == "cuda"


def test_the_equilibrium_report_on_a_gpu_is_that_on_the_cpu():
    fakes = torch.randint(256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = small_config(**DEFAULT | {"precision": "fp32"}, device="cuda")
    with PretendedGPU():
        trainer, reports = make_trainer("cuda", config), []
        trainer.step()
        on_cpu = make_trainer("cpu", config)
        on_cpu.load_state_dict(trainer.state_dict())
        for one in (trainer, on_cpu):
            report = report_equilibrium(
                one.discriminators[0], fakes=fakes, draw=lambda n: fakes[torch.arange(n) % 48], training=one.dataset,
                held_out=new_data(config, one.device, 20), steps=2,
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
