"""A2C inside a dream, scored in the real game: ``python agents/a2c.py --dream runs/pong``."""

from dataclasses import dataclass

import tyro

import dreamgym
from dreamgym.evaluate import Score, evaluate_real, random_score
from dreamgym.sb3 import make_algorithm


@dataclass
class Args:
    """Train A2C inside a dream, then score it in the real game."""

    dream: str = "Dream-Pong-v0"
    """id of a dream, run folder or file"""
    steps: int = 1_000_000
    """imagined steps to train for"""
    seed: int = 0
    """of the dreams, of the algorithm and of the evaluation"""
    n_envs: int = 64
    """dreams stepped at once"""
    episodes: int = 32
    """real episodes to score with"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>"""
    learning_rate: float = 7e-4
    """of RMSprop"""
    entropy: float = 0.01
    """weight of the entropy bonus"""


def main(args: Args) -> Score:
    """Train, score, and print both."""
    # Codes are small to store and to move; the policy looks them up in the dream's codebook.
    env = dreamgym.make_sb3_env(args.dream, args.n_envs, observation="codes", device=args.device, seed=args.seed)
    model = make_algorithm(
        "A2C",
        env,
        args.seed,
        args.device,
        learning_rate=args.learning_rate,
        ent_coef=args.entropy,
    )
    print(f"A2C on {model.device}: {args.steps} imagined steps")
    model.learn(args.steps, progress_bar=True)

    real = dreamgym.make_real_env(args.dream, min(8, args.episodes), observation="codes", device=args.device)
    score = evaluate_real(model, real, args.episodes, args.seed, progress=True)
    chance = random_score(real.dream.world_model.config.game, args.episodes, args.seed)
    print(f"real score {score.mean:.1f} ({score.low:.1f} to {score.high:.1f}), random {chance.mean:.1f}")
    return score


if __name__ == "__main__":
    main(tyro.cli(Args))
