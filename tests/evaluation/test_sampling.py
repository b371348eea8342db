"""Samplers: exact statistics of their own, the run untouched."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import new_trainer, small_config, small_faces, trainer_on
from PIL import Image
from torch import nn

import sample
import train
from magnet.evaluation.drawing import draw
from magnet.evaluation.sampling import (
    BATCHES,
    LANGEVIN_STEP,
    LANGEVIN_STEPS,
    WARM_UP,
    FixedGrids,
    Guide,
    Sampler,
    copy_in_float32,
    copy_with_statistics,
)
from magnet.maddpg import MADDPG


@pytest.fixture(scope="module")
def trainer():
    trainer = trainer_on(small_config(lr=0.01), small_faces())
    for _ in range(5):
        trainer.step()
    return trainer


@contextmanager
def record_inputs(trainer: MADDPG, name: str) -> Iterator[list[tuple]]:
    """Within, a list that fills with the inputs of copies of a generator's averaged network."""
    inputs = []
    hook = trainer.generators[0].targets[name].register_forward_pre_hook(lambda _, one: inputs.append(one))
    try:
        yield inputs
    finally:
        hook.remove()


def test_the_statistics_are_plain_averages_over_what_is_shown():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = copy.deepcopy(network.state_dict())
    batches = torch.randn(5, 7, 3) * 4 + 2
    own = copy_with_statistics(network, lambda shown: [shown(batch) for batch in batches])
    seen = network[0](batches)
    torch.testing.assert_close(own[1].running_mean, seen.mean(dim=(0, 1)))
    torch.testing.assert_close(own[1].running_var, seen.var(dim=1).mean(dim=0))
    assert not own.training and network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_is_sampled_in_float32(precision):
    trained, same = (new_trainer(precision=one).generators[0] for one in (precision, "fp32"))
    z = torch.randn(4, small_config().nz)
    expected = copy_in_float32(same.networks["generator"])(z)
    assert torch.equal(copy_in_float32(trained.networks["generator"])(z), expected)
    assert not torch.equal(trained.networks["generator"](z), expected)


def test_samples_have_a_range_and_depend_on_what_they_should(trainer):
    sampler = Sampler(trainer.generators[0], trainer.dataset)
    z = sampler.draw_noise(6)
    images = sampler.generate(z)
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.float32 and images.abs().max() <= 1
    assert torch.equal(images[:1], sampler.generate(z[:1])), "a sample depends on no other of its batch"
    state = sampler.draw_states(6)
    memory = sampler.warm_up(6)
    first, after = sampler.act(state, memory)
    again, _ = sampler.act(state, memory)
    later, _ = sampler.act(state, after)
    assert torch.equal(first, again)
    assert not torch.equal(first, later), "the policy remembers"
    assert not torch.allclose(first[0], first[1]), "the policy answers the state"


def test_guided_noise_follows_langevins_equation_for_its_density():
    """With G(z) = z and l = w z the density is N(w, I), and after k steps from N(0, I) mean and variance are known."""

    class Discriminator(nn.Linear):
        def forward(self, images):
            return super().forward(images).squeeze(1)

    discriminators, w = [], torch.tensor([3.0, -1.0])
    for weight in ([5.0, -3.0], [1.0, 1.0]):  # whose mean is w
        actor = Discriminator(2, 1, bias=False)
        actor.weight.data = torch.tensor([weight])
        discriminators.append(SimpleNamespace(targets={"actor": actor}))
    world = SimpleNamespace(generator=nn.Identity(), random=torch.Generator().manual_seed(0))
    z = Guide(discriminators)(world, torch.randn(100_000, 2, generator=world.random))
    mean, variance = torch.zeros(2), 1.0
    for _ in range(LANGEVIN_STEPS):
        mean = mean + LANGEVIN_STEP / 2 * (w - mean)
        variance = (1 - LANGEVIN_STEP / 2) ** 2 * variance + LANGEVIN_STEP
    torch.testing.assert_close(z.mean(dim=0), mean, atol=0.015, rtol=0)
    torch.testing.assert_close(z.var(dim=0), torch.full((2,), variance), atol=0.02, rtol=0)


def test_guided_samples_are_taken_for_real_more_often_and_leave_the_run_untouched(trainer):
    generator, discriminator = trainer.generators[0], trainer.discriminators[0]
    before = copy.deepcopy(trainer.state_dict())
    sampler, d_a = Sampler(generator, None), copy_in_float32(discriminator.targets["actor"])
    z = sampler.draw_noise(200)
    prior, guided = sampler.generate(z), sampler.generate(Guide([discriminator])(sampler, z))
    assert d_a(guided).mean() > d_a(prior).mean()
    after = trainer.state_dict()
    for name, agent in after["agents"].items():
        for part in ("networks", "targets"):
            for key, network in agent[part].items():
                old = before["agents"][name][part][key]
                assert all(torch.equal(old[entry], value) for entry, value in network.items())
        assert torch.equal(before["agents"][name]["random"], agent["random"])


def test_policy_samples_are_spread_as_those_that_g_learned_from():
    """Over the states of an episode after its beginning, z has mean 0 and variance 1 in every coordinate."""
    trainer = new_trainer(lr=0.01, episode_length=25)
    for _ in range(5):
        trainer.step()
    sampler = Sampler(trainer.generators[0], trainer.dataset)
    memory, actions = sampler.warm_up(400), []
    sampler.actor.register_forward_hook(lambda module, inputs, outputs: actions.append(outputs[0]))
    for _ in range(25 - WARM_UP):
        _, memory = sampler.act(sampler.draw_states(400), memory)
    z = torch.cat(actions)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(z.shape[1]), atol=0.15, rtol=0)
    torch.testing.assert_close(z.std(dim=0), torch.ones(z.shape[1]), atol=0.15, rtol=0)


def test_the_averaged_networks_are_sampled_unless_said_otherwise(trainer):
    agent = trainer.generators[0]
    z = torch.randn(4, agent.config.nz)
    averaged, trained = Sampler(agent, None).generate(z), Sampler(agent, None, averaged=False).generate(z)
    assert not torch.allclose(averaged, trained)
    for sampler, networks in (
        (Sampler(agent, None), agent.targets),
        (Sampler(agent, None, averaged=False), agent.networks),
    ):
        for ours, theirs in zip(sampler.generator.parameters(), networks["generator"].parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_drawing_grids_changes_nothing_of_the_run():
    def run(drawing):
        trainer = trainer_on(small_config(gamma=0.5), small_faces(40))
        grids = FixedGrids(trainer.generators, trainer.dataset, seed=0)
        for _ in range(4):
            if drawing:
                assert [grid.shape for grid in grids.draw().values()] == [(64, 3, 32, 32)] * 2
            metrics = trainer.step()
        return metrics

    with_grids, without = run(True), run(False)
    assert all(torch.equal(with_grids[name], without[name]) for name in without)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run, and the folder of its faces."""
    place = tmp_path_factory.mktemp("sampled")
    (place / "faces").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)):
        Image.fromarray(pixels).save(place / "faces" / f"{i:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        tiny = ["--data", str(place / "faces"), "--image-size", "32", "--width", "4", "--nz", "4", "--batch-size", "8"]
        assert train.main([*tiny, "--device", "cpu", "--steps", "2", "--models-dir", str(place / "models")]) == 0
    return next((place / "models").iterdir())


@pytest.mark.parametrize("kind", ["prior", "policy"])
def test_an_array_for_fid_tools(run, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    command = [str(run), "--kind", kind, "--count", "21", "--seed", "3", "--npz", "a.npz", "--images", "pictures"]
    assert sample.main(command) == 0
    array = np.load("a.npz")["arr_0"]
    assert array.shape == (21, 32, 32, 3) and array.dtype == np.uint8
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert all(np.array_equal(np.asarray(Image.open(p)), a) for p, a in zip(pictures, array, strict=True))
    assert len(np.unique(array.reshape(21, -1), axis=0)) == 21
    assert sample.main([*command[:-4], "--npz", "b.npz"]) == 0
    assert np.array_equal(array, np.load("b.npz")["arr_0"]), "the same seed, the same samples"
    assert sample.main([*command[:-6], "--seed", "4", "--npz", "c.npz"]) == 0
    assert not np.array_equal(array, np.load("c.npz")["arr_0"])


def test_a_bare_checkpoint_copied_elsewhere(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pt").write_bytes((run / "checkpoints" / "000002.pt").read_bytes())
    assert sample.main(["mine.pt"]) == 0
    assert Image.open("samples.png").size == (8 * 34 + 2, 8 * 34 + 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "ls models"),
        (["RUN", "--kind", "policy", "--data", "gone"], "gone"),
        (["RUN", "--device", "tpu"], "tpu"),
        (["RUN", "--out", "nowhere/a.png"], "'nowhere/a.png'; fix this and run the same command again."),
        (["RUN", "--out", "a.xyz"], "cannot write a.xyz (unknown file extension: .xyz); end it in .png."),
        (["RUN", "--out", "faces.psd"], "cannot write faces.psd ('PSD'); end it in .png."),  # Pillow reads it
    ],
)
def test_mistakes_are_a_sentence(run, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert sample.main([str(run) if word == "RUN" else word for word in arguments]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "flags",
    [
        ["--kind", "prior", "--out", "a.gif"],
        ["--kind", "interpolation", "--out", "a.mp4", "--npz", "a.npz"],
        ["--kind", "interpolation", "--out", "a.png"],
        ["--count", "0"],
    ],
)
def test_words_that_do_not_go_together_are_refused_before_any_work(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        sample.main(["nowhere", *flags])
    assert stopped.value.code == 2 and flags[0] in capsys.readouterr().err


def test_the_statistics_are_of_as_many_inputs_as_the_batches_hold(trainer):
    for batch in (4, 6):
        with record_inputs(trainer, "generator") as noise, record_inputs(trainer, "actor") as states:
            sampler = Sampler(trainer.generators[0], trainer.dataset, batch=batch)
        assert {len(inputs[0]) for inputs in noise + states} == {batch}
        for network in (sampler.generator, sampler.actor):
            counts = {int(value) for key, value in network.state_dict().items() if "num_batches" in key}
            assert counts == {BATCHES}


@pytest.mark.parametrize("length", [1, 6, 25])
def test_the_generator_agent_is_sampled_in_the_middle_of_an_episode(length):
    trainer = trainer_on(small_config(episode_length=length), small_faces())
    grids = FixedGrids(trainer.generators, trainer.dataset, 0)
    with record_inputs(trainer, "actor") as passes:
        grids.draw()
    memories, before = [memory for _, memory in passes], min(WARM_UP, length - 1)
    assert len(passes) == before + BATCHES + 1
    assert not memories[0].any() and all(memory.any() for memory in memories[1:before])
    starts = [t for t in range(before, before + BATCHES) if torch.equal(memories[t], memories[before])]
    assert starts == list(range(before, before + BATCHES, length - before)), "no more states than an episode has"
    assert torch.equal(memories[-1], memories[before][: len(grids.states)]), "a grid's states come after those before"
    assert torch.equal(passes[-1][0], grids.states)


def test_generators_of_a_team_are_sampled_with_noise_and_states_of_their_own():
    trainer = trainer_on(small_config(generators=3), small_faces())
    samplers = [Sampler(agent, trainer.dataset, seed=1) for agent in trainer.generators]
    noise, states = [sampler.draw_noise(4) for sampler in samplers], [sampler.draw_states(8) for sampler in samplers]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(noise[first], noise[second]) and not torch.equal(states[first], states[second])


def test_policy_samples_do_not_run_past_an_episode():
    trainer = trainer_on(small_config(episode_length=WARM_UP + 3), small_faces())
    sampler = Sampler(trainer.generators[0], trainer.dataset)
    began, recurrent_state = [], sampler.warm_up
    sampler.warm_up = lambda count: began.append(count) or recurrent_state(count)
    draw([sampler], "policy", 8 * trainer.config.batch_size)
    assert len(began) == 3, "eight batches, three to an episode"
