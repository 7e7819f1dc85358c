import numpy as np

from model.splitmix import first_uniform, first_word


def test_first_outputs_are_the_published_ones() -> None:
    assert first_word(np.array([0, 1234567])).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


def test_draws_fill_the_unit_interval_for_neighbouring_seeds() -> None:
    draws = first_uniform(np.arange(100_000))
    assert 0 <= draws.min() < 0.001 and 0.999 < draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 150
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02
