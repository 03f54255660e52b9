import ast
import inspect
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch

import dreamgym.fit
from dreamgym.collect import GameSession, collect_random
from dreamgym.errors import CheckpointError, ConfigError, InvalidInputError
from dreamgym.evaluate import RandomPolicy
from dreamgym.fit import FitConfig, Fitter, dynamics_loss, swap_codes
from dreamgym.latents import LatentCache, encode_replay
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.losses import masked_mean
from dreamgym.models.multiscale import MultiscaleConfig
from dreamgym.models.quantizer import QuantizerConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.real import make_game_env
from dreamgym.replay import Replay
from dreamgym.world_model import WorldModel, WorldModelConfig

SMALL = FitConfig(
    codec_batch_size=8,
    codec_learning_rate=5e-4,
    codec_warmup_learning_rate=1e-3,
    unquantized_updates=5,
    dynamics_batch_size=8,
    sequence_length=6,
    dynamics_learning_rate=3e-3,
    final_rate=0.25,
    context_steps=0,
)


RESIDUAL = ResidualConfig(memory=3, channels=16, blocks=1, embedding=16, joint=8, reward_hidden=16)
MULTISCALE = MultiscaleConfig(memory=3, fine=8, embedding=8, channels=16, blocks=1, cell_hidden=16, reward_hidden=16)
CRITICAL = replace(MULTISCALE, redraws=2, critic_hidden=8)


def world_model(num_actions=6, dynamics=None, **codec) -> WorldModel:
    return WorldModel(
        WorldModelConfig(
            num_actions=num_actions,
            codec=VQVAEConfig(width=4, **codec),
            dynamics=dynamics or ConvLSTMConfig(hidden=8, kernel=3, reward_hidden=16),
            bf16=False,
        ),
        seed=0,
    )


@cache
def pong() -> Replay:
    env = make_game_env("Pong")
    replay = Replay(300)
    collect_random(GameSession(env, replay, lambda n: n), 300, RandomPolicy(env.action_space, 0), progress=False)
    env.close()
    return replay


def game(length=40, end=20, terminated=True, life_lost=None, capacity=None) -> Replay:
    """Noise in which an episode ends at a given step."""
    rng = np.random.default_rng(0)
    replay = Replay(capacity or length)
    for step in range(length):
        over = step == end
        replay.append(
            rng.integers(0, 256, (96, 96), dtype=np.uint8),
            int(rng.integers(6)),
            float(rng.integers(-1, 2)),
            over and terminated,
            over and not terminated,
            step == life_lost,
            step in (0, end + 1),
        )
    return replay


def fit(fitter, replay, codec_updates, dynamics_updates, seed=0):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    return fitter.fit(replay, codec_updates, dynamics_updates, rng, generator, progress=False)


def test_an_aligned_codec_sees_before_the_first_fit_alone_where_its_grid_is_to_lie(monkeypatch):
    shown = []
    monkeypatch.setattr(
        dreamgym.models.codecs, "best_offset", lambda frames, cell: shown.append((frames, cell)) or (4, 8)
    )
    model, replay = world_model(aligned=True), pong()
    fitter = Fitter(model, replace(SMALL, bf16=False))
    fit(fitter, replay, 3, 0)
    fit(fitter, replay, 3, 0)
    ((frames, cell),) = shown
    assert np.array_equal(frames, replay.frames_at(np.arange(len(replay)))) and cell == 16
    assert model.codec.offset.tolist() == [4, 8]


def test_frames_of_an_aligned_codec_are_not_moved():
    with pytest.raises(ConfigError, match="shift: expected 0 where the codec is aligned"):
        Fitter(world_model(aligned=True), replace(SMALL, shift=4, shift_step=4))


def test_what_follows_a_reward_surprises_a_fit_no_more_than_the_rest():
    replay = Replay(200)
    for step in range(200):
        replay.append(np.zeros((96, 96), np.uint8), 0, float(step == 100), False, False, False, step == 0)
    drawn = []
    for settling in (0, 3):
        config = replace(
            SMALL, windows="surprise", surprise_settling=settling, surprise_power=2.0, surprise_limit=100.0, bf16=False
        )
        fitter = Fitter(world_model(), config)
        losses = np.ones(200, np.float32)
        losses[101:104] = 30.0
        fitter._surprise.restore(losses, 0)
        draw = fitter._window_source(replay, np.random.default_rng(0))
        drawn.append(np.mean([np.isin(draw().indices, (101, 102, 103)).any(axis=1).mean() for _ in range(200)]))
    # Of 194 windows nine hold one of the three.
    assert drawn[0] > 0.7 and drawn[1] == pytest.approx(9 / 194, abs=0.015)


def test_losses_fall_on_real_experience():
    model = world_model(pixel_bias=False)
    config = replace(SMALL, bf16=False)
    first = fit(Fitter(model, config), pong(), 1, 1)
    second = fit(Fitter(model, config), pong(), 60, 60)
    assert second["codec/reconstruction"] < first["codec/reconstruction"] - 200
    assert second["dynamics/latent"] < 0.8 * first["dynamics/latent"]
    assert second["dynamics/accuracy"] > first["dynamics/accuracy"] + 0.1
    assert not any(module.training for module in model.modules())


def losses_of(replay, config=SMALL, start=15, latents=None, weights=None):
    model = world_model()
    windows = replay.windows_from(np.array([start]), 12)
    if weights is not None:
        windows = windows._replace(weights=np.array([weights], dtype=np.float32))
    if latents is None:
        latents = torch.as_tensor(encode_replay(model, replay)[windows.indices]).long()
    loss, metrics = dynamics_loss(model, replay, windows, latents, replace(config, bf16=False))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.dynamics.parameters() if p.grad is not None])
    return loss.item(), metrics, gradient, windows


def test_what_follows_an_episodes_end_changes_neither_loss_nor_gradient():
    replay, other = game(), Replay(40)
    for i in range(40):
        after = i > 20
        other.append(
            255 - replay.frames_at(i)[0] if after else replay.frames_at(i)[0],
            5 - int(replay.actions_at(i)) if after else int(replay.actions_at(i)),
            -float(replay.rewards_at(i)) if after else float(replay.rewards_at(i)),
            bool(replay.terminated_at(i)) or i == 25,
            False,
            after,
            bool(replay.first_at(i)) or i == 26,
        )
    loss, metrics, gradient, windows = losses_of(replay)
    changed_loss, changed, changed_gradient, _ = losses_of(other)
    assert windows.mask[0].tolist() == [True] * 6 + [False] * 6
    assert loss == changed_loss
    assert torch.equal(gradient, changed_gradient)
    assert all(torch.equal(metrics[name], changed[name]) for name in metrics)


def test_the_step_that_ends_an_episode_teaches_its_reward_and_its_end_but_no_latent():
    replay = game()
    model = world_model()
    latents = torch.as_tensor(encode_replay(model, replay)).long()
    windows = replay.windows_from(np.array([20]), 7)
    assert windows.mask[0].tolist() == [True] + [False] * 6
    _, metrics = dynamics_loss(model, replay, windows, latents[windows.indices], SMALL)
    assert metrics["latent"] == 0
    assert metrics["reward"] > 0 and metrics["end"] > 0.3


def test_a_window_must_be_longer_than_what_is_only_shown():
    config = WorldModelConfig(codec=VQVAEConfig(width=2), dynamics=MultiscaleConfig(memory=6, scale=2, channels=4))
    with pytest.raises(ConfigError, match="sequence_length: expected more than the 5 steps"):
        Fitter(WorldModel(config, seed=0), FitConfig(sequence_length=5))


@pytest.mark.parametrize(
    ("dynamics", "shown"), [(None, 0), (RESIDUAL, 0), (MULTISCALE, 2)], ids=["recurrent", "residual", "two grids"]
)
@pytest.mark.parametrize("context_steps", [0, 1, 4])
def test_steps_to_which_a_prediction_looks_back_are_shown_and_do_not_count(monkeypatch, dynamics, shown, context_steps):
    masks = []
    monkeypatch.setattr(
        dreamgym.fit, "masked_mean", lambda values, mask, *w: masks.append(mask) or masked_mean(values, mask, *w)
    )
    model, replay = world_model(stages=3, dynamics=dynamics), game()
    windows = replay.windows_from([0, 3, 21, 14], 9)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randint(0, 128, (4, 9, 12, 12), generator=generator)
    config = replace(SMALL, context_steps=context_steps, bf16=False)
    loss, metrics = dynamics_loss(model, replay, windows, latents, config, generator)
    loss.backward()
    assert metrics["latent_steps"].shape == (4, 8)
    assert metrics["latent_steps"][:, :shown].isnan().all() and not metrics["latent_steps"][:, shown:].isnan().any()
    inside = torch.as_tensor(windows.mask)[:, shown:]
    latent, reward, end, accuracy = masks
    assert torch.equal(latent, inside[:, 1:]) and torch.equal(accuracy, latent)
    assert torch.equal(reward, inside[:, :-1]) and torch.equal(end, reward)
    counted = metrics["latent_steps"][:, shown:][latent]
    assert metrics["latent"].item() == pytest.approx(counted.mean().item(), rel=1e-5)


def test_what_is_only_shown_still_changes_what_is_predicted_from_it():
    model, replay = world_model(stages=3, dynamics=MULTISCALE), game()
    windows = replay.windows_from([3], 7)
    latents = torch.randint(0, 128, (1, 7, 12, 12), generator=torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 128
    (_, before), (_, after) = (dynamics_loss(model, replay, windows, z, SMALL) for z in (latents, changed))
    differs = (before["latent_steps"] != after["latent_steps"])[0, 2:]
    assert differs.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("settings", "life_loss_ends", "ends"),
    [
        ({"terminated": True}, True, True),
        ({"terminated": False}, True, False),
        ({"end": 30, "life_lost": 20}, True, True),
        ({"end": 30, "life_lost": 20}, False, False),
    ],
    ids=["termination", "truncation", "lost life", "lost life that does not count"],
)
def test_terminations_and_lost_lives_are_ends_and_truncations_are_not(monkeypatch, settings, life_loss_ends, ends):
    seen = {}
    monkeypatch.setattr(
        dreamgym.fit,
        "end_cross_entropy",
        lambda logits, targets: seen.setdefault("ends", targets).float() * 0 + logits * 0,
    )
    losses_of(game(**settings), replace(SMALL, life_loss_ends=life_loss_ends))
    assert seen["ends"][0].tolist()[:6] == [False] * 5 + [ends]


def test_importance_weights_scale_a_windows_loss():
    replay = game()
    assert losses_of(replay, weights=0.5)[0] == pytest.approx(0.5 * losses_of(replay)[0], rel=1e-5)


def test_windows_by_surprise_shift_the_latents_loss_but_not_that_of_rewards_and_ends():
    config = replace(SMALL, windows="surprise")
    (_, whole, _, _), (_, half, _, _) = losses_of(game(), config), losses_of(game(), config, weights=0.5)
    assert half["latent"] == whole["latent"]
    for name in ("reward", "end"):
        assert half[name].item() == pytest.approx(0.5 * whole[name].item(), rel=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_the_shift_by_surprise_may_be_corrected_in_part(exponent):
    config = replace(SMALL, windows="surprise", surprise_correction=exponent)
    (_, whole, _, _), (_, quarter, _, _) = losses_of(game(), config), losses_of(game(), config, weights=0.25)
    for name in ("reward", "end"):
        assert quarter[name].item() == pytest.approx(0.25**exponent * whole[name].item(), rel=1e-5)


def test_weights_of_the_losses_add_up():
    replay = game()
    _, metrics, _, _ = losses_of(replay)
    total = losses_of(replay, replace(SMALL, reward_weight=3.0, end_weight=2.0))[0]
    assert total == pytest.approx((metrics["latent"] + 3 * metrics["reward"] + 2 * metrics["end"]).item(), rel=1e-5)


def test_event_windows_are_drawn_more_often_and_weigh_less():
    replay = Replay(500, (4, 4))
    for step in range(500):
        replay.append(np.zeros((4, 4), np.uint8), 0, float(step == 250), False, False, False, step == 0)
    replay.prioritise_events(10, 4.0)
    windows = replay.sample_windows(20_000, 11, np.random.default_rng(0))
    eventful = (replay.rewards_at(windows.indices[:, :-1]) != 0).any(axis=1)
    assert eventful.mean() == pytest.approx(4 * 10 / (490 + 30), rel=0.1)
    assert windows.weights[eventful].max() == pytest.approx(windows.weights[~eventful].min() / 4)
    # Any mean of weighted losses is what it would be without priorities.
    values = torch.as_tensor(eventful[:, None].astype(np.float32))
    mean = masked_mean(values, torch.ones_like(values, dtype=torch.bool), torch.as_tensor(windows.weights))
    assert mean.item() == pytest.approx(10 / 490, rel=0.1)


@pytest.mark.parametrize(("priority", "uniform"), [(1.0, True), (50.0, False)])
def test_the_fit_draws_by_event_priority(monkeypatch, priority, uniform):
    drawn = []
    original = Replay.sample_windows

    def spy(self, *args, **kwargs):
        windows = original(self, *args, **kwargs)
        drawn.append(windows)
        return windows

    monkeypatch.setattr(Replay, "sample_windows", spy)
    fit(Fitter(world_model(), replace(SMALL, event_priority=priority, bf16=False)), pong(), 0, 3)
    assert len(drawn) == 3
    assert all((windows.weights == 1).all() for windows in drawn) == uniform


@pytest.mark.parametrize("windows", ["uniform", "balanced", "surprise", "epoch"])
def test_windows_of_every_kind_are_one_step_longer_than_a_sequence(windows):
    fitter = Fitter(world_model(), replace(SMALL, windows=windows))
    drawn = fitter._window_source(pong(), np.random.default_rng(0))()
    assert drawn.indices.shape == (8, 7)


def test_windows_of_a_fit_by_surprise_are_drawn_by_the_losses_it_had(monkeypatch):
    replay = pong()
    model = world_model()
    fitter = Fitter(model, replace(SMALL, windows="surprise", bf16=False))
    fit(fitter, replay, 0, 30)
    losses = fitter.state_dict()["losses"]
    assert losses.shape == (300,) and (~losses.isnan()).float().mean() > 0.5
    # A step's loss is that of the update that saw it last.
    seen = {}
    original = dreamgym.fit.dynamics_loss

    def spy(*args, **options):
        loss, metrics = original(*args, **options)
        seen.update(windows=args[2], steps=metrics["latent_steps"])
        return loss, metrics

    monkeypatch.setattr(dreamgym.fit, "dynamics_loss", spy)
    fit(fitter, replay, 0, 1)
    windows, steps = seen["windows"], seen["steps"]
    last = fitter.state_dict()["losses"][windows.indices[-1, 1:]]
    assert torch.equal(last[windows.mask[-1, 1:]], steps[-1][windows.mask[-1, 1:]])


@pytest.mark.parametrize("dynamics", [None, MULTISCALE], ids=["recurrent", "two grids"])
def test_surprise_at_new_experience_is_measured_before_it_is_fitted_to(monkeypatch, dynamics):
    replay = Replay(90)
    for i in range(80):
        replay.append(pong().frames_at(i)[0], i % 6, 0.0, False, False, False, i == 0)
    model = world_model(stages=4 if dynamics is None else 3, dynamics=dynamics)
    fitter = Fitter(model, replace(SMALL, windows="surprise", bf16=False))
    assert "dynamics/surprise" not in fit(fitter, replay, 3, 4)
    for i in range(80, 90):
        replay.append(pong().frames_at(i)[0], i % 6, 0.0, False, False, False, False)
    known = []
    update = fitter._dynamics_update
    monkeypatch.setattr(
        fitter,
        "_dynamics_update",
        lambda *args, **options: known.append(fitter.state_dict()["losses"][80:].clone()) or update(*args, **options),
    )
    report = fit(fitter, replay, 0, 2)
    assert report["dynamics/surprise"] == pytest.approx(known[0].mean().item())
    assert not known[0].isnan().any()
    assert "dynamics/surprise" not in fit(fitter, replay, 0, 1)


def test_new_experience_of_short_episodes_is_measured_and_none_that_can_be_is_no_number():
    replay = Replay(120)
    for i in range(60):
        replay.append(pong().frames_at(i)[0], i % 6, 0.0, i == 59, False, False, i == 0)
    fitter = Fitter(world_model(), replace(SMALL, windows="surprise", bf16=False))
    fit(fitter, replay, 2, 2)
    replay.append(pong().frames_at(60)[0], 0, 0.0, False, False, False, True)
    assert "dynamics/surprise" not in fit(fitter, replay, 0, 1)
    for i in range(61, 101):
        replay.append(pong().frames_at(i)[0], i % 6, 0.0, i % 4 == 0, False, False, i % 4 == 1)
    latents = torch.as_tensor(encode_replay(fitter.world_model, replay))
    measured = fitter._measure_surprise(replay, latents, torch.Generator())
    losses = fitter.state_dict()["losses"][61:-7]
    assert torch.isfinite(losses).float().mean() == pytest.approx(0.75, abs=0.05)
    assert np.isfinite(measured["dynamics/surprise"])


def test_a_saved_fit_by_surprise_goes_on_as_if_it_had_not_stopped():
    config = replace(SMALL, windows="surprise", code_noise=0.1, bf16=False)
    through, saved = Fitter(world_model(), config), Fitter(world_model(), config)
    for fitter in (through, saved):
        fit(fitter, pong(), 5, 12)
    resumed = Fitter(saved.world_model, config)
    resumed.load_state_dict(saved.state_dict())
    for fitter in (through, resumed):
        fit(fitter, pong(), 0, 6, seed=1)
    for a, b in zip(through.world_model.parameters(), resumed.world_model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("windows", ["uniform", "surprise"])
def test_the_critic_is_fitted_to_moments_that_the_dynamics_were_not_fitted_to(monkeypatch, windows):
    whole, replay = pong(), Replay(300)

    def more(count):
        for i in range(len(replay), len(replay) + count):
            replay.append(whole.frames_at(i)[0], i % 6, 0.0, False, False, False, i == 0)

    config = replace(SMALL, windows=windows, critic_share=5.0, bf16=False)
    fitter = Fitter(world_model(stages=3, dynamics=CRITICAL), config)
    order, targets = [], []
    update, judge = fitter._dynamics_update, fitter.world_model.dynamics.critic_loss
    table = {}

    def spy(prediction, uniforms, latents):
        order.append("critic")
        targets.extend(table[latent.numpy().tobytes()] for latent in latents)
        return judge(prediction, uniforms, latents)

    monkeypatch.setattr(fitter.world_model.dynamics, "critic_loss", spy)
    monkeypatch.setattr(
        fitter, "_dynamics_update", lambda *args, **options: order.append("dynamics") or update(*args, **options)
    )

    def fit_once(codec_updates, updates):
        if codec_updates:
            fitter.fit_codec(replay, codec_updates, np.random.default_rng(0), torch.Generator(), progress=False)
        # Every record a latent of its own, so that it can be told which were shown.
        numbered = np.random.default_rng(1).integers(0, 8, (len(replay), *fitter.world_model.codec.latent_shape))
        table.update({latent.astype(np.int64).tobytes(): i for i, latent in enumerate(numbered)})
        order.clear(), targets.clear()
        report = fitter.fit_dynamics(
            replay, numbered.astype(np.uint8), updates, np.random.default_rng(0), torch.Generator(), progress=False
        )
        assert np.isfinite(report["critic/loss"]) and order.count("critic") == 5 * updates
        return order.index("critic"), sorted(set(targets))

    back = fitter.world_model.dynamics.looks_back
    more(100)
    assert fitter.dynamics_updates == 0
    first, seen = fit_once(3, 10)
    # Dynamics that know nothing yet make mistakes of another kind.
    assert first == 2 and seen[0] >= back + 1 and seen[-1] <= 99 and len(seen) > 50
    more(60)
    first, seen = fit_once(0, 10)
    assert first == 0 and seen[0] >= 100 + back + 1 and len(seen) > 30
    # New latents are new to the dynamics, too.
    first, seen = fit_once(2, 10)
    assert first == 2 and seen[0] < 100


@pytest.mark.parametrize(
    ("dynamics", "share", "said"), [(CRITICAL, 0.0, "have a critic"), (MULTISCALE, 0.5, "have no critic")]
)
def test_a_critic_has_updates_and_none_has_none(dynamics, share, said):
    with pytest.raises(ConfigError, match=said):
        Fitter(world_model(stages=3, dynamics=dynamics), replace(SMALL, critic_share=share))


def test_no_optimiser_of_the_dynamics_moves_the_critic():
    model = world_model(stages=3, dynamics=CRITICAL)
    fitter = Fitter(model, replace(SMALL, dynamics_optimizer="muon", critic_share=1.0))
    critic = {id(parameter) for parameter in model.dynamics.critic.parameters()}
    optimised = [{id(p) for group in o.param_groups for p in group["params"]} for o in fitter._dynamics_optimizers]
    assert critic and not critic & set.union(*optimised)
    assert critic == {id(p) for group in fitter.critic_optimizer.param_groups for p in group["params"]}
    rest = {id(p) for p in model.dynamics.parameters()} - critic
    assert rest == set.union(*optimised)


def test_the_reward_head_is_left_to_adamw_at_its_own_rate():
    model = world_model(stages=3, dynamics=replace(MULTISCALE, reward_channels=4))
    config = replace(SMALL, dynamics_optimizer="muon", dynamics_learning_rate=1e-3, reward_learning_rate=2e-3)
    fitter = Fitter(model, config)
    rewards = {id(p) for name, p in model.dynamics.named_parameters() if name.startswith("reward_")}
    at_its_rate = [
        id(p) for g in fitter.dynamics_optimizer.param_groups if g["initial_lr"] == 2e-3 for p in g["params"]
    ]
    assert len(rewards) > 6 and set(at_its_rate) == rewards
    assert not rewards & {id(p) for g in fitter.matrix_optimizer.param_groups for p in g["params"]}


def test_optimisers_of_another_version_are_refused_with_what_to_do():
    fitter = Fitter(world_model(), SMALL)
    state = fitter.state_dict()
    state["dynamics_optimizer"]["param_groups"][0]["params"] = [0]
    with pytest.raises(CheckpointError, match="optimisers of this run are of another version"):
        fitter.load_state_dict(state)


def test_epoch_windows_show_every_step_once():
    replay = pong()
    batches = dreamgym.fit._epochs(replay, 4, 12, np.random.default_rng(0))
    for _ in range(3):
        starts: list[int] = []
        # An epoch has 26 or 27 windows of 11 steps and one more for the last target.
        while len(starts) < 26:
            starts += next(batches).indices[:, 0].tolist()
        inputs = np.sort(np.concatenate([np.arange(s, s + 11) for s in starts]))
        assert (np.diff(inputs) == 1).all()
        assert inputs[0] < 11 and inputs[-1] >= 300 - 12


def test_after_the_context_the_models_own_latents_are_its_input():
    replay = pong()
    model = world_model()
    windows = replay.windows_from(np.array([50, 60]), 9)
    latents = torch.as_tensor(encode_replay(model, replay)[windows.indices]).long()
    other = latents.clone()
    other[:, 3:8] = (other[:, 3:8] + 1) % 128
    config = replace(SMALL, context_steps=3, bf16=False)
    rewards = [
        dynamics_loss(model, replay, windows, z, config, torch.Generator().manual_seed(0))[1]["reward"]
        for z in (latents, other)
    ]
    forced = [dynamics_loss(model, replay, windows, z, SMALL)[1]["reward"] for z in (latents, other)]
    assert rewards[0] == rewards[1]
    assert forced[0] != forced[1]


def test_the_papers_way_fits_codec_and_dynamics_alternately():
    model = world_model(foreground_weight=0.0, pixel_bias=False, quantizer=QuantizerConfig(released_bias=True))
    config = replace(FitConfig.published(), codec_batch_size=4)
    fitter = Fitter(model, config)
    calls = []
    codec_update, dynamics_update = fitter._codec_update, fitter._dynamics_update
    fitter._codec_update = lambda *args, **settings: calls.append("c") or codec_update(*args, **settings)
    fitter._dynamics_update = lambda *args, **options: calls.append("d") or dynamics_update(*args, **options)
    report = fit(fitter, pong(), 3 + 4, 8)
    assert "".join(calls) == "ccc" + "cdd" * 4
    assert {"codec/reconstruction", "dynamics/latent"} <= set(report)
    assert fitter.codec_optimizer.param_groups[0]["lr"] == config.codec_learning_rate


def test_the_reward_head_has_its_own_learning_rate_and_norms_do_not_decay():
    model = world_model()
    fitter = Fitter(model, replace(SMALL, reward_learning_rate=7e-3, dynamics_learning_rate=2e-3, weight_decay=0.1))
    rates, decays = {}, {}
    for group in fitter.dynamics_optimizer.param_groups:
        for parameter in group["params"]:
            rates[id(parameter)], decays[id(parameter)] = group["lr"], group["weight_decay"]
    for name, parameter in model.dynamics.named_parameters():
        assert rates[id(parameter)] == (7e-3 if name.startswith("reward_head") else 2e-3)
        product = parameter.dim() > 1 and "norm" not in name and name.endswith("weight")
        if name.startswith(("reward_head.1.", "end_head.1.")):
            product = False
        assert decays[id(parameter)] == (0.1 if product else 0.0), name


def test_learning_rates_fall_to_their_final_share_within_a_round():
    fitter = Fitter(world_model(), replace(SMALL, final_rate=0.1))
    fit(fitter, pong(), 50, 50)
    first = replace(SMALL).codec_warmup_learning_rate
    assert fitter.codec_optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * first, rel=0.02)
    assert fitter.dynamics_optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 3e-3, rel=0.02)


def test_the_codebook_is_seeded_once_when_quantisation_begins(monkeypatch):
    model, seeded = world_model(), []
    monkeypatch.setattr(model.codec, "seed_codebook", lambda frames, generator: seeded.append(len(frames)))
    fitter = Fitter(model, replace(SMALL, unquantized_updates=4))
    fit(fitter, pong(), 3, 0)
    assert not seeded
    fit(fitter, pong(), 6, 0)
    assert len(seeded) == 1


def test_once_codes_are_settled_only_the_decoder_learns(monkeypatch):
    model, seen = world_model(), []
    settle = model.codec.settle

    def noted(frames, generator):
        frames = list(frames)
        settle(frames, generator)
        seen.append((torch.cat(frames), {name: value.clone() for name, value in model.codec.state_dict().items()}))

    monkeypatch.setattr(model.codec, "settle", noted)
    fitter = Fitter(model, replace(SMALL, settled_updates=3, unquantized_updates=2, bf16=False))
    fitter.fit_codec(pong(), 7, np.random.default_rng(0), torch.Generator().manual_seed(0), progress=False)
    ((frames, settled),) = seen
    assert np.array_equal(frames[:, 0].numpy(), pong().frames_at(np.arange(300), 1)[:, 0])
    changed = {name for name, value in model.codec.state_dict().items() if not torch.equal(value, settled[name])}
    assert changed and not any(name.startswith(("encoder", "quantizer")) for name in changed)
    assert all(weight.requires_grad for weight in model.codec.parameters())
    fit(Fitter(model, replace(SMALL, settled_updates=0)), pong(), 7, 0)
    assert len(seen) == 1


@pytest.mark.parametrize("settings", [{"settled_updates": -1}, {"settled_updates": 1, "interleaved": True}])
def test_updates_of_settled_codes_are_none_or_some_and_not_interleaved(settings):
    with pytest.raises(ConfigError, match="settled_updates: expected at least 0"):
        FitConfig(**settings)


def test_the_background_is_learned_once():
    model = world_model()
    fitter = Fitter(model, SMALL)
    fit(fitter, pong(), 1, 0)
    assert torch.equal(model.codec.background, torch.as_tensor(pong().background()).float() / 255)
    fit(fitter, game(), 1, 0)
    assert torch.equal(model.codec.background, torch.as_tensor(pong().background()).float() / 255)


def walk(episodes=4) -> Replay:
    """A bright bar walks over the picture in twelve steps; the last one gives a point and ends the episode."""
    replay = Replay(12 * episodes)
    for step in range(12 * episodes):
        frame, place = np.full((96, 96), 60, np.uint8), step % 12
        frame[:, 8 * place : 8 * place + 8] = 220
        replay.append(frame, step % 6, float(place == 11), place == 11, False, False, place == 0)
    return replay


def test_feed_forward_dynamics_learn_a_short_game_by_heart():
    replay = walk()
    fitter = Fitter(world_model(stages=3, dynamics=replace(RESIDUAL, channels=32)), SMALL)
    first, last = fit(fitter, replay, 40, 1), fit(fitter, replay, 0, 250)
    for name in ("dynamics/latent", "dynamics/reward", "dynamics/end"):
        assert last[name] < 0.02 * first[name], name
    assert last["dynamics/accuracy"] > 0.99
    assert not any(name.startswith("codec/") for name in last)


@pytest.mark.parametrize(
    "dynamics", [None, RESIDUAL, MULTISCALE, CRITICAL], ids=["recurrent", "residual", "two grids", "critic"]
)
def test_a_fit_is_a_function_of_its_seeds_and_goes_on_from_its_state(dynamics):
    stages = 4 if dynamics is None else 3
    config = replace(SMALL, windows="balanced", critic_share=1.0 if dynamics is CRITICAL else 0.0)

    def run(interrupted: bool):
        replay = pong()
        replay.visits = np.zeros(len(replay), np.int64)
        model = world_model(dynamics=dynamics, stages=stages)
        fitter = Fitter(model, config)
        fit(fitter, replay, 8, 4, seed=1)
        if interrupted:
            weights, state, visits = model.state_dict(), fitter.state_dict(), replay.visits
            model = world_model(dynamics=dynamics, stages=stages)
            fitter = Fitter(model, config)
            model.load_state_dict(weights)
            fitter.load_state_dict(state)
            replay.visits = visits
        fit(fitter, replay, 8, 4, seed=2)
        return model.state_dict()

    whole, halves = run(False), run(True)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def add(replay, count, seed=1):
    """More noise, in an episode that goes on."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        replay.append(rng.integers(0, 256, (96, 96), dtype=np.uint8), 0, 0.0, False, False, False, False)


def seeded_model(**settings) -> WorldModel:
    """A codec that tells noisy frames apart."""
    model = world_model(**settings)
    frames = torch.as_tensor(game().frames_at(np.arange(40)))
    model.codec.encoder.train()
    with torch.no_grad():
        for _ in range(20):
            model.codec.encoder(frames / 255)
    model.codec.eval()
    model.codec.seed_codebook(frames, torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def encoded(monkeypatch):
    """The frames that are encoded, by call; repeated ones that only fill a chunk up are left out."""
    counts = []
    original = WorldModel.encode

    def counting(self, frames, chunk=256):
        counts.append(len(np.unique(np.asarray(frames).reshape(len(frames), -1), axis=0)))
        return original(self, frames, chunk)

    monkeypatch.setattr(WorldModel, "encode", counting)
    return counts


def test_the_cache_holds_what_encoding_everything_anew_gives_and_encodes_only_what_is_new(encoded):
    model, replay = seeded_model(), game(capacity=100)
    cache = LatentCache(model)
    first = cache.of(replay).copy()
    assert encoded == [40] and len(np.unique(first)) > 20
    assert np.array_equal(cache.of(replay), first)
    assert encoded == [40]
    for count in (25, 1):
        add(replay, count, seed=count)
        grown = cache.of(replay)
        assert encoded[-1] == count
        assert np.array_equal(grown, encode_replay(model, replay))
        del encoded[-1]
    assert encoded == [40, 25, 1] and len(grown) == len(replay) == 66


def test_the_cache_forgets_what_a_full_replay_has_dropped(encoded):
    model, replay = seeded_model(), game(capacity=50)
    cache = LatentCache(model)
    cache.of(replay)
    for seed, count in enumerate((10, 5, 5)):
        add(replay, count, seed=seed + 1)
        assert np.array_equal(cache.of(replay), encode_replay(model, replay))
    # Up to the brim nothing was dropped; from then on all of it is encoded. Every other call is the comparison's.
    assert encoded == [40, 10, 50, 50, 50, 50, 50]


def test_the_cache_does_not_take_one_replay_for_another():
    model = seeded_model()
    cache = LatentCache(model)
    cache.of(game())
    other = Replay(60)
    for step in range(40):
        other.append(255 - game().frames_at(step)[0], 0, 0.0, False, False, False, step == 0)
    assert np.array_equal(cache.of(other), encode_replay(model, other))


@pytest.mark.parametrize("way", ["fit", "fit_codec", "load_state_dict"])
def test_what_was_encoded_is_forgotten_when_the_codec_changes(encoded, way):
    model, replay = seeded_model(), game()
    fitter = Fitter(model, replace(SMALL, unquantized_updates=0))
    fit(fitter, replay, 0, 1)
    fit(fitter, replay, 0, 1)
    assert encoded == [40]
    if way == "fit":
        fit(fitter, replay, 1, 1)
    elif way == "fit_codec":
        fitter.fit_codec(replay, 1, np.random.default_rng(0), torch.Generator().manual_seed(0), progress=False)
        fit(fitter, replay, 0, 1)
    else:
        other = seeded_model(pixel_bias=True)
        model.load_state_dict(other.state_dict())
        fitter.load_state_dict(fitter.state_dict())
        fit(fitter, replay, 0, 1)
    assert encoded == [40, 40]


@pytest.mark.parametrize("stages", [3, 4])
def test_a_records_latent_does_not_depend_on_the_chunk_it_is_in(stages):
    model, replay = seeded_model(stages=stages), game()
    whole = encode_replay(model, replay, 64)
    for first in (1, 7, 39):
        assert np.array_equal(encode_replay(model, replay, 64, first=first), whole[first:])


def test_motion_weights_are_used_in_a_fit(monkeypatch):
    model = world_model(motion_weight=5.0)
    given = []
    original = model.codec.loss
    monkeypatch.setattr(
        model.codec,
        "loss",
        lambda frames, previous=None, **kw: given.append(previous) or original(frames, previous, **kw),
    )
    fit(Fitter(model, SMALL), pong(), 1, 0)
    assert given[0] is not None and given[0].shape == (8, 1, 96, 96)


def test_too_little_experience_is_refused():
    with pytest.raises(InvalidInputError, match="sequence_length=6"):
        fit(Fitter(world_model(), SMALL), game(6, 3), 1, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"windows": "all"},
        {"event_priority": 0.5},
        {"final_rate": 0.0},
        {"balance_tau": 0},
        {"surprise_limit": 0.9},
        {"critic_share": -1},
        {"critic_share": 0.5, "interleaved": True},
        {"surprise_power": 0},
        {"surprise_settling": -1},
        {"surprise_correction": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        FitConfig(**settings)


def test_every_setting_of_the_fit_is_read_by_it():
    tree = ast.parse(inspect.getsource(dreamgym.fit))
    read = {
        node.attr
        for kind in tree.body
        if not (isinstance(kind, ast.ClassDef) and kind.name == "FitConfig")
        for node in ast.walk(kind)
        if isinstance(node, ast.Attribute)
    }
    assert {f.name for f in fields(FitConfig)} <= read


def test_swapped_codes_are_those_of_other_steps_in_the_same_cell_and_as_many_as_asked_for():
    batch, time, side = 40, 10, 6
    cells = torch.arange(side * side).view(side, side)
    latents = (torch.arange(batch * time).view(batch, time, 1, 1) * 36 + cells).long()
    made = swap_codes(latents, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(made % 36, latents % 36)
    shares = (made != latents).float().mean(dim=(1, 2, 3))
    assert 0.07 < shares.mean() < 0.13
    assert shares.max() <= 0.25
    assert shares.min() < 0.05
    assert torch.equal(made, swap_codes(latents, 0.1, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_targets_are_never_swapped(noise, monkeypatch):
    model, replay = world_model(), pong()
    shown, wanted = [], []
    roll, cross_entropy = dreamgym.fit._roll, dreamgym.models.dynamics.latent_cross_entropy
    monkeypatch.setattr(dreamgym.fit, "_roll", lambda m, latents, *a: shown.append(latents) or roll(m, latents, *a))
    monkeypatch.setattr(
        dreamgym.models.dynamics,
        "latent_cross_entropy",
        lambda p, targets: wanted.append(targets) or cross_entropy(p, targets),
    )
    windows = replay.sample_windows(4, 6, np.random.default_rng(0))
    latents = torch.randint(0, 128, (*windows.indices.shape, 6, 6), generator=torch.Generator().manual_seed(0))
    dynamics_loss(model, replay, windows, latents, replace(SMALL, code_noise=noise), torch.Generator().manual_seed(0))
    assert torch.equal(wanted[0], latents[:, 1:])
    assert torch.equal(shown[0], latents[:, :-1]) == (noise == 0)


def test_dropout_is_drawn_from_the_fit_s_generator_and_leaves_the_global_one_alone():
    def fitted(global_seed: int):
        torch.manual_seed(global_seed)
        config = ResidualConfig(channels=16, blocks=1, embedding=8, patch=2, dropout=0.5, reward_dropout=0.5)
        model = world_model(dynamics=config)
        after_build = torch.random.get_rng_state()
        fit(Fitter(model, SMALL), pong(), 0, 4)
        assert torch.equal(torch.random.get_rng_state(), after_build)
        assert not model.dynamics.training
        return model.dynamics.state_dict()

    for a, b in zip(fitted(1).values(), fitted(2).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("setting", [{"code_noise": 0.6}, {"code_noise": -0.1}])
def test_a_share_of_swapped_codes_out_of_range_is_refused(setting):
    with pytest.raises(ConfigError, match=r"code_noise: expected 0 to 0\.5"):
        FitConfig(**setting)


def test_a_share_of_the_windows_shows_every_kind_of_change_as_often():
    replay = Replay(300)
    for step in range(300):
        replay.append(np.zeros((96, 96), np.uint8), 0, 0.0, False, False, False, step == 0)
    latents = np.zeros((300, 6, 6), np.uint8)
    latents[1::2, 0, 0] = 1
    latents[200, 3, 3] = 2
    shown = []
    for share in (0.0, 0.5):
        config = replace(SMALL, windows="surprise", rare_share=share, surprise_limit=100.0, bf16=False)
        draw = Fitter(world_model(), config)._window_source(replay, np.random.default_rng(0), latents)
        shown.append(np.mean([(draw().indices[:, 1:] == 200).any(axis=1).mean() for _ in range(300)]))
    # Two kinds come and go with every second step, two (there and back) come once.
    assert shown[0] == pytest.approx(6 / 294, abs=0.01) and shown[1] == pytest.approx(3 / 294 + 0.25, abs=0.03)


def test_shares_of_more_than_all_windows_are_refused():
    with pytest.raises(ConfigError, match="even_share: expected at least 0, and at most 1 together with rare_share"):
        FitConfig(rare_share=0.6, even_share=0.6)
    with pytest.raises(ConfigError, match="even_share: expected at least 0"):
        FitConfig(even_share=float("nan"))


def test_accuracy_is_measured_only_where_it_is_looked_at(monkeypatch):
    asked, original = [], dreamgym.fit.dynamics_loss

    def spy(*args, **options):
        loss, metrics = original(*args, **options)
        asked.append("accuracy" in metrics)
        return loss, metrics

    monkeypatch.setattr(dreamgym.fit, "dynamics_loss", spy)
    report = fit(Fitter(world_model(), replace(SMALL, bf16=False)), pong(), 2, 20)
    assert asked == [False] * 18 + [True] * 2 and 0 <= report["dynamics/accuracy"] <= 1


def test_rare_windows_are_refused_where_latents_change_between_updates():
    with pytest.raises(
        ConfigError, match="rare_share: expected 0 to 1, and 0 where codec and dynamics are fitted inter"
    ):
        FitConfig(rare_share=0.5, windows="surprise", interleaved=True)
    # A preset's share does not stand against windows of another kind.
    assert FitConfig(rare_share=0.5).windows == "uniform"
