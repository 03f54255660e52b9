"""QR-DQN inside a dream, scored in the real game: ``python agents/qrdqn.py --dream runs/pong``."""

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
    """Train QR-DQN inside a dream, then score it in the real game."""

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
    learning_rate: float = 3e-4
    """of Adam"""
    buffer: int = 200_000
    """imagined steps kept for replay"""
    epsilon: float = 0.02
    """chance of a random action: the same throughout, as time may end training"""


def main(args: Args) -> Score:
    """Train, score, and print both."""
    env = dreamgym.make_sb3_env(
        args.dream, args.n_envs, observation=args.observation, device=args.device, seed=args.seed
    )
    steps = args.steps or (1_000_000 if args.minutes == math.inf else 10**9)
    settings: dict[str, float] = {"batch_size": 64, "train_freq": 1, "gradient_steps": 16}
    settings |= {"n_steps": 5, "gamma": 0.98, "learning_rate": args.learning_rate}
    settings |= {"buffer_size": args.buffer, "learning_starts": min(5_000, steps // 4)}
    # A small change of the target network after each step of all dreams.
    settings |= {"tau": 0.005, "target_update_interval": args.n_envs}
    settings |= {"exploration_initial_eps": args.epsilon, "exploration_final_eps": args.epsilon}
    model = make_algorithm("QRDQN", env, args.seed, args.device, network=args.network, **settings)
    print(f"QR-DQN on {model.device}: up to {steps:,} imagined steps, up to {args.minutes:g} min")
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
