"""Bad checkpoints: hundreds of damaged, foreign and hostile files. Nothing in them is executed or used."""

import dataclasses
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import SEED, cases, leaves, same, saved, small_config, small_faces, trainer_on
from garbling import garble
from test_train import TINY

import evaluate
import sample
import train
from magnet.run import checkpoint
from magnet.run.checkpoint_validation import restore_config
from magnet.run.saved_runs import load_agents
from magnet.run.session import build
from magnet.support.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), np.uint8)
GAMES = {
    "one of each": {"gamma": 0.5, "replay_fraction": 0.25},
    "a team": {
        "algorithm": "gan", "generators": 2, "discriminators": 2, "specialise": 1.0, "precision": "fp16",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """By game the bytes of a whole checkpoint, as a run leaves it."""
    files = {}
    for game, changes in GAMES.items():
        config = small_config(device="cpu", **changes)
        trainer = trainer_on(config, small_faces())
        for _ in range(4):
            trainer.step()
        path = tmp_path_factory.mktemp("run") / "000004.pt"
        state = {"config": dataclasses.asdict(config), "faces": trainer.dataset.fingerprint}
        best = {"swd": 3.5, "step": 2, "worse_since": 1}
        checkpoint.save(path, state | {"trainer": trainer.state_dict(), "best": best})
        files[game] = path.read_bytes()
    return files


@pytest.fixture(params=GAMES)
def whole(request, wholes):
    """The bytes of a whole checkpoint of each game."""
    return wholes[request.param]


def contents(data: bytes) -> dict:
    return torch.load(io.BytesIO(data), weights_only=True)


def pack(state: dict) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def holder_of(state: dict, path: tuple):
    """The dict or list in which the item at `path` of a checkpoint's contents lies."""
    for key in path[:-1]:
        state = state[key]
    return state


def resume(path):
    """Reads a checkpoint as train.py --resume does."""
    saved = checkpoint.load(path)
    return build(restore_config(path, saved["config"]), PIXELS, path, saved)[0]


def load_for_samples(path):
    """Reads a checkpoint as sample.py and evaluate.py do."""
    return load_agents(path, checkpoint.load(path), "cpu")


def read_refusal(path, read=resume) -> str:
    """The one sentence that refuses `path`."""
    with pytest.raises(UserError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and "\n" not in sentence and len(sentence) < 1000
    return sentence


def test_a_whole_checkpoint_is_restored_to_the_last_bit(whole, tmp_path):
    path = tmp_path / "whole.pt"
    path.write_bytes(whole)
    assert same(saved(resume(path)), contents(whole)["trainer"])
    generators, discriminators, _ = load_for_samples(path)
    trained = contents(whole)["trainer"]["agents"]
    for agent in (*generators, *discriminators):
        assert same({k: dict(n.state_dict()) for k, n in agent.networks.items()}, trained[agent.name]["networks"])
        assert same({k: dict(n.state_dict()) for k, n in agent.targets.items()}, trained[agent.name]["targets"])


@cases(short=15, long=250)
def test_a_damaged_file_is_refused_or_unharmed(whole, tmp_path, count):
    """Bits flipped, parts overwritten, inserted or left out, the end cut off: what is read was written, or nothing."""
    chance, path, unharmed = random.Random(SEED), tmp_path / "x.pt", 0
    for i in range(count):
        data = garble(chance, whole, times=1, other=chance.randbytes(len(whole)), start=len(whole) - 1000)
        path.write_bytes(data + chance.choice((b"", b"", b"", chance.randbytes(50))))
        try:
            result = checkpoint.load(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert same(result, contents(whole)), i
            unharmed += 1
    assert unharmed < count / 2


def test_a_flipped_bit_of_a_weight_is_found_where_pytorch_does_not_look(whole, tmp_path):
    weight = next(iter(contents(whole)["trainer"]["agents"].values()))["networks"]["generator"]["layers.0.weight"]
    at = whole.index(bytes(weight.untyped_storage()))
    data = bytearray(whole)
    data[at + 5] ^= 1
    path = tmp_path / "flipped.pt"
    path.write_bytes(data)
    assert not same(torch.load(path, weights_only=True), contents(whole))
    assert "damaged" in read_refusal(path)


UNREAD = "param_groups"


def spoil(state: dict, chance: random.Random) -> str:
    """Makes one thing in a checkpoint's contents wrong; returns the name under which a refusal has to know it."""
    path = chance.choice([path for path in leaves(state) if UNREAD not in path])
    if chance.random() < 0.3:
        path = path[: chance.randint(1, len(path))]  # something larger: a network, an agent
    holder, key = holder_of(state, path), path[-1]
    value = holder[key]
    if isinstance(holder, dict) and chance.random() < 0.3:
        if chance.random() < 0.5:
            del holder[key]
            return str(key)
        unknown = chance.choice((f"{key}_", 7.5))
        holder[unknown] = value
        return str(unknown)
    wrong = ["text", None, -1, 2**70, float("nan"), 1j, {1}, [1, 2, 3], {"a": 1}, torch.zeros(3, 3, 3)]
    if isinstance(value, str):
        wrong.remove("text")
    if path == ("best",):
        wrong.remove(None)  # as of a run without scores
    if isinstance(value, torch.Tensor):
        wrong += [value[None], value.to_sparse(), value.to(torch.complex64), value.to("meta"), value.tolist()]
        wrong += [value.double(), value.short()]
        if value.is_floating_point() and value.numel():
            for bad in (float("nan"), float("inf")):
                wrong.append(value.clone(memory_format=torch.contiguous_format))
                wrong[-1].view(-1)[chance.randrange(value.numel())] = bad
            wrong.append(torch.nn.Parameter(value))
    holder[key] = chance.choice(wrong)
    return str(key)


@cases(short=20, long=250)
def test_contents_that_no_run_writes_are_refused_by_name(whole, tmp_path, count):
    """Keys dropped and added, types, dtypes and shapes changed, sparse, on no device, not finite."""
    chance = random.Random(SEED)
    for _ in range(count):
        state = contents(whole)
        name = spoil(state, chance)
        (tmp_path / "x.pt").write_bytes(pack(state))
        sentence = read_refusal(tmp_path / "x.pt")
        assert name in sentence.replace("-", "_") or name in ("config", "format"), sentence


def change_first(number):
    """A change of a tensor: its first number."""
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), number)


ONE, TEAM = GAMES
AGENTS = ("trainer", "agents")
WRONG = [
    *((game, ("trainer", "environment", "real"), change_first(index), "environment.real has an index outside 0 ... 39")
      for game in GAMES for index in (-1, 40)),
    (ONE, ("trainer", "replay", "storage", "real"), change_first(40), "storage.real has an index outside 0 ... 39"),
    (ONE, ("trainer", "environment", "random"), torch.zeros(16, dtype=torch.uint8), "environment.random is no state"),
    (ONE, ("best", "step"), "2", "best.step is of type str, not int"),
    (ONE, ("best", "step"), -1, "best.step is not from 0"),
    (ONE, ("best", "swd"), float("nan"), "best.swd is not a number"),
    (ONE, ("best", "kl"), 0.5, "best has the unknown key 'kl'"),
    (ONE, (*AGENTS, "generator", "random"), torch.full((5056,), 255, dtype=torch.uint8), "random is no state"),
    *((TEAM, (*AGENTS, "generator_1", "scaler", name), value, f"generator_1.scaler.{name} is no number from")
      for name, values in (("scale", (0.0, -1.0, float("inf"), 1e39, float("nan"), 1)),
                           ("_growth_tracker", (2000, -1, 1.0))) for value in values),
]  # fmt: skip


@pytest.mark.parametrize(("game", "place", "value", "fault"), WRONG)
def test_a_value_that_no_run_has_is_refused(wholes, tmp_path, game, place, value, fault):
    state = contents(wholes[game])
    holder = holder_of(state, place)
    holder[place[-1]] = value(holder[place[-1]]) if callable(value) else value
    (tmp_path / "x.pt").write_bytes(pack(state))
    assert fault in read_refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("read", [resume, load_for_samples])
@pytest.mark.parametrize("part", ["networks", "targets"])
def test_weights_that_are_not_finite_are_refused_by_all_programs(whole, tmp_path, read, part):
    state = contents(whole)
    agent, trained = list(state["trainer"]["agents"].items())[-1]
    trained[part]["actor"]["logit.bias"][0] = float("inf")
    (tmp_path / "x.pt").write_bytes(pack(state))
    assert f"trainer.agents.{agent}.{part}.actor.logit.bias is not finite" in read_refusal(tmp_path / "x.pt", read)


def test_what_pytorch_hides_beside_weights_is_not_used(whole, tmp_path):
    """A state_dict's _metadata is no key of it, and PyTorch follows it when it loads."""
    state = contents(whole)
    for agent in state["trainer"]["agents"].values():
        for network in (*agent["networks"].values(), *agent["targets"].values()):
            network._metadata = "nonsense"
    (tmp_path / "x.pt").write_bytes(pack(state))
    assert same(saved(resume(tmp_path / "x.pt")), contents(whole)["trainer"])


class Payload:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def make_payloads(marker) -> list:
    """Calls that would make the folder or file `marker`."""
    command = f"import os; os.mkdir({str(marker)!r})"
    inner = io.BytesIO()
    torch.save(Payload(os.mkdir, str(marker)), inner)
    return [
        Payload(os.mkdir, str(marker)),
        Payload(exec, command),
        Payload(eval, f"__import__('os').mkdir({str(marker)!r})"),
        Payload(subprocess.Popen, [sys.executable, "-c", command]),
        Payload(pickle.loads, pickle.dumps(Payload(os.mkdir, str(marker)))),
        Payload(torch.storage._load_from_bytes, inner.getvalue()),
        Payload(torch.load, io.BytesIO(inner.getvalue())),
    ]


@cases(short=9, long=125)
def test_nothing_is_executed_wherever_it_hides(whole, tmp_path, count):
    """Calls in the place of any item, in archives and in bare pickles."""
    chance, path, marker = random.Random(SEED), tmp_path / "x.pt", tmp_path / "executed"
    for _ in range(count):
        state = contents(whole)
        place = chance.choice(list(leaves(state)))
        holder_of(state, place)[place[-1]] = chance.choice(make_payloads(marker))
        path.write_bytes(pickle.dumps(state) if chance.random() < 0.3 else pack(state))
        sentence = read_refusal(path, chance.choice((resume, load_for_samples)))
        assert "cannot be read" in sentence and "weights_only" not in sentence, "PyTorch advises to execute it"
        assert not marker.exists()


@cases(short=20, long=250)
def test_a_mangled_pickle_with_right_checksums_is_refused_or_plays_on(whole, tmp_path, count):
    """Bytes of the pickle inside changed, and packed anew: the checksum is right, the program for the loader is not."""
    chance, path, accepted = random.Random(SEED), tmp_path / "x.pt", 0
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    for _ in range(count):
        mangled = bytearray(records[pickled])
        for _ in range(chance.choice((1, 1, 2, 10))):
            mangled[chance.randrange(len(mangled))] = chance.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (records | {pickled: bytes(mangled)}).items():
                archive.writestr(name, data)
        try:
            trainer = resume(path)
        except UserError as error:
            assert path.name in str(error) or "--data" in str(error)
            assert "\n" not in str(error)
        else:
            trainer.step()
            accepted += 1
    assert accepted < count


def test_compressed_records_are_refused_before_they_fill_the_memory(whole, tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in source.infolist():
            archive.writestr(record.filename, source.read(record))
    assert "records are compressed" in read_refusal(path)


def test_a_config_of_giants_is_refused_before_they_are_built(whole, tmp_path):
    state = contents(whole)
    state["config"] |= {"width": 4096, "nz": 65536}
    (tmp_path / "x.pt").write_bytes(pack(state))
    assert "networks" in read_refusal(tmp_path / "x.pt", load_for_samples)


def test_the_programs_say_so_in_one_sentence_and_leave_the_run_as_it_was(place, capsys):
    assert train.main([*TINY, "--steps", "2", "--name", "run"]) == 0
    for path in (place / "models" / "run" / "checkpoints").glob("*.pt"):
        state = checkpoint.load(path)
        state["trainer"]["agents"]["generator"]["targets"]["actor"]["lstm.1.bias_hh"] = torch.zeros(7)
        path.write_bytes(pack(state))
    before = {p: p.read_bytes() for p in (place / "models").rglob("*") if p.is_file()}
    for program, arguments in (
        (train, ["--resume", "models/run", "--steps", "5"]),
        (sample, ["models/run"]),
        (evaluate, ["models/run", "--no-features"]),
    ):
        capsys.readouterr()
        assert program.main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        wrong = "generator.targets.actor.lstm.1.bias_hh is float32 (7,), not float32 (512,)"
        assert "000002.pt" in error and wrong in error
    assert before == {p: p.read_bytes() for p in (place / "models").rglob("*") if p.is_file()}
