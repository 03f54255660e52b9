"""Things hidden from the dynamics, which they have to bring back.

In the game a paddle is always there. In a dream it loses a part where a ball meets it, one time in hundreds, and what
was fitted to real latents alone, in which nothing is ever missing, does not draw it again: after 500 steps one of five
dreams had no paddle. So some of the latents that are shown in a fit lack something, for as long as a step or for all
that is remembered, while the latents to come are the true ones: the inputs are corrupted and the targets are not, as
in a denoising autoencoder (Vincent et al. 2008) and as Valevski et al. 2024 ("Diffusion models are real-time game
engines", Section 3.2.1) corrupt the frames that their model of a game is shown, against the drift of long rollouts.
"""

import torch
from torch import Tensor

_ROWS, _COLUMNS = 3, 1
"""Cells to every side of one that are hidden with it, at most; half of the time all of the column is."""

_LEAST = 0.3
"""Chance, at least, of a cell there to be hidden in a step; each window has its own, drawn evenly from this to 1."""


def hide_things(
    latents: Tensor, rest: Tensor, share: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Show the background instead of something.

    Args:
        latents: (batch, time, height, width) int64.
        rest: (height, width) int64, the codes of the background.
        share: of the windows in which something is hidden, from a step on that is drawn evenly.
        generator: of the draws, on the CPU.

    Returns:
        The same shape, and (batch,) bool, on the CPU: in which something is hidden.
    """
    batch, time, height, width = latents.shape
    # Around something that the last of them shows, if it shows anything.
    differs = (latents[:, -1] != rest).flatten(1).cpu()
    centre = torch.multinomial(differs + 1e-6, 1, generator=generator)[:, 0]
    tall, wide = (torch.randint(most + 1, (batch,), generator=generator) for most in (_ROWS, _COLUMNS))
    tall = torch.where(torch.rand(batch, generator=generator) < 0.5, height, tall)
    first = torch.randint(time, (batch,), generator=generator)
    first = torch.where(torch.rand(batch, generator=generator) < share, first, time)
    chance = _LEAST + (1 - _LEAST) * torch.rand(batch, 1, 1, 1, generator=generator)
    hidden = torch.rand(latents.shape, generator=generator) < chance
    hidden &= (torch.arange(time) >= first[:, None])[..., None, None]
    hidden &= ((torch.arange(height) - (centre // width)[:, None]).abs() <= tall[:, None])[:, None, :, None]
    hidden &= ((torch.arange(width) - (centre % width)[:, None]).abs() <= wide[:, None])[:, None, None]
    shown = torch.where(hidden.to(latents.device), rest, latents)
    return shown, (shown != latents).flatten(1).any(dim=1).cpu()
