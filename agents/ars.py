"""Augmented random search inside a dream, scored in the real game: ``python agents/ars.py --dream runs/pong``."""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from tqdm import tqdm

import dreamgym
from dreamgym.evaluate import Score, evaluate_real, random_score
from dreamgym.sb3 import make_algorithm


@dataclass
class Args:
    """Train ARS inside a dream, then score it in the real game."""

    dream: str = "Dream-Pong-v0"
    """id of a dream, run folder or file"""
    steps: int | None = None
    """imagined steps to train for; by default 1,000,000, or with --minutes as many as they allow"""
    minutes: float = math.inf
    """wall time to train for, if no limit of steps is reached before"""
    seed: int = 0
    """of the dreams, of the algorithm and of the evaluation"""
    n_envs: int = 32
    """dreams stepped at once"""
    episodes: int = 32
    """real episodes to score with"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>"""
    network: Literal["paper", "light"] = "light"
    """the policy's: the paper's, or one about four times smaller"""
    observation: Literal["codes", "objects"] = "codes"
    """what the agent sees: all of a latent, or what moves in it, where the dream knows that"""
    learning_rate: float = 0.02
    """size of a step, in units of the spread of returns"""
    noise: float = 0.02
    """standard deviation of what is added to and taken from all weights"""
    directions: int = 8
    """pairs of policies compared before each step"""
    best: int = 4
    """pairs that the step is made of"""


def main(args: Args) -> Score:
    """Train, score, and print both."""
    # Every candidate plays one whole dream in each env: dreams of one age, or the last ones would be cut short.
    seen: dict[str, Any] = {"observation": args.observation, "device": args.device}
    env = dreamgym.make_sb3_env(args.dream, args.n_envs, seed=args.seed, stagger=False, **seen)
    settings: dict[str, float] = {"n_delta": args.directions, "n_top": min(args.best, args.directions)}
    settings |= {"learning_rate": args.learning_rate, "delta_std": args.noise, "n_eval_episodes": args.n_envs}
    model = make_algorithm("ARS", env, args.seed, args.device, network=args.network, **settings)
    steps = args.steps or (1_000_000 if args.minutes == math.inf else 10**9)
    print(f"ARS on {model.device}: up to {steps:,} imagined steps, up to {args.minutes:g} min")
    played, began = 0, time.monotonic()
    limit = began + 60 * args.minutes
    with tqdm(total=steps, unit="step") as bar:
        # ARS does not stop when its callback says so: each call makes one update.
        while played < steps and time.monotonic() < limit:
            model.learn(1, reset_num_timesteps=False)
            # It counts the step of each dream as one of all.
            played = model.num_timesteps // args.n_envs
            bar.update(played - bar.n)
    trained = time.monotonic() - began

    real = dreamgym.make_real_env(env.dream, min(8, args.episodes), **seen)
    score = evaluate_real(model, real, args.episodes, args.seed, progress=True)
    chance = random_score(env.dream.world_model.config.game, args.episodes, args.seed)
    print(
        f"real score {score.mean:.1f} (95 % {score.low:.1f} to {score.high:.1f}, {args.episodes} episodes), "
        f"random {chance.mean:.1f}; {played:,} imagined steps in {trained / 60:.1f} min"
    )
    return score


if __name__ == "__main__":
    main(tyro.cli(Args))
