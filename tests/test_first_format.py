"""Files of format 1, written by the first commits that wrote any (9183a53 and f30ce4c): they load for good."""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch

import dreamgym
from dreamgym.checkpoint import UNKNOWN_ELAPSED, load_dream, save_dream
from dreamgym.replay import Replay

FILES = Path(__file__).parent / "first_format"


def test_the_first_dreams_mean_what_they_meant() -> None:
    dream, expected = (
        load_dream(FILES / "dream.safetensors"),
        safetensors.torch.load_file(FILES / "expected.safetensors"),
    )
    model, starts = dream.world_model, dream.starts
    codes = model.encode(expected["frames"])
    assert torch.equal(codes, expected["codes"].long())
    torch.testing.assert_close(model.decode(codes), expected["picture"], rtol=0, atol=1)
    latents = starts.latents[:, -1].long()
    prediction, state = model.step(latents, starts.actions[:, -1], model.initial_state(len(latents)))
    # Logits have no zero.
    scores = model.dynamics.latent_logits(prediction, latents).log_softmax(dim=1)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(scores, expected["latent_logits"].log_softmax(dim=1), **close)
    torch.testing.assert_close(prediction.expected_reward(), expected["expected_reward"], **close)
    torch.testing.assert_close(prediction.end_probability(), expected["end"], **close)
    torch.testing.assert_close(model.hidden(state), expected["hidden"], **close)
    assert dream.metadata["horizon"] == 25 and dream.latent_stack == 4
    assert (starts.elapsed == UNKNOWN_ELAPSED).all()


def test_the_first_dreams_can_be_played_and_saved_again(tmp_path: Path) -> None:
    env = dreamgym.make_sb3_env(str(FILES / "dream.safetensors"), n_envs=2, device="cpu", seed=0)
    env.reset()
    for _ in range(30):
        assert np.isfinite(env.step([0, 1])[0]).all()
    env.close()
    dream = load_dream(FILES / "dream.safetensors")
    again = load_dream(save_dream(tmp_path, dream))
    weights = dream.world_model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.world_model.state_dict().items())


def test_the_first_experience_can_be_read_and_goes_on(tmp_path: Path) -> None:
    replay = Replay.load(FILES / "replay", capacity=60)
    assert replay.iter_episodes() == [(0, 15), (15, 30), (30, 40)]
    assert replay.terminated_at(np.arange(40)).nonzero()[0].tolist() == [14, 29]
    assert replay.life_lost_at(np.arange(40)).nonzero()[0].tolist() == [7]
    rng = np.random.default_rng(6)
    for index in range(40):
        frame = rng.integers(0, 256, (8, 8), dtype=np.uint8) // 64 * 64
        assert np.array_equal(replay.frames_at(index)[0], frame)
        assert (int(replay.actions_at(index)), float(replay.rewards_at(index))) == (
            rng.integers(6),
            rng.integers(-1, 2),
        )
    replay.append(np.zeros((8, 8), np.uint8), 0, 0.0, False, False, False, False)
    replay.save(tmp_path)
    assert len(Replay.load(tmp_path)) == 41
