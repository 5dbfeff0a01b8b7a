"""A model of what torch keeps of the captures of CUDA graphs, where there is no GPU."""

import contextlib
import warnings
from typing import TYPE_CHECKING

import torch

UNDERWAY = "captures_underway.empty() INTERNAL ASSERT FAILED"
FOLLOWS = "CUDA error: operation failed due to a previous error during capture"
REFUSED = "CUDA error: operation not permitted when stream is capturing"
GENERATOR = "Offset increment outside graph capture encountered unexpectedly."


class Stream(torch.cuda.Stream if TYPE_CHECKING else object):
    device, device_index = torch.device("cuda", 0), 0

    def wait_stream(self, other) -> None:
        pass


class Model:
    """What torch 2.11, 2.13 and later keep of captures: CUDAGraph.cpp, CUDACachingAllocator.cpp, CUDAGeneratorImpl.cpp.

    Attributes:
        current: the current stream.
        capturing: the graph that each stream is captured into.
        invalid: graphs whose capture cannot end well.
        underway: pools that an allocator sends allocations to.
        users: graphs and others that use each pool.
        deaf: whether the generator of random numbers takes itself to be captured.
    """

    def __init__(self, version: tuple[int, int]):
        self.version, self.default = version, Stream()
        self.current, self.capturing, self.invalid = self.default, {}, set()
        self.underway, self.users, self.deaf, self.made = [], {}, False, 0

    def install(self, monkeypatch) -> None:
        model = self

        class CUDAGraph:
            pool = ended = None

            def capture_begin(self, pool=None, capture_error_mode="global", **_):
                self.pool = pool or model.handle()
                model.deaf = True
                model.begin(0, self.pool)
                if model.current in model.capturing:
                    raise RuntimeError("CUDA error: the stream is already capturing")
                self.stream, model.capturing[model.current] = model.current, self

            def capture_end(self):
                if model.current is not self.stream:
                    raise RuntimeError("Capture must end on the same stream it began on.")
                del model.capturing[self.stream]
                if self in model.invalid and model.version < (2, 12):
                    raise RuntimeError(FOLLOWS)
                model.end(0, self.pool)
                model.deaf = False
                if self in model.invalid:
                    raise RuntimeError(FOLLOWS)
                self.ended = True
                if not model.launched:
                    warnings.warn("The CUDA Graph is empty. This usually means ...", stacklevel=1)

            def reset(self):
                failed = self.pool is not None and model.version > (2, 13)
                if self.ended or failed:
                    model.release(0, self.pool)
                self.pool = self.ended = None

            def replay(self):
                assert self.ended

            def __del__(self):
                self.reset()

        self.graph, self.launched = CUDAGraph, True
        for name, value in {
            "CUDAGraph": CUDAGraph,
            "Stream": lambda device=None: Stream(),
            "stream": self.stream,
            "device": lambda device: contextlib.nullcontext(),
            "current_stream": lambda device=None: self.current,
            "graph_pool_handle": self.handle,
            "is_current_stream_capturing": lambda: self.current in self.capturing,
            "synchronize": self.synchronize,
            "empty_cache": self.empty_cache,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name, value in {
            "_host_emptyCache": lambda: None,
            "_cuda_beginAllocateCurrentThreadToPool": self.begin,
            "_cuda_endAllocateToPool": self.end,
            "_cuda_releasePool": self.release,
        }.items():
            monkeypatch.setattr(torch._C, name, value, raising=False)

    def handle(self) -> tuple[int, int]:
        self.made += 1
        return 0, self.made

    def stream(self, stream):
        """A context that is left only when it is told to be, and not when it is collected, as a generator is."""
        model = self

        class Context:
            def __enter__(self):
                self.before, model.current = model.current, stream

            def __exit__(self, *_):
                model.current = self.before

        return Context()

    def begin(self, index, pool) -> None:
        if self.users.setdefault(pool, -1) == 0:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.users[pool] = max(self.users[pool], 0) + 1
        self.underway.append(pool)

    def end(self, index, pool) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, index, pool) -> None:
        self.users[pool] -= 1
        assert self.users[pool] >= 0, "the process aborts, or every later empty_cache fails"

    def empty_cache(self) -> None:
        if self.underway:
            raise RuntimeError(UNDERWAY)
        self.users = {pool: users for pool, users in self.users.items() if users}

    def synchronize(self) -> None:
        """As whatever waits for the device, `item` for one."""
        if graph := self.capturing.get(self.current):
            self.invalid.add(graph)
            raise RuntimeError(REFUSED)

    def random(self) -> None:
        if self.deaf and self.current not in self.capturing:
            raise RuntimeError(GENERATOR)
