"""Playing, whatever shows it: steps, moments, and the way between the dream and the real game."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream

from dreamgym import make_real_env
from dreamgym.checkpoint import Dream
from dreamgym.errors import InvalidInputError
from dreamgym.play_keys import PlayKeys, game_keys
from dreamgym.play_session import COMMANDS, OPENING, PlaySession, View
from dreamgym.played_game import PlayedGame
from dreamgym.simulator import DreamSimulator

PONG = PlayKeys(
    {frozenset("d"): 2, frozenset("a"): 3, frozenset("d "): 4, frozenset(" "): 1, frozenset("e"): 0},
    ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE"],
)


@pytest.fixture
def session(tiny_dream: Dream) -> Iterator[PlaySession]:
    session = PlaySession(tiny_dream, seed=3)
    yield session
    session.close()


def play(session: PlaySession, keys: str) -> list[View]:
    """What is seen of so many steps, with one key held in each."""
    seen: list[View] = []
    for key in keys:
        session.press(key)
        session.tick()
        session.release(key)
        seen.append(session.view())
    return seen


def alike(one: list[View], other: list[View]) -> list[bool]:
    return [bool(np.array_equal(a.picture, b.picture)) for a, b in zip(one, other, strict=True)]


def test_the_most_held_keys_decide_and_contradictions_do_nothing() -> None:
    assert [PONG.action(held) for held in ("", "d", "d ", "xd", "da", "e")] == [0, 2, 4, 2, 0, 0]
    assert PONG.words().startswith("d = RIGHT, a = LEFT, d+space = RIGHTFIRE")
    assert PONG.single == {"a": "LEFT", "d": "RIGHT", " ": "FIRE"}


def test_keys_are_read_however_gymnasium_spells_them() -> None:
    class Odd:
        def get_wrapper_attr(self, name: str):
            odd = {(ord("w"), ord(" ")): 2, "a": 1, ord("d"): 3}
            return lambda: odd if name == "get_keys_to_action" else ["none", "left", "jump", "right"]

    keys = game_keys(Odd(), 4)  # type: ignore[arg-type]
    assert keys.actions == {frozenset("w "): 2, frozenset("a"): 1, frozenset("d"): 3}
    assert keys.single == {"a": "left", "w": "w", "d": "right", " ": "space"}


def test_a_key_that_is_only_tapped_counts_for_one_step(session: PlaySession) -> None:
    session.press("d")
    session.release("d")
    session.tick()
    assert session.view().action == "RIGHT"
    session.tick()
    assert session.view().action == "NOOP"
    session.press("d")
    session.release_all()
    session.tick()
    assert session.view().action == "NOOP"


def test_reward_and_uncertainty_of_the_dream_are_shown(session: PlaySession) -> None:
    assert session.view().uncertainty is None and session.view().place == "dream"
    seen = play(session, "dddd")
    assert [view.step for view in seen] == [1, 2, 3, 4]
    assert seen[-1].total == pytest.approx(sum(view.reward for view in seen))
    assert all(view.uncertainty is not None and 0 < view.uncertainty < np.inf for view in seen)
    assert len({view.picture.tobytes() for view in seen}) > 1


def test_while_paused_only_single_steps_are_taken(session: PlaySession) -> None:
    session.press("p")
    assert session.tick() and not session.tick() and session.view().paused
    session.press("n")
    assert session.tick() and not session.tick()
    assert session.view().step == 1
    session.do("pause")
    session.tick()
    assert session.view().step == 2


def test_a_fork_of_a_dream_begins_at_the_saved_moment_and_goes_another_way(session: PlaySession) -> None:
    play(session, "dad")
    session.do("save")
    saved = session.view()
    first = play(session, "dddddd")
    session.do("fork")
    again = session.view()
    assert again.saved and (again.step, again.total) == (saved.step, saved.total)
    assert np.array_equal(again.picture, saved.picture)
    assert not all(alike(first, play(session, "dddddd")))


def test_a_fork_without_a_saved_moment_changes_nothing(session: PlaySession) -> None:
    before = session.view()
    session.do("fork")
    after = session.view()
    assert alike([before], [after]) == [True] and "Nothing is saved" in after.message


def test_dream_and_game_are_played_from_the_same_moment(session: PlaySession) -> None:
    begun = session.view()
    play(session, "dddddddd")
    session.do("switch")
    game = session.view()
    assert game.place == "game" and game.step == 0 and game.uncertainty is None
    session.do("switch")
    assert session.view().place == "dream" and alike([session.view()], [begun]) == [True]
    session.do("switch")
    played = play(session, "aaaa")
    session.do("switch")
    branched = session.view()
    assert branched.step == 4
    play(session, "ad")
    session.do("switch")
    back = session.view()
    assert back.step == 4 and alike([back], played[-1:]) == [True]


def test_a_saved_moment_of_the_game_comes_back_as_it_was(session: PlaySession) -> None:
    session.do("switch")
    play(session, "dd ")
    session.do("save")
    first = play(session, "aaaaadd")
    session.do("switch")
    play(session, "aa")
    session.do("fork")
    assert session.view().place == "game" and session.view().step == 3
    assert all(alike(first, play(session, "aaaaadd")))


def test_a_fork_of_a_dream_knows_the_moment_of_the_game_that_it_branched_off_from(session: PlaySession) -> None:
    session.do("switch")
    (played,) = play(session, "d")
    session.do("switch")
    play(session, "a")
    session.do("save")
    session.do("reset")
    session.do("fork")
    session.do("switch")
    assert session.view().step == 1 and alike([session.view()], [played]) == [True]


def test_a_reset_begins_at_another_moment_in_the_same_place(session: PlaySession) -> None:
    session.do("switch")
    before = session.view()
    play(session, "dd")
    session.do("reset")
    after = session.view()
    assert (after.place, after.step, after.total) == ("game", 0, 0.0)
    assert alike([before], [after]) == [False]


def test_an_episode_that_ends_is_followed_by_the_next() -> None:
    session = PlaySession(make_tiny_dream(), horizon=3)
    play(session, "ddd")
    assert session.view().step == 0 and "ended after 3 steps" in session.view().message
    session.close()


def test_one_seed_is_one_session(tiny_dream: Dream) -> None:
    seen: list[list[View]] = []
    for _ in range(2):
        session = PlaySession(tiny_dream, seed=7)
        shown = play(session, "da da")
        session.do("reset")
        seen.append([*shown, *play(session, "aadd")])
        session.close()
    assert all(alike(*seen))


def test_a_command_that_there_is_not_is_refused(session: PlaySession) -> None:
    with pytest.raises(InvalidInputError, match="reset, pause, step, save, fork, switch"):
        session.do("win")


def test_keys_of_the_game_go_before_those_of_commands(tiny_dream: Dream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "reset", "d")
    session = PlaySession(tiny_dream)
    (view,) = play(session, "d")
    assert (view.step, view.action, session.commands["reset"]) == (1, "RIGHT", "")
    session.close()


@pytest.mark.parametrize("steps", [2, 20])
def test_a_dream_starts_from_what_the_game_has_just_shown(steps: int, tiny_dream: Dream) -> None:
    game, model = PlayedGame(tiny_dream), tiny_dream.world_model
    game.begin(5)
    real = make_real_env(tiny_dream, observation="codes")
    shown = [real.reset(seed=5)[0]]
    elapsed = [0]
    for step in range(steps):
        reward, _ = game.step(step % 6)
        shown.append(real.step(step % 6)[0])
        elapsed.append(0 if reward else elapsed[-1] + 1)
    starts, context = game.starts(), tiny_dream.starts.latents.shape[1]
    first = max(0, steps + 1 - context)
    codes = torch.as_tensor(np.stack([one[:, -1] for one in shown[first:]])).view(-1, *model.codec.latent_shape)
    missing = context - len(codes)
    assert torch.equal(starts.latents[0, missing:], codes) and starts.valid[0].sum() == len(codes)
    assert (starts.latents[0, :missing] == codes[0]).all()
    assert starts.actions[0, missing:-1].tolist() == [step % 6 for step in range(first, steps)]
    assert starts.elapsed.tolist() == [elapsed[first]]
    assert [one.dtype for one in starts] == [one.dtype for one in tiny_dream.starts]
    game.close()
    real.close()


def test_a_game_goes_back_to_its_moments(tiny_dream: Dream) -> None:
    game = PlayedGame(tiny_dream)
    game.begin(1)
    for action in (2, 3, 1, 0, 5):
        game.step(action)
    moment, picture = game.moment(), game.picture.copy()
    for _ in range(OPENING):
        game.step(2)
    assert not np.array_equal(game.picture, picture)
    game.go_to(moment)
    assert np.array_equal(game.picture, picture) and game.moment() == moment
    game.close()


def test_a_dream_that_is_watched_is_the_same_dream(tiny_dream: Dream) -> None:
    seen: list[torch.Tensor] = []
    dreams = [
        DreamSimulator(tiny_dream.world_model, tiny_dream.starts, num_envs=2, seed=0, watch=watch)
        for watch in (None, lambda prediction, latents: seen.append(latents))
    ]
    for dream in dreams:
        dream.reset()
    for _ in range(3):
        one, other = (dream.step(torch.tensor([1, 2])) for dream in dreams)
        assert torch.equal(one.latents, other.latents) and torch.equal(seen[-1], one.latents[:, -1])
    assert len(seen) == 3
