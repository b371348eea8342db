"""What a step costs a GPU: operations launched, waits, warnings; and the step as CUDA graphs."""

import warnings

import pytest
from conftest import run, same, saved, small_config
from gpu_games import DEFAULT, TEAM, make_trainer
from pretended_gpu import PretendedGPU, needs_both

from magnet import maddpg
from magnet.config import Config

pytestmark = needs_both
# Operations a step at the defaults, the mean over the 8 steps of which one has R1. A change that adds some raises this.
BUDGET = {"magnet": 555, "gan": 330, "extra reward": 660}


@pytest.mark.parametrize("game", BUDGET)
def test_a_step_stays_within_its_budget_of_operations(game):
    extra = {"extra_reward": "resemble"} if game == "extra reward" else {}
    algorithm = "gan" if game == "gan" else "magnet"
    config = Config(algorithm=algorithm, **extra, width=4, device="cuda", precision="bf16", cuda_graphs="off")
    with PretendedGPU() as gpu:
        trainer = make_trainer("cuda", config)
        for _ in range(2):  # of an empty replay buffer
            trainer.step()
        gpu.forget()
        for _ in range(config.r1_every):
            trainer.step()
        launched = gpu.launches.total() / config.r1_every
    assert 0.9 * BUDGET[game] < launched <= BUDGET[game]


@pytest.mark.parametrize(("graphs", "extra"), [("auto", ""), ("auto", "resemble"), ("off", "resemble")])
def test_the_cpu_never_waits_for_the_gpu_and_nothing_warns(graphs, extra):
    with PretendedGPU() as gpu, warnings.catch_warnings():
        warnings.simplefilter("error")
        config = small_config(**DEFAULT, device="cuda", cuda_graphs=graphs, extra_reward=extra, r1_every=2)
        trainer = make_trainer("cuda", config)
        for _ in range(2):
            trainer.step()
        gpu.forget()
        for _ in range(12):
            trainer.step()
        assert not gpu.waits and not gpu.unseeded


def test_waits_are_noticed():
    with PretendedGPU() as gpu:
        config = small_config(**DEFAULT, device="cuda", cuda_graphs="off", extra_reward="resemble")
        trainer = make_trainer("cuda", config)

        def play_and_wait(batch, play=trainer.play):
            """Asks for the extra rewards at once, while the GPU has nothing else to do."""
            metrics = play(batch)
            trainer.environment.pending_images.arrived.record()
            trainer.complete_rewards()
            return metrics

        trainer.play = play_and_wait
        run(trainer, 1)  # reads each metric back
        assert sum(gpu.waits.values()) > 10 and any("event" in place for place in gpu.waits)


# CUDA graphs

GAMES = {
    "default": {},
    "fp16": {"precision": "fp16"},
    "gan": {"algorithm": "gan"},
    "extra reward, 2x2": TEAM | {"extra_reward": "resemble", "gamma": 0.9, "extra_to": "policy", "precision": "fp32"},
}


@pytest.mark.parametrize("name", GAMES)
def test_recorded_steps_train_bit_for_bit_as_others_do(name, monkeypatch):
    monkeypatch.setattr(maddpg, "MEASURE_EVERY", 2)  # in the steps with R1
    results, operations = {}, {}
    for graphs in ("auto", "off"):
        with PretendedGPU() as gpu:
            config = small_config(**DEFAULT | GAMES[name], r1_every=2, device="cuda", cuda_graphs=graphs)
            trainer = make_trainer("cuda", config)
            metrics = run(trainer, 12)  # over the end of episodes and of the order of images
            gpu.forget()
            trainer.step()
            results[graphs], operations[graphs] = (metrics, saved(trainer)), gpu.launches.total()
            if graphs == "auto":
                recorded = trainer.graphs.steps.values()
                assert len(recorded) == 2, "with R1 and without"
                assert all(graph.replays > 2 for one in recorded for graph in one.graphs)
                assert not any(keeps_autograd_graph(one) for one in recorded)
    assert results["auto"][0] == results["off"][0]
    assert same(results["auto"][1], results["off"][1])
    assert operations["auto"] < operations["off"] / 3  # the environment, the buffer and the inputs are not recorded


def keeps_autograd_graph(recorded) -> bool:
    batch = recorded.batch
    tensors = [*recorded.metrics.values(), *batch.policy_images, *batch.played_images]
    tensors += [part for act in batch.acts for part in act]
    tensors += [part for outputs in batch.outputs for one in outputs for part in one]
    return any(tensor.grad_fn for tensor in tensors if tensor is not None)


def test_a_step_that_cannot_be_recorded_is_made_one_operation_at_a_time(capsys):
    results = []
    for graphs in ("auto", "off"):
        with PretendedGPU() as gpu:
            config = small_config(**DEFAULT | {"precision": "fp16"}, device="cuda", cuda_graphs=graphs)
            trainer = make_trainer("cuda", config)
            agent = trainer.discriminators[0]

            def descend_and_wait(key, with_metrics, descend=agent.descend):
                metrics = descend(key, True)
                float(*metrics.values())  # the scaler has noted by now that the optimizer made its step
                return metrics if with_metrics else {}

            agent.descend = descend_and_wait
            results.append((run(trainer, 6), saved(trainer)))
            assert trainer.graphs is None or not trainer.graphs.is_recordable and not trainer.graphs.steps
            assert gpu.stream == "default"
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be recorded" in error and "not permitted" in error


def test_recorded_steps_go_on_from_a_state_that_is_loaded():
    with PretendedGPU():
        trainer = make_trainer("cuda", small_config(**DEFAULT, r1_every=2, device="cuda"))
        for _ in range(8):
            trainer.step()
        state = saved(trainer)
        first = run(trainer, 6)
        trainer.load_state_dict(state)
        assert run(trainer, 6) == first
