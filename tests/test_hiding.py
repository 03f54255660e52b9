"""What the dynamics are shown lacks something; what they are to predict does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fit import MULTISCALE, SMALL, fit, pong, world_model

import dreamgym.fit
from dreamgym.errors import ConfigError
from dreamgym.fit import FitConfig, Fitter
from dreamgym.hiding import hide_things

HEIGHT, WIDTH = 10, 8


def windows(batch=400, time=5, seed=0):
    """A bar of three cells that moves along its own column in each window, before a background of two codes."""
    rest = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH) % 2
    generator = torch.Generator().manual_seed(seed)
    latents = rest.expand(batch, time, HEIGHT, WIDTH).clone()
    for window in range(batch):
        row, column = (int(torch.randint(most, (), generator=generator)) for most in (3, WIDTH))
        for step in range(time):
            latents[window, step, row + step : row + step + 3, column] = 5
    return latents, rest


def test_of_a_share_of_the_windows_something_is_hidden_behind_the_background():
    latents, rest = windows()
    shown, hidden = hide_things(latents, rest, 0.5, torch.Generator().manual_seed(1))
    assert hidden.dtype == torch.bool and 0.4 < hidden.float().mean() < 0.5
    assert torch.equal(hidden, (shown != latents).flatten(1).any(dim=1))
    assert ((shown == latents) | (shown == rest)).all()


def test_what_is_hidden_stays_hidden_up_to_the_last_step_and_lies_in_few_columns():
    latents, rest = windows()
    shown, hidden = hide_things(latents, rest, 1.0, torch.Generator().manual_seed(2))
    differs = shown != latents
    columns = differs.any(dim=(1, 2))
    for window in hidden.nonzero()[:, 0].tolist():
        where = columns[window].nonzero()[:, 0]
        assert where.max() - where.min() <= 2
    steps = differs.any(dim=(2, 3))[hidden]
    # All lengths are drawn, from the last step alone to all of them.
    assert set(steps.sum(dim=1).tolist()) == {1, 2, 3, 4, 5} and steps[:, -1].float().mean() > 0.9
    whole = ((shown[:, -1] == 5).sum(dim=(1, 2)) == 0).float().mean()
    assert whole > 0.2


def test_the_same_generator_hides_alike_and_a_share_of_none_hides_nothing():
    latents, rest = windows(40)
    first, second = (hide_things(latents, rest, 0.5, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, second)
    shown, hidden = hide_things(latents, rest, 0.0, torch.Generator().manual_seed(3))
    assert torch.equal(shown, latents) and not hidden.any()
    empty = rest.expand(4, 5, HEIGHT, WIDTH)
    assert torch.equal(hide_things(empty, rest, 1.0, torch.Generator().manual_seed(3))[0], empty)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_is_hidden_of_targets_and_a_window_with_something_hidden_says_nothing_of_its_records(
    monkeypatch, share
):
    model, replay = world_model(dynamics=MULTISCALE, stages=3, frame_stack=1, sprites=True), pong()
    fitter = Fitter(model, replace(SMALL, windows="surprise", hidden_share=share, bf16=False))
    loss, told, surprised = dreamgym.fit.dynamics_loss, [], []

    def watched(model, replay, windows, latents, *others, shown, **settings):
        told.append((latents, shown))
        return loss(model, replay, windows, latents, *others, shown=shown, **settings)

    monkeypatch.setattr(dreamgym.fit, "dynamics_loss", watched)
    monkeypatch.setattr(fitter._surprise, "update", lambda windows, losses: surprised.append(len(losses)))
    fit(fitter, replay, 20, 6)
    known = torch.as_tensor(fitter._latents.of(replay)).long()
    counts = []
    for latents, shown in told:
        counts.append(int((shown != latents[:, :-1]).flatten(1).any(dim=1).sum()))
        assert all((known == window[-1]).flatten(1).all(dim=1).any() for window in latents)
    batch = SMALL.dynamics_batch_size
    assert surprised == [batch - count for count in counts]
    assert (sum(counts) > 0) == (share > 0)


def test_where_the_background_s_codes_are_not_known_nothing_is_hidden():
    with pytest.raises(ConfigError, match=r"set codec\.sprites=True"):
        Fitter(world_model(), replace(SMALL, hidden_share=0.1))
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ConfigError, match="hidden_share: expected 0 to 1"):
            FitConfig(hidden_share=share)
    with pytest.raises(ConfigError, match="hidden_share: expected 0 where frames are moved"):
        FitConfig(hidden_share=0.1, shift=4)
