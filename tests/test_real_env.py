"""The real game seen through the encoder: the dream's spaces, and latents that are really those of the frames."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TINY_LSTM, make_tiny_dream
from gymnasium.utils.env_checker import data_equivalence

from dreamgym import DreamEnv, make_real_env
from dreamgym.checkpoint import Dream
from dreamgym.errors import ConfigError, InvalidActionError, InvalidInputError
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.real import make_game_env, make_game_vector_env
from dreamgym.world_model import WorldModel, WorldModelConfig

ACTIONS = [0, 2, 3, 3, 1, 5, 5, 2]


@pytest.mark.parametrize("hidden_state", [False, True])
@pytest.mark.parametrize("observation", ["embedding", "codes", "pixels"])
def test_the_real_env_has_the_dreams_spaces(tiny_dream: Dream, observation: Any, hidden_state: bool) -> None:
    settings: dict[str, Any] = {"device": "cpu", "observation": observation, "hidden_state": hidden_state}
    dream = DreamEnv(checkpoint=tiny_dream, **settings)
    single = make_real_env(tiny_dream, **settings)
    vector = make_real_env(tiny_dream, 2, **settings)
    assert single.observation_space == vector.single_observation_space == dream.observation_space
    assert single.action_space == vector.single_action_space == dream.action_space
    assert dream.observation_space.contains(single.reset(seed=0)[0])
    assert dream.observation_space.contains(single.step(2)[0])
    assert vector.observation_space.contains(vector.reset(seed=0)[0])
    assert vector.observation_space.contains(vector.step(np.array([2, 3]))[0])


@pytest.mark.parametrize(("frame_stack", "latent_stack"), [(1, 4), (4, 1)])
def test_observations_are_the_latents_of_the_last_frames(frame_stack: int, latent_stack: int) -> None:
    dream = make_tiny_dream(frame_stack=frame_stack, latent_stack=latent_stack)
    env = make_real_env(dream, device="cpu", observation="codes", seed=5)
    game = make_game_env("Pong", stack=frame_stack)
    frames = [game.reset(seed=5)[0]]
    observations = [env.reset()[0]]
    for action in ACTIONS:
        frames.append(game.step(action)[0])
        observations.append(env.step(action)[0])
    codes = dream.world_model.encode(np.stack(frames)).flatten(1).numpy()
    assert len(np.unique(codes, axis=0)) > 4
    for time, observation in enumerate(observations):
        last = [codes[max(0, time - back)] for back in reversed(range(latent_stack))]
        assert np.array_equal(observation, np.stack(last, axis=1))


@pytest.mark.parametrize(("observation", "shape"), [("embedding", (32, 7, 5)), ("codes", (35, 1))])
def test_a_codec_whose_frames_are_not_square_sees_the_game_at_half_its_size(
    tiny_dream: Dream, observation: Any, shape: tuple[int, ...]
) -> None:
    codec = VQVAEConfig(frame_size=112, frame_width=80, width=4)
    model = WorldModel(WorldModelConfig(codec=codec, dynamics=TINY_LSTM, bf16=False), seed=0)
    assert model.codec.latent_shape == (7, 5)
    dream = Dream(model, tiny_dream.starts, latent_stack=1)
    settings: dict[str, Any] = {"device": "cpu", "observation": observation, "seed": 5, "noop_max": 0}
    single, vector = make_real_env(dream, **settings), make_real_env(dream, 2, **settings)
    game = make_game_env("Pong", size=(112, 80), noop_max=0)
    assert single.observation_space.shape == shape
    seen, seen_by_all, frame = single.reset()[0], vector.reset()[0], game.reset(seed=5)[0]
    for action in ACTIONS:
        assert seen.shape == shape and seen_by_all.shape == (2, *shape)
        assert np.array_equal(vector.frames[:1], frame)
        seen, seen_by_all, frame = (single.step(action)[0], vector.step(np.full(2, action))[0], game.step(action)[0])


def test_rewards_ends_and_infos_are_the_games_own(tiny_dream: Dream) -> None:
    env = make_real_env(tiny_dream, device="cpu", max_episode_steps=120, noop_max=0)
    game = make_game_env("Pong", max_episode_steps=120, noop_max=0)
    assert data_equivalence(env.reset(seed=1)[1], game.reset(seed=1)[1])
    total, truncated = 0.0, False
    while not truncated:
        ours, theirs = env.step(0), game.step(0)
        assert data_equivalence(ours[4], theirs[4])
        assert ours[1:4] == (float(theirs[1]), theirs[2], theirs[3])
        total, truncated = total + ours[1], ours[3]
    assert total < 0


def test_the_hidden_state_runs_along_the_real_actions(tiny_dream: Dream) -> None:
    env = make_real_env(tiny_dream, device="cpu", hidden_state=True)
    game, model = make_game_env("Pong"), tiny_dream.world_model
    latent = model.encode(game.reset(seed=2)[0][None])
    assert not env.reset(seed=2)[0]["hidden"].any()
    state = model.initial_state(1)
    for action in ACTIONS:
        state = model.step(latent, torch.tensor([action]), state)[1]
        latent = model.encode(game.step(action)[0][None])
        assert np.allclose(env.step(action)[0]["hidden"], model.hidden(state)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("num_envs", [None, 2])
def test_the_hidden_state_is_told_of_real_rewards(
    tiny_dream: Dream, monkeypatch: pytest.MonkeyPatch, num_envs: int | None
) -> None:
    told: list[Any] = []

    def spy(before: Any, after: Any, rewarded: Any) -> Any:
        told.append(rewarded.numpy())
        return after

    monkeypatch.setattr(tiny_dream.world_model.dynamics, "told_reward", spy)
    settings: Any = {} if num_envs is None else {"num_envs": num_envs}
    env: Any = make_real_env(tiny_dream, device="cpu", hidden_state=True, noop_max=0, **settings)
    env.reset(seed=0)
    actions = 0 if num_envs is None else np.zeros(num_envs, dtype=np.int64)
    rewards = np.stack([np.atleast_1d(env.step(actions)[1]) for _ in range(80)])
    assert (rewards != 0).any() and np.array_equal(np.stack(told), rewards != 0)


@pytest.mark.parametrize("hidden_state", [False, True])
def test_games_of_the_vector_env_begin_anew_within_the_step(tiny_dream: Dream, hidden_state: bool) -> None:
    settings: dict[str, Any] = {"max_episode_steps": 4}
    env = make_real_env(tiny_dream, 2, device="cpu", observation="codes", hidden_state=hidden_state, **settings)
    games = make_game_vector_env("Pong", 2, **settings)
    observation, _ = env.reset(seed=3)
    history = [games.reset(seed=3)[0]]

    def codes(frames: Any) -> Any:
        return tiny_dream.world_model.encode(np.asarray(frames)).flatten(1).numpy()

    def shown(observation: Any) -> Any:
        return observation["observation"] if hidden_state else observation

    assert np.array_equal(shown(observation)[..., -1], codes(history[0]))
    for step in range(6):
        actions = np.array([2, 3])
        observation, rewards, terminated, truncated, infos = env.step(actions)
        frames, *_, game_infos = games.step(actions)
        assert np.array_equal(env.frames, np.asarray(frames)[:, -1])
        assert np.array_equal(shown(observation)[..., -1], codes(frames))
        assert (rewards.dtype, terminated.dtype) == (np.float32, np.bool_)
        assert truncated.tolist() == [step == 3] * 2
        if step == 3:
            finals = codes(np.stack([np.asarray(frame) for frame in game_infos["final_obs"]]))
            for row in range(2):
                final = infos["final_obs"][row]
                assert np.array_equal(shown(final)[..., -1], finals[row])
                assert not np.array_equal(shown(final)[..., 0], shown(final)[..., -1])
            assert all(np.array_equal(shown(observation)[..., k], codes(frames)) for k in range(4))
            if hidden_state:
                assert infos["final_obs"][0]["hidden"].any()
                assert not observation["hidden"].any()


@pytest.mark.parametrize("hidden_state", [False, True])
def test_a_masked_reset_leaves_what_the_other_games_have_seen(tiny_dream: Dream, hidden_state: bool) -> None:
    env = make_real_env(tiny_dream, 2, device="cpu", observation="codes", hidden_state=hidden_state)
    env.reset(seed=3)
    seen = [env.step(np.array([2, 3]))[0] for _ in range(5)][-1]
    after, _ = env.reset(options={"reset_mask": np.array([True, False])})
    parts = (lambda o: (o["observation"], o["hidden"])) if hidden_state else (lambda o: (o,))
    for old, new in zip(parts(seen), parts(after), strict=True):
        assert np.array_equal(old[1], new[1])
        assert not np.array_equal(old[0], new[0])
    codes = parts(after)[0]
    assert all(np.array_equal(codes[0, :, k], codes[0, :, -1]) for k in range(4))


def test_single_and_vector_env_see_the_same_game(tiny_dream: Dream) -> None:
    single = make_real_env(tiny_dream, device="cpu", observation="codes", seed=9, noop_max=0)
    vector = make_real_env(tiny_dream, 2, device="cpu", observation="codes", seed=9, noop_max=0)
    assert np.array_equal(single.reset()[0], vector.reset()[0][0])
    for action in ACTIONS:
        assert np.array_equal(single.step(action)[0], vector.step(np.full(2, action))[0][0])


def test_observations_are_never_overwritten(tiny_dream: Dream) -> None:
    env = make_real_env(tiny_dream, 2, device="cpu", max_episode_steps=3)
    kept = [env.reset(seed=0)[0], *(env.step(np.array([2, 3]))[0] for _ in range(5))]
    copies = [observation.copy() for observation in kept]
    env.step(np.array([0, 1]))
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert not np.array_equal(kept[1], kept[2])


def test_the_game_itself_can_be_shown(tiny_dream: Dream) -> None:
    env = make_real_env(tiny_dream, device="cpu", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (210, 160, 3)
    env.close()


def test_wrong_actions_of_real_games_are_refused(tiny_dream: Dream) -> None:
    single, vector = make_real_env(tiny_dream, device="cpu"), make_real_env(tiny_dream, 2, device="cpu")
    with pytest.raises(InvalidInputError, match=r"call reset\(\) first"):
        _ = vector.frames
    single.reset(seed=0)
    vector.reset(seed=0)
    with pytest.raises(InvalidActionError, match="got 6"):
        single.step(6)
    with pytest.raises(InvalidActionError, match=r"expected shape \(2,\)"):
        vector.step(np.zeros(3, dtype=np.int64))
    vector.close()


def test_a_dream_with_other_actions_than_the_game_is_refused(tiny_dream: Dream) -> None:
    object.__setattr__(tiny_dream.world_model.config, "game", "Breakout")
    with pytest.raises(ConfigError, match=r"Discrete\(4\), but the dream was fitted with Discrete\(6\)"):
        make_real_env(tiny_dream, device="cpu")


def test_sticky_actions_reach_the_game(tiny_dream: Dream) -> None:
    env = make_real_env(tiny_dream, device="cpu", sticky_actions=0.25, noop_max=0)
    assert env.game.unwrapped.ale.getFloat("repeat_action_probability") == 0.25


def test_gymnasiums_wrappers_take_the_real_env(tiny_dream: Dream) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(make_real_env(tiny_dream, device="cpu", max_episode_steps=3))
    env.reset(seed=0)
    infos = [env.step(0)[4] for _ in range(3)]
    assert infos[-1]["episode"]["l"] == 3
