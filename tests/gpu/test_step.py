"""What a step costs a GPU: operations launched, waits, warnings; and the step as CUDA graphs."""

import functools
import warnings

import pytest
from conftest import same, saved, small_config
from gpu_games import DEFAULT, TEAM, on, step
from pretended_gpu import PretendedGPU, needs_compiler

from magnet import maddpg
from magnet.config import Config

pytestmark = needs_compiler
# Operations a step at the defaults, the mean over the 8 steps of which one has R1. A change that adds some raises this.
BUDGET = {"magnet": 570, "gan": 320, "extra reward": 680}


@pytest.mark.parametrize("game", BUDGET)
def test_a_step_stays_within_its_budget_of_operations(game):
    extra = {"extra_reward": "resemble"} if game == "extra reward" else {}
    algorithm = "gan" if game == "gan" else "magnet"
    config = Config(algorithm=algorithm, **extra, width=4, device="cuda", precision="bf16", cuda_graphs="off")
    with PretendedGPU() as gpu:
        trainer = on("cuda", config)
        for _ in range(2):  # of an empty replay buffer
            trainer.step()
        gpu.forget()
        for _ in range(config.r1_every):
            trainer.step()
        launched = gpu.launches.total() / config.r1_every
    assert 0.9 * BUDGET[game] < launched <= BUDGET[game]


@pytest.mark.parametrize("extra", ["", "resemble"])
@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_the_cpu_never_waits_for_the_gpu_and_nothing_warns(graphs, extra):
    with PretendedGPU() as gpu, warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = on("cuda", small_config(**DEFAULT, device="cuda", cuda_graphs=graphs, extra_reward=extra))
        for _ in range(2):
            trainer.step()
        gpu.forget()
        for _ in range(3, 31):
            trainer.step()
        assert not gpu.waits and not gpu.unseeded


def test_waits_are_noticed():
    with PretendedGPU() as gpu:
        trainer = on("cuda", small_config(**DEFAULT, device="cuda", cuda_graphs="off", extra_reward="resemble"))
        trainer.play = functools.partial(play_and_wait, trainer, trainer.play)
        step(trainer)  # reads each metric back
        assert sum(gpu.waits.values()) > 10 and any("event" in place for place in gpu.waits)


def play_and_wait(trainer, play, batch):
    """Asks for the extra rewards at once, while the GPU has nothing else to do."""
    metrics = play(batch)
    trainer.environment.pending_images.arrived.record()
    trainer.complete_rewards()
    return metrics


GAMES = {
    "default": {},
    "fp16": {"precision": "fp16"},
    "gan": {"algorithm": "gan"},
    "extra reward": {"extra_reward": "resemble"},
    "extra reward, 2x2 gamma": TEAM | {"extra_reward": "resemble", "gamma": 0.9, "extra_to": "policy"},
    "2x2 gamma": TEAM | {"gamma": 0.9, "precision": "fp32"},
}


@pytest.mark.parametrize("name", GAMES)
def test_recorded_steps_train_bit_for_bit_as_others_do(name, monkeypatch):
    monkeypatch.setattr(maddpg, "MEASURE_EVERY", 2)  # in the steps with R1
    found, operations = {}, {}
    for graphs in ("auto", "off"):
        with PretendedGPU() as gpu:
            trainer = on("cuda", small_config(**DEFAULT | GAMES[name], r1_every=2, device="cuda", cuda_graphs=graphs))
            metrics = [step(trainer) for _ in range(12)]  # over the end of episodes and of the order of images
            gpu.forget()
            trainer.step()
            found[graphs], operations[graphs] = (metrics, saved(trainer)), gpu.launches.total()
            if graphs == "auto":  # with R1 and without
                recorded = trainer.graphs.steps.values()
                assert len(recorded) == 2 and all(graph.replays > 2 for one in recorded for graph in one.graphs)
                for one in recorded:  # no autograd graph is kept
                    outputs = [tensor for outputs in one.batch.outputs for parts in outputs for tensor in parts]
                    acts = [tensor for act in one.batch.acts for tensor in act]
                    images = [*one.batch.policy_images, *one.batch.played_images]
                    kept = [*one.metrics.values(), *images, *outputs, *acts]
                    assert not any(tensor.grad_fn for tensor in kept if tensor is not None)
    assert found["auto"][0] == found["off"][0]
    assert same(found["auto"][1], found["off"][1])
    assert operations["auto"] < operations["off"] / 3  # what is left are the environment, the buffer and the inputs


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_that_cannot_be_recorded_is_made_one_operation_at_a_time(precision, capsys):
    found = []
    for graphs in ("auto", "off"):
        with PretendedGPU() as gpu:
            config = small_config(**DEFAULT | {"precision": precision}, device="cuda", cuda_graphs=graphs)
            trainer = on("cuda", config)
            agent = trainer.discriminators[0]

            def waits(key, with_metrics, descend=agent.descend):
                metrics = descend(key, True)
                float(*metrics.values())  # when the scaler has noted that the optimizer has made its step
                return metrics if with_metrics else {}

            agent.descend = waits
            metrics = [step(trainer) for _ in range(6)]
            found.append((metrics, saved(trainer)))
            assert trainer.graphs is None or not trainer.graphs.is_recordable and not trainer.graphs.steps
            assert gpu.stream == "default"
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be recorded" in said and "not permitted" in said


def test_a_state_that_is_loaded_into_recorded_steps_is_the_one_that_trains_on():
    with PretendedGPU():
        trainer = on("cuda", small_config(**DEFAULT, r1_every=2, device="cuda"))
        for _ in range(8):
            trainer.step()
        state = saved(trainer)
        first = [step(trainer) for _ in range(6)]
        trainer.load_state_dict(state)
        assert [step(trainer) for _ in range(6)] == first
