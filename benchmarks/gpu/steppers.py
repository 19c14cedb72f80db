"""Ways to run a step: the eager model, the compiled model, and this package's step over rings."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.gpu import flop
from benchmarks.gpu.bench import Bench
from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.model import State
from e3d_deploy.runtime.backends.torch_ring import FORMS, LOW, RingStep, compiled
from e3d_deploy.tf32 import arithmetic

OURS = ("frozen-memory", "conv2d", "norms")
"""Rewrites of `e3d_deploy.step` that `Rings` uses by default."""


class Stepper(Protocol):
    """One way to step a batch of streams."""

    precision: str

    def step(self, frame: Tensor) -> Tensor:
        """Step with a frame [B, C, H, W]; return the prediction [B, C, H, W], which the next call may overwrite."""
        ...

    def flop_per_stream(self) -> int:
        """Return the number of operations of a step with a full history, per stream."""
        ...


class Eager:
    """The unchanged model, with a history that grows until it is full.

    Args:
        autocast: data type of automatic mixed precision; None for none.
        channels_last: store the weights in the memory format `channels_last_3d`.
    """

    def __init__(
        self,
        bench: Bench,
        batch: int,
        *,
        precision: str,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        self.precision, self.autocast, self.device = precision, autocast, bench.device
        self.model = bench.model
        if channels_last:
            self.model = bench.copy_of_model().to(memory_format=torch.channels_last_3d)
        self.state, self.steps = bench.model.initial_state(batch), 0

    def step(self, frame: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            prediction, self.state = self.model.step(frame, self.state)
        self.steps += 1
        return prediction

    def states(self) -> dict[str, Tensor]:
        """Return the state as the tensors of the contract, by name."""
        return rings_of(self.model.config, self.state, self.steps)

    def flop_per_stream(self) -> int:
        return flop.by_paper(self.model.config, self.model.config.history_length)


class NaiveCompiled:
    """The unchanged model, compiled by torch.compile, with a full history.

    Each step starts from the same state. So the times do not include the copies of states that a user would have to
    make.
    """

    def __init__(
        self, bench: Bench, batch: int, *, precision: str, mode: str, autocast: torch.dtype | None = None
    ) -> None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
        model, self.config, self.precision, self.on_gpu = bench.model, bench.config, precision, bench.on_gpu
        self.state = full_state(bench, batch)
        for tensor in torch.utils._pytree.tree_leaves(self.state):
            # Without this mark, the CUDA graph of torch.compile copies the tensor in each call.
            torch._dynamo.mark_static_address(tensor)
        kind = bench.device.type

        def step(frame: Tensor, state: State) -> tuple[Tensor, tuple[object, ...]]:
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                prediction, next_state = model.step(frame, state)
            return prediction, tuple(next_state)  # PyTorch 2.11 fails to return a named tuple from compiled code

        self.compiled = torch.compile(step, dynamic=False, **compiler(bench, mode))

    def step(self, frame: Tensor) -> Tensor:
        if self.on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        prediction, _ = self.compiled(frame, self.state)
        return prediction

    def flop_per_stream(self) -> int:
        return flop.by_paper(self.config, self.config.history_length)


class Rings:
    """This package's step over rings; each step reads one of two sets of states and writes the other.

    Args:
        captured: capture a CUDA graph for each direction between the sets. On a CPU nothing is captured.
        mode: mode of torch.compile; None does not compile.
        unmasked: use a step without a mask once the rings are full. Only this step is then compiled.
        in_place: share the rings between both sets, and store them in the data type of the products. A step overwrites
            one slot.
        options: further arguments of `RingStep`.
    """

    def __init__(
        self,
        bench: Bench,
        batch: int,
        *,
        precision: str,
        captured: bool = True,
        mode: str | None = None,
        unmasked: bool = False,
        in_place: bool = False,
        **options: Any,
    ) -> None:
        self.config, self.precision, self.options = bench.config, precision, {"rewrites": OURS, **options}
        self.unmasked, self.in_place, self.device = unmasked, in_place, bench.device
        ring = RingStep(bench.model, precision=precision, in_place=in_place, **self.options).to(bench.device)
        self.saver = ring
        built: Callable[..., Tensor] = compiled(ring, **compiler(bench, mode)) if mode else ring
        self.steps_by_form: dict[bool, Callable[..., Tensor]] = {False: ring if unmasked else built, True: built}
        self.names = [tensor.name for tensor in contract.states(self.config, batch)]
        self.reads, self.writes = self._sets(batch)
        if mode and not captured:
            for tensor in (*self.reads[0], *self.reads[1], *self.writes[0], *self.writes[1]):
                # Without this mark, torch.compile makes no CUDA graph of a step that writes to its arguments.
                torch._dynamo.mark_static_address(tensor)
        self.frame, self.side, self.written = bench.frames(batch, 1)[0], 0, 1
        self.graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        if captured and bench.on_gpu:
            self.capture()
            self.put(initial(self.config, batch, bench.device))

    def _sets(self, batch: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Return the tensors that a step reads and those that it writes, for each direction between the sets."""
        sets = [list(initial(self.config, batch, self.device).values()) for _ in range(2)]
        reads, writes = [list(one) for one in sets], [list(sets[1 - side]) for side in (0, 1)]
        if self.in_place:
            dtype = LOW.get(self.precision, torch.float32)
            for place in (place for place, name in enumerate(self.names) if name.startswith("history.")):
                shared = sets[0][place].to(dtype)
                for side in (0, 1):
                    reads[side][place], writes[side][place] = shared, torch.zeros_like(shared[:, 0])
        return reads, writes

    def capture(self) -> None:
        """Capture the step in both directions.

        Some steps are run first, in which PyTorch compiles and chooses the algorithms of convolutions.
        """
        forms = [(side, full) for full in ((False, True) if self.unmasked else (False,)) for side in (0, 1)]
        with arithmetic(self.precision):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    for form in forms:
                        self._run(*form)
            torch.cuda.current_stream().wait_stream(stream)
            pool = torch.cuda.graph_pool_handle()
            for form in forms:
                graph = torch.cuda.CUDAGraph()
                # The outer context restores the stream, because a failed capture leaves its own stream selected.
                with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
                    prediction = self._run(*form)
                self.graphs[form] = graph, prediction

    def _run(self, side: int, full: bool, frame: Tensor | None = None) -> Tensor:
        step = self.steps_by_form[full]
        if self.in_place:
            self.saver.save(self.reads[side], self.writes[side])
        return step(self.frame if frame is None else frame, self.reads[side], self.writes[side], full=full)

    def put(self, states: Mapping[str, Tensor]) -> None:
        """Continue from these states, which are copied because captured graphs have fixed addresses."""
        self.side, self.written = 0, int(states["written"].min())
        for name, tensor in zip(self.names, self.reads[0], strict=True):
            tensor.copy_(states[name])

    def step(self, frame: Tensor) -> Tensor:
        side, full = self.side, self.unmasked and self.written >= self.config.history_length
        self.side, self.written = 1 - side, self.written + 1
        if self.graphs:
            self.frame.copy_(frame)
            graph, prediction = self.graphs[side, full]
            graph.replay()
            return prediction
        return self._run(side, full, frame)

    def states(self) -> dict[str, Tensor]:
        """Return the current states by name."""
        return dict(zip(self.names, self.reads[self.side], strict=True))

    def flop_per_stream(self) -> int:
        return flop.executed(self.config, self.config.history_length, tuple(self.options["rewrites"]))


def compiler(bench: Bench, mode: str) -> dict[str, Any]:
    """Return arguments of torch.compile; on a CPU it only traces, because compilation takes minutes there."""
    return {"mode": mode} if bench.on_gpu else {"backend": "eager"}


def initial(config: ModelConfig, batch: int, device: torch.device) -> dict[str, Tensor]:
    """Return the states before the first frame, in the order of the contract."""
    return {
        tensor.name: torch.full(
            tensor.shape, 1 if tensor.name == "written" else 0, dtype=getattr(torch, tensor.dtype), device=device
        )
        for tensor in contract.states(config, batch)
    }


def full_state(bench: Bench, batch: int) -> State:
    """Return a state of the model whose history is full."""
    state = bench.model.initial_state(batch)
    for frame in bench.frames(batch, bench.config.history_length):
        _, state = bench.model.step(frame, state)
    return state


def rings_of(config: ModelConfig, state: State, steps: int) -> dict[str, Tensor]:
    """Return a state of the model as the tensors of the contract, by name.

    Args:
        steps: number of steps that the state has seen.
    """
    K, batch = config.history_length, len(state.memory)
    written = contract.written_after(steps, K)
    tensors = initial(config, batch, state.memory.device)
    tensors["written"].fill_(written)
    tensors |= {"memory": state.memory, "window": state.window}
    for layer, entries in enumerate(state.history):
        tensors |= {f"hidden.{layer}": state.hidden[layer], f"cell.{layer}": state.cell[layer]}
        tensors[f"history.{layer}"][:, contract.slots(written, K)] = torch.stack([one.float() for one in entries], 1)
    return tensors
