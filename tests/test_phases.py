"""Phases: how many emulator frames were waited before an episode, modulo those of a step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

from dreamgym.acts import real_acts
from dreamgym.checkpoint import Dream, load_dream, save_dream
from dreamgym.collect import GameSession
from dreamgym.config import make_config
from dreamgym.errors import ConfigError, InvalidInputError
from dreamgym.observations import ObservationBuilder
from dreamgym.real import make_game_env, make_game_vector_env
from dreamgym.real_env import LatentTracker, make_real_env
from dreamgym.replay import Replay
from dreamgym.simulator import DreamSimulator
from dreamgym.transitions import real_transitions
from dreamgym.world_model import WorldModel, WorldModelConfig

BITS = 2
FIRST_FORMAT = Path(__file__).parent / "first_format"


def phased_dream() -> Dream:
    """A tiny dream that is told phases; those of its starts are 0, 1, 2, 3, 0, ..."""
    dream = make_tiny_dream()
    model = WorldModel(replace(dream.world_model.config, phase_bits=BITS), seed=0)
    phases = torch.arange(len(dream.starts.latents)) % 4
    actions = model.acts(dream.starts.actions, model.phase_digits(phases)[:, None])
    return replace(dream, world_model=model, starts=dream.starts._replace(actions=actions))


def played(steps: int = 40) -> Replay:
    """Episodes of ten steps of phases 0, 1, 2, 3."""
    replay, rng = Replay(steps), np.random.default_rng(0)
    for index in range(steps):
        frame = rng.integers(0, 256, (96, 96), dtype=np.uint8)
        replay.append(frame, index % 6, 0.0, index % 10 == 9, False, False, index % 10 == 0, index // 10 % 4)
    return replay


def test_an_action_is_told_with_the_digits_of_the_phase() -> None:
    model = WorldModel(WorldModelConfig(phase_bits=BITS), seed=0)
    assert model.phase_digits([0, 1, 2, 3]).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    acts = model.acts(torch.tensor([[1, 5]]), model.phase_digits([[3, 2]]))
    assert acts.tolist() == [[[0, 1, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 0, 1]]]
    plain = WorldModel(WorldModelConfig(), seed=0)
    actions = torch.tensor([1, 5])
    assert plain.acts(actions, plain.phase_digits([3, 2])) is actions and plain.act_size == 6


def test_too_many_digits_are_refused() -> None:
    with pytest.raises(ConfigError, match="phase_bits: expected 0 to 8, got 9"):
        WorldModelConfig(phase_bits=9)
    with pytest.raises(ConfigError, match="phase_bits: expected 0 to 8, got -1"):
        make_config("smoke", "Pong", 0, phase_bits=-1)


def test_a_games_phase_is_what_was_waited() -> None:
    game = make_game_env("Pong")
    seen: set[int] = set()
    for seed in range(12):
        _, info = game.reset(seed=seed)
        assert info["phase"] == info["episode_frame_number"] % 4
        seen.add(info["phase"])
        assert game.step(0)[4]["phase"] == info["phase"]
    assert len(seen) > 2
    game.close()
    games = make_game_vector_env("Pong", 12, max_episode_steps=3)
    _, infos = games.reset(seed=0)
    first = infos["phase"]
    assert len(set(first)) > 2 and infos["_phase"].all()
    for step in range(3):
        infos = games.step(np.zeros(12, np.int64))[4]
        assert (np.array_equal(infos["phase"], first)) == (step < 2)
    games.close()


def test_a_replay_keeps_phases_and_the_first_shards_had_none(tmp_path: Path) -> None:
    replay = played()
    replay.save(tmp_path)
    assert np.array_equal(Replay.load(tmp_path).phase_at(np.arange(40)), np.arange(40) // 10)
    assert not Replay.load(FIRST_FORMAT / "replay").phase_at(np.arange(40)).any()
    with pytest.raises(InvalidInputError, match="phase: expected 0 to 255, got 256"):
        replay.append(np.zeros((96, 96), np.uint8), 0, 0.0, False, False, False, True, 256)


def test_a_session_records_the_phase_of_its_game() -> None:
    game = make_game_env("Pong", max_episode_steps=5)
    replay = Replay(40)
    session = GameSession(game, replay, lambda number: number)
    for _ in range(20):
        session.step(0)
    game.close()
    again = make_game_env("Pong")
    for number in range(4):
        phase = again.reset(seed=number)[1]["phase"]
        assert (replay.phase_at(np.arange(5 * number, 5 * number + 5)) == phase).all()
    again.close()


def test_dreams_have_the_phase_of_their_start_for_as_long_as_they_last() -> None:
    dream = phased_dream()
    simulator = DreamSimulator(dream.world_model, dream.starts, num_envs=8, horizon=None, seed=0)
    simulator.reset(starts=torch.arange(8))
    digits = dream.world_model.phase_digits(torch.arange(8) % 4)
    assert torch.equal(simulator.taken[:, 6:], digits)
    for action in range(6):
        simulator.step(torch.full((8,), action))
        assert torch.equal(simulator.taken[:, 6:], digits)
        assert torch.equal(simulator.taken[:, :6], torch.eye(6)[[action] * 8])
    simulator.reset(torch.arange(8) < 4, starts=torch.arange(8) + 1)
    assert torch.equal(simulator.taken[:4, 6:], dream.world_model.phase_digits([1, 2, 3, 0]))
    assert torch.equal(simulator.taken[4:, 6:], digits[4:])


def test_a_dream_goes_on_by_its_phase() -> None:
    dream = phased_dream()
    model = dream.world_model
    latents, state = dream.starts.latents[:1, -1].long(), model.initial_state(1)
    acts = [model.acts(torch.tensor([0]), model.phase_digits([phase])) for phase in range(4)]
    rewards = [float(model.step(latents, act, state)[0].reward_logits[0, 0]) for act in acts]
    assert len({round(reward, 6) for reward in rewards}) == 4


def test_real_games_are_told_the_same() -> None:
    model = phased_dream().world_model
    tracker = LatentTracker(model, 3, 4, hidden_state=True)
    frames = np.zeros((3, 1, 96, 96), np.uint8)
    tracker.begin(frames, np.array([1, 2, 3]))
    assert torch.equal(tracker.taken, torch.cat([torch.zeros(3, 6), model.phase_digits([1, 2, 3])], dim=1))
    tracker.advance(np.array([0, 1, 2]), frames)
    tracker.begin(frames, np.array([0, 0, 0]), np.array([1]))
    assert torch.equal(tracker.taken[:, 6:], model.phase_digits([1, 0, 3]))
    assert torch.equal(tracker.taken[:, :6], torch.tensor([[1.0], [0.0], [1.0]]) * torch.eye(6)[[0, 1, 2]])


def test_real_experience_is_told_with_its_phases() -> None:
    model, replay = phased_dream().world_model, played()
    acts = real_acts(model, replay, np.arange(40).reshape(4, 10))
    assert torch.equal(acts[..., :6], torch.eye(6)[(torch.arange(40) % 6).reshape(4, 10)])
    assert torch.equal(acts[..., 6:], model.phase_digits(np.arange(4))[:, None].expand(4, 10, BITS))

    class Digits(ObservationBuilder):
        def build(self, latents, hidden=None, taken=None):
            return taken

    latents = np.zeros((40, *model.codec.latent_shape), np.uint8)
    builder = Digits(model, "codes", 4, hidden_state=False)
    builder.kind = "objects"
    shown = real_transitions(latents, replay, 4, False, builder).observations
    assert np.array_equal(shown[:, 6:], model.phase_digits(np.arange(40) // 10).numpy())
    assert not shown[::10, :6].any() and shown[1::10, :6].any(axis=1).all()


def test_games_that_go_on_keep_their_phase_when_others_are_reset() -> None:
    # Stepped one after the other, games say nothing of those that are not reset.
    env = make_real_env(phased_dream(), num_envs=6, observation="codes", device="cpu", seed=0, render_mode="rgb_array")
    env.reset()
    before, mask = env.phases, np.array([True, False] * 3)
    assert before.any()
    _, infos = env.reset(seed=20, options={"reset_mask": mask})
    assert np.array_equal(env.phases[~mask], before[~mask])
    assert np.array_equal(env.phases[mask], infos["phase"][mask])
    env.close()


def test_a_dream_with_phases_is_saved_and_seen_in_the_real_game(tmp_path: Path) -> None:
    dream = phased_dream()
    again = load_dream(save_dream(tmp_path, dream))
    assert again.world_model.config.phase_bits == BITS
    assert torch.equal(again.starts.actions, dream.starts.actions)
    env = make_real_env(again, num_envs=2, observation="codes", device="cpu", seed=0, max_episode_steps=2)
    _, infos = env.reset()
    assert np.array_equal(env.phases, infos["phase"])
    for _ in range(4):
        infos = env.step(np.zeros(2, np.int64))[4]
        assert np.array_equal(env.phases, infos["phase"])
    env.close()
