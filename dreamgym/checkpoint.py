"""Dreams on disk: safetensors with the configuration as JSON beside the weights. Nothing is ever unpickled."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, get_type_hints

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from dreamgym.archives import non_finite
from dreamgym.device import resolve_device
from dreamgym.errors import CheckpointError, MissingWeightsError, UnknownGameError
from dreamgym.json_files import SUM, fits, parse_json
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.real import resolve_game
from dreamgym.world_model import CODECS, WorldModel, WorldModelConfig

FORMAT = 1
DREAM_FILE = "dream.safetensors"
SHIPPED = Path(__file__).parent / "weights"
"""Where the package keeps the dreams that come with it, each called ``<Game>.safetensors``."""
_SUFFIX = ".safetensors"
_WEIGHTS = "world_model."
_STARTS = "starts."
_POLICY = "policy."
_KIND = "kind"
_ENTRIES = ("format", "world_model", "latent_stack", "metadata", SUM)
_HALVES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StartStates(NamedTuple):
    """Real experience from which dreams start.

    Attributes:
        latents: uint8 (count, context, height, width), the codes of the last ``context`` observations; the last column
            is the one that the dream starts at.
        actions: int64 (count, context) or float32 (count, context, dimensions), what was done at each, as
            :meth:`dreamgym.world_model.WorldModel.acts` has it; of the last column only the phase is used.
        valid: bool (count, context), False where the context would reach before the episode's start; there the latents
            repeat the first valid one. The last column is True.
        elapsed: int64 (count,), steps from the last reward before the first column, or from the episode's start, to it.
    """

    latents: Tensor
    actions: Tensor
    valid: Tensor
    elapsed: Tensor


UNKNOWN_ELAPSED = 2**31
"""Of start states from before elapsed steps were kept: longer than any clock tells apart."""


@dataclass
class Dream:
    """All that a dream environment needs.

    Attributes:
        world_model: the networks.
        starts: where dreams start.
        latent_stack: k, the number of most recent latents that an observation shows.
        metadata: plain JSON: game, preset, seed, score, interactions, horizon; in an exported file also where it comes
            from, see :func:`dreamgym.provenance.provenance`.
        policy: the weights of a policy that was trained in it, by name, on the CPU; empty where it comes without one.
            :func:`dreamgym.agent.load_agent` makes an agent of them.
    """

    world_model: WorldModel
    starts: StartStates
    latent_stack: int = 4
    metadata: dict[str, Any] = field(default_factory=lambda: {})
    policy: dict[str, Tensor] = field(default_factory=lambda: {})

    @property
    def temperature(self) -> float:
        """Of the next latent's distribution, as the run chose it; 1 where it is not said."""
        return float(self.metadata.get("temperature", 1.0))


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its place, flush it to the disk, and rename it: readers see the old one or the new one.

    Args:
        path: where the file shall be.
        write: called with the temporary path, which has the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, which makes files that only their owner may read.
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        # For writing, too: Windows flushes no file that is open for reading alone.
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write text as :func:`write_atomic` writes, as UTF-8 and with the line ends that it has, on every system."""
    write_atomic(path, lambda temporary: cast(Any, temporary.write_bytes(content.encode())))


def config_from_dict(kind: type[Any], values: dict[str, Any]) -> Any:
    """Build a (nested) configuration dataclass from plain JSON.

    Raises:
        CheckpointError: an unknown or missing field, or a value that the dataclass refuses.
    """
    if not isinstance(cast(Any, values), dict):
        raise CheckpointError(f"{kind.__name__}: expected an object with fields, got {values!r}.")
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(f"{kind.__name__}: unknown fields {unknown}; expected some of {sorted(known)}.")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        choices = _choices(hint)
        if choices:
            if not isinstance(value, dict):
                raise CheckpointError(f"{kind.__name__}.{name}: expected an object with fields, got {value!r}.")
            part = dict(cast(dict[str, Any], value))
            # Files from before there was a choice do not name the kind: it is the first.
            chosen = part.pop(_KIND, next(iter(choices)))
            if chosen not in list(choices):
                raise CheckpointError(
                    f"{kind.__name__}.{name}: expected kind {' or '.join(choices)}, got {chosen!r}. One of your own "
                    "must be named in dreamgym.world_model first."
                )
            arguments[name] = config_from_dict(choices[chosen], part)
        elif not fits(value, hint):
            raise CheckpointError(f"{kind.__name__}.{name}: expected {type_name(hint)}, got {value!r}.")
        else:
            arguments[name] = tuple(cast(list[Any], value)) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{kind.__name__}: {error}") from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """The inverse of :func:`config_from_dict`: nested plain JSON values."""
    result: dict[str, Any] = {}
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            declared = _dataclasses(hints[f.name])
            named = len(declared) > 1 or type(value).__name__ not in declared
            value = ({_KIND: type(value).__name__} if named else {}) | config_to_dict(value)
        result[f.name] = value
    return result


def type_name(hint: Any) -> str:
    """A type as a message names it: "int", "tuple[int, ...]", "'paper' or 'light'"."""
    choices = [repr(choice) for choice in get_args(hint) if isinstance(choice, str)]
    return " or ".join(choices) or getattr(hint, "__name__" if isinstance(hint, type) else "", str(hint))


def _dataclasses(hint: Any) -> dict[str, type[Any]]:
    """The dataclasses that a field may hold, by name: one, or those of a union."""
    members = get_args(hint) or (hint,)
    return {member.__name__: member for member in members if is_dataclass(member)}  # pyright: ignore


def _choices(hint: Any) -> dict[str, type[Any]]:
    """The same, and the codecs that were named besides."""
    declared = _dataclasses(hint)
    codecs = {kind.__name__: kind for kind in CODECS} if VQVAEConfig in declared.values() else {}
    return {**declared, **codecs}


def save_dream(path: Path | str, dream: Dream) -> Path:
    """Write a dream as one safetensors file.

    Args:
        path: the file, or a run folder, in which it is called ``dream.safetensors``.
        dream: what to write.

    Returns:
        The file's path.
    """
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / DREAM_FILE
    # Not by save_file, whose files only their owner may read.
    content = pack_dream(dream, dream.world_model.state_dict())
    write_atomic(file, lambda temporary: cast(Any, temporary.write_bytes(content)))
    return file


def pack_dream(dream: Dream, weights: Mapping[str, Tensor]) -> bytes:
    """What :func:`save_dream` writes.

    Args:
        dream: what to write, but for the weights of its world model.
        weights: these, by name; those that are not float32 become so when they are loaded.
    """
    parts = {_WEIGHTS: weights, _STARTS: dream.starts._asdict(), _POLICY: dream.policy}
    tensors = {
        prefix + name: tensor.detach().cpu().contiguous()
        for prefix, part in parts.items()
        for name, tensor in part.items()
    }
    header = {
        "format": str(FORMAT),
        "world_model": json.dumps(config_to_dict(dream.world_model.config)),
        "latent_stack": str(dream.latent_stack),
        "metadata": json.dumps(dream.metadata),
    }
    return safetensors.torch.save(tensors, {**header, SUM: _checksum(header, tensors)})


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a file holds: the header's other entries, and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(sorted(entry for entry in header.items() if entry[0] != SUM)).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_dream(path: Path | str, device: str | torch.device = "cpu") -> Dream:
    """Read what :func:`save_dream` or ``dreamgym export`` wrote; weights are float32 whatever they were stored as.

    Nothing is taken on trust: the header's SHA-256 must be that of the contents (files from before there was one are
    read without), and no network is built that would be larger than the file's own weights.

    Args:
        path: the file, or the run folder that holds it.
        device: where to put the weights and start states.

    Raises:
        MissingWeightsError: there is no such file.
        CheckpointError: the file is damaged, not a dream's, or of a newer format.
        DeviceError: the device is not there.
    """
    target = resolve_device(device)
    file = Path(path) / DREAM_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise MissingWeightsError(f"No dream at {file}: expected a file {DREAM_FILE} or a run folder that holds one.")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:  # pyright: ignore[reportUnknownMemberType]
            header = cast(dict[str, str], opened.metadata() or {})
            # Copies: while a tensor is a view of the file, Windows lets nobody replace that.
            tensors = {name: cast(Tensor, opened.get_tensor(name)).clone() for name in opened.keys()}  # noqa: SIM118
    except Exception as error:
        # Damaged headers end in errors of many kinds: of decoding, of types that torch does not have, of memory.
        raise CheckpointError(
            f"{file} is damaged or is no safetensors file: {error}. Restore it or train it again."
        ) from error
    config, latent_stack, metadata = _read_header(file, header, tensors)
    bad = non_finite(tensors)
    if bad is not None:
        raise CheckpointError(f"{file}: expected finite numbers, {bad} holds others. Restore it or train it again.")
    strange = sorted(name for name in tensors if not name.startswith((_WEIGHTS, _STARTS, _POLICY)))
    if strange:
        raise CheckpointError(
            f"{file}: expected tensors called {_WEIGHTS}..., {_STARTS}... and {_POLICY}..., got {', '.join(strange)}. "
            "Restore it or train it again."
        )
    weights = {name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)}
    try:
        with _no_larger_than(sum(tensor.numel() for tensor in weights.values())):
            world_model = WorldModel(config, seed=0)
        _check_weights(weights, world_model)
        world_model.load_state_dict(weights)
        count = len(tensors[_STARTS + "latents"])
        tensors.setdefault(_STARTS + "elapsed", torch.full((count,), UNKNOWN_ELAPSED))
        starts = StartStates(*(tensors[_STARTS + name] for name in StartStates._fields))
    except (RuntimeError, KeyError, TypeError, ValueError, MemoryError, ArithmeticError) as error:
        raise CheckpointError(
            f"{file}: the weights do not fit the configuration in its header: {error}. Restore it or train it again."
        ) from error
    _check_starts(file, starts, world_model)
    if latent_stack > starts.latents.shape[1]:
        raise CheckpointError(
            f"{file}: expected a latent_stack of 1 to {starts.latents.shape[1]}, the length of its start states, got "
            f"{latent_stack}. Restore it or train it again."
        )
    starts = StartStates(*(tensor.to(target) for tensor in starts))
    policy = {name.removeprefix(_POLICY): _full(t) for name, t in tensors.items() if name.startswith(_POLICY)}
    return Dream(world_model.to(target), starts, latent_stack, metadata, policy)


@contextmanager
def _no_larger_than(numbers: int) -> Generator[None]:
    """Stop the building of a network as soon as it has more parameters than there are numbers for."""
    built = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal built
        built += 0 if tensor is None else tensor.numel()
        if built > numbers:
            raise ValueError(f"expected at least {built:,} numbers, the file has {numbers:,}")

    hook = module_hooks.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_weights(weights: Mapping[str, Tensor], world_model: WorldModel) -> None:
    """Numbers may be stored in any precision, everything else only as what it is; torch is not as strict."""
    for name, expected in world_model.state_dict().items():
        found, allowed = weights[name], _HALVES if expected.is_floating_point() else (expected.dtype,)
        if found.dtype not in allowed or found.shape != expected.shape:
            raise TypeError(
                f"{name}: expected {expected.dtype} {tuple(expected.shape)}, got {found.dtype} {tuple(found.shape)}"
            )


def _full(tensor: Tensor) -> Tensor:
    """Numbers as float32, whatever they were stored as; everything else as it is."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _read_header(
    file: Path, header: dict[str, str], tensors: Mapping[str, Tensor]
) -> tuple[WorldModelConfig, int, dict[str, Any]]:
    try:
        version = int(header["format"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file} is no dream: its header names no format.") from error
    if version > FORMAT:
        raise CheckpointError(f"{file} has format {version}; this version reads up to {FORMAT}. Upgrade dreamgym.")
    found = _checksum(header, tensors) if SUM in header else None
    if found != header.get(SUM):
        raise CheckpointError(
            f"{file} is damaged: its contents are not those that were saved ({SUM} expected {header[SUM]}, got "
            f"{found}). Restore it or train it again."
        )
    try:
        config = config_from_dict(WorldModelConfig, parse_json(header["world_model"]))
        latent_stack, metadata = int(header["latent_stack"]), parse_json(header["metadata"])
        unknown = sorted(set(header) - set(_ENTRIES))
        if unknown:
            raise ValueError(f"expected the entries {', '.join(_ENTRIES)}, got {', '.join(unknown)} too")
        if version < 1 or latent_stack < 1:
            raise ValueError(f"format and latent_stack: expected at least 1, got {version} and {latent_stack}")
        _check_metadata(metadata)
        return config, latent_stack, metadata
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the header cannot be read: {error}. Restore it or train it again.") from error


def _check_metadata(metadata: Any) -> None:
    """What environments read of the metadata must be what they take it for; all else is only shown."""
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata: expected an object with fields, got {metadata!r}")
    values = cast("dict[str, Any]", metadata)
    horizon, temperature = values.get("horizon"), values.get("temperature", 1.0)
    if horizon is not None and not (fits(horizon, int) and horizon >= 1):
        raise ValueError(f"metadata.horizon: expected a whole number of at least 1, got {horizon!r}")
    if not (fits(temperature, float) and temperature >= 0):
        raise ValueError(f"metadata.temperature: expected a number of at least 0, got {temperature!r}")
    for name in ("action_low", "action_high"):
        bound = values.get(name, 0.0)
        if not fits(bound, float | tuple[float, ...]):
            raise ValueError(f"metadata.{name}: expected a number, or one for each control, got {bound!r}")


def _check_starts(file: Path, starts: StartStates, world_model: WorldModel) -> None:
    latents, actions, valid, elapsed = starts
    config, count = world_model.config, tuple(latents.shape[:2])
    numbers = config.continuous or config.phase_bits > 0
    controls = (world_model.act_size,) if numbers else ()
    expected = {
        "latents": (torch.uint8, (*count, *world_model.codec.latent_shape)),
        "actions": (torch.float32 if numbers else torch.int64, (*count, *controls)),
        "valid": (torch.bool, count),
        "elapsed": (torch.int64, count[:1]),
    }
    for (name, (kind, shape)), tensor in zip(expected.items(), starts, strict=True):
        if len(count) < 2 or tensor.dtype != kind or tuple(tensor.shape) != shape or not tensor.numel():
            raise CheckpointError(
                f"{file}: the start states have the wrong shape or type: expected {name} {kind} {shape}, got "
                f"{tensor.dtype} {tuple(tensor.shape)}. Restore it or train it again."
            )
    ranges = {"latents": (latents, world_model.codec.num_codes), "elapsed": (elapsed, math.inf)}
    if not numbers:
        ranges["actions"] = (actions, config.num_actions)
    for name, (tensor, stop) in ranges.items():
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= stop:
            raise CheckpointError(
                f"{file}: the start states are out of range: expected {name} of at least 0 and below {stop}, got {low} "
                f"to {high}. Restore it or train it again."
            )
    if not bool(valid[:, -1].all()):
        raise CheckpointError(
            f"{file}: the start states are out of range: expected every context to be valid where its dream starts. "
            "Restore it or train it again."
        )


def dreamgym_home() -> Path:
    """Where runs are looked for by id: ``$DREAMGYM_HOME``, else ``runs`` in the current folder."""
    return Path(os.environ.get("DREAMGYM_HOME") or "runs").expanduser()


def run_folder_name(game: str) -> str:
    """What a run's folder is called by default: "Pong" -> "pong", "module:Walk-v0" -> "module-walk-v0"."""
    # Windows takes what follows a colon for something else, and so does the Finder.
    return game.lower().replace(":", "-")


def game_of(id_or_game: str) -> str:
    """``"Dream-Pong-v0"`` or ``"dreamgym:Dream-Pong-v0"`` to ``"Pong"``; what is no dream's id stands for itself."""
    name = id_or_game.rsplit(":", 1)[-1]
    return name.removeprefix("Dream-").removesuffix("-v0") if name.startswith("Dream-") else id_or_game


def resolve_checkpoint(id_or_game: str, checkpoint: str | Path | None = None) -> Path:
    """Find the weights of a dream.

    Looked for in this order: ``checkpoint`` (a run folder or a file); the newest finished run of the game below
    :func:`dreamgym_home`; weights shipped in the package. A path in place of an id stands for itself.

    Args:
        id_or_game: an id, a game's name, or the path of a run folder or file.
        checkpoint: a run folder or file that goes before all else.

    Returns:
        The path of a ``.safetensors`` file.

    Raises:
        MissingWeightsError: nothing was found; the message says where it was looked for and how to train it.
        UnknownGameError: nothing was found and there is no such game; the message lists the nearest names.
    """
    explicit = Path(checkpoint) if checkpoint is not None else Path(id_or_game)
    if explicit.is_file():
        return explicit
    if (explicit / DREAM_FILE).is_file():
        return explicit / DREAM_FILE
    game, unknown = game_of(id_or_game), None
    try:
        game = resolve_game(game)
    except UnknownGameError as error:
        unknown = error
    shipped = SHIPPED / f"{game}.safetensors"
    home = dreamgym_home()
    if checkpoint is None:
        found = _newest_run(home, game)
        if found is not None:
            return found
        if shipped.is_file():
            return shipped
    if unknown is not None and checkpoint is None and explicit.name == id_or_game and not explicit.exists():
        raise unknown
    if checkpoint is not None or unknown is not None:
        looked, out = [f"{explicit}: no {DREAM_FILE} there"], explicit
        game = game if unknown is None else _named_after(explicit)
    else:
        looked = [
            "checkpoint=: not given",
            f"$DREAMGYM_HOME ({home.resolve()}): no finished run of {game}",
            f"shipped weights ({shipped}): none",
        ]
        out = home / run_folder_name(game)
    places = "\n".join(f"  - {line}" for line in looked)
    raise MissingWeightsError(
        f"No dream of {game} was found. Looked in:\n{places}\n"
        f"Train one with: dreamgym train --game {game} --preset laptop --out {out}"
    )


def _named_after(run: Path) -> str:
    """The game that a run folder is named after, runs/pong for one; a placeholder where it is none."""
    try:
        return resolve_game(run.name)
    except UnknownGameError:
        return "GAME"


def dream_files(folder: Path) -> Iterator[Path]:
    """All safetensors files below a folder, those of runs and others, also where links lead; sorted within a folder.

    Files that are being written, or that macOS keeps beside others, begin with a dot and are left out.
    """
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            # A link to a folder above.
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        yield from (Path(place) / name for name in sorted(files) if name.endswith(_SUFFIX) and not name.startswith("."))


def _newest_run(home: Path, game: str) -> Path | None:
    """The newest finished dream of a game below a folder: its header says both."""
    candidates: list[tuple[float, Path]] = []
    for file in dream_files(home):
        said = header_says(file) if file.name == DREAM_FILE else None
        if said is not None and said[0] == game and said[1].get("finished"):
            candidates.append((file.stat().st_mtime, file))
    return max(candidates)[1] if candidates else None


def header_says(file: Path) -> tuple[str, dict[str, Any]] | None:
    """Game and metadata that a dream's header names, read alone and not checked; None where it names none."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:  # pyright: ignore[reportUnknownMemberType]
            header = cast(dict[str, str], opened.metadata() or {})
        return str(parse_json(header["world_model"])["game"]), dict(parse_json(header["metadata"]))
    except Exception:
        # Whatever lies there and is no dream must not keep those that are from being found.
        return None


def load(id_or_run: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """Load the world model of a dream.

    Args:
        id_or_run: ``"Dream-Pong-v0"``, a run folder or a ``.safetensors`` file.
        device: where to put it.

    Raises:
        MissingWeightsError: no dream was found.
        UnknownGameError: there is no such game either; the message lists the nearest names.
        CheckpointError: the file is damaged.
    """
    return load_dream(resolve_checkpoint(str(id_or_run)), device).world_model
