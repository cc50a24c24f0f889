import asyncio
import threading

import pytest

from dspy_diffusion_infill.serving.batching import BatchQueue, Done, QueueFullError, Work
from dspy_diffusion_infill.serving.limits import Limits


class Thread:
    """Work whose first batch waits until it is let go, so that others have to queue."""

    def __init__(self) -> None:
        self.batches, self.gate = [], threading.Event()

    def run(self, items):
        self.gate.wait(30)
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("bad")
        return [item.upper() for item in items], len(items)

    def work(self, *items: str, kind: str = "a", tokens: int = 1) -> Work:
        return Work(kind, self.run, items, tokens)


def answers(thread: Thread, works: dict[str, Work], *, first: str = "first", **limits: int):
    """What each key gets; all but the first are asked for while the first is being worked on."""

    async def ask():
        batcher = BatchQueue(Limits(**limits), lambda *batch: None)
        tasks = [asyncio.create_task(batcher.answer(first, thread.work("first")))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(batcher.answer(key, work)) for key, work in works.items()]
        await asyncio.sleep(0)
        thread.gate.set()
        return (await asyncio.gather(*tasks, return_exceptions=True))[1:]

    return asyncio.run(ask())


def test_requests_that_wait_are_joined_and_each_gets_its_own_results():
    thread = Thread()
    works = {"1": thread.work("b", "c"), "2": thread.work("d"), "3": thread.work("e", kind="z")}
    found = answers(thread, works)
    assert thread.batches == [["first"], ["b", "c", "d"], ["e"]]
    assert found == [Done(["B", "C"], 3), Done(["D"], 3), Done(["E"], 1)]


@pytest.mark.parametrize("limits", [{"rows": 3}, {"tokens": 2}])
def test_a_batch_ends_at_its_limit_and_a_larger_request_goes_alone(limits):
    thread = Thread()
    works = {"1": thread.work("b", "c", "d", "e", tokens=9)}
    works |= {"2": thread.work("f"), "3": thread.work("g", "h"), "4": thread.work("i")}
    answers(thread, works, **limits)
    assert thread.batches[1] == ["b", "c", "d", "e"]
    assert thread.batches[2:] == [["f", "g", "h"], ["i"]]


def test_a_request_that_fails_fails_alone():
    thread = Thread()
    found = answers(thread, {"1": thread.work("b"), "2": thread.work("bad"), "3": thread.work("c")})
    assert [found[0], found[2]] == [Done(["B"], 1), Done(["C"], 1)]
    assert isinstance(found[1], ValueError)


def test_a_request_that_is_sent_again_is_answered_once():
    thread = Thread()

    async def ask():
        batcher = BatchQueue(Limits(), lambda *batch: None)
        both = [asyncio.create_task(batcher.answer("key", thread.work("b"))) for _ in range(2)]
        await asyncio.sleep(0)
        both[0].cancel()  # the first connection is lost
        thread.gate.set()
        return [await both[1], await batcher.answer("key", thread.work("b"))]

    assert asyncio.run(ask()) == [Done(["B"], 1)] * 2
    assert thread.batches == [["b"]]


def test_what_failed_is_tried_again():
    thread = Thread()
    thread.gate.set()

    async def ask():
        batcher = BatchQueue(Limits(), lambda *batch: None)
        for _ in range(2):
            with pytest.raises(ValueError, match="bad"):
                await batcher.answer("key", thread.work("bad"))

    asyncio.run(ask())
    assert thread.batches == [["bad"], ["bad"]]


def test_a_full_queue_takes_no_more():
    thread = Thread()
    found = answers(thread, {str(k): thread.work(str(k)) for k in range(3)}, waiting=2)
    assert found[:2] == [Done(["0"], 2), Done(["1"], 2)]
    assert isinstance(found[2], QueueFullError)


def test_answers_are_kept_up_to_a_limit():
    thread = Thread()
    thread.gate.set()

    async def ask():
        batcher = BatchQueue(Limits(kept_tokens=250), lambda *batch: None)
        for key in ["1", "2", "3", "3", "1"]:  # each counts 64 tokens and its own
            await batcher.answer(key, thread.work(key, tokens=40))

    asyncio.run(ask())
    assert thread.batches == [["1"], ["2"], ["3"], ["1"]]
