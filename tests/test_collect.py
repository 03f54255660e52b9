import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

from dreamgym.collect import GameSession, SessionGames, collect_random, collect_with
from dreamgym.evaluate import RandomPolicy
from dreamgym.observations import ObservationBuilder
from dreamgym.real import make_game_env
from dreamgym.replay import Replay

FIELDS = ("actions_at", "rewards_at", "terminated_at", "truncated_at", "life_lost_at", "first_at", "frames_at")


class Counter(gym.Env):
    """Episodes of seven steps; a frame shows the episode's seed, its step and the last action."""

    observation_space = gym.spaces.Box(0, 255, (1, 96, 96), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, noise=0):
        self.noise = noise
        self.resets = []

    def _show(self):
        frame = np.zeros((1, 96, 96), np.uint8)
        frame[0, 0, :4] = self.seed, self.step_count, self.last, self.noise
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.step_count, self.last = seed, 0, 9
        self.resets.append(seed)
        return self._show(), {}

    def step(self, action):
        assert isinstance(action, int)
        self.step_count, self.last = self.step_count + 1, action
        return self._show(), float(action), self.step_count == 7, False, {"life_lost": self.step_count == 3}


def same(one: Replay, other: Replay) -> bool:
    every = np.arange(len(one))
    return len(one) == len(other) and all(
        np.array_equal(getattr(one, name)(every), getattr(other, name)(every)) for name in FIELDS
    )


def session(replay, env=None, seed=100) -> GameSession:
    return GameSession(env or Counter(), replay, lambda n: seed + n)


class Script:
    """Actions that depend on what is seen alone, and a list of what was seen."""

    def __init__(self, actions=3):
        self.actions, self.seen, self.starts, self.states = actions, [], [], []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.seen.append(observation.copy())
        self.starts.append(None if episode_start is None else bool(episode_start[0]))
        self.states.append(state)
        return np.array([int(np.abs(observation).sum() * 7) % self.actions]), (state or 0) + 1


def test_a_record_holds_what_was_seen_then_done_then_followed():
    replay = Replay(20)
    collect_random(session(replay), 10, RandomPolicy(gym.spaces.Discrete(3), 0), progress=False)
    frames = replay.frames_at(np.arange(10))[:, 0, 0]
    assert frames[:, 1].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert frames[:, 0].tolist() == [100] * 7 + [101] * 3
    assert replay.actions_at(np.arange(6)).tolist() == frames[1:7, 2].tolist()
    assert replay.rewards_at(np.arange(10)).tolist() == replay.actions_at(np.arange(10)).tolist()
    assert np.flatnonzero(replay.terminated_at(np.arange(10))).tolist() == [6]
    assert np.flatnonzero(replay.first_at(np.arange(10))).tolist() == [0, 7]
    assert np.flatnonzero(replay.life_lost_at(np.arange(10))).tolist() == [2, 9]


@pytest.mark.parametrize("half", [1, 5, 7, 8, 13, 14])
def test_two_sessions_in_halves_are_one_session_whole(half):
    whole, halves = Replay(40), Replay(40)
    policy = RandomPolicy(gym.spaces.Discrete(3), 0)
    collect_random(session(whole), 20, policy, progress=False)
    policy = RandomPolicy(gym.spaces.Discrete(3), 0)
    collect_random(session(halves), half, policy, progress=False)
    collect_random(session(halves), 20 - half, policy, progress=False)
    assert same(whole, halves)


def test_two_sessions_of_pong_in_halves_are_one_whole_after_a_save(tmp_path):
    def play(replay, steps, policy):
        env = make_game_env("Pong", sticky_actions=0.25)
        collect_random(session(replay, env), steps, policy, progress=False)
        env.close()
        return replay

    policy = RandomPolicy(gym.spaces.Discrete(6), 0)
    whole = play(Replay(200), 200, policy)
    policy = RandomPolicy(gym.spaces.Discrete(6), 0)
    half = play(Replay(200), 120, policy)
    half.save(tmp_path)
    assert same(whole, play(Replay.load(tmp_path), 80, policy))


class WithTaken(ObservationBuilder):
    """Shows what was done last beside whatever it shows."""

    def build(self, latents, hidden=None, taken=None):
        return torch.cat([super().build(latents).flatten(1).float(), taken], dim=1)


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("half", [2, 5, 7, 9, 13])
def test_an_agent_goes_on_with_the_latents_that_it_would_have_seen(stack, half):
    model = make_tiny_dream(frame_stack=stack).world_model
    builder = WithTaken(model, "codes", 4, hidden_state=False)
    whole, halves = Replay(40), Replay(40)
    one, other = Script(), Script()
    collect_with(session(whole), 20, one, model, builder, 4, 0, progress=False)
    collect_with(session(halves), half, other, model, builder, 4, 0, progress=False)
    collect_with(session(halves), 20 - half, other, model, builder, 4, 0, progress=False)
    assert same(whole, halves)
    assert all(np.array_equal(a, b) for a, b in zip(one.seen, other.seen, strict=True))
    assert one.starts == other.starts
    assert np.flatnonzero(one.starts).tolist() == [0, 7, 14]
    taken = np.eye(model.num_actions)[np.append(0, whole.actions_at(np.arange(19)))]
    taken[one.starts] = 0
    assert np.array_equal(np.concatenate(one.seen)[:, -model.num_actions :], taken)


def test_the_agent_sees_the_frames_of_its_episode_alone():
    stack, latent_stack = 2, 3
    model = make_tiny_dream(frame_stack=stack).world_model
    builder = ObservationBuilder(model, "codes", latent_stack, hidden_state=False)
    replay, policy = Replay(40), Script()
    collect_with(session(replay), 18, policy, model, builder, latent_stack, 0, progress=False)
    every = np.arange(18)
    latents = model.encode(replay.frames_at(every, stack))
    begins = np.array([0] * 7 + [7] * 7 + [14] * 4)
    for step in every:
        shown = latents[np.maximum(np.arange(step - latent_stack + 1, step + 1), begins[step])]
        assert np.array_equal(policy.seen[step], builder.build(shown[None]).numpy())


def test_recent_frames_repeat_the_first_one_before_the_episodes_start():
    replay = Replay(40)
    game = session(replay)
    for action in (0, 1, 2, 0, 1, 2, 0, 1, 2):
        game.step(action)
    steps = game.recent_frames(5, stack=3)[:, :, 0, 1]
    assert steps.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    assert game.recent_frames(2, stack=3)[:, :, 0, 1].tolist() == [[0, 0, 1], [0, 1, 2]]
    assert game.recent_frames(1, stack=1)[:, :, 0, 1].tolist() == [[2]]


def test_a_game_that_does_not_repeat_itself_begins_a_new_episode():
    replay = Replay(40)
    collect_random(session(replay), 10, RandomPolicy(gym.spaces.Discrete(3), 0), progress=False)
    env = Counter(noise=5)
    game = session(replay, env)
    assert game.first and env.resets == [101, 102]
    game.step(0)
    assert bool(replay.first_at(10)) and replay.iter_episodes() == [(0, 7), (7, 10), (10, 11)]
    assert session(replay, Counter(noise=5)).recent_frames(4, 1)[:, 0, 0, 0].tolist() == [102, 102]


def test_collecting_leaves_the_global_generator_as_it_was():
    model = make_tiny_dream().world_model
    builder = ObservationBuilder(model, "codes", 4, hidden_state=False)
    state = torch.random.get_rng_state()
    collect_with(session(Replay(40)), 3, Script(), model, builder, 4, 0, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("life_loss_ends", [False, True])
def test_an_algorithm_plays_a_session_as_a_vector_env_and_all_of_it_is_recorded(life_loss_ends):
    replay = Replay(100)
    game = session(replay)
    for action in (1, 2):
        game.step(action)
    games = SessionGames(game, 2, life_loss_ends)
    frames, _ = games.reset(seed=3)
    assert frames.shape == (1, 2, 96, 96) and frames[0, :, 0, 1].tolist() == [1, 2]
    seen, final = [], []
    for _ in range(6):
        frames, rewards, terminated, truncated, infos = games.step(np.array([2]))
        seen.append((frames[0, :, 0, :2].tolist(), bool(terminated[0])))
        final.append(infos["final_obs"][0][:, 0, 1].tolist() if "final_obs" in infos else None)
        # As in dreams, of a reward its sign.
        assert rewards.tolist() == [1.0] and not truncated[0]
    # The first of these is the episode's third step, which costs a life; the seventh ends it.
    assert [end for _, end in seen] == [life_loss_ends, False, False, False, True, False]
    assert final == [[2, 3] if life_loss_ends else None, None, None, None, [6, 7], None]
    # Another seed's first frame fills the stack.
    shown = [frames for frames, _ in seen]
    assert shown[0] == [[100, 2], [100, 3]]
    assert shown[3:] == [[[100, 5], [100, 6]], [[101, 0], [101, 0]], [[101, 0], [101, 1]]]
    assert len(replay) == 8 and replay.actions_at(np.arange(8)).tolist() == [1, 2, *[2] * 6]
    assert replay.rewards_at(np.arange(8)).tolist() == [1.0, 2.0, *[2.0] * 6]
    assert replay.ends_at(np.arange(8)).tolist() == [False] * 6 + [True, False]
