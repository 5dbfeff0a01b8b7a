"""A training step as one CUDA graph, which the host replays instead of launching each kernel anew."""

import contextlib
import sys
import warnings
from collections.abc import Callable

import torch
from tqdm.auto import tqdm

WARM_UP = 3
"""Calls before the capture, in which libraries choose kernels, and gradients and states get their final memory."""
ABANDONED = []
"""Graphs whose capture failed. They stay alive because torch up to 2.11 still refers to them when it pins memory."""


def replayed(step: Callable[[], object], device: str | torch.device) -> Callable[[], object]:
    """Return a function that takes one step per call: on a GPU it captures `step` in its fourth call, then replays it.

    If the capture fails, a sentence on stderr says why, and further calls run `step` itself.

    Args:
        step: on a GPU it must read and write the same tensors in each call, wait for nothing, and compute on the device
            whatever differs between calls, because its Python code runs only once.
        device: device of those tensors. On the CPU `step` is returned as it is.
    Raises: torch.OutOfMemoryError, which would also be raised without a graph.
    """
    if torch.device(device).type != "cuda":
        return step
    # Autograd remembers the stream of each gradient, so warm-up and capture share one.
    side = torch.cuda.Stream(device)
    calls, again = 0, None

    def call() -> None:
        nonlocal calls, again
        if again is None and calls == WARM_UP:
            again = captured(step, side)
        if again is not None:
            again()
            return
        calls += 1
        aside(step, side)

    return call


def aside(call: Callable[[], object], stream: torch.cuda.Stream) -> None:
    """Run `call` on another stream of its device, after the work queued on the current stream and before later work."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            call()
    finally:
        current.wait_stream(stream)


def captured(step: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[], object]:
    """Return a function that replays a step that has been warmed up, or the step itself if it cannot be captured."""
    try:
        return record(step, stream or torch.cuda.Stream()).replay
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        tqdm.write(f"without a CUDA graph, more slowly: the step cannot be captured ({reason})", file=sys.stderr)
        return step


def record(call: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Return the kernels that `call` launches on a stream as one CUDA graph.

    If that fails, torch's state is restored: the current stream, the allocator, the random number generators.
    Raises: the error of `call`, else that of the capture; if one error led to others, the first.
    """
    graph, pool, handled = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), sys.exc_info()[1]
    begun, cause = False, None
    try:
        # torch.cuda.graph does not leave its stream if the capture cannot be ended.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
            begun = True
            try:
                call()
            except BaseException as error:
                cause = error
                raise
    except BaseException as error:
        abandon(graph, pool, stream, begun)
        raise first_error(cause or error, handled) from None
    finally:
        del cause  # its traceback refers to this frame, and to tensors in others
    return graph


def first_error(error: BaseException, handled: BaseException | None = None) -> BaseException:
    """Return the first of a chain of RuntimeErrors that led to `error`.

    Args:
        handled: an error that was already being handled before them, where the chain ends.
    """
    while isinstance(error, RuntimeError):
        earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        # An error of another kind, such as a KeyError, was caught earlier and did not stop the work.
        if earlier is handled or not isinstance(earlier, RuntimeError):
            break
        error = earlier
    return error


def abandon(graph: torch.cuda.CUDAGraph, pool: tuple[int, int], stream: torch.cuda.Stream, begun: bool) -> None:
    """Undo the changes that a failed capture has left in torch; each part does nothing if torch has undone it.

    Args:
        pool: memory pool of the capture, shared with no other.
        begun: whether the capture had begun, so that the step ran.
    """
    index, quietly = stream.device_index, contextlib.suppress(RuntimeError, AttributeError)
    empty, spare = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    ABANDONED.extend((graph, empty))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        with quietly, torch.cuda.stream(stream):
            # `call` may have changed to another stream, on which torch refuses to end the capture.
            if begun and torch.cuda.is_current_stream_capturing():
                graph.capture_end()
        with quietly:
            graph.reset()
        # Up to 2.11 torch does not end the allocator's part of an invalidated capture (pytorch/pytorch#180395).
        with quietly:
            torch._C._cuda_endAllocateToPool(index, pool)
        # Up to 2.13 it does not free the pool's memory (#190348). Allocating from a pool fails unless it has users:
        # if this fails, the graph has released it; otherwise two references have to be released.
        with quietly:
            if begun:
                torch._C._cuda_beginAllocateCurrentThreadToPool(index, pool)
                torch._C._cuda_endAllocateToPool(index, pool)
                torch._C._cuda_releasePool(index, pool)
                torch._C._cuda_releasePool(index, pool)
        # Up to 2.11 its generators refuse to work until another capture has ended.
        with quietly, torch.cuda.stream(stream), torch.cuda.graph(empty, pool=spare, stream=stream):
            pass
        with quietly:  # fails if the capture above has worked
            torch._C._cuda_endAllocateToPool(index, spare)
        with quietly:
            empty.reset()
