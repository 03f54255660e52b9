"""PPO in one file, with CleanRL's loop on tensors: ``python agents/cleanrl_ppo.py --dream runs/pong``.

The loop, its names and its details are those of CleanRL's ``ppo_atari.py`` (Huang et al. 2022), but for two things: a
dream that reaches its horizon is not over, so the value goes on there; and the network looks codes up in the dream's
codebook. Everything stays on the device.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical
from tqdm import tqdm

import dreamgym
from dreamgym.evaluate import Score, evaluate_real, random_score
from dreamgym.models.policy import TRUNKS
from dreamgym.sb3 import codebook_of


@dataclass
class Args:
    """Train PPO as CleanRL writes it inside a dream, then score it in the real game."""

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
    network: Literal["paper", "light"] = "paper"
    """the policy's: the paper's, or one about four times smaller"""
    learning_rate: float = 2.5e-4
    """of Adam"""
    anneal_lr: bool = True
    """let the rate fall to zero by the last of --steps; with --minutes alone it stays"""
    num_steps: int = 25
    """steps of each dream between two updates"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """of the advantages"""
    num_minibatches: int = 4
    """parts of a batch"""
    update_epochs: int = 4
    """times that a batch is gone over"""
    clip_coef: float = 0.1
    """how far the policy's ratio may go from 1"""
    ent_coef: float = 0.01
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value's loss"""
    max_grad_norm: float = 0.5
    """most that a gradient's norm may be"""


class Agent(nn.Module):
    """Actor and critic on one body that looks at codes (batch, height * width, stack)."""

    def __init__(self, dream: Any, latent_stack: int, network: str) -> None:
        """Build the network for a dream's codes."""
        super().__init__()
        self.register_buffer("codebook", codebook_of(dream.world_model))
        self.grid = tuple(dream.world_model.codec.latent_shape)
        self.body = TRUNKS[network](latent_stack * self.codebook.shape[1], *self.grid)
        self.actor = nn.Linear(self.body.out_features, dream.world_model.num_actions)
        self.critic = nn.Linear(self.body.out_features, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.zeros_(self.actor.bias)

    def get_value(self, x: Tensor) -> Tensor:
        """Values (batch,)."""
        return self.critic(self.body.from_codes(x, self.codebook, self.grid)).flatten()

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities, entropies and values, all (batch,)."""
        hidden = self.body.from_codes(x, self.codebook, self.grid)
        # To check the logits is to wait for the device.
        probs = Categorical(logits=self.actor(hidden), validate_args=False)
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden).flatten()

    @torch.no_grad()
    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: bool) -> tuple[Any, Any]:
        """Actions as Stable-Baselines3's models give them, which is all that dreamgym's evaluation asks for."""
        codes = torch.as_tensor(observation, device=self.codebook.device)
        logits = self.actor(self.body.from_codes(codes, self.codebook, self.grid))
        action = logits.argmax(1) if deterministic else Categorical(logits=logits).sample()
        return action.cpu().numpy(), state


def main(args: Args) -> Score:
    """Train, score, and print both."""
    torch.manual_seed(args.seed)
    # Staggered, or all dreams would reach the horizon in the same step.
    envs: Any = gym.make_vec(
        "Dream-v0",
        args.n_envs,
        game=args.dream,
        array="torch",
        observation="codes",
        device=args.device,
        stagger=True,
    )
    device, latent_stack = envs.simulator.device, envs.simulator.latent_stack
    agent = Agent(envs.dream, latent_stack, args.network).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)

    # ALGO Logic: Storage setup
    shape = (args.num_steps, args.n_envs)
    obs = torch.zeros(*shape, *envs.single_observation_space.shape, dtype=torch.uint8, device=device)
    final_obs, cut = torch.zeros_like(obs), torch.zeros(shape, dtype=torch.bool, device=device)
    actions = torch.zeros(shape, dtype=torch.int64, device=device)
    logprobs, rewards, dones, values = (torch.zeros(shape, device=device) for _ in range(4))

    steps = args.steps or (1_000_000 if args.minutes == math.inf else 10**9)
    print(f"CleanRL's PPO on {device}: up to {steps:,} imagined steps, up to {args.minutes:g} min")
    began = time.monotonic()
    limit = began + 60 * args.minutes
    global_step, batch_size = 0, args.num_steps * args.n_envs
    minibatch_size = max(1, batch_size // args.num_minibatches)
    next_obs, _ = envs.reset(seed=args.seed)
    next_done = torch.zeros(args.n_envs, device=device)
    bar = tqdm(total=steps, unit="step")
    while global_step < steps and time.monotonic() < limit:
        if args.anneal_lr and args.minutes == math.inf:
            optimizer.param_groups[0]["lr"] = (1.0 - global_step / steps) * args.learning_rate

        for step in range(args.num_steps):
            global_step += args.n_envs
            obs[step] = next_obs
            dones[step] = next_done
            with torch.no_grad():
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(next_obs)
            next_obs, rewards[step], terminated, truncated, infos = envs.step(actions[step])
            next_done = (terminated | truncated).float()
            final_obs[step], cut[step] = infos["final_obs"], truncated & ~terminated

        # bootstrap value if not done; to ask in every step which dreams were cut is to wait for the device
        with torch.no_grad():
            for where in cut.flatten().nonzero().flatten().split(args.n_envs):
                rewards.view(-1)[where] += args.gamma * agent.get_value(final_obs.flatten(0, 1)[where])
            next_value = agent.get_value(next_obs)
            advantages = torch.zeros_like(rewards)
            lastgaelam = torch.zeros(args.n_envs, device=device)
            for t in reversed(range(args.num_steps)):
                last = t == args.num_steps - 1
                nextnonterminal = 1.0 - (next_done if last else dones[t + 1])
                nextvalues = next_value if last else values[t + 1]
                delta = rewards[t] + args.gamma * nextvalues * nextnonterminal - values[t]
                lastgaelam = delta + args.gamma * args.gae_lambda * nextnonterminal * lastgaelam
                advantages[t] = lastgaelam
            returns = advantages + values

        # flatten the batch
        b_obs, b_actions, b_logprobs = obs.flatten(0, 1), actions.flatten(), logprobs.flatten()
        b_advantages, b_returns, b_values = advantages.flatten(), returns.flatten(), values.flatten()

        # Optimizing the policy and value network
        for _ in range(args.update_epochs):
            for mb_inds in torch.randperm(batch_size, device=device).split(minibatch_size):
                _, newlogprob, entropy, newvalue = agent.get_action_and_value(b_obs[mb_inds], b_actions[mb_inds])
                ratio = (newlogprob - b_logprobs[mb_inds]).exp()
                mb_advantages = b_advantages[mb_inds]
                if len(mb_inds) > 1:
                    mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)

                # Policy loss
                pg_loss1 = -mb_advantages * ratio
                pg_loss2 = -mb_advantages * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = torch.max(pg_loss1, pg_loss2).mean()

                # Value loss
                v_loss_unclipped = (newvalue - b_returns[mb_inds]) ** 2
                moved = (newvalue - b_values[mb_inds]).clamp(-args.clip_coef, args.clip_coef)
                v_loss_clipped = (b_values[mb_inds] + moved - b_returns[mb_inds]) ** 2
                v_loss = 0.5 * torch.max(v_loss_unclipped, v_loss_clipped).mean()

                loss = pg_loss - args.ent_coef * entropy.mean() + args.vf_coef * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        bar.update(batch_size)
    bar.close()
    trained = time.monotonic() - began

    real = dreamgym.make_real_env(envs.dream, min(8, args.episodes), observation="codes", device=args.device)
    score = evaluate_real(agent, real, args.episodes, args.seed, progress=True)
    chance = random_score(envs.dream.world_model.config.game, args.episodes, args.seed)
    print(
        f"real score {score.mean:.1f} (95 % {score.low:.1f} to {score.high:.1f}, {args.episodes} episodes), "
        f"random {chance.mean:.1f}; {global_step:,} imagined steps in {trained / 60:.1f} min"
    )
    return score


if __name__ == "__main__":
    main(tyro.cli(Args))
