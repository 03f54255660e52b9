import ast
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import dreamgym
from dreamgym.config import (
    PRESETS,
    CollectConfig,
    DreamConfig,
    EvaluateConfig,
    GameConfig,
    RunConfig,
    make_config,
    per_round,
)
from dreamgym.errors import ConfigError, UnknownGameError
from dreamgym.fit import FitConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.quantizer import QuantizerConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.world_model import DYNAMICS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_json(preset):
    config = make_config(preset, game="boxing", seed=3)
    assert config.game == "Boxing" and config.preset == preset
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_fields_that_are_missing_have_their_defaults():
    assert RunConfig.from_json({"game": "Boxing", "dream": {"horizon": 7}}) == RunConfig(
        game="Boxing", dream=DreamConfig(horizon=7)
    )


def test_the_dynamics_are_of_the_kind_that_is_named_and_else_a_convlstm():
    named = {"dynamics": {"kind": "ResidualConfig", "channels": 9}}
    assert RunConfig.from_json(named).dynamics == ResidualConfig(channels=9)
    assert RunConfig.from_json({"dynamics": {"hidden": 9}}).dynamics == ConvLSTMConfig(hidden=9)
    with pytest.raises(
        ConfigError, match="expected kind ConvLSTMConfig or ResidualConfig or MultiscaleConfig, got 'LSTM'"
    ):
        RunConfig.from_json({"dynamics": {"kind": "LSTM"}})


@pytest.mark.parametrize("values", [{"colour": 1}, {"fit": {"colour": 1}}, {"codec": {"quantizer": {"colour": 1}}}])
def test_unknown_fields_are_refused_by_name(values):
    with pytest.raises(ConfigError, match="colour"):
        RunConfig.from_json(values)


@pytest.mark.parametrize("values", [{"rounds": 0}, {"fit": 3}, {"imagined_steps": []}, {"seed": -1}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigError):
        RunConfig.from_json(values)


@pytest.mark.parametrize(
    "build",
    [
        lambda: GameConfig(sticky_actions=1.5),
        lambda: GameConfig(noop_max=-1),
        lambda: CollectConfig(temperature=0.0),
        lambda: CollectConfig(epsilon=2.0),
        lambda: CollectConfig(steps=0),
        lambda: DreamConfig(context=0),
        lambda: DreamConfig(horizon=0),
        lambda: DreamConfig(newest_share=1.5),
        lambda: DreamConfig(late_newest_share=-0.5),
        lambda: CollectConfig(learn_from=-1),
        lambda: CollectConfig(learn_steps=-1),
        lambda: RunConfig(fresh_agent=(0,)),
        lambda: EvaluateConfig(fidelity_horizon=0),
        lambda: EvaluateConfig(episodes=0),
        lambda: EvaluateConfig(record_episodes=-1),
        lambda: RunConfig(imagined_steps=(100, -1)),
        lambda: RunConfig(collect=CollectConfig(first_steps=10), fit=FitConfig(sequence_length=10)),
        lambda: make_config("fast"),
        lambda: make_config(colour=1),
    ],
)
def test_what_would_fail_later_is_refused_at_once(build):
    with pytest.raises(ConfigError):
        build()


def test_an_unknown_game_is_refused():
    with pytest.raises(UnknownGameError, match="Pong"):
        make_config(game="Pongg")


def test_schedules_go_on_with_their_last_entry():
    assert [per_round((5, 3), index) for index in range(4)] == [5, 3, 3, 3]


def test_the_paper_preset_has_the_papers_budget():
    config = make_config("paper")
    assert config.interactions == 102_400
    assert sum(config.imagined_steps) == 15_200_000
    assert sum(config.dynamics_updates) == pytest.approx(241_137, rel=2e-3)
    assert sum(config.codec_updates) == pytest.approx(105_606, rel=2e-3)
    for schedule in (config.imagined_steps, config.dynamics_updates, config.codec_updates):
        assert len(schedule) == config.rounds == 15


def test_the_paper_preset_is_the_papers_in_every_switch():
    config = make_config("paper")
    assert (config.codec.frame_stack, config.codec.foreground_weight, config.codec.pixel_bias) == (4, 0.0, False)
    assert (config.codec.width, config.codec.residual_kernel, config.dynamics.hidden) == (32, 3, 128)
    assert not config.dynamics.end_head and not config.dynamics.latent_skip and config.dynamics.patch == 1
    assert (config.codec.stages, config.codec.stage_kernel, config.dream.temperature) == (4, 4, 1.0)
    assert config.dream.horizon_as == "termination" and config.dream.reward == "sampled"
    assert (config.dream.num_envs, config.dream.horizon, config.dream.context, config.dream.latent_stack) == (
        16,
        50,
        1,
        1,
    )
    assert config.fit.reward_weight == 1e-6 and config.fit.context_steps == 4 and config.fit.sequence_length == 11
    assert config.fit.interleaved and config.fit.windows == "epoch" and config.fit.event_priority == 1
    assert config.fit.gradient_clip == 0 and config.fit.weight_decay == 0 and config.fit.final_rate == 1
    assert config.collect == CollectConfig(first_steps=12_800, steps=6_400, temperature=1.5)
    assert config.game_options == GameConfig(sticky_actions=0.0, noop_max=30)
    assert (config.ppo.n_steps, config.ppo.batch_size, config.ppo.n_epochs) == (50, 256, 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_parts_fit_each_other(preset):
    config = make_config(preset)
    rollout = config.ppo.n_steps * config.dream.num_envs
    # The paper's own 800 steps leave a short fourth minibatch after three of 256.
    assert rollout % config.ppo.batch_size == 0 or preset == "paper"
    # A round that learns in the game alone imagines nothing.
    assert min(steps for steps in config.imagined_steps if steps) >= rollout
    assert config.collect.first_steps > 2 * config.fit.sequence_length
    assert config.evaluate.record_episodes <= config.evaluate.episodes <= config.evaluate.final_episodes


def configurations(kind=RunConfig) -> list[type]:
    """A configuration and all in it, of every kind that there is a choice of."""
    hints = get_type_hints(kind)
    inner = [part for f in fields(kind) for part in get_args(hints[f.name]) or (hints[f.name],)]
    return [kind, *(found for part in inner if is_dataclass(part) for found in configurations(part))]


def test_every_kind_of_dynamics_is_among_the_configurations():
    assert {*DYNAMICS, QuantizerConfig, FitConfig} < set(configurations())


def reads(tree: ast.AST) -> set[str]:
    """Attributes that are read anywhere but in a configuration's own validation."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        found |= reads(node)
    return found


@pytest.mark.parametrize("kind", configurations(), ids=lambda kind: kind.__name__)
def test_every_setting_is_read_somewhere(kind):
    sources = [ast.parse(file.read_text()) for file in Path(dreamgym.__file__).parent.rglob("*.py")]
    names = {f.name for f in fields(kind)}
    if kind.__name__ == "PPOConfig":
        calls = [n for tree in sources for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert any(ast.unparse(call) == "asdict(config.ppo)" for call in calls)
        return
    assert names <= set().union(*(reads(tree) for tree in sources))
