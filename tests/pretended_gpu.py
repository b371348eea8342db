"""A pretended GPU for machines without one: what would go wrong on CUDA goes wrong here, and what it costs is counted.

    with PretendedGPU() as gpu:
        train.main(["--device", "cuda", ...])          # or a trainer of one's own, with torch.device("cuda")
    gpu.launches.total(), gpu.waits                     # operations launched, places where the CPU waited for the GPU

A pretended tensor says that it lies on cuda:0, to PyTorch's C++ as well: autocast, the fused LSTM cell, cuDNN's
BatchNorm and the CUDA branches of Python code are chosen as on a GPU. Its numbers lie on the CPU and are computed
there, so what depends on them (`.item()`, masks, checkpoints, pictures) works. Held to the rules of a GPU are:

* tensors that meet lie on one device (0-dimensional CPU tensors may join pointwise operations, CPU indices index)
* random generators lie where the numbers are drawn, and have CUDA's state of 16 bytes
* fused Adam: parameters, gradients, moments and step counters on the GPU, alike in dtype and in strides
* Python's `numpy()` on a CUDA tensor raises
* CUDA graphs (pretended_graphs.py)
* with referee=True each operation runs under FakeTensorMode as well, which has PyTorch's own rules for devices, shapes
  and dtypes

Not seen: whether memory is pinned, what kernels compute (TF32, their choice, determinism), how much memory and time
they take, streams, several GPUs.

Shims: torch.cuda's queries and lazy start, torch.Generator, nn.Module.to (parameters are swapped, for `param.data =`
does not know subclasses), pinned memory, the list of types that foreach takes. And one in C++: autograd asks a CUDA
build without a GPU for its primary context and fails; `quiet_hooks` makes the answer "none". It needs a C++
compiler (3 seconds): `needs_compiler` skips tests where there is none.
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
from pretended_tensors import (
    CUDA,
    EMULATED,
    Pretended,
    check_fused,
    kernels,
    module_to,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")

# Operations that launch nothing, beside views.
NO_LAUNCH = {
    "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh",
    "_unsafe_view", "_reshape_alias", "is_same_size", "set_", "resize_", "is_pinned",
}  # fmt: skip
DRAWS = {"randn", "rand", "randint", "randperm", "normal_", "uniform_", "random_", "bernoulli", "bernoulli_", "normal"}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount"}
MOVES = {"copy_", "_to_copy", "_copy_from", "clone", "to"}

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
    """Lets autograd run on tensors that say they lie on a GPU, in this process. Raises RuntimeError if that fails."""
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
    """torch.Generator, on the CPU or on the pretended GPU: there its state is seed and offset, 16 bytes."""

    known = weakref.WeakValueDictionary()  # by what operations are given: they see another Python object

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        where = torch.device(device)
        self.where = CUDA if where.type == "cuda" else where
        self.seed_now, self.offset = REAL_GENERATOR.initial_seed(self), 0
        Generator.known[self._cdata] = self
        return self

    @property
    def device(self):
        """Where it draws."""
        return self.where

    def manual_seed(self, seed: int):
        """As torch.Generator."""
        super().manual_seed(seed)
        self.seed_now, self.offset = seed % 2**64, 0
        return self

    def initial_seed(self) -> int:
        """As torch.Generator."""
        return self.seed_now if self.where.type == "cuda" else super().initial_seed()

    def get_state(self) -> Tensor:
        """As torch.Generator: on the CPU, wherever it draws."""
        if self.where.type == "cpu":
            return super().get_state()
        return torch.frombuffer(bytearray(struct.pack("<QQ", self.seed_now, self.offset)), dtype=torch.uint8)

    def set_state(self, state: Tensor):
        """As torch.Generator."""
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
        """As torch.Generator."""
        other = Generator(self.where)
        other.set_state(self.get_state())
        return other

    def next_host(self) -> torch.Generator:
        """A CPU generator for the next draw on the GPU."""
        digest = hashlib.blake2b(struct.pack("<QQ", self.seed_now, self.offset), digest_size=7).digest()
        self.offset += 4
        return REAL_GENERATOR().manual_seed(int.from_bytes(digest, "little"))


REAL_GENERATOR = torch.Generator


def program_line() -> str:
    """The innermost line of the program that is being executed: "agent.py:106 update_critic"."""
    frame = sys._getframe(2)
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.parent == ROOT or ROOT / "magnet" in path.parents:
            return f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class Event:
    """torch.cuda.Event: who waits for one while the GPU has nothing else to do leaves it idle."""

    def __init__(self, gpu):
        self.gpu, self.launched = gpu, None

    def record(self) -> None:
        """As torch.cuda.Event."""
        self.launched = self.gpu.launches.total()

    def synchronize(self) -> None:
        """As torch.cuda.Event; a wait if nothing was launched meanwhile."""
        if self.gpu.launches.total() == self.launched:
            self.gpu.waits[f"event {program_line()}"] += 1


class PretendedGPU(TorchDispatchMode):
    """Within, torch sees one GPU. Counts what is launched there (`launches`), and where the CPU waits (`waits`)."""

    prepared = False

    def __init__(self, capability=(8, 6), free: int = 6 * GIB, total: int = 8 * GIB, referee: bool = False):
        super().__init__()
        if not PretendedGPU.prepared:
            quiet_hooks()
            PretendedGPU.prepared = True
        self.capability, self.free, self.total = capability, free, total
        self.fakes = None
        if referee:
            from torch._subclasses import FakeTensorMode

            self.fakes = FakeTensorMode()
        self.known = set()
        self.recording = None  # the graph that operations are recorded for
        self.stream = "default"  # the current one
        self.forget()

    def forget(self) -> None:
        """Begins the counts anew."""
        self.launches, self.waits, self.kernels, self.unseeded = Counter(), Counter(), Counter(), Counter()

    # Being there

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
        self.owned = contextlib.ExitStack()
        for name, answer in answers.items():
            self.owned.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        patches = [
            (torch, "Generator", Generator), (nn.Module, "to", module_to),
            (torch.utils._foreach_utils, "_foreach_supported_types", [Tensor, Pretended]),
            (torch.cuda, "is_current_stream_capturing", lambda: self.recording is not None),
            (torch.cuda, "current_stream", lambda: self.stream), (torch.cuda, "stream", self.on_stream),
            (torch.cuda, "Event", lambda: Event(self)),
            (torch.cuda, "CUDAGraph", Graph), (torch.cuda, "graph", recording(self)),
            (sys.modules["torch.optim.optimizer"], "_foreach_supported_types", [Tensor, nn.Parameter, Pretended]),
        ]  # fmt: skip
        for owner, name, new in patches:
            self.owned.enter_context(mock.patch.object(owner, name, new))
        self.owned.enter_context(torch.autograd.set_multithreading_enabled(False))  # modes are of one thread
        before = torch._C._only_lift_cpu_tensors()  # new_tensor and torch.tensor make it on the CPU, then move it
        torch._C._set_only_lift_cpu_tensors(True)
        self.owned.callback(torch._C._set_only_lift_cpu_tensors, before)
        return super().__enter__()

    def __exit__(self, *failure):
        super().__exit__(*failure)
        self.owned.close()
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
        """Executes `func` on the CPU, if it would work on a GPU."""
        flat, form = tree_flatten((args, kwargs))
        ours = [x for x in flat if isinstance(x, Pretended)]
        asked = kwargs.get("device")
        name = func.overloadpacket.__name__
        if kwargs.pop("pin_memory", None) or name == "_pin_memory":
            return args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
        if not ours and (asked is None or asked.type != "cuda"):
            self.refuse_foreign(kwargs.get("generator"), "cpu")
            return func(*args, **kwargs)
        lies_on_gpu = asked.type == "cuda" if asked is not None else True
        others = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Pretended) and x.device.type == "cpu"]
        if ours and others:
            self.refuse_mixed(func, name, args, others)
        if self.fakes is not None:
            self.referee(func, name, flat, form)
        generator = self.refuse_foreign(kwargs.get("generator"), "cuda" if lies_on_gpu else "cpu")
        if generator is not None and lies_on_gpu:
            kwargs = kwargs | {"generator": generator.next_host()}
        elif name in DRAWS and lies_on_gpu:
            self.unseeded[f"{name} {program_line()}"] += 1
        self.count(func, name, args, kwargs, ours, others, lies_on_gpu)

        known = {}

        def lent(x):
            if isinstance(x, Pretended):
                known[id(x.host)] = x
                return x.host
            return x

        host_args, host_kwargs = tree_map(lent, (args, kwargs))
        if asked is not None:
            host_kwargs["device"] = torch.device("cpu")
        work = functools.partial(EMULATED[name], func) if name in EMULATED else func
        if self.recording is not None:
            self.recording.keep(func, name, (host_args, host_kwargs))
        out = work(*host_args, **host_kwargs)
        if self.recording is not None and name not in NO_LAUNCH and not func.is_view:
            self.recording.note(work, host_args, host_kwargs, generator, out)
        if name == "_to_copy" and not lies_on_gpu and not ours:
            return out
        if not lies_on_gpu:
            return out
        return tree_map(lambda x: known.get(id(x), Pretended(x)) if isinstance(x, Tensor) else x, out)

    @staticmethod
    def refuse_foreign(generator: torch.Generator | None, kind: str) -> "torch.Generator | None":
        """The generator as its maker knows it. Raises RuntimeError if it lies elsewhere than the numbers."""
        if generator is None:
            return None
        generator = Generator.known.get(generator._cdata, generator)
        if generator.device.type != kind:
            raise RuntimeError(f"Expected a '{kind}' device type for generator but found '{generator.device.type}'")
        return generator

    def refuse_mixed(self, func, name: str, args, others: list[Tensor]) -> None:
        """Raises RuntimeError if tensors of the CPU must not join this operation on the GPU."""
        if name in MOVES:
            return
        if name in ("index", "_unsafe_index", "index_put_", "index_put", "_index_put_impl_"):
            values = [x for x in args[2:] if isinstance(x, Tensor) and not isinstance(x, Pretended) and x.dim()]
            if isinstance(args[0], Pretended) and not values:
                return
        elif torch.Tag.pointwise in func.tags and all(x.dim() == 0 for x in others):
            if not (func._schema.is_mutable and any(x is args[0] for x in others)):
                return
        elif name in ("fill", "fill_", "masked_fill", "masked_fill_", "where", "lerp", "lerp_"):
            if all(x.dim() == 0 for x in others):
                return
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func}, {program_line()})"
        )

    def referee(self, func, name: str, flat: list, form) -> None:
        """Runs the operation under FakeTensorMode: raises what that raises."""
        if name in WAITING or name in EMULATED or any(isinstance(x, Tensor) and x.dtype == torch.bool for x in flat):
            return
        from torch._subclasses.fake_tensor import FakeTensor

        asked = [(x.shape, x.stride(), x.dtype, isinstance(x, Pretended)) if isinstance(x, Tensor) else x for x in flat]
        key = repr((func, asked, form))
        if key in self.known:  # it was asked before
            return
        self.known.add(key)

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

    def count(self, func, name, args, kwargs, ours, others, lies_on_gpu) -> None:
        """Notes what the operation launches, and whether the CPU waits."""
        indices = args[1] if name in ("index", "index_put_", "index_put", "_index_put_impl_") else ()
        masked = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        here = None
        if name in WAITING and ours or masked:
            here = f"{name}{' by a mask' if masked else ''} {program_line()}"
        elif name == "_to_copy" and ours and not lies_on_gpu:
            here = f"GPU to CPU {program_line()}"
        elif name == "_to_copy" and not ours and lies_on_gpu and not kwargs.get("non_blocking"):
            here = f"CPU to GPU {program_line()}"
        elif name == "copy_" and others and not (len(args) > 2 and args[2] or kwargs.get("non_blocking")):
            here = f"{'CPU to GPU' if isinstance(args[0], Pretended) else 'GPU to CPU'} {program_line()}"
        elif indices and others:
            here = f"CPU to GPU, indices {program_line()}"
        if here:
            self.waits[here] += 1
            if self.recording is not None:
                raise RuntimeError(f"operation not permitted when stream is capturing: {here}")
        if name in NO_LAUNCH or func.is_view:
            return
        where = program_line()
        self.launches[name, where] += 1
        self.kernels[name, where] += kernels(name, args)
        if name == "_fused_adam_":
            check_fused(args)
