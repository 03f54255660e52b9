"""The reward of a step is drawn first, and the latent goes by it."""

from dataclasses import replace

import pytest
import torch
from test_fit import MULTISCALE
from test_motion import HEIGHT, WIDTH, dynamics, latent

from dreamgym.errors import ConfigError
from dreamgym.models.multiscale import MultiscaleConfig


def test_rewards_are_not_told_where_no_steps_are_drawn():
    with pytest.raises(ConfigError, match="reward_first: expected False where no steps are drawn"):
        MultiscaleConfig(motion=True, reward_first=True)


def test_a_ball_that_is_worth_a_point_is_gone_and_another_is_not():
    torch.manual_seed(0)
    found = dynamics(motion=True, step_hidden=32, reward_first=True).train()
    optimizer = torch.optim.Adam(found.parameters(), 1e-2)
    rows = range(4, 34, 2)
    older, newest, onward = (torch.cat([latent((row, column)) for row in rows]) for column in (14, 17, 20))
    # The same is seen, and one in two is worth a point.
    shown = torch.stack([older, newest], dim=1).repeat(2, 1, 1, 1)
    count = len(older)
    rewards = torch.zeros(2 * count, 2)
    rewards[count:, 1] = 1.0
    following = torch.cat([onward, torch.cat([latent()] * count)])
    actions = torch.zeros(2 * count, 2, dtype=torch.int64)
    for _ in range(80):
        prediction, _ = found.sequence(shown, actions, found.initial_state(2 * count), rewards)
        last = type(prediction)(*(tensor[:, 1:] for tensor in prediction))
        loss = found.latent_loss(last, following[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found.eval()
    with torch.no_grad():
        state = found.initial_state(count)
        for seen in (older, newest):
            prediction, state = found.step(seen, torch.zeros(count, dtype=torch.int64), state)
        for reward, expected in ((0, onward), (1, torch.cat([latent()] * count))):
            told = found.given_reward(prediction, torch.full((count,), reward))
            drawn = found.draw_latent(told, torch.rand(count, HEIGHT, WIDTH))
            assert (drawn == expected).all(dim=(1, 2)).float().mean() > 0.8
            likely = found.latent_log_probability(told, expected).sum(dim=(1, 2))
            other = found.given_reward(prediction, torch.full((count,), 1 - reward))
            assert (likely > found.latent_log_probability(other, expected).sum(dim=(1, 2)) + 1).all()


@torch.no_grad()
def test_one_step_and_a_window_agree_on_what_the_latent_is_told():
    torch.manual_seed(0)
    found = dynamics(motion=True, step_hidden=16, reward_first=True)
    for told in (found.step_head.rewarded, found.latent_head.rewarded, found.latent_head.gate_rewarded):
        torch.nn.init.normal_(told.weight)
    shown = torch.cat([latent((9, 4)), latent((11, 7)), latent((13, 10))])[None]
    actions, rewards = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0.0, -1.0, 1.0]])
    whole, _ = found.sequence(shown, actions, found.initial_state(1), rewards)
    state = found.initial_state(1)
    following = latent((15, 13))
    for step in range(3):
        before = state
        one, state = found.step(shown[:, step], actions[:, step], before)
        reward = rewards[:, step].long()
        told, state = found.given_reward(one, reward), found.told_reward(before, state, reward != 0)
        there = type(whole)(*(tensor[:, step] for tensor in whole))
        chances = [found.latent_log_probability(prediction, following).sum() for prediction in (there, told)]
        torch.testing.assert_close(*chances, rtol=1e-4, atol=1e-4)
    # Of those whose reward was not drawn the likeliest one is told.
    likeliest = one.reward_logits.argmax(dim=1) - 1
    assert torch.equal(found.given_reward(one, likeliest).latent, one.latent)


@torch.no_grad()
def test_without_it_nothing_is_told():
    found = dynamics(motion=True, step_hidden=16)
    prediction, _ = found.step(latent((9, 4)), torch.zeros(1, dtype=torch.int64), found.initial_state(1))
    assert found.given_reward(prediction, torch.ones(1, dtype=torch.int64)) is prediction
    assert not any("rewarded" in name for name in found.state_dict())
    assert not replace(MULTISCALE).reward_first


def test_a_dream_tells_the_latent_what_it_drew(tiny_dream, monkeypatch):
    from dreamgym.simulator import DreamSimulator

    told, drawn = [], []
    model = tiny_dream.world_model
    draw = model.draw_reward

    def watched(*given):
        rewards, state = draw(*given)
        drawn.append(rewards)
        return rewards, state

    def telling(prediction, rewards):
        told.append(rewards)
        return prediction

    monkeypatch.setattr(model, "draw_reward", watched)
    monkeypatch.setattr(model.dynamics, "given_reward", telling)
    for temperature in (1.0, 0.0):
        simulator = DreamSimulator(model, tiny_dream.starts, num_envs=4, temperature=temperature, seed=0)
        simulator.reset()
        simulator.step(torch.zeros(4, dtype=torch.int64))
    # Without chance the likeliest reward counts, which the prediction knows.
    assert len(drawn) == 2 and len(told) == 1 and torch.equal(told[0], drawn[0])
