"""What becomes of a ball of Pong that is gone: in the game a point, or it is back; in a dream it may be neither.

Held-out episodes of a run are dreamt, open loop, from many of their moments with their own actions, and balls that are
no longer seen are followed for a while, in the game and in the dream:

    python tests/benchmarks/vanish.py runs/pong

``unpaid`` is the share of them that came back without a point or not at all. A dream without a ball serves none: an
agent that loses balls there so is never told.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tyro

from dreamgym.checkpoint import StartStates, load_dream
from dreamgym.errors import InvalidInputError
from dreamgym.held_out import MOST_HELD_OUT
from dreamgym.pong import FIELDS, find_spots
from dreamgym.replay import Replay
from dreamgym.run_folder import RunFolder
from dreamgym.simulator import DreamSimulator
from dreamgym.world_model import WorldModel

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_BRIGHT = 35.0
"""By how much a decoded ball stands out at least, of 255."""

_FOLLOWED = 12
"""Steps in which a ball that is gone has to come back or bring a point."""

_GONE = 3
"""Steps without a ball after which it counts as gone: in front of a paddle it is hard to see."""


@dataclass(frozen=True)
class Args:
    """Follow balls that are gone."""

    run: tyro.conf.Positional[Path]
    """folder of a run of Pong"""
    dreams: int = 256
    """moments that are dreamt from"""
    steps: int = 60
    """of each dream"""
    episodes: int = 8
    """newest held-out episodes"""
    seed: int = 0
    """of the moments and the dreams"""


@dataclass(frozen=True)
class Fates:
    """Balls that were gone, counted: those that brought a point, were back before one, or neither."""

    seen: float
    paid: int
    back: int
    neither: int

    @property
    def unpaid(self) -> float:
        """Share of them that brought no point."""
        return (self.back + self.neither) / max(self.paid + self.back + self.neither, 1)


def fates(seen: Bools, rewards: Floats) -> Fates:
    """Follow the balls of games played side by side.

    Args:
        seen: (steps, games), whether a ball is in the field.
        rewards: (steps, games), of the step that follows.
    """
    counts = {"paid": 0, "back": 0, "neither": 0}
    steps, games = seen.shape
    for game in range(games):
        for step in range(1, steps - _FOLLOWED - 1):
            after = seen[step + 1 : step + 1 + _FOLLOWED, game]
            if not seen[step - 1 : step + 1, game].all() or after[:_GONE].any():
                continue
            # A point may come one step before the ball is gone from the picture.
            points = np.flatnonzero(np.abs(rewards[step - 1 : step + 1 + _FOLLOWED, game]) > 0.5)
            returns = np.flatnonzero(after)
            if len(points) and (not len(returns) or points[0] <= returns[0] + 2):
                counts["paid"] += 1
            else:
                counts["back" if len(returns) else "neither"] += 1
    return Fates(float(seen.mean()), **counts)


def follow(world_model: WorldModel, held_out: Replay, args: Args) -> dict[str, Fates]:
    """The fates of balls in the game and in the dream of it."""
    context = 8
    spans = held_out.iter_episodes()
    moments = [
        np.arange(begin + context, end - args.steps) for begin, end in spans if end - begin > args.steps + context
    ]
    if not moments:
        raise InvalidInputError(f"{args.run}: expected held-out episodes longer than {args.steps} steps, got none.")
    rng = np.random.default_rng(args.seed)
    begins = rng.choice(np.concatenate(moments), min(args.dreams, sum(map(len, moments))), replace=False)
    before = begins[:, None] + np.arange(1 - context, 1)
    latents = encode(world_model, held_out, before.ravel()).view(*before.shape, *world_model.codec.latent_shape)
    starts = StartStates(
        latents.to(torch.uint8),
        torch.as_tensor(held_out.actions_at(before)),
        torch.ones(before.shape, dtype=torch.bool),
        torch.as_tensor(held_out.elapsed_at(before[:, 0])),
    )
    # A point that was drawn is one, however likely it was.
    simulator = DreamSimulator(
        world_model, starts, num_envs=len(begins), horizon=None, reward="sampled", seed=args.seed
    )
    simulator.reset(starts=torch.arange(len(begins)))
    field = pictures(world_model, encode(world_model, held_out, np.arange(0, len(held_out), 7)))
    background = np.median(field, axis=0).astype(np.uint8)

    def shows(codes: torch.Tensor) -> Bools:
        return find_spots(pictures(world_model, codes), background)[1] > _BRIGHT

    dreamt: list[Bools] = []
    paid: list[Floats] = []
    real: list[Bools] = []
    for step in range(args.steps):
        dreamt.append(shows(simulator.latents[:, -1]))
        real.append(shows(encode(world_model, held_out, begins + step)))
        result = simulator.step(torch.as_tensor(held_out.actions_at(begins + step)).long())
        paid.append(result.reward.double().numpy())
    every = begins + np.arange(args.steps)[:, None]
    rewards = held_out.rewards_at(every.ravel()).reshape(every.shape).astype(np.float64)
    return {"game": fates(np.stack(real), rewards), "dream": fates(np.stack(dreamt), np.stack(paid))}


def encode(world_model: WorldModel, experience: Replay, indices: npt.NDArray[np.int64]) -> torch.Tensor:
    """Latents of records, int64 (records, height, width)."""
    parts = np.array_split(indices, max(1, len(indices) // 256))
    return torch.cat([world_model.encode(experience.frames_at(part, world_model.frame_stack)) for part in parts])


def pictures(world_model: WorldModel, latents: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Newest frames that latents stand for, (records, height, width)."""
    parts = [world_model.decode(part)[:, -1].numpy() for part in latents.split(256)]
    return np.concatenate(parts)


def main(args: Args) -> None:
    """Print a line for the game and one for the dream."""
    dream = load_dream(args.run)
    if dream.world_model.codec.frame_shape[1:] not in FIELDS or dream.world_model.config.game != "Pong":
        raise InvalidInputError(f"{args.run}: expected a run of Pong at a size of {list(FIELDS)}.")
    held_out = RunFolder(args.run).load_held_out(MOST_HELD_OUT, args.episodes)
    print(f"{'':8}{'ball seen':>10}{'gone':>8}{'point':>8}{'back':>8}{'neither':>8}{'unpaid':>8}")
    for name, found in follow(dream.world_model, held_out, args).items():
        gone = found.paid + found.back + found.neither
        print(f"{name:8}{found.seen:10.2f}{gone:8}{found.paid:8}{found.back:8}{found.neither:8}{found.unpaid:8.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
