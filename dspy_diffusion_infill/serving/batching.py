"""Joins what several clients ask for into batches, which one thread runs.

A batch is taken whenever the thread is free: of the request that waits longest, and of all that
wait for the same kind of work, as far as they fit. So a lone client never waits for others.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dspy_diffusion_infill.serving.limits import Limits


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one request asks for.

    Attributes:
        kind: requests of an equal kind may be one batch.
        run: gives a result for each item, and forward passes.
        items: texts to work on.
        num_tokens: of all of them.
    """

    kind: Hashable
    run: Callable[[Sequence[Any]], tuple[list[Any], int]]
    items: Sequence[Any]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """What became of it.

    Attributes:
        results: one an item.
        num_passes: forward passes of the batch that it was part of.
    """

    results: list[Any]
    num_passes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    key: str
    work: Work
    future: "asyncio.Future[Done]"


class BatchQueue:
    """A queue and the thread that works it off; belongs to one event loop.

    Args:
        limits: of queue and batches.
        on_batch: told the kind, the number of requests, of items, and of passes.
    """

    def __init__(self, limits: Limits, on_batch: Callable[[Hashable, int, int, int], None]) -> None:
        self._limits, self._on_batch = limits, on_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="denoiser")
        self._waiting: deque[_Job] = deque()
        self._open: dict[str, asyncio.Future[Done]] = {}
        self._kept: OrderedDict[str, tuple[Done, int]] = OrderedDict()
        self._num_kept = 0
        self._runner: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def answer(self, key: str, work: Work) -> Done:
        """The result; a key that was seen before gets the result of the first time.

        Raises:
            QueueFullError: as many requests wait as may.
            Exception: what the work raises; it is forgotten, so that the key may try again.
        """
        if (kept := self._kept.get(key)) is not None:
            return kept[0]
        future = self._open.get(key)
        if future is None:
            if len(self._waiting) >= self._limits.waiting:
                raise QueueFullError
            future = self._open[key] = asyncio.get_running_loop().create_future()
            self._waiting.append(_Job(key, work, future))
            if self._runner is None or self._runner.done():
                self._runner = asyncio.create_task(self._work_off())
        return await asyncio.shield(future)  # whoever else waits for it is not cancelled

    async def _work_off(self) -> None:
        while self._waiting:
            await self._run(self._next())

    def _next(self) -> list[_Job]:
        batch = [self._waiting.popleft()]
        rows, tokens = len(batch[0].work.items), batch[0].work.num_tokens
        rest: deque[_Job] = deque()
        for job in self._waiting:
            more_rows, more_tokens = rows + len(job.work.items), tokens + job.work.num_tokens
            fits = more_rows <= self._limits.rows and more_tokens <= self._limits.tokens
            if fits and job.work.kind == batch[0].work.kind:
                batch.append(job)
                rows, tokens = more_rows, more_tokens
            else:
                rest.append(job)
        self._waiting = rest
        return batch

    async def _run(self, batch: list[_Job]) -> None:
        work = batch[0].work
        items = [item for job in batch for item in job.work.items]
        loop = asyncio.get_running_loop()
        try:
            results, num_passes = await loop.run_in_executor(self._thread, work.run, items)
        except Exception as error:  # a request that fails harms no other one
            if len(batch) > 1:
                for job in batch:
                    await self._run([job])
            else:
                del self._open[batch[0].key]
                batch[0].future.set_exception(error)
            return
        self._on_batch(work.kind, len(batch), len(items), num_passes)
        for job in batch:
            size = len(job.work.items)
            self._keep(job, Done(results[:size], num_passes))
            results = results[size:]

    def _keep(self, job: _Job, done: Done) -> None:
        del self._open[job.key]
        job.future.set_result(done)
        size = 64 + job.work.num_tokens  # an answer without tokens takes room too
        self._kept[job.key] = done, size
        self._num_kept += size
        while self._num_kept > self._limits.kept_tokens:
            self._num_kept -= self._kept.popitem(last=False)[1][1]
