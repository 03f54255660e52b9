"""A2C inside a dream, scored in the real game: ``python agents/a2c.py --dream runs/pong``."""

import math
import time
from dataclasses import dataclass
from typing import Literal

import tyro

import dreamgym
from dreamgym.evaluate import Score, evaluate_real, random_score
from dreamgym.sb3 import make_algorithm


@dataclass
class Args:
    """Train A2C inside a dream, then score it in the real game."""

    dream: str = "Dream-Pong-v0"
    """id of a dream, run folder or file"""
    steps: int | None = None
    """imagined steps to train for; by default 1,000,000, or with --minutes as many as they allow"""
    minutes: float = math.inf
    """wall time to train for, if no limit of steps is reached before"""
    seed: int = 0
    """of the dreams, of the algorithm and of the evaluation"""
    n_envs: int = 64
    """dreams stepped at once"""
    episodes: int = 32
    """real episodes to score with"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>"""
    network: Literal["paper", "light"] = "light"
    """the policy's: the paper's, or one about four times smaller"""
    observation: Literal["codes", "objects"] = "codes"
    """what the agent sees: all of a latent, or what moves in it, where the dream knows that"""
    learning_rate: float = 7e-4
    """of RMSprop"""
    entropy: float = 0.01
    """weight of the entropy bonus"""


def main(args: Args) -> Score:
    """Train, score, and print both."""
    env = dreamgym.make_sb3_env(
        args.dream, args.n_envs, observation=args.observation, device=args.device, seed=args.seed
    )
    model = make_algorithm(
        "A2C",
        env,
        args.seed,
        args.device,
        network=args.network,
        learning_rate=args.learning_rate,
        ent_coef=args.entropy,
    )
    steps = args.steps or (1_000_000 if args.minutes == math.inf else 10**9)
    print(f"A2C on {model.device}: up to {steps:,} imagined steps, up to {args.minutes:g} min")
    began = time.monotonic()
    limit = began + 60 * args.minutes
    model.learn(steps, callback=lambda *_: time.monotonic() < limit, progress_bar=True)
    trained = time.monotonic() - began

    real = dreamgym.make_real_env(env.dream, min(8, args.episodes), observation=args.observation, device=args.device)
    score = evaluate_real(model, real, args.episodes, args.seed, progress=True)
    chance = random_score(env.dream.world_model.config.game, args.episodes, args.seed)
    print(
        f"real score {score.mean:.1f} (95 % {score.low:.1f} to {score.high:.1f}, {args.episodes} episodes), "
        f"random {chance.mean:.1f}; {model.num_timesteps:,} imagined steps in {trained / 60:.1f} min"
    )
    return score


if __name__ == "__main__":
    main(tyro.cli(Args))
