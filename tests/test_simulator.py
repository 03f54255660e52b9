"""What the simulator promises: dreams that do not disturb each other, and ends that are what they say."""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import make_tiny_dream
from torch import Tensor

import dreamgym.warm_starts as warm_starts
from dreamgym.checkpoint import Dream
from dreamgym.errors import ConfigError, DeviceError, InvalidActionError, InvalidInputError
from dreamgym.simulator import DreamSimulator, DreamState, StepResult
from dreamgym.streams import Streams, sample_categorical

NUM_ENVS = 5


def simulate(dream: Dream, num_envs: int = NUM_ENVS, **settings: Any) -> DreamSimulator:
    return DreamSimulator(
        dream.world_model, dream.starts, num_envs=num_envs, **{"seed": 3, "horizon": None, **settings}
    )


def actions_of(step: int, num_envs: int = NUM_ENVS) -> Tensor:
    return (torch.arange(num_envs) + step) % 6


def run(simulator: DreamSimulator, steps: range) -> list[StepResult]:
    return [simulator.step(actions_of(step, simulator.num_envs)) for step in steps]


def tensors(state: DreamState) -> list[Tensor]:
    return [*state.dynamics, state.latents, state.taken, state.age, state.start, *state.streams]


def same(first: DreamState, second: DreamState, rows: Tensor | None = None) -> bool:
    rows = torch.ones(len(first.age), dtype=torch.bool) if rows is None else rows
    return all(torch.equal(a[rows], b[rows]) for a, b in zip(tensors(first), tensors(second), strict=True))


def test_a_dream_begins_with_what_was_really_done_last_and_goes_on_with_what_is_done_in_it() -> None:
    dream = make_tiny_dream()
    context = dream.starts.latents.shape[1]
    valid, actions = dream.starts.valid.clone(), dream.starts.actions.clone()
    valid[:] = True
    valid[1, context - 2] = False
    actions[:, context - 2] = torch.arange(len(actions)) % 6
    simulator = simulate(replace(dream, starts=dream.starts._replace(valid=valid, actions=actions)))
    simulator.reset(starts=torch.arange(NUM_ENVS))
    before = torch.eye(6)[torch.arange(NUM_ENVS) % 6]
    before[1] = 0
    assert torch.equal(simulator.taken, before)
    simulator.step(actions_of(3))
    assert torch.equal(simulator.taken, torch.eye(6)[actions_of(3)])
    mask = torch.tensor([True, False, False, True, False])
    simulator.reset(mask, starts=torch.arange(NUM_ENVS))
    assert torch.equal(simulator.taken[mask], before[mask])
    assert torch.equal(simulator.taken[~mask], torch.eye(6)[actions_of(3)][~mask])


# Randomness


def test_a_rows_random_numbers_do_not_depend_on_how_many_rows_there_are() -> None:
    few, _ = Streams.from_seed(7, 2, torch.device("cpu")).draw(10)
    many, _ = Streams.from_seed(7, 50, torch.device("cpu")).draw(10)
    assert torch.equal(few, many[:2])


def test_drawing_twice_continues_the_stream() -> None:
    streams = Streams.from_seed(1, 3, torch.device("cpu"))
    at_once, _ = streams.draw(6)
    first, after = streams.draw(2)
    second, _ = after.draw(4)
    assert torch.equal(at_once, torch.cat([first, second], dim=1))


def test_random_numbers_are_uniform_and_rows_and_seeds_are_uncorrelated() -> None:
    streams = Streams.from_seed(0, 400, torch.device("cpu"))
    uniforms, _ = streams.draw(500)
    assert float(uniforms.min()) >= 0.0
    assert float(uniforms.max()) < 1.0
    counts = torch.histc(uniforms, bins=20, min=0.0, max=1.0)
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 50  # chi-squared, 19 degrees of freedom: p = 1e-4
    other, _ = Streams.from_seed(1, 400, torch.device("cpu")).draw(500)
    for left, right in ((uniforms[:-1], uniforms[1:]), (uniforms[:, :-1], uniforms[:, 1:]), (uniforms, other)):
        correlation = np.corrcoef(left.flatten().numpy(), right.flatten().numpy())[0, 1]
        assert abs(correlation) < 0.012


def test_categories_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([2.0, -math.inf, 0.0, 1.0]).expand(20_000, 4)
    uniforms, _ = Streams.from_seed(5, 20_000, torch.device("cpu")).draw(1)
    for temperature in (1.0, 2.0):
        drawn = sample_categorical(logits, uniforms[:, 0], temperature)
        frequencies = torch.bincount(drawn, minlength=4) / 20_000
        assert torch.allclose(frequencies, torch.softmax(logits[0] / temperature, 0), atol=0.015)
        assert frequencies[1] == 0


def test_the_extreme_random_numbers_draw_possible_categories() -> None:
    logits = torch.tensor([[-math.inf, 0.3, 1.7, -math.inf]]).expand(2, 4)
    drawn = sample_categorical(logits, torch.tensor([0.0, 1.0 - 2.0**-23]))
    assert drawn.tolist() == [1, 2]


def test_temperature_zero_takes_the_most_likely_codes_whatever_the_seed(tiny_dream: Dream) -> None:
    starts = torch.arange(NUM_ENVS)
    results: list[Tensor] = []
    for seed in (1, 2):
        simulator = simulate(tiny_dream, temperature=0.0, seed=seed)
        simulator.reset(starts=starts)
        results.append(run(simulator, range(4))[-1].latents)
    assert torch.equal(*results)


def test_one_seed_gives_one_dream_and_another_seed_another(tiny_dream: Dream) -> None:
    states: list[DreamState] = []
    for seed in (3, 3, 4):
        simulator = simulate(tiny_dream, seed=seed)
        simulator.reset()
        run(simulator, range(3))
        states.append(simulator.state())
    assert same(states[0], states[1])
    assert not torch.equal(states[0].latents, states[2].latents)


def test_global_generators_neither_change_the_dream_nor_are_changed_by_it(tiny_dream: Dream) -> None:
    states: list[DreamState] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        simulator = simulate(tiny_dream)
        simulator.reset()
        run(simulator, range(3))
        assert torch.equal(before, torch.get_rng_state())
        states.append(simulator.state())
    assert same(*states)


def test_seeding_by_mask_leaves_the_other_streams_alone(tiny_dream: Dream) -> None:
    simulator, other = simulate(tiny_dream), simulate(tiny_dream)
    simulator.reset()
    other.reset()
    mask = torch.tensor([True, False, False, False, True])
    simulator.seed(99, mask)
    run(simulator, range(2))
    run(other, range(2))
    assert same(simulator.state(), other.state(), ~mask)
    assert not torch.equal(simulator.latents[mask], other.latents[mask])


# Reset


@pytest.mark.parametrize("cache_limit", [warm_starts.CACHE_LIMIT_BYTES, 0])
def test_a_masked_reset_leaves_the_other_dreams_as_they_were_bit_for_bit(
    any_dream: Dream, monkeypatch: pytest.MonkeyPatch, cache_limit: int
) -> None:
    monkeypatch.setattr(warm_starts, "CACHE_LIMIT_BYTES", cache_limit)
    disturbed, undisturbed = simulate(any_dream), simulate(any_dream)
    mask = torch.tensor([True, False, True, False, False])
    for simulator in (disturbed, undisturbed):
        simulator.reset()
        run(simulator, range(4))
    disturbed.reset(mask)
    ours, theirs = run(disturbed, range(4, 10)), run(undisturbed, range(4, 10))
    assert same(disturbed.state(), undisturbed.state(), ~mask)
    for our, their in zip(ours, theirs, strict=True):
        assert all(torch.equal(a[~mask], b[~mask]) for a, b in zip(our, their, strict=True))
    assert not torch.equal(disturbed.latents[mask], undisturbed.latents[mask])


@pytest.mark.parametrize("cache_limit", [warm_starts.CACHE_LIMIT_BYTES, 0])
def test_a_dream_reset_by_mask_equals_one_of_an_independent_rollout_bit_for_bit(
    any_dream: Dream, monkeypatch: pytest.MonkeyPatch, cache_limit: int
) -> None:
    monkeypatch.setattr(warm_starts, "CACHE_LIMIT_BYTES", cache_limit)
    by_mask, all_at_once = simulate(any_dream), simulate(any_dream)
    mask = torch.tensor([True, False, True, False, False])
    for simulator in (by_mask, all_at_once):
        simulator.reset()
        run(simulator, range(4))
    by_mask.reset(mask)
    all_at_once.reset()
    ours, theirs = run(by_mask, range(6)), run(all_at_once, range(6))
    assert same(by_mask.state(), all_at_once.state(), mask)
    for our, their in zip(ours, theirs, strict=True):
        assert all(torch.equal(a[mask], b[mask]) for a, b in zip(our, their, strict=True))


def test_an_empty_mask_changes_nothing(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream)
    simulator.reset()
    before = simulator.state()
    simulator.reset(torch.zeros(NUM_ENVS, dtype=torch.bool))
    assert same(before, simulator.state())


def test_a_dream_starts_with_real_context(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream, latent_stack=3)
    latents = simulator.reset()
    assert latents.shape == (NUM_ENVS, 3, 6, 6)
    assert torch.equal(latents, tiny_dream.starts.latents[simulator.start][:, -3:].long())
    assert simulator.age.tolist() == [0] * NUM_ENVS


@pytest.mark.parametrize("cache_limit", [warm_starts.CACHE_LIMIT_BYTES, 0])
def test_the_hidden_state_is_warmed_up_on_the_valid_context(
    any_dream: Dream, monkeypatch: pytest.MonkeyPatch, cache_limit: int
) -> None:
    monkeypatch.setattr(warm_starts, "CACHE_LIMIT_BYTES", cache_limit)
    simulator = simulate(any_dream, num_envs=3)
    chosen = torch.tensor([0, 4, 5])  # every fourth context begins within the window
    simulator.reset(starts=chosen)
    for row, start in enumerate(chosen.tolist()):
        latents, actions, valid, elapsed = (field[start] for field in any_dream.starts)
        state = any_dream.world_model.initial_state(1, elapsed[None])
        for step in range(len(valid) - 1):
            if valid[step]:
                state = any_dream.world_model.step(latents[None, step].long(), actions[None, step], state)[1]
        assert torch.allclose(simulator.hidden()[row], any_dream.world_model.hidden(state)[0], atol=1e-5)
    assert not torch.allclose(simulator.hidden()[2], torch.zeros(()))


def test_a_start_is_warmed_up_to_the_same_bits_whoever_asks(any_dream: Dream) -> None:
    lonely, crowded = simulate(any_dream, num_envs=1), simulate(any_dream, num_envs=40)
    lonely.reset(starts=torch.tensor([37]))
    crowded.reset(starts=torch.arange(40))
    assert torch.equal(lonely.hidden()[0], crowded.hidden()[37])


def test_starts_are_drawn_uniformly(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream, num_envs=4000)
    simulator.reset()
    counts = torch.bincount(simulator.start, minlength=40)
    assert len(counts) == 40
    assert float(((counts - 100.0) ** 2 / 100.0).sum()) < 80  # chi-squared, 39 degrees of freedom: p = 1e-4


def test_staggered_ages_spread_over_the_horizon_at_a_full_reset_only(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream, num_envs=200, horizon=10, stagger=True)
    simulator.reset()
    assert set(simulator.age.tolist()) == set(range(10))
    mask = torch.arange(200) < 50
    before = simulator.age.clone()
    simulator.reset(mask)
    assert simulator.age[mask].tolist() == [0] * 50
    assert torch.equal(simulator.age[~mask], before[~mask])
    for step in range(8):
        ended = simulator.step(actions_of(step, 200)).truncated
        assert 0 < int(ended.sum()) < 40
        simulator.reset(ended)


# Ends and rewards


def test_the_horizon_is_a_truncation_at_exactly_that_age(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream, horizon=3)
    simulator.reset()
    results = run(simulator, range(3))
    assert [result.truncated.tolist() for result in results] == [[False] * 5, [False] * 5, [True] * 5]
    assert not any(result.terminated.any() for result in results)


def test_without_a_horizon_nothing_is_truncated_and_the_state_stays_finite(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream, num_envs=2, horizon=None)
    simulator.reset()
    results = run(simulator, range(300))
    assert not any(result.truncated.any() for result in results)
    assert all(torch.isfinite(tensor).all() for tensor in simulator.state().dynamics)
    assert all(torch.isfinite(result.reward).all() for result in results)


def test_a_predicted_end_is_a_termination_even_at_the_horizon() -> None:
    simulator = simulate(make_tiny_dream(end_logit=50.0), horizon=1)
    simulator.reset()
    result = simulator.step(actions_of(0))
    assert result.terminated.all()
    assert not result.truncated.any()


def test_the_horizon_can_be_a_termination_as_in_the_paper(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream, horizon=2, horizon_as="termination")
    simulator.reset()
    first, second = run(simulator, range(2))
    assert not first.terminated.any()
    assert second.terminated.all()
    assert not second.truncated.any()


def test_ends_are_sampled_with_their_probability() -> None:
    simulator = simulate(make_tiny_dream(end_logit=math.log(0.25 / 0.75)), num_envs=500)
    simulator.reset()
    ends = torch.stack([simulator.step(actions_of(step, 500)).terminated for step in range(6)])
    assert abs(float(ends.float().mean()) - 0.25) < 0.03


@pytest.mark.parametrize("reward", ["expected", "sampled"])
def test_dynamics_are_told_which_rewards_were_drawn(
    tiny_dream: Dream, monkeypatch: pytest.MonkeyPatch, reward: Literal["expected", "sampled"]
) -> None:
    told: list[torch.Tensor] = []

    def spy(before: object, after: object, rewarded: torch.Tensor) -> object:
        assert before is simulator._current().dynamics and after is not before
        told.append(rewarded)
        return after

    monkeypatch.setattr(tiny_dream.world_model.dynamics, "told_reward", spy)
    simulator = simulate(tiny_dream, num_envs=500, reward=reward)
    simulator.reset()
    result = simulator.step(actions_of(0, 500))
    assert told[0].shape == (500,)
    assert 0 < told[0].float().mean() < 1
    if reward == "sampled":
        assert torch.equal(told[0], result.reward != 0)


@pytest.mark.parametrize(
    ("temperature", "reward", "told"), [(0.0, "expected", False), (0.0, "sampled", True), (0.5, "expected", True)]
)
def test_without_chance_dynamics_go_by_what_is_likely(
    tiny_dream: Dream,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    reward: Literal["expected", "sampled"],
    told: bool,
) -> None:
    monkeypatch.setattr(tiny_dream.world_model.dynamics, "told_reward", lambda before, after, rewarded: before)
    simulator = simulate(tiny_dream, temperature=temperature, reward=reward)
    simulator.reset()
    before = simulator._current().dynamics
    simulator.step(actions_of(0, simulator.num_envs))
    assert (simulator._current().dynamics is before) == told


def test_expected_rewards_are_the_means_of_sampled_ones(tiny_dream: Dream) -> None:
    results: dict[str, StepResult] = {}
    for reward in ("expected", "sampled"):
        simulator = simulate(tiny_dream, num_envs=3000, reward=reward)
        simulator.reset(starts=torch.zeros(3000, dtype=torch.int64))
        results[reward] = simulator.step(torch.zeros(3000, dtype=torch.int64))
    assert set(results["sampled"].reward.tolist()) == {-1.0, 0.0, 1.0}
    assert results["sampled"].reward.dtype == torch.float32
    assert abs(float(results["sampled"].reward.mean() - results["expected"].reward.mean())) < 0.05
    assert torch.equal(results["expected"].latents, results["sampled"].latents)


def test_the_newest_latent_enters_the_stack_at_its_end(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream)
    before = simulator.reset()
    after = simulator.step(actions_of(0)).latents
    assert torch.equal(after[:, :-1], before[:, 1:])
    assert not torch.equal(after[:, -1], before[:, -1])


def test_results_are_never_overwritten_by_later_steps(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream)
    simulator.reset()
    result = simulator.step(actions_of(0))
    kept = [tensor.clone() for tensor in result]
    simulator.reset(torch.tensor([True, True, False, False, False]))
    run(simulator, range(3))
    assert all(torch.equal(a, b) for a, b in zip(result, kept, strict=True))


# Saving and forking


def test_a_saved_state_replays_the_same_dream(tiny_dream: Dream) -> None:
    simulator, other = simulate(tiny_dream), simulate(tiny_dream, seed=77)
    simulator.reset()
    run(simulator, range(3))
    saved = simulator.state()
    first = run(simulator, range(5))
    simulator.set_state(saved)
    other.set_state(saved)
    for again in (run(simulator, range(5)), run(other, range(5))):
        assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))


def test_a_saved_state_is_a_copy(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream)
    simulator.reset()
    saved = simulator.state()
    kept = [tensor.clone() for tensor in tensors(saved)]
    run(simulator, range(3))
    assert all(torch.equal(a, b) for a, b in zip(tensors(saved), kept, strict=True))


def test_one_dream_can_be_forked_into_many_futures(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream)
    simulator.reset()
    fork = simulator.state().take(torch.full((NUM_ENVS,), 2))
    same_action = torch.zeros(NUM_ENVS, dtype=torch.int64)
    simulator.set_state(fork)
    alike = simulator.step(same_action).latents
    assert all(torch.equal(alike[0], other) for other in alike)
    simulator.set_state(fork)
    simulator.seed(5)
    different = simulator.step(same_action).latents
    assert not torch.equal(different[0], different[1])


def test_a_state_of_another_size_is_refused(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream)
    simulator.reset()
    with pytest.raises(InvalidInputError, match=r"expected latents of shape \(5, 4, 6, 6\), got \(2, 4, 6, 6\)"):
        simulator.set_state(simulator.state().take(torch.tensor([0, 1])))


# Errors


def test_stepping_before_the_first_reset_says_so(tiny_dream: Dream) -> None:
    with pytest.raises(InvalidInputError, match=r"call reset\(\) first"):
        simulate(tiny_dream).step(actions_of(0))


def test_the_first_reset_cannot_leave_dreams_out(tiny_dream: Dream) -> None:
    with pytest.raises(InvalidInputError, match="without a mask"):
        simulate(tiny_dream).reset(torch.tensor([True, False, False, False, False]))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), r"expected shape \(5,\), got \(4,\)"),
        (torch.zeros(5, 1, dtype=torch.int64), r"expected shape \(5,\), got \(5, 1\)"),
        (torch.zeros(5), "expected integers, got torch.float32"),
        (torch.zeros(5, dtype=torch.bool), "expected integers, got torch.bool"),
    ],
)
def test_wrong_actions_are_refused(tiny_dream: Dream, actions: Tensor, message: str) -> None:
    simulator = simulate(tiny_dream)
    simulator.reset()
    with pytest.raises(InvalidActionError, match=message):
        simulator.step(actions)


def test_wrong_masks_and_starts_are_refused(tiny_dream: Dream) -> None:
    simulator = simulate(tiny_dream)
    simulator.reset()
    with pytest.raises(InvalidInputError, match=r"mask: expected torch.bool of shape \(5,\)"):
        simulator.reset(torch.ones(5))
    with pytest.raises(InvalidInputError, match=r"starts: expected torch.int64 of \(5,\)"):
        simulator.reset(starts=torch.ones(4, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match=r"indices in \[0, 40\)"):
        simulator.reset(starts=torch.full((5,), 40))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs: expected an integer of at least 1, got 0"),
        ({"horizon": 0}, "horizon: expected an integer of at least 1, got 0"),
        ({"latent_stack": 0}, "latent_stack"),
        ({"latent_stack": 9}, "latent_stack: expected at most 8, the context of the start states, got 9"),
        ({"temperature": -1.0}, "temperature: expected a finite number of at least 0"),
        ({"reward": "clipped"}, "reward: expected one of 'expected', 'sampled', got 'clipped'"),
        ({"horizon_as": "end"}, "horizon_as: expected one of 'truncation', 'termination'"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_dream: Dream, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tiny_dream, **settings)


def test_a_dream_without_starts_is_refused(tiny_dream: Dream) -> None:
    tiny_dream.starts = type(tiny_dream.starts)(*(tensor[:0] for tensor in tiny_dream.starts))
    with pytest.raises(ConfigError, match="at least one start state"):
        simulate(tiny_dream)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_an_error(tiny_dream: Dream) -> None:
    with pytest.raises(DeviceError, match="no CUDA"):
        simulate(tiny_dream, device="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_stepping_and_resetting_never_wait_for_the_device(any_dream: Dream) -> None:
    simulator = simulate(any_dream, num_envs=64, horizon=3, device="cuda")
    simulator.reset()
    mask = torch.arange(64, device="cuda") % 2 == 0
    actions = torch.zeros(64, dtype=torch.int64, device="cuda")
    simulator.step(actions)
    simulator.reset(mask)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            result = simulator.step(actions)
            simulator.reset(result.terminated | result.truncated)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert simulator.age.device.type == "cuda"
