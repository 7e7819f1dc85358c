"""Results in order, and one item that kills its process costs only itself."""

import os

from components.pack.workers import map_in_order


def work(number: int) -> int:
    if number == 4:
        os._exit(3)
    return number * number


def lost(number: int) -> int:
    return -number


def test_results_come_in_order_and_a_crash_costs_one_item() -> None:
    found = list(map_in_order(work, iter(range(6)), 2, lost))
    assert found == [(number, -4 if number == 4 else number * number) for number in range(6)]


def test_nothing_to_do_is_nothing_done() -> None:
    assert list(map_in_order(work, iter(()), 2, lost)) == []
