"""First uniform draw of NumPy's default generator for many seeds at once.

`numpy.random.default_rng(seed).random()` costs about 10 microseconds per seed, nearly all of it construction. Bucket
choice needs one such draw per (clip, resolution) and must agree with it to the bit, so the two published algorithms
are evaluated here on whole arrays: O'Neill's seed_seq as NumPy's SeedSequence uses it (32-bit hash pool), then
PCG64 (128-bit LCG, XSL-RR output) as NumPy seeds it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]

_POOL_WORDS = 4
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_PCG_MULTIPLIER_HIGH, _PCG_MULTIPLIER_LOW = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_16 = np.uint32(16)
_SHIFT_32 = np.uint64(32)
_CHUNK_ROWS = 16384
"""Seeds handled at once: the intermediate arrays stay in the processor's cache."""


def first_uniform(seeds: NDArray[Any]) -> NDArray[np.float64]:
    """`[default_rng(s).random() for s in seeds]`, bit for bit.

    Args:
        seeds: (N,) integers in [0, 2**64).

    Returns:
        (N,) float64 in [0, 1).
    """
    draws = np.empty(len(seeds), dtype=np.float64)
    for start in range(0, len(seeds), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        state, increment = _pcg64_seed(_seed_sequence_words(seeds[rows].astype(np.uint64)))
        draws[rows] = _pcg64_uniform(_pcg64_step(state, increment))
    return draws


def _hash_constants(start: int, multiplier: int, count: int) -> list[tuple[np.uint32, np.uint32]]:
    """The running hash constant of a seed_seq: (value to xor, value to multiply by) per call."""
    constants = []
    for _ in range(count):
        following = start * multiplier & 0xFFFFFFFF
        constants.append((np.uint32(start), np.uint32(following)))
        start = following
    return constants


_POOL_CONSTANTS = _hash_constants(_INIT_A, _MULT_A, _POOL_WORDS * _POOL_WORDS)
_OUTPUT_CONSTANTS = _hash_constants(_INIT_B, _MULT_B, 2 * _POOL_WORDS)


def _hash(words: UInt32, constants: tuple[np.uint32, np.uint32]) -> UInt32:
    hashed = words ^ constants[0]
    hashed *= constants[1]
    hashed ^= hashed >> _SHIFT_16
    return hashed


def _mix(left: UInt32, right: UInt32) -> UInt32:
    mixed = left * _MIX_LEFT
    mixed -= right * _MIX_RIGHT
    mixed ^= mixed >> _SHIFT_16
    return mixed


def _seed_sequence_words(seeds: UInt64) -> list[UInt64]:
    """`SeedSequence(seed).generate_state(4, uint64)` per seed: four arrays (N,)."""
    low, high = (seeds & _LOW_32).astype(np.uint32), (seeds >> _SHIFT_32).astype(np.uint32)
    absent = np.zeros_like(low)
    constants = iter(_POOL_CONSTANTS)
    # A missing entropy word counts as zero, so one-word and two-word seeds take the same path.
    pool = [_hash(words, next(constants)) for words in (low, high, absent, absent)]
    for source in range(_POOL_WORDS):
        for target in range(_POOL_WORDS):
            if source != target:
                pool[target] = _mix(pool[target], _hash(pool[source], next(constants)))
    halves = [
        _hash(pool[i % _POOL_WORDS], constants).astype(np.uint64) for i, constants in enumerate(_OUTPUT_CONSTANTS)
    ]
    return [halves[2 * i] | (halves[2 * i + 1] << _SHIFT_32) for i in range(_POOL_WORDS)]


UInt128 = tuple[UInt64, UInt64]
"""(high, low) 64-bit halves, each (N,)."""


def _add(a: UInt128, b: UInt128) -> UInt128:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]), low


def _times_multiplier(value: UInt128) -> UInt128:
    """value * PCG multiplier modulo 2**128, from 32-bit partial products."""
    high, low = value
    m1, m0 = _PCG_MULTIPLIER_LOW >> _SHIFT_32, _PCG_MULTIPLIER_LOW & _LOW_32
    l1, l0 = low >> _SHIFT_32, low & _LOW_32
    cross_01, cross_10 = l0 * m1, l1 * m0
    carry = (l0 * m0 >> _SHIFT_32) + (cross_01 & _LOW_32) + (cross_10 & _LOW_32)
    product_high = l1 * m1 + (cross_01 >> _SHIFT_32) + (cross_10 >> _SHIFT_32) + (carry >> _SHIFT_32)
    product_high += high * _PCG_MULTIPLIER_LOW + low * _PCG_MULTIPLIER_HIGH
    return product_high, low * _PCG_MULTIPLIER_LOW


def _pcg64_step(state: UInt128, increment: UInt128) -> UInt128:
    return _add(_times_multiplier(state), increment)


def _pcg64_seed(words: list[UInt64]) -> tuple[UInt128, UInt128]:
    """State and increment after NumPy's seeding: increment = 2 * stream + 1, state = step(increment + start)."""
    start: UInt128 = (words[0], words[1])
    one = np.uint64(1)
    increment: UInt128 = (words[2] << one | words[3] >> np.uint64(63), words[3] << one | one)
    return _pcg64_step(_add(increment, start), increment), increment


def _pcg64_uniform(state: UInt128) -> NDArray[np.float64]:
    """XSL-RR output (xor of the halves rotated right by the top six bits), then its upper 53 bits / 2**53."""
    word = state[0] ^ state[1]
    rotation = state[0] >> np.uint64(58)
    rotated = word >> rotation | word << (np.uint64(64) - rotation & np.uint64(63))
    return (rotated >> np.uint64(11)).astype(np.float64) * 2.0**-53
