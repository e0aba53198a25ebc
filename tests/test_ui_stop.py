"""A wish to end reaches what runs, what is about to, and nobody else's."""

from mlx_paligemma.ui.stop import Stop, Stops


def test_what_belongs_to_a_stop_is_done_once_when_it_is_asked_for():
    stop, done = Stop(), []
    with stop.calling(lambda: done.append(1)):
        assert not (stop.is_requested or done)
        stop.request()
        stop.request()
    assert stop.is_requested
    assert done == [1]


def test_after_it_was_asked_for_it_is_done_at_once():
    stop, done = Stop(), []
    stop.request()
    with stop.calling(lambda: done.append(1)):
        assert done == [1]


def test_what_has_ended_is_not_called_and_not_kept():
    stop, done = Stop(), []
    with stop.calling(lambda: done.append(1)):
        pass
    stop.request()
    assert done == []
    assert stop._actions == []


def test_one_action_that_asks_for_the_same_stop_does_not_wait_for_itself():
    stop = Stop()
    with stop.calling(stop.request):
        stop.request()
    assert stop.is_requested


def test_a_visitor_stops_what_is_the_visitors_own():
    stops = Stops()
    with stops.running("anna") as annas, stops.running("bert") as berts:
        assert stops.request("anna")
        assert annas.is_requested and not berts.is_requested
    assert not stops.request("anna")
    assert not stops.request("nobody")


def test_something_new_ends_what_ran_before_and_can_be_stopped_itself():
    stops = Stops()
    with stops.running("anna") as first:
        with stops.running("anna") as second:
            assert first.is_requested and not second.is_requested
        assert not stops.request("anna")  # the second has ended
    with stops.running("anna") as before:
        later = stops.running("anna")
        stop = later.__enter__()
    assert before.is_requested and stops.request("anna") and stop.is_requested  # the end of the first left the second's
    later.__exit__(None, None, None)
