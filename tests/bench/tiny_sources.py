"""A catalogue of small sources for the tests of the curriculum benchmark: windows of 16 bytes, costs in closed form."""

import math
from types import SimpleNamespace

import numpy as np

from destruct.seeding import derive

T = 16


def _windows(tokens, nats):
    return SimpleNamespace(tokens=tokens.astype(np.uint8), nats=nats)


def alphabet(split, count, seed):
    """The letters of a circle from a random first one: only the first byte costs anything."""
    first = np.random.default_rng(derive(seed, "alphabet", split)).integers(0, 8, (count, 1))
    nats = np.zeros((count, T))
    nats[:, 0] = math.log(8)
    return _windows((first + np.arange(T)) % 8, nats)


def coins(split, count, seed):
    """Two letters, each as likely as the other."""
    tokens = np.random.default_rng(derive(seed, "coins", split)).integers(100, 102, (count, T))
    return _windows(tokens, np.full((count, T), math.log(2)))


def noise(split, count, seed):
    """Sixty-four letters, all as likely."""
    tokens = np.random.default_rng(derive(seed, "noise", split)).integers(0, 64, (count, T))
    return _windows(tokens, np.full((count, T), math.log(64)))


SOURCES = {make.__name__: SimpleNamespace(name=make.__name__, make=make) for make in (alphabet, coins, noise)}
MIXTURES = {"waste": ("coins", "noise", "alphabet"), "clean": ("coins", "alphabet")}
