"""A finished run as one small file: weights in half precision, some start states, the policy, where it comes from."""

import copy
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dreamgym.agent import policy_tensors, read_agent, set_policy
from dreamgym.checkpoint import Dream, StartStates, load_dream, pack_dream, resolve_checkpoint, write_atomic
from dreamgym.device import resolve_device
from dreamgym.errors import ConfigError, ReplayError
from dreamgym.observations import ObservationBuilder, to_numpy
from dreamgym.provenance import file_name, provenance, run_name
from dreamgym.replay import Replay
from dreamgym.run_folder import RunFolder, derive_seed, run_of
from dreamgym.warm_starts import WarmStarts
from dreamgym.world_model import WorldModel

START_STATES = 400
"""How many start states an exported file has, if not told otherwise."""

MEGABYTES = 10.0
"""How large an exported file may be, in millions of bytes, if not told otherwise: a package index takes no ballast."""

SAME_CODES = 0.999
"""Least share of codes that the codec in half precision must give as in full."""

SAME_PREDICTIONS = 0.005
"""Most that the dynamics' predictions may change: total variation of a cell's next code, and of the reward."""

SAME_ACTIONS = 0.99
"""Least share of most likely actions that the policy in half precision must choose as in full."""

_FRAMES = 2_000
_CHUNK = 64


@dataclass(frozen=True)
class Precision:
    """What storing kernels and matrices in half precision changed.

    Attributes:
        frames: real frames on which the codec was measured.
        same_codes: share of their codes that the stored codec gives as the run's does.
        prediction_change: mean total variation distance of the next code's distribution, cell by cell.
        reward_change: mean absolute change of the expected reward.
        same_actions: share of the start states in which the stored policy's most likely action is the run's.
        float32: kernels and matrices that stayed in full precision, because rounding them would change too much.
    """

    frames: int
    same_codes: float
    prediction_change: float
    reward_change: float
    same_actions: float
    float32: tuple[str, ...]


@dataclass(frozen=True)
class Export:
    """An exported dream.

    Attributes:
        file: where it is.
        size: in bytes.
        precision: what the weights are stored as.
        metadata: what its header says about it.
    """

    file: Path
    size: int
    precision: Precision
    metadata: dict[str, Any]


def export_dream(
    run: str | Path,
    out: Path | str | None = None,
    *,
    starts: int = START_STATES,
    megabytes: float = MEGABYTES,
    device: str | torch.device = "cpu",
) -> Export:
    """Write a finished run's dream and policy as one file, which is read wherever a dream is.

    Kernels and matrices become float16, but for those whose rounding would change what the networks do (see
    :class:`Precision`); vectors stay float32. The same run gives the same tensors. The file's metadata is the dream's
    own, all of :func:`dreamgym.provenance.provenance`, and ``precision``.

    Args:
        run: a run folder, or an id whose newest finished run is taken.
        out: the file; None is ``<Game>.safetensors`` in the current folder.
        starts: start states, drawn from the dream's own.
        megabytes: largest size allowed, in millions of bytes.
        device: where rounding is measured.

    Returns:
        What was written.

    Raises:
        ConfigError: no finished run, a file name that does not end in .safetensors or is the run's own, or a file that
            would be too large, which is then not written.
        MissingWeightsError: the run has no dream or no policy.
        ReplayError: the run's real experience is not there: rounding cannot be measured.
        CheckpointError: one of its files is damaged.
    """
    if starts < 1:
        raise ConfigError(f"starts: expected at least 1, got {starts}.")
    if not megabytes > 0:
        raise ConfigError(f"megabytes: expected more than 0, got {megabytes}.")
    source, folder = _finished_run(run)
    config = folder.config()
    file = Path(out) if out is not None else Path(f"{file_name(config.game)}.safetensors")
    if file.suffix != ".safetensors" or file.resolve() == source.resolve():
        raise ConfigError(f"out: expected a file ending in .safetensors, and not the run's own, got {file}.")
    dream = load_dream(source, resolve_device(device))
    chosen = _choose(dream.starts, starts, derive_seed(config.seed, "export"))
    dream = replace(dream, starts=chosen)
    frames = _real_frames(folder, dream.world_model)
    model, weights, precision = _round_world_model(dream, frames)
    policy, same_actions = _round_policy(source, dream, model)
    kept = tuple(
        name for name, tensor in {**weights, **policy}.items() if tensor.ndim >= 2 and tensor.dtype == torch.float32
    )
    measured = Precision(frames=len(frames), same_actions=same_actions, float32=kept, **precision)
    facts = provenance(folder)
    again = ["dreamgym", "export", run_name(config.game), "--starts", str(starts), "--out", file.name]
    facts["command"] += f" && {shlex.join(again)}"
    metadata = json.loads(json.dumps({**dream.metadata, **facts, "precision": asdict(measured)}))
    content = pack_dream(Dream(model, chosen, dream.latent_stack, metadata, policy), weights)
    if len(content) > megabytes * 1e6:
        parameters = sum(model.parameter_counts().values())
        raise ConfigError(
            f"{file}: expected at most {megabytes:g} MB, got {len(content) / 1e6:.1f} MB ({parameters:,} parameters in "
            f"the world model, {sum(tensor.numel() for tensor in policy.values()):,} in the policy, "
            f"{len(chosen.latents)} start states). Export fewer --starts, allow more --megabytes, or train smaller "
            "networks (--preset laptop)."
        )
    write_atomic(file, lambda temporary: cast(Any, temporary.write_bytes(content)))
    return Export(file, len(content), measured, metadata)


def _finished_run(run: str | Path) -> tuple[Path, RunFolder]:
    """A run's dream and its folder."""
    source = resolve_checkpoint(str(run))
    folder = run_of(source)
    if folder is None:
        raise ConfigError(f"export: expected a run folder, or an id of which there is a run, got {source}.")
    rounds, stands = folder.config().rounds, folder.progress()
    if stands.round < rounds:
        raise ConfigError(
            f"{folder.path}: expected a finished run, this one is in round {stands.round + 1} of {rounds}. "
            f"Go on with: dreamgym train --out {folder.path} --resume"
        )
    return source, folder


def _choose(starts: StartStates, count: int, seed: int) -> StartStates:
    """Some of the start states, in their order."""
    held = len(starts.latents)
    rows = np.sort(np.random.default_rng(seed).choice(held, min(count, held), replace=False))
    return StartStates(*(tensor[torch.as_tensor(rows, device=tensor.device)] for tensor in starts))


def _real_frames(folder: RunFolder, model: WorldModel) -> npt.NDArray[np.uint8]:
    """Frames (count, channels, height, width) of the real game, held-out ones if there are any."""
    held_out = folder.load_held_out(10 * _FRAMES)
    replay = held_out if len(held_out) else folder.load_replay(Replay(10 * _FRAMES))
    if not len(replay):
        raise ReplayError(
            f"{folder.path}: expected real experience in {folder.held_out.name} or {folder.replay.name}, to see "
            "whether the codec's codes survive rounding; got none. Restore the folder."
        )
    places = np.linspace(0, len(replay) - 1, min(_FRAMES, len(replay))).round().astype(np.int64)
    return replay.frames_at(places, model.frame_stack)


def round_weights(
    weights: Mapping[str, Tensor], change: Callable[[Mapping[str, Tensor]], float], limit: float
) -> dict[str, Tensor]:
    """Kernels and matrices as float16, but for those without which the change would be too large.

    Vectors (a codec's running statistics among them), integers and what would overflow stay as they are anyway.

    Args:
        weights: of a part, by name.
        change: how much rounded weights change what the part does.
        limit: largest change allowed. Kernels are taken back into float32 until it is kept: first the one that changes
            most when it alone is rounded.
    """
    rounded = {name: tensor.half() for name, tensor in weights.items() if _is_kernel(tensor)}
    stored = {**weights, **rounded}
    if change(stored) <= limit:
        return stored
    alone = {name: change({**weights, name: tensor}) for name, tensor in rounded.items()}
    for name in sorted(alone, key=lambda name: alone[name], reverse=True):
        stored[name] = weights[name]
        if change(stored) <= limit:
            break
    return stored


def _is_kernel(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2 and bool(torch.isfinite(tensor.half()).all())


def _round_world_model(
    dream: Dream, frames: npt.NDArray[np.uint8]
) -> tuple[WorldModel, dict[str, Tensor], dict[str, float]]:
    """The world model as it will be read, its tensors as they are stored, and what that changes."""
    full = dream.world_model
    weights, model, codes = dict(full.state_dict()), copy.deepcopy(full), full.encode(frames)

    def other_codes(part: Mapping[str, Tensor]) -> float:
        model.load_state_dict({**weights, **part})
        return float((model.encode(frames) != codes).float().mean())

    def other_predictions(part: Mapping[str, Tensor]) -> float:
        model.load_state_dict({**weights, **part})
        return max(_change(full, model, dream.starts))

    for prefix, change, limit in (
        ("codec.", other_codes, 1 - SAME_CODES),
        ("dynamics.", other_predictions, SAME_PREDICTIONS),
    ):
        part = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
        weights |= round_weights(part, change, limit)
    same = 1 - other_codes({})
    prediction_change, reward_change = _change(full, model, dream.starts)
    return (
        model,
        weights,
        {
            "same_codes": same,
            "prediction_change": prediction_change,
            "reward_change": reward_change,
        },
    )


def _change(full: WorldModel, rounded: WorldModel, starts: StartStates) -> tuple[float, float]:
    """How much two world models differ after the starts' real contexts, in float32.

    Returns:
        Mean total variation distance of a cell's next code, and mean absolute difference of the expected reward.
    """
    distances: list[Tensor] = []
    rewards: list[Tensor] = []
    for rows in torch.arange(len(starts.latents), device=starts.latents.device).split(_CHUNK):
        seen = [_predictions(model, starts, rows) for model in (full, rounded)]
        (left, expected_left), (right, expected_right) = seen
        distances.append((left - right).abs().sum(dim=1).flatten() / 2)
        rewards.append((expected_left - expected_right).abs())
    return float(torch.cat(distances).mean()), float(torch.cat(rewards).mean())


def _predictions(model: WorldModel, starts: StartStates, rows: Tensor) -> tuple[Tensor, Tensor]:
    """After the contexts at rows: chances (rows, codes, height, width) of next codes, expected rewards (rows,)."""
    latents, actions = starts.latents[rows].long(), starts.actions[rows]
    state: Any = model.initial_state(len(rows), starts.elapsed[rows])
    prediction: Any = None
    with model.inference(), torch.autocast(model.device.type, enabled=False):
        for step in range(latents.shape[1]):
            prediction, state = model.dynamics.step(model.shown(latents[:, step]), actions[:, step], state)
        # Where cells are drawn in turn, both models are shown the same cells: the newest real ones, as most cells keep
        # their code.
        scores = model.dynamics.latent_logits(prediction, latents[:, -1])
        return scores.float().softmax(dim=1), prediction.expected_reward()


def _round_policy(source: Path, dream: Dream, model: WorldModel) -> tuple[dict[str, Tensor], float]:
    """The policy's tensors as they are stored, and in which share of the start states its choice stays the same."""
    config, agent = read_agent(source, dream, str(model.device))
    kind, latents = config.observation, dream.starts.latents[:, -dream.latent_stack :].long()
    rows = torch.arange(len(latents), device=latents.device)
    taken = WarmStarts(dream.world_model, dream.starts, latents.device).taken(rows)

    def choices(world_model: WorldModel) -> npt.NDArray[Any]:
        seen = ObservationBuilder(world_model, kind, dream.latent_stack, hidden_state=False).build(latents, taken=taken)
        return agent.predict(to_numpy(seen), deterministic=True)[0]

    def other_actions(policy: Mapping[str, Tensor]) -> float:
        set_policy(agent, policy, model)
        return 1 - float(np.isclose(chosen, choices(model), rtol=0, atol=0.01).mean())

    full = {name: tensor.detach().clone() for name, tensor in policy_tensors(agent).items()}
    chosen = choices(dream.world_model)
    policy = round_weights(full, other_actions, 1 - SAME_ACTIONS)
    return policy, 1 - other_actions(policy)
