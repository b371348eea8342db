"""CUDA graphs on the pretended GPU: a recording of operations that is replayed on the same memory.

As on a GPU, nothing is computed while a graph is recorded: what the operations wrote is put back, and random generators
stay where they were. While recording, what CUDA refuses raises RuntimeError: waiting for the GPU, copies from the CPU,
a generator that the graph does not know. What Python does beside the operations happens once, not again.
"""

from torch import Tensor
from torch.utils._pytree import tree_flatten

HIDDEN_WRITES = ("native_batch_norm", "cudnn_batch_norm")  # to running statistics, which their schemas do not declare


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self):
        self.tape, self.generators, self.before, self.replays = [], [], {}, 0

    def register_generator_state(self, generator) -> None:
        self.generators.append(generator)

    def begin(self) -> None:
        """Operations are recorded from here on."""
        self.offsets = [generator.offset for generator in self.generators]

    def end(self) -> None:
        """Puts back what the recorded operations have changed."""
        for storage, contents in self.before.values():
            storage.copy_(contents)
        for generator, offset in zip(self.generators, self.offsets, strict=True):
            generator.offset = offset
        self.before = {}

    def keep(self, func, name: str, arguments) -> None:
        """Before an operation: copies what it is going to overwrite."""
        if func._schema.is_mutable or name in HIDDEN_WRITES:
            for tensor in tree_flatten(arguments)[0]:
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self.before:
                        self.before[storage.data_ptr()] = storage, storage.clone()

    def note(self, work, args, kwargs, generator, out) -> None:
        """After an operation: records it. work: computes it on the CPU; generator: the source of its random numbers."""
        if generator is not None and generator not in self.generators:
            raise RuntimeError("a graph must know the generators that are used in it: register_generator_state")
        self.tape.append((work, args, kwargs, generator, out))

    def replay(self) -> None:
        """Executes the recorded operations again; each writes its results to the same memory."""
        self.replays += 1
        for work, args, kwargs, generator, out in self.tape:
            if generator is not None:
                kwargs = kwargs | {"generator": generator.next_host()}
            new = work(*args, **kwargs)
            for place, value in zip(tree_flatten(out)[0], tree_flatten(new)[0], strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def recording(gpu):
    """The replacement of torch.cuda.graph on the GPU `gpu`."""

    class Recording:
        def __init__(self, graph, pool=None):
            self.graph = graph

        def __enter__(self):
            self.graph.begin()
            gpu.recording = self.graph

        def __exit__(self, kind, *_):
            gpu.recording = None
            self.graph.end()
            if kind:  # torch.cuda.graph leaves its own stream the current one
                gpu.stream = "of the recording"
                raise RuntimeError("operation failed due to a previous error during capture")

    return Recording
