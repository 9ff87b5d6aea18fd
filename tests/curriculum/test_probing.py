"""Panels as the frozen model scores them, against transformers, and what that costs in tokens."""

import numpy as np
import pytest
import torch

from destruct.batch import TokenWindows
from destruct.curriculum.probing import Prober, per_item_tokens
from tests.curriculum.networks import ALONE, T, V, engines, plain_nats, source, whole


@pytest.fixture(scope="module")
def networks():
    policy, frozen = engines()
    frozen.refresh(policy)
    return policy, frozen


def test_a_panel_names_its_windows_counts_their_tokens_and_knows_the_population(networks):
    policy, frozen = networks
    windows, few = source(0, 30), source(2, 6)
    panel = Prober().measure(frozen, TokenWindows.full(windows), 22, 10, ALONE)
    assert panel.items.tolist() == [22, 23, 24, 25, 26, 27, 28, 29, 0, 1]
    assert panel.sizes.tolist() == [T - 1] * 10 and panel.population == 30
    expected = plain_nats(policy, windows[torch.from_numpy(panel.items)]).mean(1)
    np.testing.assert_allclose(panel.losses, expected, rtol=1e-6)
    panel = Prober().measure(frozen, TokenWindows.full(few), 22, 10, ALONE)
    assert panel.items.tolist() == [0, 1, 2, 3, 4, 5] and panel.population == 6


def test_a_panels_losses_are_per_token_that_is_predicted(networks):
    """Windows of 8 tokens, the second of documents of 3 and 5, against each document alone."""
    policy, frozen = networks
    tokens = source(2, 2)
    positions = torch.tensor([[*range(8)], [*range(3), *range(5)]])
    panel = Prober().measure(frozen, TokenWindows(tokens, positions), 0, 10, ALONE)
    assert panel.sizes.tolist() == [7, 6]
    parts = [plain_nats(policy, part).sum() for part in (tokens[:1], tokens[1:, :3], tokens[1:, 3:])]
    np.testing.assert_allclose(panel.losses, [parts[0] / 7, (parts[1] + parts[2]) / 6], rtol=1e-6)


def test_bits_per_byte_are_the_nats_over_the_bytes_of_the_predicted_tokens_alone(networks):
    """Token t has t bytes, the first three none.

    The window 5 0 1 7 | 2 9 3 3 is two documents: 0 1 7 and 9 3 3 are predicted, 8 and 15 bytes; 5 and 2 are not.
    """
    policy, frozen = networks
    tokens, token_bytes = torch.tensor([[5, 0, 1, 7, 2, 9, 3, 3]]), np.arange(V) * (np.arange(V) > 2)
    token_bytes[1] = 1
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    panel = Prober(token_bytes).measure(frozen, TokenWindows(tokens, positions), 0, 1, ALONE)
    nats = plain_nats(policy, tokens[:, :4]).sum() + plain_nats(policy, tokens[:, 4:]).sum()
    assert panel.sizes.tolist() == [8 + 15]
    np.testing.assert_allclose(panel.losses, [nats / np.log(2) / 23], rtol=1e-6)


def test_every_token_that_the_model_is_run_on_is_counted(networks):
    """Three windows and, of a source that has but two, both: 5 windows of 8 tokens; one more of the first, 8 more."""
    _, frozen = networks
    prober, (many, few) = Prober(), whole([source(0, 30), source(1, 2)])
    for windows in (many, few):
        prober.measure(frozen, windows, 0, 3, ALONE)
    assert prober.tokens == 40
    prober.measure(frozen, many, 7, 1, ALONE)
    assert prober.tokens == 48
    assert per_item_tokens([many, few]) == 16


@pytest.mark.parametrize("token_bytes", [None, np.ones(V, np.int64)])
def test_a_window_in_which_nothing_is_predicted_is_refused(networks, token_bytes):
    _, frozen = networks
    windows = TokenWindows.full(source(1, 14))
    windows.positions[3] = 0
    with pytest.raises(ValueError, match="every sequence has at least 1 token"):
        Prober(token_bytes).measure(frozen, windows, 0, len(windows), ALONE)


def test_what_a_compressor_takes_is_in_the_unit_of_the_losses():
    """Noise of 16 letters, of which each is three bytes: ln 16 nats a token, and 4/3 bits a byte, and a little more."""
    noise = TokenWindows.full(torch.randint(0, 16, (400, 64), generator=torch.Generator().manual_seed(0)))
    for prober, entropy in ((Prober(), np.log(16)), (Prober(np.full(16, 3)), 4 / 3)):
        assert entropy < prober.compressed(noise) < 1.06 * entropy
        assert prober.tokens == 0, "no model was run"
