import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dspy_diffusion_infill.lms import batching
from dspy_diffusion_infill.lms.batching import Batcher


@pytest.fixture
def full_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "QUIET", 60)


def test_concurrent_items_go_together_and_each_gets_its_own_result(full_batches_only) -> None:
    batches: list[list[int]] = []

    def squares(items):
        batches.append(list(items))
        return [item**2 for item in items]

    batcher = Batcher(squares, 4)
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(batcher, range(12))) == [k**2 for k in range(12)]
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert sorted(k for batch in batches for k in batch) == list(range(12))


def test_a_lone_item_does_not_wait_for_a_full_batch() -> None:
    assert Batcher(lambda items: [len(items)], 1000)(0) == 1


def test_batches_of_one_wait_for_nothing(full_batches_only) -> None:
    assert [Batcher(list, 1)(k) for k in range(3)] == [0, 1, 2]


def test_an_error_reaches_all_of_its_batch_and_none_of_the_next(full_batches_only) -> None:
    calls = []

    def run(items):
        calls.append(items)
        if len(calls) == 1:
            raise ValueError("too hot")
        return items

    batcher = Batcher(run, 2)
    with ThreadPoolExecutor(2) as threads:
        failed = [threads.submit(batcher, k) for k in range(2)]
        assert [str(task.exception()) for task in failed] == ["too hot", "too hot"]
        assert sorted(threads.map(batcher, range(2))) == [0, 1]


def test_an_interrupted_caller_leaves_the_others_their_results(full_batches_only) -> None:
    seen, first = [], threading.Event()

    def run(items):
        seen.append(sorted(items))
        if not first.is_set():
            first.set()
            raise KeyboardInterrupt
        return items

    batcher = Batcher(run, 2)
    with ThreadPoolExecutor(3) as threads:
        tasks = [threads.submit(batcher, k) for k in range(2)]
        first.wait(60)
        tasks.append(threads.submit(batcher, 2))  # fills the place of the one that left
        errors = [task.exception(60) for task in tasks]
    assert [type(error) for error in errors if error] == [KeyboardInterrupt]
    assert errors[2] is None
    (left,) = (k for k in range(2) if errors[k])
    assert seen == [[0, 1], sorted({0, 1, 2} - {left})]


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.0, TypeError)])
def test_a_batch_holds_a_positive_whole_number(value, error) -> None:
    with pytest.raises(error, match="max_batch must be"):
        Batcher(list, value)
