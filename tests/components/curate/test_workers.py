"""Many processes, one result; one crash, one file."""

from __future__ import annotations

import os

import pytest

from components.curate.workers import map_files


def square(number: int) -> int:
    return number * number


def die_on_three(number: int) -> int:
    if number == 3:
        os._exit(11)
    return number * number


def refuse(number: int) -> int:
    raise ValueError(f"number {number}")


def crashed(number: int) -> int:
    return -number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_once(workers: int) -> None:
    assert sorted(map_files(square, range(5), workers, crashed)) == [(n, n * n) for n in range(5)]
    assert list(map_files(square, [], workers, crashed)) == []


def test_a_crash_costs_only_its_item() -> None:
    results = sorted(map_files(die_on_three, range(5), 2, crashed))
    assert results == [(0, 0), (1, 1), (2, 4), (3, -3), (4, 16)]


def test_an_exception_ends_the_iteration() -> None:
    with pytest.raises(ValueError, match="number"):
        list(map_files(refuse, [1, 2], 2, crashed))
