"""Whoever uses something is waited for, for as long as there is patience."""

import threading
import time

import pytest

from mlx_paligemma.common.errors import BusyError
from mlx_paligemma.ui.stop import Stop
from mlx_paligemma.ui.visits import Visits


def test_the_end_waits_for_all_that_are_open_and_lets_none_in_afterwards():
    visits, stop = Visits(), Stop()
    ending = threading.Thread(target=visits.end)
    with visits.visit(stop):
        ending.start()
        with visits.visit(Stop()):
            assert len(visits) == 2
        time.sleep(0.05)
        assert ending.is_alive()
    ending.join(5)
    assert not ending.is_alive()
    assert not stop.is_requested
    with pytest.raises(BusyError, match="let go"), visits.visit(stop):
        pass
    visits.end()  # a second time does no harm


def test_without_patience_those_that_are_open_are_stopped_and_not_waited_for():
    visits, stop = Visits(), Stop()
    with visits.visit(stop):
        visits.end(0.01)
        assert stop.is_requested
        with pytest.raises(BusyError), visits.visit(Stop()):
            pass
    assert len(visits) == 0


def test_an_error_closes_a_visit_too():
    visits = Visits()
    with pytest.raises(ZeroDivisionError), visits.visit(Stop()):
        raise ZeroDivisionError
    assert len(visits) == 0
