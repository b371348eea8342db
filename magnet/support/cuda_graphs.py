"""The trainer's step as CUDA graphs: record its operations once, then launch them all together.

A GPU computes a small step faster than Python can launch its hundreds of operations. A graph repeats the operations on
the same memory, with the same Python numbers. So each step copies its inputs to where the recorded step had its own.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import dataclasses
import gc
import sys
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

# Steps of a kind before one is recorded: in them Adam makes its moments, and libraries choose their algorithms.
WARMUP_STEPS = 2


def list_inputs(batch) -> list[Tensor]:
    """Lists the inputs of a step, in a batch that has not been acted on (agents/batch.py)."""
    return [batch.state, batch.real, batch.recurrent, batch.replayed_images, *batch.reward_batch.values()]


class RecordedStep:
    """One kind of step as two graphs, of `act` and of `learn`: between them the environment steps."""

    @torch.no_grad()
    def __init__(self, act: Callable, learn: Callable, agents: list, batch, pool):
        """Records a step with the shapes, dtypes and r1 of `batch`, which has not been acted on. It computes nothing.

        Raises RuntimeError if something in the step cannot be recorded.
        """
        state, real, recurrent, replayed_images, *reward_batch = [tensor.clone() for tensor in list_inputs(batch)]
        self.next_observations = (torch.empty_like(state), torch.empty_like(real)) if agents[0].config.gamma else ()
        self.batch = dataclasses.replace(
            batch, state=state, real=real.requires_grad_(batch.real.requires_grad), recurrent=recurrent,
            replayed_images=replayed_images, reward_batch=dict(zip(batch.reward_batch, reward_batch, strict=True)),
            next_observations=self.next_observations or None, acts=[], policy_images=[], played_images=[], outputs=[],
        )  # fmt: skip
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
        # Keep only what the environment and the buffer read. The rest would keep the autograd graph, whose nodes belong
        # to the recording: later steps that are not recorded would have to wait for it.
        self.batch.policy_images = []
        self.batch.acts = [a._replace(action=None, policy=None, embedding=None, is_noise=None) for a in self.batch.acts]
        self.batch.outputs = [
            [output._replace(features=None, logits=output.logits.detach(), classes=None) for output in outputs]
            for outputs in self.batch.outputs
        ]

    @torch.no_grad()
    def load(self, batch) -> None:
        """Copies the inputs of a step."""
        for place, tensor in zip(list_inputs(self.batch), list_inputs(batch), strict=True):
            place.copy_(tensor)
        self.batch.transitions = batch.transitions

    def act(self, batch) -> None:
        """Repeats the recorded `act`, on `self.batch`."""
        self.graphs[0].replay()

    @torch.no_grad()
    def learn(self, batch) -> dict[str, Tensor]:
        """Repeats the recorded `learn`, on `self.batch` after the environment's step. Returns copies of the metrics."""
        for place, tensor in zip(self.next_observations, batch.next_observations or (), strict=True):
            place.copy_(tensor)
        self.graphs[1].replay()
        return dict(zip(self.metrics, torch.stack(list(self.metrics.values())).unbind(), strict=True))


class StepGraphs:
    """Records each kind of step (with R1, with all metrics, with both or neither) after WARMUP_STEPS of them."""

    def __init__(self, agents: list):
        """agents: those whose steps are recorded."""
        self.agents = agents
        self.counts, self.steps, self.pool, self.is_recordable = Counter(), {}, None, True

    def prepare(self, batch, act: Callable, learn: Callable) -> tuple:
        """Counts the step, records its kind if it is due, loads its inputs.

        Returns the batch to go on with, and what acts and learns on it: graphs, or the trainer's `act` and `learn`.
        """
        # The first steps, with an empty replay buffer, have fewer rows.
        kind = (batch.r1, batch.with_metrics, *(len(tensor) for tensor in list_inputs(batch)))
        if self.is_recordable and kind not in self.steps:
            self.counts[kind] += 1
            if self.counts[kind] > WARMUP_STEPS:
                self.record(kind, batch, act, learn)
        if kind not in self.steps:
            return batch, act, learn
        step = self.steps[kind]
        step.load(batch)
        return step.batch, step.act, step.learn

    def record(self, kind: tuple, batch, act: Callable, learn: Callable) -> None:
        """Records a step. If that cannot be, it says why and does not try again."""
        gc.collect()  # the recording would take over the autograd graph of an earlier step
        try:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            with torch.cuda.stream(torch.cuda.current_stream()):  # a recording that fails leaves its own stream current
                self.steps[kind] = RecordedStep(act, learn, self.agents, batch, self.pool)
        except RuntimeError as error:
            self.is_recordable = False
            self.steps.clear()
            for agent in self.agents:  # undo what Python has noted of the half recorded step
                agent.scaler.update(agent.scaler.get_scale())
                agent.random = agent.random.clone_state()  # before PyTorch 2.13 the old one stays in the recording
                for optimizer in agent.optimizers.values():
                    optimizer.zero_grad()
            while error.__context__:  # the first of them is the reason
                error = error.__context__
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"CUDA graphs: the step cannot be recorded ({reason}); training goes on without.", file=sys.stderr)
