"""A signal to end waits until it does no harm, and then does what it would have done."""

import os
import signal
import threading
import time

import pytest

from mlx_paligemma.common.ending_signals import ENDING, EndingSignals


def send(number: int) -> None:
    """To this process; Python runs its handler before the next line of the caller."""
    os.kill(os.getpid(), number)
    time.sleep(0)


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


EXPECTED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGHUP: SystemExit}


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_an_exception_where_it_is_heard(number):
    steps = []
    with pytest.raises(EXPECTED[number]) as caught, EndingSignals() as signals, signals.heard():
        send(number)
        steps.append("after")
    assert steps == []
    assert getattr(caught.value, "code", None) == (None if number == signal.SIGINT else 128 + number)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_waits_for_the_part_where_it_is_heard(number):
    steps = []
    with pytest.raises(EXPECTED[number]), EndingSignals() as signals:
        send(number)
        steps.append("before")
        with signals.heard():
            steps.append("heard")
    assert steps == ["before"]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_after_that_part_waits_for_the_end(number):
    steps = []
    with pytest.raises(EXPECTED[number]), EndingSignals() as signals:
        with signals.heard():
            steps.append("heard")
        send(number)
        steps.append("after")
    assert steps == ["heard", "after"]


def test_a_second_signal_does_not_disturb_what_the_first_one_starts():
    steps = []
    with pytest.raises((KeyboardInterrupt, SystemExit)), EndingSignals() as signals:
        try:
            with signals.heard():
                try:
                    send(signal.SIGINT)
                finally:
                    send(signal.SIGTERM)
                    steps.append("tidied inside")
        finally:
            send(signal.SIGINT)
            steps.append("tidied up")
    assert steps == ["tidied inside", "tidied up"]


def test_handlers_are_as_they_were_afterwards():
    before = [signal.getsignal(number) for number in ENDING]
    with EndingSignals():
        assert [signal.getsignal(number) for number in ENDING] != before
    assert [signal.getsignal(number) for number in ENDING] == before


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with EndingSignals() as signals, signals.heard():
        send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_handler_that_lets_the_program_go_on_is_called_each_time():
    calls = []
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    with EndingSignals() as signals, signals.heard():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert calls == [signal.SIGTERM] * 2


def test_in_another_thread_nothing_is_changed():
    found = []

    def work():
        with EndingSignals() as signals, signals.heard():
            found.extend(signal.getsignal(number) for number in ENDING)

    before = [signal.getsignal(number) for number in ENDING]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before
