"""A step of training as one CUDA graph: the host says "again" instead of launching each kernel anew."""

import contextlib
import sys
import warnings
from collections.abc import Callable

import torch
from tqdm.auto import tqdm

WARM_UP = 3
"""Calls before the capture: libraries choose their kernels, gradients and states come to lie where they stay."""
ABANDONED = []
"""Graphs whose capture failed, which stay alive: torch up to 2.11 goes on asking them for whom it pins memory."""


def replayed(step: Callable[[], object], device: str | torch.device) -> Callable[[], object]:
    """`step`, which on a GPU is captured in its fourth call, and replayed from then on; each call takes one step.

    Where the capture fails, a sentence on stderr says why, and calls go on to run `step` itself.

    Args:
        step: on a GPU it must read and write the same tensors in each call, wait for nothing, and leave to the device
            whatever differs between calls: what Python does in it is done once.
        device: of those tensors. On the CPU `step` is returned as it is.
    Raises: torch.OutOfMemoryError, which running it in another way would meet as well.
    """
    if torch.device(device).type != "cuda":
        return step
    # Autograd remembers on which stream a gradient was made: warm-up and capture share one.
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
    """Run `call` on another stream of its device, after what the current one has to do and before what comes next."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            call()
    finally:
        current.wait_stream(stream)


def captured(step: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[], object]:
    """What replays a step that has been warmed up, or the step itself if it cannot be captured."""
    try:
        return record(step, stream or torch.cuda.Stream()).replay
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        tqdm.write(f"without a CUDA graph, more slowly: the step cannot be captured ({reason})", file=sys.stderr)
        return step


def record(call: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Capture what `call` launches on a stream as one CUDA graph.

    If that fails, torch is left as it was: the current stream, the allocator, the generators of random numbers.
    Raises: what `call` raises, else what the capture raises; of several errors that followed each other, the first.
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
        del cause  # whose traceback has this frame, and tensors in others
    return graph


def first_error(error: BaseException, handled: BaseException | None = None) -> BaseException:
    """Of RuntimeErrors, as torch raises them, the one that the others followed.

    Args:
        handled: an error that had been there before all of them.
    """
    while isinstance(error, RuntimeError):
        earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        # One of another kind, as a KeyError, was caught, and the work went on.
        if earlier is handled or not isinstance(earlier, RuntimeError):
            break
        error = earlier
    return error


def abandon(graph: torch.cuda.CUDAGraph, pool: tuple[int, int], stream: torch.cuda.Stream, begun: bool) -> None:
    """Undo what a failed capture has left in torch; each part changes nothing where torch has done it.

    Args:
        pool: where the capture allocated; of no other capture.
        begun: whether it got as far as running what was to be captured.
    """
    index, quietly = stream.device_index, contextlib.suppress(RuntimeError, AttributeError)
    empty, spare = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    ABANDONED.extend((graph, empty))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        with quietly, torch.cuda.stream(stream):
            # On another stream, to which `call` may have changed, the end of the capture was refused.
            if begun and torch.cuda.is_current_stream_capturing():
                graph.capture_end()
        with quietly:
            graph.reset()
        # Up to 2.11 torch does not end the allocator's part of an invalidated capture (pytorch/pytorch#180395).
        with quietly:
            torch._C._cuda_endAllocateToPool(index, pool)
        # Up to 2.13 it does not give the pool's memory back (#190348). Only a pool that has users can be allocated
        # from: this fails if the graph is no user any more, and else there are two to take off.
        with quietly:
            if begun:
                torch._C._cuda_beginAllocateCurrentThreadToPool(index, pool)
                torch._C._cuda_endAllocateToPool(index, pool)
                torch._C._cuda_releasePool(index, pool)
                torch._C._cuda_releasePool(index, pool)
        # Up to 2.11 its generators refuse to work until another capture has ended.
        with quietly, torch.cuda.stream(stream), torch.cuda.graph(empty, pool=spare, stream=stream):
            pass
        with quietly:  # which is refused where that has worked
            torch._C._cuda_endAllocateToPool(index, spare)
        with quietly:
            empty.reset()
