"""The command ``info``: what a dream is and where it comes from, or what a preset would be.

Its signature and docstring are its ``--help``. What needs torch is imported when it is needed.
"""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from dreamgym.errors import ConfigError
from dreamgym.terminal import print_json

if TYPE_CHECKING:
    from dreamgym.world_model import WorldModel

_LABEL = 18
_WIDTH = 120


def info(
    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_ID")] = None,
    preset: str | None = None,
    actions: int | None = None,
    frames: int | None = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Say what a dream is (parameters, data, score, where it came from), or what a preset would be.

    Args:
        run: a run folder, a dream's file, or the id of a dream; leave it out with --preset.
        preset: smoke, quick, laptop, gpu or paper.
        actions: size of the preset's action set; by default Pong's 6.
        frames: frames that the preset's codec sees stacked; by default the preset's own.
        json: print JSON, with every episode's return and every setting.
    """
    if (run is None) == (preset is None):
        raise ConfigError("info: expected RUN_OR_ID or --preset, and not both.")
    if run is not None and (actions is not None or frames is not None):
        raise ConfigError("info: --actions and --frames go with --preset; a dream has its own.")
    print("device: cpu (nothing is computed)", file=sys.stderr)
    facts = (
        _dream_facts(run)
        if run is not None
        else _preset_facts(cast(str, preset), 6 if actions is None else actions, frames)
    )
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "config":
            print(_line(name, _shown(name, value)))


def _line(name: str, text: str) -> str:
    """A name and what there is to say, in as many lines as it takes."""
    indent = " " * _LABEL
    parts = text.split("\n")
    if name != "command":
        parts = [
            line for part in parts for line in textwrap.wrap(part, _WIDTH - _LABEL, break_on_hyphens=False) or [""]
        ]
    return f"{name:<{_LABEL}}" + f"\n{indent}".join(parts)


def _shown(name: str, value: Any) -> str:
    """A fact for people: numbers with separators, a score as its mean and interval, several things in a row."""
    if value is None:
        return "unknown"
    if name == "seconds":
        return f"{value:,.0f} ({value / 60:.1f} min)"
    if name == "command":
        return str(value).replace(" && ", " &&\n")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, dict):
        facts = cast("dict[str, Any]", value)
        if {"mean", "low", "high"} <= set(facts):
            return _score(facts)
        return ", ".join(f"{key} {_shown(key, inner)}" for key, inner in facts.items())
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        return ("\n" if any(isinstance(item, dict) for item in items) else ", ").join(_shown("", i) for i in items)
    return str(value)


def _score(score: dict[str, Any]) -> str:
    episodes = score["episodes"]
    count = episodes if isinstance(episodes, int) else len(episodes)
    after = f"{score['interactions']:,} real steps: " if "interactions" in score else ""
    return f"{after}{score['mean']:.2f} (95 % {score['low']:.2f} to {score['high']:.2f}, {count} episodes)"


def _preset_facts(preset: str, actions: int, frames: int | None) -> dict[str, Any]:
    from dreamgym.config import make_config
    from dreamgym.world_model import WorldModel, WorldModelConfig

    config = make_config(preset)
    codec = config.codec if frames is None else replace(config.codec, frame_stack=frames)
    model = WorldModel(WorldModelConfig(config.game, actions, codec=codec, dynamics=config.dynamics), seed=0)
    policy = _policy_parameters(model, config.dream.latent_stack, config.network)
    return {
        "preset": preset,
        "actions": actions,
        "frames": codec.frame_stack,
        "rounds": config.rounds,
        "interactions": config.interactions,
        **model.parameter_counts(),
        "policy": policy,
    }


def _dream_facts(run: str) -> dict[str, Any]:
    from dreamgym.dreaming import find_dream
    from dreamgym.provenance import provenance
    from dreamgym.run_folder import run_of

    path, dream = find_dream(run)
    model, folder = dream.world_model, run_of(path)
    about = dream.metadata if folder is None else {**dream.metadata, **provenance(folder)}
    facts: dict[str, Any] = {
        "file": str(path),
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "game": model.config.game,
        "actions": model.num_actions,
        "frames": model.frame_stack,
        "latent_stack": dream.latent_stack,
        "start_states": len(dream.starts.latents),
        **about,
        **model.parameter_counts(),
    }
    if dream.policy:
        facts["policy"] = sum(tensor.numel() for tensor in dream.policy.values())
    elif folder is not None and not model.config.continuous:
        facts["policy"] = _policy_parameters(model, dream.latent_stack, folder.config().network)
    return facts


def _policy_parameters(model: "WorldModel", latent_stack: int, network: str) -> int:
    from dreamgym.models.policy import PolicyNetwork

    channels, *grid = model.codec.embedding_shape
    policy = PolicyNetwork(channels * latent_stack, model.num_actions, network, (grid[0], grid[1]))
    return sum(parameter.numel() for parameter in policy.parameters())
