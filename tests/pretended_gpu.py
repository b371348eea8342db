"""A pretended GPU for machines without one. It raises CUDA's errors, and counts operations and waits.

    with PretendedGPU() as gpu:
        train.main(["--device", "cuda", ...])          # or a trainer with torch.device("cuda")
    gpu.launches.total(), gpu.waits                     # operations launched, places where the CPU waited for the GPU

A pretended tensor claims to lie on cuda:0, to PyTorch's C++ as well. So PyTorch chooses autocast, the fused LSTM cell,
cuDNN's BatchNorm and the CUDA branches of Python code as on a GPU. Its numbers lie on the CPU and are computed there,
so all that depends on them works (`.item()`, masks, checkpoints, pictures). These rules of a GPU are enforced:

* The tensors of an operation lie on one device. Exceptions: 0-dimensional CPU tensors in pointwise operations, indices.
* Random generators lie on the device of their numbers, and have CUDA's state of 16 bytes.
* Fused Adam: parameters, gradients, moments and step counters lie on the GPU, alike in dtype and in strides.
* Python's `numpy()` on a CUDA tensor raises.
* CUDA graphs (pretended_graphs.py)
* With referee=True each operation also runs under FakeTensorMode, which has PyTorch's own rules for devices, shapes and
  dtypes.

It cannot show whether memory is pinned, what kernels compute (TF32, their choice, determinism), their memory and time,
streams, or several GPUs.

It replaces torch.cuda's queries and lazy start, torch.Generator, nn.Module.to (`param.data =` does not support
subclasses, so parameters are swapped), pinned memory, and the list of types that foreach takes. One replacement is in
C++: autograd asks a CUDA build without a GPU for its primary context and fails; `quiet_hooks` makes the answer "none".
It needs a C++ compiler (3 seconds) and a PyTorch built for CUDA. `needs_both` skips tests where one is missing.
"""

import contextlib
import ctypes
import functools
import hashlib
import shutil
import struct
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from pretended_graphs import Graph, recording
from pretended_tensors import CUDA, EMULATED, Pretended, check_fused, module_to
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
needs_both = pytest.mark.skipif(
    shutil.which("g++") is None or not torch.backends.cuda.is_built(), reason="no C++ compiler, or PyTorch for CPUs"
)

# Operations that launch nothing. Views launch nothing either.
NO_LAUNCH = {
    "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh",
    "_unsafe_view", "_reshape_alias", "is_same_size", "set_", "resize_", "is_pinned",
}  # fmt: skip
DRAWS = {"randn", "rand", "randint", "randperm", "normal_", "uniform_", "random_", "bernoulli", "bernoulli_", "normal"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount"}
MOVES = {"copy_", "_to_copy", "_copy_from", "clone", "to"}
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}
FILLS = {"fill", "fill_", "masked_fill", "masked_fill_", "where", "lerp", "lerp_"}

QUIET = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <sys/mman.h>
#include <unistd.h>
static bool none(const void*, signed char) { return false; }
extern "C" int quiet() {
  auto& hooks = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  void** table = *reinterpret_cast<void***>(&hooks);
  union { bool (at::CUDAHooksInterface::*method)(c10::DeviceIndex) const; std::intptr_t raw[2]; } place;
  place.method = &at::CUDAHooksInterface::hasPrimaryContext;
  void** slot = table + (place.raw[0] - 1) / sizeof(void*);  // Itanium ABI: 1 + offset in the table
  auto page = reinterpret_cast<std::uintptr_t>(slot) & ~static_cast<std::uintptr_t>(getpagesize() - 1);
  if (mprotect(reinterpret_cast<void*>(page), 2 * getpagesize(), PROT_READ | PROT_WRITE)) return 1;
  *slot = reinterpret_cast<void*>(&none);
  return 0;
}
"""


def quiet_hooks() -> None:
    """Lets autograd run on pretended tensors in this process. Raises RuntimeError if that fails."""
    if torch.cuda.device_count():
        raise RuntimeError("this machine has a GPU: use it")
    torch._C._ensureCUDADeviceGuardSet()  # FakeTensorMode does the same
    base = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "quiet.cpp"), Path(folder, "quiet.so")
        source.write_text(QUIET)
        words = ["g++", "-std=c++20", "-w", "-shared", "-fPIC", source, "-o", library, f"-I{base / 'include'}"]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        try:
            subprocess.run([*words, abi, f"-L{base / 'lib'}", "-ltorch_cpu", "-lc10"], check=True, capture_output=True)
            failed = ctypes.CDLL(str(library)).quiet()
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"no C++ compiler that builds against PyTorch: {error}") from error
    if failed:
        raise RuntimeError("the table of CUDA's hooks cannot be written to")


class Generator(torch.Generator):
    """torch.Generator, on the CPU or on the pretended GPU, where its state is seed and offset, 16 bytes."""

    known = weakref.WeakValueDictionary()  # by C++ object, since operations receive another Python object

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        where = torch.device(device)
        self.where = CUDA if where.type == "cuda" else where
        self.seed_now, self.offset = REAL_GENERATOR.initial_seed(self), 0
        Generator.known[self._cdata] = self
        return self

    @property
    def device(self):
        """The device of its numbers."""
        return self.where

    def manual_seed(self, seed: int):
        super().manual_seed(seed)
        self.seed_now, self.offset = seed % 2**64, 0
        return self

    def initial_seed(self) -> int:
        return self.seed_now if self.where.type == "cuda" else super().initial_seed()

    def get_state(self) -> Tensor:
        """As torch.Generator: the state always lies on the CPU."""
        if self.where.type == "cpu":
            return super().get_state()
        return torch.frombuffer(bytearray(struct.pack("<QQ", self.seed_now, self.offset)), dtype=torch.uint8)

    def set_state(self, state: Tensor):
        if isinstance(state, Pretended) or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")
        if self.where.type == "cpu":
            return super().set_state(state)
        if state.numel() != 16:
            raise RuntimeError("RNG state is wrong size")
        seed, offset = struct.unpack("<QQ", bytes(state.tolist()))
        if offset % 4:
            raise RuntimeError("offset must be a multiple of 4")
        self.seed_now, self.offset = seed, offset
        return self

    def clone_state(self):
        other = Generator(self.where)
        other.set_state(self.get_state())
        return other

    def next_host(self) -> torch.Generator:
        """A CPU generator for the next random numbers on the GPU."""
        digest = hashlib.blake2b(struct.pack("<QQ", self.seed_now, self.offset), digest_size=7).digest()
        self.offset += 4
        return REAL_GENERATOR().manual_seed(int.from_bytes(digest, "little"))


REAL_GENERATOR = torch.Generator


@functools.cache  # each operation asks for every file on the stack
def is_of_magnet(path: str) -> bool:
    """Whether the file is a program or a module of the package."""
    return Path(path).parent == ROOT or ROOT / "magnet" in Path(path).parents


def program_line() -> str:
    """The innermost line of MAGNET on the stack: "agent.py:106 update_critic"."""
    frame = sys._getframe(2)
    while frame and not is_of_magnet(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "elsewhere"


class Event:
    """torch.cuda.Event. A wait for it counts if the GPU has nothing else to do meanwhile."""

    def __init__(self, gpu):
        self.gpu, self.launched = gpu, None

    def record(self) -> None:
        self.launched = self.gpu.launches.total()

    def synchronize(self) -> None:
        """As torch.cuda.Event; it counts as a wait if nothing was launched since `record`."""
        if self.gpu.launches.total() == self.launched:
            self.gpu.waits[f"event {program_line()}"] += 1


class PretendedGPU(TorchDispatchMode):
    """A context in which torch has one GPU. Counts `launches` of operations, and `waits` of the CPU by their place."""

    prepared = False

    def __init__(self, capability=(8, 6), free: int = 6 * GIB, total: int = 8 * GIB, referee: bool = False):
        super().__init__()
        if not PretendedGPU.prepared:
            quiet_hooks()
            PretendedGPU.prepared = True
        self.capability, self.free, self.total = capability, free, total
        self.fakes = FakeTensorMode() if referee else None
        self.checked = set()  # operations that the referee has allowed
        self.recording = None  # the graph that records the operations
        self.stream = "default"  # the current one
        self.forget()

    def forget(self) -> None:
        """Resets the counts."""
        self.launches, self.waits, self.unseeded = Counter(), Counter(), Counter()

    # The context

    def __enter__(self):
        Pretended.gpu = self
        properties = SimpleNamespace(
            total_memory=self.total, name="pretended", major=self.capability[0], minor=self.capability[1],
            multi_processor_count=30,
        )  # fmt: skip
        answers = {
            "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "synchronize": None,
            "get_device_capability": self.capability, "get_device_name": "pretended", "is_initialized": True,
            "mem_get_info": (self.free, self.total), "get_device_properties": properties, "manual_seed_all": None,
            "graph_pool_handle": (0, 1), "set_device": None, "max_memory_reserved": 0, "max_memory_allocated": 0,
            "memory_allocated": 0, "reset_peak_memory_stats": None, "is_bf16_supported": True, "empty_cache": None,
        }  # fmt: skip
        self.patches = contextlib.ExitStack()
        for name, answer in answers.items():
            self.patches.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        replacements = [
            (torch, "Generator", Generator), (nn.Module, "to", module_to),
            (torch.utils._foreach_utils, "_foreach_supported_types", [Tensor, Pretended]),
            (torch.cuda, "is_current_stream_capturing", lambda: self.recording is not None),
            (torch.cuda, "current_stream", lambda: self.stream), (torch.cuda, "stream", self.on_stream),
            (torch.cuda, "Event", lambda: Event(self)),
            (torch.cuda, "CUDAGraph", Graph), (torch.cuda, "graph", recording(self)),
            (sys.modules["torch.optim.optimizer"], "_foreach_supported_types", [Tensor, nn.Parameter, Pretended]),
        ]  # fmt: skip
        for owner, name, new in replacements:
            self.patches.enter_context(mock.patch.object(owner, name, new))
        self.patches.enter_context(torch.autograd.set_multithreading_enabled(False))  # a mode belongs to one thread
        before = torch._C._only_lift_cpu_tensors()  # new_tensor and torch.tensor make it on the CPU, then move it
        torch._C._set_only_lift_cpu_tensors(True)
        self.patches.callback(torch._C._set_only_lift_cpu_tensors, before)
        return super().__enter__()

    def __exit__(self, *failure):
        super().__exit__(*failure)
        self.patches.close()
        Pretended.gpu = None

    @contextlib.contextmanager
    def on_stream(self, stream: str):
        """torch.cuda.stream."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.dispatch(func, args, kwargs or {})

    # One operation

    def dispatch(self, func, args, kwargs):
        """Executes `func` on the CPU if a GPU would execute it."""
        name, device = func.overloadpacket.__name__, kwargs.get("device")
        if kwargs.pop("pin_memory", None) or name == "_pin_memory":
            return args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
        flat, form = tree_flatten((args, kwargs))
        on_gpu = [x for x in flat if isinstance(x, Pretended)]
        if not on_gpu and (device is None or device.type != "cuda"):
            self.refuse_foreign(kwargs.get("generator"), "cpu")
            return func(*args, **kwargs)
        result_on_gpu = device.type == "cuda" if device is not None else True
        on_cpu = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Pretended) and x.device.type == "cpu"]
        if on_gpu and on_cpu:
            self.refuse_mixed(func, name, args, on_cpu)
        if self.fakes is not None:
            self.check_with_fakes(func, name, flat, form)
        generator = self.refuse_foreign(kwargs.get("generator"), "cuda" if result_on_gpu else "cpu")
        if generator is None and name in DRAWS and result_on_gpu:
            self.unseeded[f"{name} {program_line()}"] += 1
        self.count(func, name, args, kwargs, on_gpu, on_cpu, result_on_gpu)

        host_args, host_kwargs = tree_unflatten([x.host if isinstance(x, Pretended) else x for x in flat], form)
        if generator is not None and result_on_gpu:
            host_kwargs["generator"] = generator.next_host()
        if device is not None:
            host_kwargs["device"] = torch.device("cpu")
        work = functools.partial(EMULATED[name], func) if name in EMULATED else func
        if self.recording is not None:
            self.recording.keep(func, name, (host_args, host_kwargs))
        out = work(*host_args, **host_kwargs)
        if self.recording is not None and name not in NO_LAUNCH and not func.is_view:
            self.recording.note(work, host_args, host_kwargs, generator, out)
        if not result_on_gpu:
            return out
        known = {id(x.host): x for x in on_gpu}  # an operation in place returns its argument, the same tensor
        return tree_map(lambda x: known.get(id(x), Pretended(x)) if isinstance(x, Tensor) else x, out)

    @staticmethod
    def refuse_foreign(generator: torch.Generator | None, kind: str) -> "torch.Generator | None":
        """The Python object of the generator. Raises RuntimeError if it lies on another device than the numbers."""
        if generator is None:
            return None
        generator = Generator.known.get(generator._cdata, generator)
        if generator.device.type != kind:
            raise RuntimeError(f"Expected a '{kind}' device type for generator but found '{generator.device.type}'")
        return generator

    def refuse_mixed(self, func, name: str, args, on_cpu: list[Tensor]) -> None:
        """Raises RuntimeError if tensors on the CPU must not take part in this operation on the GPU."""
        if name in INDEXING | {"_unsafe_index"}:  # indices may lie on the CPU, values may not
            values = [x for x in args[2:] if isinstance(x, Tensor) and not isinstance(x, Pretended) and x.dim()]
            allowed = isinstance(args[0], Pretended) and not values
        else:
            scalars = all(x.dim() == 0 for x in on_cpu)
            overwritten = func._schema.is_mutable and any(x is args[0] for x in on_cpu)
            takes_scalars = torch.Tag.pointwise in func.tags or name in FILLS
            allowed = name in MOVES or takes_scalars and scalars and not overwritten
        if not allowed:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func}, {program_line()})"
            )

    def check_with_fakes(self, func, name: str, flat: list, form) -> None:
        """Runs the operation under FakeTensorMode and raises its errors."""
        if name in WAITING or name in EMULATED or any(isinstance(x, Tensor) and x.dtype == torch.bool for x in flat):
            return
        kinds = [(x.shape, x.stride(), x.dtype, isinstance(x, Pretended)) if isinstance(x, Tensor) else x for x in flat]
        key = repr((func, kinds, form))
        if key in self.checked:
            return
        self.checked.add(key)

        def fake(x):
            if isinstance(x, torch.Generator):
                return None
            if not isinstance(x, Tensor):
                return x
            shape = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
            return FakeTensor(self.fakes, shape, CUDA if isinstance(x, Pretended) else torch.device("cpu"))

        args, kwargs = tree_unflatten([fake(x) for x in flat], form)
        with self.fakes:
            func(*args, **kwargs)

    def count(self, func, name, args, kwargs, on_gpu, on_cpu, result_on_gpu) -> None:
        """Counts what the operation launches, and the wait of the CPU if there is one."""
        indices = args[1] if name in INDEXING else ()
        masked = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        here = None
        if name in WAITING and on_gpu or masked:
            here = f"{name}{' by a mask' if masked else ''} {program_line()}"
        elif name == "_to_copy" and on_gpu and not result_on_gpu:
            here = f"GPU to CPU {program_line()}"
        elif name == "_to_copy" and not on_gpu and result_on_gpu and not kwargs.get("non_blocking"):
            here = f"CPU to GPU {program_line()}"
        elif name == "copy_" and on_cpu and not (len(args) > 2 and args[2] or kwargs.get("non_blocking")):
            here = f"{'CPU to GPU' if isinstance(args[0], Pretended) else 'GPU to CPU'} {program_line()}"
        elif indices and on_cpu:
            here = f"CPU to GPU, indices {program_line()}"
        if here:
            self.waits[here] += 1
            if self.recording is not None:
                raise RuntimeError(f"operation not permitted when stream is capturing: {here}")
        if name in NO_LAUNCH or func.is_view:
            return
        self.launches[name, program_line()] += 1
        if name == "_fused_adam_":
            check_fused(args)
