"""Ways are timed in turn and compared round by round."""

import time

from eval.shared.rounds import clocked, in_turn, ratios, spread


def test_every_way_is_called_once_per_round_and_another_one_comes_first_each_time():
    called = []
    found = in_turn({name: lambda name=name: called.append(name) for name in "abc"}, rounds=3)
    assert called == list("abcbcacab")
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_waiting_takes_time_but_no_processor():
    waited = clocked(lambda: time.sleep(0.2))
    assert waited.wall >= 0.2
    assert waited.cpu < 0.1


def test_ratios_are_taken_within_a_round():
    assert ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]
    assert spread([0.5, 2.0, 1.0]) == "1.00 (0.50-2.00)"
