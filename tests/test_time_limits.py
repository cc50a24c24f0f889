import contextvars
import threading

import pytest

from dspy_diffusion_infill.time_limits import OutOfTimeError, within

VALUE = contextvars.ContextVar("value", default="")


def test_without_a_limit_the_call_is_made_in_this_thread():
    assert within(None, threading.current_thread) is threading.current_thread()


@pytest.mark.parametrize("seconds", [20, 1e300])
def test_a_call_in_time_gives_its_value_and_sees_the_context(seconds):
    VALUE.set("seen")
    assert within(seconds, VALUE.get) == "seen"


def test_what_the_call_raises_is_raised_be_it_a_timeout_of_its_own():
    def call():
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket"):
        within(20, call)


def test_a_late_call_is_given_up_and_keeps_no_process_alive():
    go_on, threads = threading.Event(), []

    def call():
        threads.append(threading.current_thread())
        go_on.wait()

    with pytest.raises(OutOfTimeError, match=r"no answer within 0\.01 s"):
        within(0.01, call)
    go_on.set()
    for thread in threads:
        assert thread.daemon
        thread.join()
