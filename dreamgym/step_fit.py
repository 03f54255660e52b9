"""Fitting the head of steps alone, on what few of all steps show: bounces.

Where the head needs nothing of the trunk (``dynamics.steps_apart``) its updates are cheap, and can be spent on other
latents than those that the rest of the dynamics are fitted to.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dreamgym.acts import real_acts
from dreamgym.models.multiscale import MultiscaleDynamics
from dreamgym.replay import Replay
from dreamgym.terminal import progress_bar
from dreamgym.updates import Report, Tracker, parameter_group, seeded_dropout, set_rate
from dreamgym.world_model import WorldModel


@dataclass(frozen=True)
class StepFit:
    """How the head of steps is fitted.

    Attributes:
        batch_size: latents from which an update takes things.
        learning_rate: of AdamW at the start.
        final_rate: share of it at the end of a half cosine.
        weight_decay: of its weights.
    """

    batch_size: int
    learning_rate: float
    final_rate: float
    weight_decay: float


def fit_steps(
    world_model: WorldModel,
    replay: Replay,
    table: Tensor,
    followed: tuple[Tensor, Tensor],
    updates: int,
    settings: StepFit,
    generator: torch.Generator,
    progress: bool,
) -> Report:
    """Fit the head of steps, and leave it as what later updates do not change.

    Args:
        world_model: whose dynamics have ``steps_apart``.
        replay: real experience.
        table: (steps, height, width) uint8, its latents.
        followed: of :meth:`MultiscaleDynamics.learn_going`.
        updates: how many.
        settings: of each.
        generator: draws latents and dropout; on the CPU.
        progress: show a progress bar.

    Returns:
        ``steps/nats``: of a thing's step, mean over the last tenth of the updates; nothing where nothing moved.
    """
    dynamics = world_model.dynamics
    assert isinstance(dynamics, MultiscaleDynamics) and dynamics.step_head is not None
    memory, device = dynamics.config.memory, world_model.device
    chances = step_chances(replay, followed[0].cpu(), followed[1].cpu(), memory)
    if not updates or chances is None:
        return {}
    decays, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in dynamics.step_head.named_parameters():
        (decays if name.endswith("weight") else others).append(parameter)
    rate = settings.learning_rate
    groups = [parameter_group(decays, rate, settings.weight_decay), parameter_group(others, rate, 0.0)]
    optimizer, tracker = torch.optim.AdamW(groups, fused=True), Tracker(updates)
    dynamics.step_head.requires_grad_(True).train()
    for update in progress_bar(range(updates), name="steps", unit="update", wanted=progress):
        set_rate(optimizer, 1.0, update / updates, settings.final_rate)
        drawn = torch.multinomial(chances, settings.batch_size, replacement=True, generator=generator)
        seen = (drawn[:, None] + torch.arange(1 - memory, 1)).numpy()
        with seeded_dropout(device, generator):
            losses = dynamics.step_losses(
                world_model.shown(table[torch.as_tensor(seen)].to(device, torch.int64)),
                real_acts(world_model, replay, seen),
                torch.as_tensor(replay.rewards_at(drawn.numpy()), device=device),
                torch.as_tensor(replay.elapsed_at(drawn.numpy()), device=device),
                table[drawn + 1].to(device, torch.int64),
            )
        optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        optimizer.step()
        tracker.add(update, {"nats": losses.detach().mean()})
    dynamics.step_head.requires_grad_(False).eval()
    return tracker.report("steps/")


def step_chances(replay: Replay, indices: Tensor, changes: Tensor, memory: int) -> Tensor | None:
    """How often each latent is drawn: half of the time evenly, half so that every change of a step comes as often.

    Args:
        replay: real experience.
        indices: (things,) int64, the latent from which each made a step.
        changes: (things,) int64, which change it was of the step before.
        memory: latents that are shown, all of one episode.

    Returns:
        (steps,) float32; None where there is nothing to be drawn.
    """
    every = torch.arange(len(replay))
    first = torch.as_tensor(replay.first_at(np.arange(len(replay))))
    since = every - torch.where(first, every, 0).cummax(0).values
    kept = since[indices] >= memory - 1
    indices, changes = indices[kept], changes[kept]
    if len(indices) == 0:
        return None
    _, kind, count = torch.unique(changes, return_inverse=True, return_counts=True)
    chances = torch.zeros(len(replay)).index_add(0, indices, 0.5 / (len(count) * count[kind].float()))
    there = indices.unique()
    chances[there] += 0.5 / len(there)
    return chances
