"""The trainer's step as CUDA graphs: what it launches is recorded once, and from then on launched as a whole.

A GPU computes a small step faster than Python can launch its hundreds of operations. A graph repeats the operations on
the same memory, with the same Python numbers: each step's inputs are copied to where the recorded step had its own.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import copy
import gc
import sys
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

# Steps of a kind that are not recorded: in them Adam makes its moments, and libraries choose their algorithms.
STEPS_BEFORE = 2


def inputs(batch) -> list[Tensor]:
    """What a step begins with, of a batch that has not been acted on (agents/batch.py)."""
    return [batch.state, batch.real, batch.recurrent, batch.replayed_images, *batch.reward_batch.values()]


class RecordedStep:
    """One kind of step as two graphs, of `act` and of `learn`: between them the environment steps."""

    @torch.no_grad()
    def __init__(self, act: Callable, learn: Callable, agents: list, batch, pool):
        """batch: not acted on yet; its shapes, dtypes and r1 are the recorded step's. Nothing is computed.

        Raises RuntimeError if something in the step cannot be recorded.
        """
        self.batch = copy.copy(batch)
        own = [one.clone() for one in inputs(batch)]
        self.batch.state, real, self.batch.recurrent, self.batch.replayed_images, *reward_batch = own
        self.batch.reward_batch = dict(zip(batch.reward_batch, reward_batch, strict=True))
        self.batch.real = real.requires_grad_(batch.real.requires_grad)
        self.batch.acts, self.batch.policy_images, self.batch.played_images, self.batch.outputs = [], [], [], []
        self.next_observations = ()
        if agents[0].config.gamma:
            self.next_observations = torch.empty_like(batch.state), torch.empty_like(batch.real)
            self.batch.next_observations = self.next_observations
        self.graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
        for graph in self.graphs:
            for agent in agents:
                graph.register_generator_state(agent.random)
        groups = [group for agent in agents for adam in agent.optimizers.values() for group in adam.param_groups]
        for group in groups:
            group["capturable"] = True  # Adam asks for it; a fused one does the same with and without
        try:
            with torch.enable_grad(), torch.cuda.graph(self.graphs[0], pool=pool):
                act(self.batch)
            with torch.enable_grad(), torch.cuda.graph(self.graphs[1], pool=pool):
                self.metrics = learn(self.batch)
        finally:
            for group in groups:
                group["capturable"] = False
        # Of the outputs stays what the environment and the buffer read. The rest would keep the autograd graph, whose
        # nodes belong to the recording: later steps that are not recorded would have to wait for it.
        self.batch.images = []
        self.batch.acts = [
            one._replace(action=None, policy=None, embedding=None, is_noise=None) for one in self.batch.acts
        ]
        self.batch.outputs = [
            [one._replace(features=None, logits=one.logits.detach(), classes=None) for one in outputs]
            for outputs in self.batch.outputs
        ]

    @torch.no_grad()
    def load(self, batch) -> None:
        """Takes the inputs of a step."""
        for place, one in zip(inputs(self.batch), inputs(batch), strict=True):
            place.copy_(one)
        self.batch.transitions = batch.transitions

    def act(self, batch) -> None:
        """As the recorded `act`, on `self.batch`."""
        self.graphs[0].replay()

    @torch.no_grad()
    def learn(self, batch) -> dict[str, Tensor]:
        """As the recorded `learn`, on `self.batch`, which the environment has stepped with. Metrics are copies."""
        for place, one in zip(self.next_observations, batch.next_observations or (), strict=True):
            place.copy_(one)
        self.graphs[1].replay()
        return dict(zip(self.metrics, torch.stack(list(self.metrics.values())).unbind(), strict=True))


class StepGraphs:
    """Records each kind of step (with R1, with all metrics, with both or neither) once it has been made a few times."""

    def __init__(self, agents: list):
        """agents: those whose steps are recorded."""
        self.agents = agents
        self.counts, self.recorded, self.pool, self.recordable = Counter(), {}, None, True

    def prepare(self, batch, act: Callable, learn: Callable) -> tuple:
        """Counts the step, records its kind if it is due, loads its inputs.

        Returns the batch to go on with, and what acts and learns on it: graphs, or the trainer's `act` and `learn`.
        """
        # The first steps, of an empty replay buffer, have fewer rows.
        kind = (batch.r1, batch.with_metrics, *(len(one) for one in inputs(batch)))
        if self.recordable and kind not in self.recorded:
            self.counts[kind] += 1
            if self.counts[kind] > STEPS_BEFORE:
                self.record(kind, batch, act, learn)
        if kind not in self.recorded:
            return batch, act, learn
        recorded = self.recorded[kind]
        recorded.load(batch)
        return recorded.batch, recorded.act, recorded.learn

    def record(self, kind: tuple, batch, act: Callable, learn: Callable) -> None:
        """Records a step, or says why that cannot be, and does not try again."""
        gc.collect()  # an autograd graph of an earlier step, if it is still there, would be taken for part of this one
        try:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            with torch.cuda.stream(torch.cuda.current_stream()):  # a recording that fails leaves its own stream current
                self.recorded[kind] = RecordedStep(act, learn, self.agents, batch, self.pool)
        except RuntimeError as error:
            self.recordable = False
            self.recorded.clear()
            for agent in self.agents:  # what Python has noted of the half recorded step
                agent.scaler.update(agent.scaler.get_scale())
                agent.random = agent.random.clone_state()  # before PyTorch 2.13 the old one stays in the recording
                for optimizer in agent.optimizers.values():
                    optimizer.zero_grad()
            while error.__context__:  # the first of them is the reason
                error = error.__context__
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"CUDA graphs: the step cannot be recorded ({reason}); training goes on without.", file=sys.stderr)
