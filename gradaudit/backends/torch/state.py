"""PyTorch's global state around an audit: what is covered is the table below and the random generators."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DispatchMode", "Patches", "eager", "optimisers_met", "preserved", "threads"]


def _set_default_device(device: Any) -> None:
    # None is the CPU as well, but without a handler around every call
    torch.set_default_device(None if device.type == "cpu" else device)


#: (get, set) of each setting. Only a setting that differs is set again: some setters have side effects.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_num_threads, torch.set_num_threads),
)


@contextmanager
def preserved() -> Iterator[None]:
    """Leave PyTorch as it was, also after an exception or an interrupt.

    Covered: the random generators of the CPU and, if CUDA is initialised, of all CUDA devices; grad mode, inference
    mode, anomaly detection, default dtype and device, deterministic algorithms, number of threads.
    """
    before = [(get, put, get()) for get, put in _SETTINGS]
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    try:
        # inference mode has no setter, but leaving a block restores what held before it; entering it sets grad mode
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            yield
    finally:
        for get, put, value in before:
            if get() != value:
                put(value)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def threads(n_threads: int | None) -> Iterator[None]:
    """Let PyTorch compute on so many threads meanwhile; None: on as many as are set."""
    before = torch.get_num_threads()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        if n_threads is not None:
            torch.set_num_threads(before)


@contextmanager
def eager() -> Iterator[None]:
    """Let compiled functions run as they are written meanwhile: nobody sees into compiled code."""
    compiles = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
        yield


@contextmanager
def optimisers_met(met: Callable[[Any, Any, Any], Iterable[Tensor]]) -> Iterator[None]:
    """Meanwhile every optimiser that steps is met before, with its arguments.

    Args:
        met: (optimiser, args, kwargs) -> the tensors that it is not to update: it finds no gradient of them.
    """
    hidden: list[tuple[Tensor, Tensor | None]] = []

    def hide(*optimiser_and_arguments: Any) -> None:
        for x in met(*optimiser_and_arguments):
            hidden.append((x, x.grad))
            x.grad = None

    def show(*_: Any) -> None:
        while hidden:
            x, gradient = hidden.pop()
            x.grad = gradient

    with ExitStack() as stack:
        stack.callback(register_optimizer_step_pre_hook(hide).remove)
        stack.callback(register_optimizer_step_post_hook(show).remove)
        stack.callback(show)  # a step that raises has no hook after it
        yield


class DispatchMode(TorchDispatchMode):  # type: ignore[misc]
    """A mode that sees every operator. PyTorch's own would load its compiler, which takes seconds, to be left alone."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Patches:
    """Attributes of classes that are others meanwhile: as long as any thread holds them, so that threads may overlap.

    Args:
        install: puts them in place.
    """

    _MISSING = object()

    def __init__(self, install: Callable[[Patches], None]) -> None:
        self._install = install
        self._lock = threading.RLock()
        self._holders = 0
        self._before: list[tuple[Any, str, Any, Any]] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """In place, also if somebody else lets go."""
        with self._lock:
            self._holders += 1
            try:
                if self._holders == 1:
                    self._install(self)
            except BaseException:
                self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def put(self, cls: Any, name: str, value: Any) -> None:
        """Replace an attribute, if anybody holds."""
        with self._lock:
            if self._holders:
                self._before.append((cls, name, value, cls.__dict__.get(name, self._MISSING)))
                setattr(cls, name, value)

    def _leave(self) -> None:
        with self._lock:
            self._holders -= 1
            while not self._holders and self._before:
                cls, name, value, raw = self._before.pop()
                if cls.__dict__.get(name) is not value:  # somebody else has changed it meanwhile
                    continue
                if raw is self._MISSING:
                    delattr(cls, name)
                else:
                    setattr(cls, name, raw)
