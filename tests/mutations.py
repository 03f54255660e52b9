"""Damaged and hostile files, each made from a seed: a reader refuses one with an error of ours or reads what was saved.

``python -m tests.mutations COUNT SEED`` tries the seeds from SEED on, in a process that can take one gigabyte more than
it has when it begins, and prints one table. One that went wrong is tried again alone by ``1`` and its seed.
"""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dreamgym.agent import make_agent, policy_tensors, read_agent, save_agent
from dreamgym.checkpoint import Dream, StartStates, config_to_dict, load_dream, pack_dream, save_dream
from dreamgym.config import make_config
from dreamgym.errors import DreamgymError
from dreamgym.fit import Fitter
from dreamgym.replay import Replay
from dreamgym.run_folder import PHASES, Progress, RunFolder
from dreamgym.sb3 import make_sb3_env
from dreamgym.world_model import WorldModel, WorldModelConfig

SECONDS = 20
"""Longest that a file may be read."""

GIGABYTE = 2**30
MARKER = "code-was-run"
OUTSIDE = "outside"

Files = dict[str, bytes]
Rng = np.random.Generator


class Hang(BaseException):
    """A reader took too long; no reader catches it by mistake."""


class Call:
    """Pickles to a call of a function: what a hostile file asks for."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


# What is read.


def build(folder: Path) -> None:
    """Write a run folder with every kind of file: two rounds, the last of them not evaluated yet."""
    config = make_config("smoke")
    run = RunFolder(folder)
    run.begin(config, resume=False)
    rng = np.random.default_rng(0)
    replay = Replay(80)
    for step in range(90):
        frame = rng.integers(0, 256, (96, 96), dtype=np.uint8)
        replay.append(frame, step % 6, float(step % 3 - 1), step % 20 == 19, False, False, step % 20 == 0)
        if step in (40, 89):
            replay.save(folder / "replay")
    model = WorldModel(WorldModelConfig("Pong", 6, codec=config.codec, dynamics=config.dynamics, bf16=False), seed=0)
    fitter = Fitter(model, config.fit)
    fitter.fit(replay, 11, 1, rng, torch.Generator().manual_seed(0))
    codes = model.encode(replay.frames_at(np.arange(40))).to(torch.uint8)
    starts = StartStates(
        codes.unflatten(0, (5, 8)),
        torch.as_tensor(replay.actions_at(np.arange(40))).unflatten(0, (5, 8)),
        torch.ones(5, 8, dtype=torch.bool),
        torch.arange(5),
    )
    metadata = {"game": "Pong", "horizon": 10, "temperature": 1.0, "finished": True}
    dream = Dream(model, starts, config.dream.latent_stack, metadata)
    agent = make_agent(config, make_sb3_env(dream, 2, device="cpu", observation="codes"), seed=0)
    exported = dataclasses.replace(dream, metadata={**metadata, "config": config.to_json()})
    exported.policy = policy_tensors(agent)
    content = pack_dream(exported, model.state_dict())
    (folder / "exported.safetensors").write_bytes(content)
    (folder / "older.safetensors").write_bytes(edit_header(content, lambda h: h["__metadata__"].pop("sha256")))
    run.save_machine({"device": "cpu", "matmul_gflops": {"float32": 100.0}, "command": "dreamgym train"})
    progress = Progress()
    score = {"mean": -20.5, "low": -21.0, "high": -20.0, "episodes": [-20.0, -21.0]}
    records = {
        "collect": {"interactions": 90},
        "fit": {},
        "train": {"imagined_steps": 800},
        "evaluate": {"real": score},
    }
    for number in range(7):
        index, phase = divmod(number, len(PHASES))
        if phase == 1:
            with torch.no_grad():
                model.dynamics.latent_head.weight.mul_(1.01)
            visits = torch.from_numpy(replay.visits)
            run.save_model(index, {"world_model": model.state_dict(), "fitter": fitter.state_dict(), "visits": visits})
        if phase == 2:
            with torch.no_grad():
                agent.policy.action_net.weight.mul_(1.01)
            run.save_policy(index, agent.get_parameters())
        progress.seconds += 1.5
        run.finish_phase(progress, records[PHASES[phase]])
    save_dream(folder, dream)
    save_agent(folder / "policy.zip", agent)


def _read_dream(file: Path) -> Any:
    dream = load_dream(file)
    agent = read_agent(file, dream)[1].policy.state_dict() if dream.policy else {}
    parts = [config_to_dict(dream.world_model.config), dream.world_model.state_dict(), list(dream.starts)]
    return [*parts, dream.latent_stack, dream.metadata, dream.policy, agent]


def _read_agent(file: Path) -> Any:
    config, agent = read_agent(file, load_dream(file))
    return [config.to_json(), agent.policy.state_dict()]


def _read_replay(folder: Path) -> Any:
    replay = Replay.load(folder)
    every = np.arange(len(replay))
    columns = [replay.actions_at(every), replay.rewards_at(every), replay.terminated_at(every), replay.first_at(every)]
    columns += [replay.truncated_at(every), replay.life_lost_at(every), replay.visits, replay.frames_at(every)]
    return [*columns, replay.capacity, replay.appended, list(replay.frame_shape), str(replay.action_dtype)]


READERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "dream": (lambda folder: _read_dream(folder / "dream.safetensors"), ("dream.safetensors",)),
    "exported file": (lambda folder: _read_dream(folder / "exported.safetensors"), ("exported.safetensors",)),
    "older file": (lambda folder: _read_dream(folder / "older.safetensors"), ("older.safetensors",)),
    "replay": (
        lambda folder: _read_replay(folder / "replay"),
        ("replay/replay.json", "replay/records-*.npz", "replay/visits-*.npy"),
    ),
    "model-*.pt": (lambda folder: RunFolder(folder).load_model(1), ("checkpoints/model-001.pt",)),
    "policy-*.pt": (lambda folder: RunFolder(folder).load_policy(1), ("checkpoints/policy-001.pt",)),
    "policy.zip": (lambda folder: _read_agent(folder / "dream.safetensors"), ("policy.zip",)),
    "config.json": (lambda folder: RunFolder(folder).config().to_json(), ("config.json",)),
    "progress.json": (lambda folder: dataclasses.asdict(RunFolder(folder).progress()), ("progress.json",)),
    "log.jsonl": (lambda folder: RunFolder(folder).log(), ("log.jsonl",)),
    "machine.json": (lambda folder: RunFolder(folder).machine(), ("machine.json",)),
}
"""What reads a run folder, and the files that it is about."""


def same(left: Any, right: Any) -> bool:
    """Whether two readings are identical, to the bit and the type."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return same(left.detach().cpu().numpy(), right.detach().cpu().numpy())
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    return repr(left) == repr(right)


# What happens to any file.


def flip(content: bytes, rng: Rng) -> bytes:
    """Turn one to eight bits, every second time near the file's beginning or end, where its directory is."""
    damaged = bytearray(content)
    near = min(len(damaged), 4096)
    for _ in range(int(rng.choice([1, 1, 1, 2, 8]))):
        place = int(rng.integers(len(damaged)))
        if rng.random() < 0.5:
            place = int(rng.integers(near)) if rng.random() < 0.5 else len(damaged) - 1 - int(rng.integers(near))
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def truncate(content: bytes, rng: Rng) -> bytes:
    return content[: int(rng.integers(len(content)))]


def cut_line(content: bytes, rng: Rng) -> bytes:
    """Cut at an end of a line, where text that is cut looks whole."""
    ends = [place for place, byte in enumerate(content) if byte == 10][:-1] or [len(content) // 2]
    return content[: int(rng.choice(ends)) + 1]


def extend(content: bytes, rng: Rng) -> bytes:
    return content + (content if rng.random() < 0.3 else rng.bytes(int(rng.integers(1, 5000))))


def blank(content: bytes, rng: Rng) -> bytes:
    """A page of zeros, as a disk leaves it where a write was lost."""
    start = int(rng.integers(len(content)))
    length = min(4096, len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def empty(content: bytes, rng: Rng) -> bytes:
    return b""


def other_type(content: bytes, rng: Rng) -> bytes:
    """A file of another kind, or with the beginning of one."""
    picture = b"\x89PNG\r\n\x1a\n" + rng.bytes(200)
    kinds = [picture, b"# A dream\n", b"PK\x03\x04", b"[]", b"null", b"{}", pickle.dumps({"a": 1}), b"\x93NUMPY"]
    chosen = kinds[int(rng.integers(len(kinds)))]
    return chosen if rng.random() < 0.7 else chosen + content[len(chosen) :]


ANY_FILE = {kind.__name__: kind for kind in (flip, flip, truncate, cut_line, extend, blank, empty, other_type)}


# What happens to safetensors files.


def edit_header(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another header, whose length is told rightly."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _tensor(header: dict[str, Any], rng: Rng, kind: str | None = None) -> dict[str, Any]:
    """One of the tensors that a header describes."""
    named = [name for name, about in header.items() if name != "__metadata__" and kind in (None, about["dtype"])]
    return header[named[int(rng.integers(len(named)))]]


def huge_shape(header: dict[str, Any], rng: Rng) -> None:
    _tensor(header, rng)["shape"] = [[10**12], [10**6, 10**6], [2**63], [2**32, 2**32]][int(rng.integers(4))]


def huge_shape_and_offsets(header: dict[str, Any], rng: Rng) -> None:
    about = _tensor(header, rng)
    about["shape"], about["data_offsets"] = [10**12], [0, 4 * 10**12]


def wrong_shape(header: dict[str, Any], rng: Rng) -> None:
    about = _tensor(header, rng)
    about["shape"] = [*about["shape"][1:], 1, *about["shape"][:1]] if about["shape"] else [1]


def wrong_dtype(header: dict[str, Any], rng: Rng) -> None:
    about = _tensor(header, rng)
    alike = {"F32": "I32", "I64": "F64", "U8": "I8", "BOOL": "U8"}
    about["dtype"] = (
        alike.get(about["dtype"], "I8") if rng.random() < 0.5 else ["F8_E4M3", "F4", "X9", 7][rng.integers(4)]
    )


def negative_offsets(header: dict[str, Any], rng: Rng) -> None:
    about = _tensor(header, rng)
    about["data_offsets"] = [-8, about["data_offsets"][1]] if rng.random() < 0.5 else about["data_offsets"][::-1]


def overlapping_offsets(header: dict[str, Any], rng: Rng) -> None:
    _tensor(header, rng, "F32")["data_offsets"] = list(_tensor(header, rng, "F32")["data_offsets"])
    about = _tensor(header, rng, "F32")
    about["data_offsets"] = [offset + 4 for offset in about["data_offsets"]]


def lost_tensor(header: dict[str, Any], rng: Rng) -> None:
    names = [name for name in header if name != "__metadata__"]
    name = names[int(rng.integers(len(names)))]
    header[name[::-1]] = header.pop(name)


def wrong_entry(header: dict[str, Any], rng: Rng) -> None:
    """An entry of the metadata that no reader may believe."""
    about = header["__metadata__"]
    choices: dict[str, list[Any]] = {
        "format": ["0", "-1", "99", "one", "1e400"],
        "latent_stack": ["0", "-4", str(10**12), "x", "9" * 6000],
        "metadata": ["[]", "7", "{", '{"horizon": -3}', '{"horizon": "ten"}', '{"temperature": NaN}', "[" * 200_000],
        "world_model": ["[" * 200_000, "{}x", "null", '{"num_actions": {}}', '{"game": "Pong", "game": "Krull"}'],
    }
    name = list(choices)[int(rng.integers(len(choices)))]
    about[name] = choices[name][int(rng.integers(len(choices[name])))]


def wrong_configuration(header: dict[str, Any], rng: Rng) -> None:
    """Settings of networks that the weights are not of, many of them larger than any memory."""
    config = json.loads(header["__metadata__"]["world_model"])
    part = [config, config["codec"], config["dynamics"], config["codec"]["quantizer"]][int(rng.integers(4))]
    numbers = [name for name, value in part.items() if type(value) is int and name != "frame_stack"]
    name = numbers[int(rng.integers(len(numbers)))]
    wrong = [10**12, 10**30, -1, 0, 4096, 1000, "6", None, [6], {"a": 1}, 2.5, True, float("nan")]
    value = wrong[int(rng.integers(len(wrong)))]
    part[name] = value
    header["__metadata__"]["world_model"] = json.dumps(config)


HEADER = {
    kind.__name__: kind
    for kind in (
        huge_shape,
        huge_shape_and_offsets,
        wrong_shape,
        wrong_dtype,
        negative_offsets,
        overlapping_offsets,
        lost_tensor,
        wrong_entry,
        wrong_configuration,
    )
}


def duplicate_tensor(content: bytes, rng: Rng) -> bytes:
    """A header that names a tensor, or its metadata, twice."""
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip()
    names = [name for name in json.loads(header) if name != "__metadata__"]
    about = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    again = {names[int(rng.integers(len(names)))]: about} if rng.random() < 0.5 else {"__metadata__": {"format": "1"}}
    text = header[:-1] + b"," + json.dumps(again).encode()[1:]
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def header_length(content: bytes, rng: Rng) -> bytes:
    lengths = [0, 1, 2**63, 2**64 - 1, len(content), len(content) - 8, 100_000_001, 90_000_000]
    return struct.pack("<Q", lengths[int(rng.integers(len(lengths)))]) + content[8:]


def deep_header(content: bytes, rng: Rng) -> bytes:
    text = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    return struct.pack("<Q", len(text)) + text + content[8:]


def not_finite(content: bytes, rng: Rng) -> bytes:
    """A NaN or an infinity among the weights."""
    (length,) = struct.unpack("<Q", content[:8])
    start, stop = _tensor(json.loads(content[8 : 8 + length]), rng, "F32")["data_offsets"]
    place = 8 + length + start + 4 * int(rng.integers((stop - start) // 4))
    return content[:place] + struct.pack("<f", [np.nan, np.inf, -np.inf][rng.integers(3)]) + content[place + 4 :]


def start_out_of_range(content: bytes, rng: Rng) -> bytes:
    """Start states that name codes or actions that there are not."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name, value = [("latents", b"\xff"), ("actions", b"\x09"), ("elapsed", b"\xff" * 8)][rng.integers(3)]
    start = 8 + length + header[f"starts.{name}"]["data_offsets"][0]
    return content[:start] + value + content[start + len(value) :]


CONTENT = {
    kind.__name__: kind for kind in (duplicate_tensor, header_length, deep_header, not_finite, start_out_of_range)
}


def safetensors_file(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """One of the changes above, in every second file with the checksum taken away, as a forger would."""
    if rng.random() < 0.5:
        content = edit_header(content, lambda header: header["__metadata__"].pop("sha256", None))
    kinds = [*HEADER, *CONTENT]
    name = kinds[int(rng.integers(len(kinds)))]
    if name in HEADER:
        return name, edit_header(content, lambda header: HEADER[name](header, rng))
    return name, CONTENT[name](content, rng)


# What happens to pickles of tensors and to zips of them.


def hostile(rng: Rng, folder: Path) -> Any:
    """What a pickle of tensors must not hold."""
    marker = str(folder / MARKER)
    kinds = [
        Call(os.mkdir, marker),
        Call(os.system, f"mkdir {marker}"),
        Call(eval, f"__import__('os').mkdir({marker!r})"),
        Call(exec, f"open({marker!r}, 'w')"),
        Call(bytearray, 10**12),
        Call(torch.Tensor, 10**11),
        Call(getattr, "", "join"),
    ]
    return kinds[int(rng.integers(len(kinds)))]


def saved(values: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def tensors_file(content: bytes, rng: Rng, folder: Path) -> tuple[str, bytes]:
    """What ``torch.save`` wrote, with something else in it."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    choice = int(rng.integers(9))
    part = next(value for value in state.values() if isinstance(value, dict))
    names = [name for name, value in part.items() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    name = names[int(rng.integers(len(names)))] if names else next(iter(part))
    if choice == 0:
        part[name] = torch.zeros(1).expand(10**12)
        return "a tensor of 10^12 elements", saved(state)
    if choice == 1:
        part[name] = torch.full(tuple(part[name].shape) if names else (3,), float("nan"))
        return "not finite", saved(state)
    if choice == 2:
        part[name] = torch.zeros(part[name].shape if names else (3,), dtype=torch.int32)
        return "wrong dtype", saved(state)
    if choice == 3:
        state.pop(next(iter(state)))
        return "a part is missing", saved(state)
    if choice == 4:
        return "not a dict", saved([1, 2, 3])
    if choice == 5:
        return "a pickle alone", pickle.dumps({"world_model": hostile(rng, folder), "policy": hostile(rng, folder)})
    if choice == 6:
        return "compressed", rezip(content, {}, zipfile.ZIP_DEFLATED)
    if choice == 7:
        return "a bomb", rezip(content, {"archive/data/0": bytes(64 * 2**20)}, zipfile.ZIP_DEFLATED)
    return "hostile pickle", saved({**state, next(iter(state)): hostile(rng, folder)})


def rezip(content: bytes, more: Files, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with members added or replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            if name not in more:
                new.writestr(zipfile.ZipInfo(name), old.read(name), compression)
        for name, member in more.items():
            # Without a date, which would make each seed's file another one every two seconds.
            new.writestr(zipfile.ZipInfo(name), member, compression)
    return buffer.getvalue()


def policy_file(content: bytes, rng: Rng, folder: Path) -> tuple[str, bytes]:
    """A ``policy.zip`` of Stable-Baselines3 with something else in it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        policy = archive.read("policy.pth")
    choice = int(rng.integers(5))
    if choice == 0:
        data = json.dumps({"policy_class": {":type:": "x", ":serialized:": _text(hostile(rng, folder))}}).encode()
        return "hostile data", rezip(content, {"data": data})
    if choice == 1:
        pickled = pickle.dumps(hostile(rng, folder))
        name = ["policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"][int(rng.integers(3))]
        return "hostile pickle", rezip(content, {name: pickled})
    if choice == 2:
        return "a bomb", rezip(content, {"policy.pth": bytes(64 * 2**20)}, zipfile.ZIP_DEFLATED)
    if choice == 3:
        return "hostile tensors", rezip(content, {"policy.pth": saved({"log_std": hostile(rng, folder)})})
    state = torch.load(io.BytesIO(policy), weights_only=True)
    name = list(state)[int(rng.integers(len(state)))]
    if name.endswith("codebook"):
        name = "action_net.bias"
    wrong = [torch.zeros(1).expand(10**12), torch.full(state[name].shape, float("inf")), "text", torch.zeros(2, 2, 2)]
    state[name] = wrong[int(rng.integers(len(wrong)))]
    return "wrong tensors", rezip(content, {"policy.pth": saved(state)})


def _text(values: Any) -> str:
    import base64

    return base64.b64encode(pickle.dumps(values)).decode()


# What happens to JSON and to the replay's files.


def json_file(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Fields that are wrong, in every second file with the checksum taken away."""
    first, _, rest = content.partition(b"\n") if not content.startswith(b"{\n") else (content, b"", b"")
    values = json.loads(first)
    choice = int(rng.integers(5))
    if choice == 0:
        return "deep", b"[" * 200_000 + b"]" * 200_000
    if choice == 1:
        return "huge", b'{"a": "' + b"x" * (65 * 2**20) + b'"}'
    if choice == 2:
        again = next(name for name in values if name != "sha256")
        text = json.dumps(values)[:-1] + f', "{again}": {json.dumps(values[again])}}}'
        return "a field twice", text.encode() + b"\n" + rest
    sealed = values.pop("sha256", None)
    name = list(values)[int(rng.integers(len(values)))]
    if choice == 3 and "matmul_gflops" not in values and "phase" not in values:
        # Of a type that no field has.
        values[name] = {"a": [None]}
    else:
        wrong = [-1, 10**12, None, [], "x", float("nan"), float("inf"), 10**400, 1.5]
        values[name] = wrong[int(rng.integers(len(wrong)))]
        values["sha256"] = sealed or "0" * 64
    return "wrong fields", json.dumps(values).encode() + b"\n" + rest


def replay_files(files: Files, rng: Rng, folder: Path) -> tuple[str, Files]:
    """An index that claims what is not so, without its checksum; or shards and visits that it vouches for."""
    index = json.loads(files["replay/replay.json"])
    index.pop("sha256", None)
    shard = index["shards"][int(rng.integers(len(index["shards"])))]
    changed: Files = {}
    choice = int(rng.integers(8))
    if choice == 0:
        name = ["../outside", f"{folder}/{OUTSIDE}", "/etc/hostname", "../replay/" + shard["name"], "..", ""][
            rng.integers(6)
        ]
        (index if rng.random() < 0.3 else shard)["visits" if "capacity" in shard else "name"] = name
        kind = "a path that leaves the folder"
    elif choice == 1:
        field = ["first", "stop", "capacity"][rng.integers(3)]
        index[field] = [-1, 10**12, 2**63, None, "8", 1.5, True][rng.integers(7)]
        kind = "wrong numbers"
    elif choice == 2:
        shard[["first", "stop"][rng.integers(2)]] = [-1, 10**12, None, "8"][rng.integers(4)]
        kind = "wrong records"
    elif choice == 3:
        index["frame_shape"] = [[10**6, 10**6], [96], [96, 96, 96], [0, 0], [-96, -96], [2**40, 1], "ab", [48, 96]][
            rng.integers(8)
        ]
        kind = "wrong frames"
    elif choice == 4:
        index["action_dtype"] = ["O", "S8", "f8", "M8", "i4", 7, "(1000000000,)i8"][rng.integers(7)]
        kind = "wrong actions"
    elif choice == 5:
        for each in (index["shards"][0], index["shards"][-1]):
            each["name"] = each["name"][::-1]
        a, b = index["shards"][0], index["shards"][-1]
        a["name"], b["name"] = b["name"][::-1], a["name"][::-1]
        a["sha256"], b["sha256"] = b["sha256"], a["sha256"]
        kind = "swapped shards"
    else:
        kind, content = _forged_shard(files["replay/" + shard["name"]], rng, folder)
        changed["replay/" + shard["name"]] = content
        shard["sha256"] = hashlib.sha256(content).hexdigest()
        if rng.random() < 0.3:
            visits = _npy("<i8", (10**12,), b"\0" * 8) if rng.random() < 0.5 else pickle.dumps(hostile(rng, folder))
            changed = {"replay/" + index["visits"]: visits}
            index["visits_sha256"] = hashlib.sha256(visits).hexdigest()
            shard["sha256"] = hashlib.sha256(files["replay/" + shard["name"]]).hexdigest()
            kind = "forged visits"
    return kind, {**changed, "replay/replay.json": json.dumps(index).encode()}


def _npy(kind: str, shape: tuple[int, ...], content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def _forged_shard(content: bytes, rng: Rng, folder: Path) -> tuple[str, bytes]:
    choice = int(rng.integers(5))
    if choice == 0:
        return "a column of 10^12 records", rezip(content, {"rewards.npy": _npy("<f4", (10**12,), b"\0" * 64)})
    if choice == 1:
        pickled = pickle.dumps([hostile(rng, folder)])
        return "a column of objects", rezip(content, {"rewards.npy": _npy("|O", (1,), pickled)})
    if choice == 2:
        return "a bomb", rezip(content, {"frames.npy": bytes(256 * 2**20)}, zipfile.ZIP_DEFLATED)
    if choice == 3:
        with np.load(io.BytesIO(content)) as archive:
            rewards = archive["rewards"]
        rewards[0] = np.nan
        return "not finite", rezip(content, {"rewards.npy": _npy("<f4", rewards.shape, rewards.tobytes())})
    return "a column of another type", rezip(content, {"first.npy": _npy("<i8", (3,), bytes(24))})


# One mutation.


class Mutation(NamedTuple):
    """What happened to a folder: the reader that must notice, in a word what, and the files that are other now."""

    reader: str
    kind: str
    files: Files


def mutation(seed: int, files: Files, folder: Path) -> Mutation:
    """The mutation that a seed stands for.

    Args:
        seed: of everything that is chosen.
        files: the folder's as they were written.
        folder: where they lie.
    """
    rng = np.random.default_rng(seed)
    reader = list(READERS)[int(rng.integers(len(READERS)))]
    patterns = READERS[reader][1]
    names = sorted(name for name in files if any(Path(name).match(pattern) for pattern in patterns))
    name = names[int(rng.integers(len(names)))]
    content = files[name]
    if reader == "older file" or rng.random() < 0.5:
        if name.endswith(".safetensors"):
            kind, changed = safetensors_file(content, rng)
        elif name.endswith(".pt"):
            kind, changed = tensors_file(content, rng, folder)
        elif name.endswith("policy.zip"):
            kind, changed = policy_file(content, rng, folder)
        elif name.startswith("replay/"):
            return Mutation(reader, *replay_files(files, rng, folder))
        else:
            kind, changed = json_file(content, rng)
        return Mutation(reader, kind, {name: changed})
    if rng.random() < 0.2:
        others = sorted(set(files) - {name} - ({"exported.safetensors", "older.safetensors", "dream.safetensors"}))
        other = others[int(rng.integers(len(others)))]
        return Mutation(reader, "swapped files", {name: files[other], other: content})
    kinds = list(ANY_FILE)
    kind = "flip" if rng.random() < 0.4 else kinds[int(rng.integers(len(kinds)))]
    return Mutation(reader, kind, {name: ANY_FILE[kind](content, rng)})


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Interrupt what takes longer."""

    def interrupt(number: int, frame: Any) -> None:
        raise Hang(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Outcome(NamedTuple):
    """What a reader did: ``refused``, ``identical``, or ``wrong`` and how."""

    mutation: Mutation
    result: str
    why: str = ""


def outcomes(count: int, seed: int) -> Iterator[tuple[int, Outcome]]:
    """Try the mutations of some seeds, one after the other, on a folder of their own.

    Args:
        count: of seeds.
        seed: the first.
    """
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        build(folder)
        (Path(home) / OUTSIDE).write_bytes(b"not of the run")
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        expected = {name: read(folder) for name, (read, _) in READERS.items()}
        limit = _virtual_memory() + GIGABYTE
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
        try:
            for number in range(seed, seed + count):
                chosen = mutation(number, files, folder)
                for name, content in chosen.files.items():
                    (folder / name).write_bytes(content)
                yield number, _outcome(chosen, folder, expected[chosen.reader])
                for name in chosen.files:
                    (folder / name).write_bytes(files[name])
                shutil.rmtree(folder / MARKER, ignore_errors=True)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _outcome(chosen: Mutation, folder: Path, expected: Any) -> Outcome:
    result, why = "wrong", "other values than were saved"
    try:
        with at_most(SECONDS):
            found = READERS[chosen.reader][0](folder)
        if same(found, expected):
            result, why = "identical", ""
    except DreamgymError as error:
        result, why = "refused", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        why = "".join(traceback.format_exception_only(error)).strip() + _where(error)
    if (folder / MARKER).exists():
        result, why = "wrong", "code of the file was run"
    return Outcome(chosen, result, why)


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "dreamgym/" in frame.filename]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _virtual_memory() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(arguments: list[str]) -> int:
    """Try mutations and print what came of them; 1 if any was wrong."""
    count, seed = int(arguments[0]), int(arguments[1])
    torch.set_num_threads(1)
    table: dict[str, Counter[str]] = {reader: Counter() for reader in READERS}
    wrong: list[str] = []
    for number, (chosen, result, why) in outcomes(count, seed):
        table[chosen.reader][result] += 1
        if result == "wrong":
            wrong.append(f"seed {number}: {chosen.reader}, {chosen.kind}: {why}")
        elif count == 1:
            print(f"{chosen.reader}, {chosen.kind}: {result} {why}")
    print(f"{'reader':<16}{'tried':>8}{'refused':>9}{'identical':>11}{'wrong':>7}")
    for reader, counted in {**table, "all": sum(table.values(), Counter())}.items():
        results = f"{counted['refused']:>9}{counted['identical']:>11}{counted['wrong']:>7}"
        print(f"{reader:<16}{counted.total():>8}{results}")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
