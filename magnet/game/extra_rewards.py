"""Extra rewards: functions of state and image, which the generators earn in addition to log D_a(G(z)).

    reward(states, images) -> numbers

states and images are uint8 arrays (B, 3, S, S), the numbers floats (B,). The function may be any Python code (Pillow,
scikit-learn, another process), since its gradient is never used. A reward critic learns it (`RewardCritic` in
agents/networks.py). These are shipped:

    resemble        how alike image and state are: minus the mean absolute difference of 8 x 8 averages
    jpeg            minus the kilobytes of the image as a JPEG: how well it compresses
    incompressible  these kilobytes (both: Black et al. 2023, DDPO, arXiv 2305.13301, section 5.1)
    smile           the logit that the image smiles, by a small classifier (smile.py)

Any other one is a file: `--extra-reward my_reward.py` (examples/my_reward.py). A file is executed only if the command
line names it.
"""

import hashlib
import importlib.util
import io
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from magnet.game.smile import smile
from magnet.support.errors import UserError

Reward = Callable[[np.ndarray, np.ndarray], np.ndarray]

CELLS = 8  # `resemble` compares 8 x 8 averages
JPEG_QUALITY = 95  # as in DDPO
LARGEST = 1e15  # bound of rewards, whose squares are averaged in float32
AVERAGED_UPDATES = 100  # a running mean over fewer updates would follow the noise of single batches


def cell_means(images: np.ndarray) -> np.ndarray:
    """uint8 (B, 3, S, S) -> the mean of each of 8 x 8 squares, (B, 3, 8, 8) in [0, 1]."""
    count, channels, side, _ = images.shape
    squares = images.reshape(count, channels, CELLS, side // CELLS, CELLS, side // CELLS)
    return squares.mean(axis=(3, 5), dtype=np.float32) / 255


def resemble(states: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Minus the mean absolute difference of the 8 x 8 averages: (B,) in [-1, 0]. Two faces of CelebA have -0.26."""
    return -np.abs(cell_means(states) - cell_means(images)).mean(axis=(1, 2, 3))


def incompressible(states: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Kilobytes (1,000 bytes) of each image as a JPEG of quality 95: (B,)."""
    sizes = []
    for pixels in images.transpose(0, 2, 3, 1):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=JPEG_QUALITY)
        sizes.append(file.tell() / 1000)
    return np.array(sizes)


def jpeg(states: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Minus `incompressible`: (B,)."""
    return -incompressible(states, images)


EXTRA_REWARDS: dict[str, Reward] = {
    "resemble": resemble, "jpeg": jpeg, "incompressible": incompressible, "smile": smile,
}  # fmt: skip


@dataclass(frozen=True)
class ExtraReward:
    """An extra reward with its name. It checks what the function returns."""

    name: str  # the name of a shipped reward, or the path of a file
    function: Reward
    digest: str  # identifies the function; a resumed run must have the same one

    def __call__(self, states: Tensor, images: Tensor) -> Tensor:
        """The reward of each image beside its state: uint8 (B, 3, S, S) on the CPU, two -> (B,) float32.

        Raises UserError if the function raises, writes to its arguments, or does not return B numbers below 1e15.
        """
        given = states.numpy().copy(), images.numpy().copy()
        try:
            with own_torch_settings():
                values = np.asarray(self.function(*given), dtype=np.float64)
        except (KeyboardInterrupt, UserError):
            raise
        except BaseException as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.name]
            where = f" in line {lines[-1]}" if lines else ""
            raise self._fault(f"raised {type(error).__name__}{where} ({describe(error)})") from error
        if values.shape != (len(states),):
            raise self._fault(f"gave an array {values.shape} for {len(states)} images, not ({len(states)},)")
        if (wrong := values[~(np.abs(values) < LARGEST)]).size:  # NaN is below nothing
            raise self._fault(f"gave {wrong[0]}, which is no number below {LARGEST:g}")
        if not all(np.array_equal(one, tensor.numpy()) for one, tensor in zip(given, (states, images), strict=True)):
            raise self._fault("changed the images that it was given")
        return torch.from_numpy(values).float()

    def _fault(self, what: str) -> UserError:
        return UserError(
            f"The extra reward {self.name} {what}; fix its function `reward`, then begin anew (`--init RUN` takes the "
            f"networks of a run that this error ended)."
        )


@contextmanager
def own_torch_settings() -> Iterator[None]:
    """Disables gradients in the block. Afterwards PyTorch has its former grad mode and default dtype."""
    dtype = torch.get_default_dtype()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def describe(error: BaseException) -> str:
    """The text of an exception, or a substitute where it has none."""
    try:
        return str(error)
    except Exception:
        return "without a text"


def load_extra_reward(name: str, digest: str | None = None) -> ExtraReward:
    """The shipped reward `name`, or the function `reward` of the Python file `name`, which is executed.

    digest: the expected digest; nothing is executed if it differs. Raises UserError then, if there is no such reward,
    and if the file cannot be executed.
    """
    path, source = Path(name), b""
    if name not in EXTRA_REWARDS and path.suffix != ".py":
        shipped = ", ".join(EXTRA_REWARDS)
        raise UserError(f"--extra-reward is {name!r}, but must be one of {shipped}, or a file that ends in .py.")
    if name not in EXTRA_REWARDS:
        try:
            source = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--extra-reward: cannot read {path} ({reason}); name another file.") from error
    own = name if name in EXTRA_REWARDS else hashlib.sha256(source).hexdigest()[:16]
    if digest not in (None, own):
        raise UserError(
            f"--extra-reward {name} is not the extra reward that the run learned: give that one, or begin a new run "
            f"with its networks (`--init RUN`)."
        )
    return ExtraReward(name, EXTRA_REWARDS.get(name) or execute(path, source), own)


def execute(path: Path, source: bytes) -> Reward:
    """Executes the file as a module and returns its function `reward`. Raises UserError."""
    folder = str(path.absolute().parent)
    if folder not in sys.path:  # the file can import its neighbours, as in `python3 FILE`
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # pickle, and so multiprocessing, looks for its functions there
    try:
        with own_torch_settings():
            exec(compile(source, str(path), "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {describe(error)}"
        raise UserError(f"--extra-reward: {path} cannot run ({reason}); `python3 {path}` shows where.") from error
    if not callable(getattr(module, "reward", None)):
        raise UserError(f"--extra-reward: {path} defines no function `reward`; see examples/my_reward.py.")
    return module.reward


class RewardNormaliser:
    """A running mean and variance of rewards.

    At first all batches have equal weight. After `AVERAGED_UPDATES` updates each new batch has a weight of 1 %.
    """

    def __init__(self, device: torch.device):
        self.updates = 0
        self.mean, self.variance = torch.zeros(2, dtype=torch.float32, device=device).unbind()

    def update(self, values: Tensor) -> None:
        """Updates mean and variance with a batch of rewards of any shape, on the device."""
        self.updates += 1
        share = 1 / min(self.updates, AVERAGED_UPDATES)
        self.mean.lerp_(values.mean(), share)
        self.variance.lerp_((values - self.mean).square().mean(), share)

    def standardise(self, values: Tensor) -> Tensor:
        """(values - mean) / deviation, of the same shape; finite even where all rewards were equal."""
        return (values - self.mean) * self.variance.clamp_min(1e-30).rsqrt()

    def state_dict(self) -> dict:
        """A number and tensors."""
        return {"updates": self.updates, "mean": self.mean.clone(), "variance": self.variance.clone()}

    def load_state_dict(self, saved: dict) -> None:
        """Restores what `state_dict` returned."""
        self.updates = saved["updates"]
        self.mean.copy_(saved["mean"])
        self.variance.copy_(saved["variance"])


class HostCopy:
    """Copies of tensors in the computer's memory, which a GPU makes while it computes. A CPU copies nothing."""

    def __init__(self, *tensors: Tensor):
        """tensors: on one device."""
        self.tensors, self.arrived = tensors, None
        if tensors[0].device.type == "cuda":
            pinned = (torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors)
            self.tensors = [place.copy_(one, non_blocking=True) for place, one in zip(pinned, tensors, strict=True)]
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def wait(self) -> list[Tensor]:
        """Waits for the copies and returns them."""
        if self.arrived:
            self.arrived.synchronize()
        return list(self.tensors)
