"""Experience on disk: compressed shards that are appended, an index that names them, and nothing unpickled.

A folder holds ``replay.json`` (the index: layout, capacity, each shard's record range and SHA-256, and its own), one
``records-<first record>.npz`` a shard and ``visits-<records>.npy``. Frames are stored as the XOR with the frame before
them, deflated: from one step of a game to the next almost every pixel is unchanged. Every file is written beside its
place and renamed into it, data before the index, so that a reader finds either the old state or the new one.
"""

import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dreamgym.errors import ReplayError
from dreamgym.json_files import fits, parse_json, read_text, sealed, unsealed

INDEX_NAME = "replay.json"
FORMAT_VERSION = 1
MOST_RECORDS = 2**24
"""Largest capacity that an index may name: more than a hundred runs of the paper's length."""

_CHUNK = 256  # frames deflated at once: bounds the memory of the differences
_MOST_INFLATED = 1032  # bytes that one byte of a deflated stream can stand for
_MOST_ROW = 4096  # bytes of a record beside its frame

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Shard:
    """A file of records: those numbered `first` to `stop` (exclusive) since the buffer was made."""

    name: str
    first: int
    stop: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What a folder holds: the layout of a record, and the shards in order."""

    capacity: int
    frame_shape: tuple[int, ...]
    action_shape: tuple[int, ...]
    action_dtype: str
    first: int
    stop: int
    visits: str
    visits_sha256: str
    shards: tuple[Shard, ...]


def write_shard(folder: Path, first: int, frames: npt.NDArray[np.uint8], columns: Arrays) -> Shard:
    """Write records to a new shard.

    Args:
        folder: an existing folder.
        first: number of the first record.
        frames: uint8 (records, height, width).
        columns: the other arrays, (records, ...), none of them named ``frames``.

    Returns:
        The shard's line for the index.
    """
    content = _zip({"frames": _deflate(frames), **columns})
    name = _shard_name(first)
    replace_file(folder / name, content)
    return Shard(name, first, first + len(frames), hashlib.sha256(content).hexdigest())


def read_shard(folder: Path, shard: Shard, frame_shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], Arrays]:
    """Read what `write_shard` wrote.

    Raises:
        ReplayError: the shard is missing or damaged; the message names it.
    """
    content = _read_checked(folder / shard.name, shard.sha256)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            most = (shard.stop - shard.first + 16) * (math.prod(frame_shape) + _MOST_ROW)
            claimed = sum(member.file_size for member in archive.infolist())
            if claimed > most:
                raise ValueError(f"expected columns of at most {most:,} bytes, it claims {claimed:,}")
            columns: Arrays = {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
        frames = _inflate(columns.pop("frames"), shard.stop - shard.first, frame_shape)
    except (ValueError, KeyError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile, MemoryError) as error:
        raise ReplayError(
            f"replay shard {folder / shard.name}: expected {shard}, got: {error}. Restore it from a copy."
        ) from error
    return frames, columns


def _zip(arrays: Arrays) -> bytes:
    """What numpy's ``savez_compressed`` writes, but undated: the same arrays are the same bytes, whatever the clock."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            # Without a date it is that of 1980, the first that zips know.
            about = zipfile.ZipInfo(f"{name}.npy")
            about.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(about, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def write_visits(folder: Path, stop: int, visits: npt.NDArray[np.int64]) -> tuple[str, str]:
    """Write how often each window start was drawn; returns the file's name and SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, visits)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    # A name of its own for each content: the visits of the old index stay until the new index has replaced it.
    name = f"visits-{stop:012d}-{digest[:8]}.npy"
    replace_file(folder / name, content)
    return name, digest


def read_visits(folder: Path, index: Index) -> npt.NDArray[np.int64]:
    """Read the visits of the records `index.first` to `index.stop`.

    Raises:
        ReplayError: the file is missing or damaged; the message names it.
    """
    path, expected = folder / index.visits, index.stop - index.first
    content = _read_checked(path, index.visits_sha256)
    try:
        visits = _array(content)
        if visits.dtype != np.int64 or visits.shape != (expected,) or (visits < 0).any():
            raise ValueError(f"{visits.dtype} {visits.shape}")
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ReplayError(
            f"replay file {path}: expected {expected} counts of at least 0, got: {error}. Restore it from a copy."
        ) from error
    return visits


def _array(content: bytes) -> npt.NDArray[Any]:
    """A whole ``.npy`` file, whose header must claim as many bytes as follow it."""
    stream = io.BytesIO(content)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"expected an .npy file of version 1 or 2, got {version}")
    shape, transposed, dtype = read[version](stream)
    start, claimed = stream.tell(), math.prod(shape) * dtype.itemsize
    if dtype.hasobject or transposed or min(shape, default=0) < 0 or claimed != len(content) - start:
        raise ValueError(f"expected plain numbers, {len(content) - start:,} bytes of them, got {dtype} {shape}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).copy()


def write_index(folder: Path, index: Index) -> None:
    """Replace the index, then remove the files that it no longer names."""
    content = json.dumps(sealed({"format": FORMAT_VERSION, **asdict(index)}), indent=1)
    replace_file(folder / INDEX_NAME, content.encode())
    named = {shard.name for shard in index.shards} | {index.visits}
    for pattern in ("records-*.npz", "visits-*.npy"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()


def read_index(folder: Path) -> Index:
    """Read a folder's index.

    Raises:
        ReplayError: there is none, it is damaged, or a newer version wrote it.
    """
    path = folder / INDEX_NAME
    try:
        fields = unsealed(parse_json(read_text(path)))
        version = fields.pop("format")
        if version != FORMAT_VERSION:
            raise ReplayError(f"{path}: expected replay format {FORMAT_VERSION}, got {version}; use a newer dreamgym.")
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        for name in ("frame_shape", "action_shape"):
            fields[name] = tuple(fields[name])
        index = Index(**fields, shards=shards)
        _check_index(index)
        return index
    except FileNotFoundError as error:
        raise ReplayError(f"no replay in {folder}: expected {INDEX_NAME} there, as Replay.save writes it.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReplayError(
            f"{path}: expected a replay index, could not read it: {error}. Restore it from a copy."
        ) from error


def _check_index(index: Index) -> None:
    """See that an index can be one that was written, and names files of its own folder alone.

    Raises:
        ValueError, TypeError: it cannot.
    """
    if not fits(index.capacity, int) or not 1 <= index.capacity <= MOST_RECORDS:
        raise ValueError(f"capacity: expected 1 to {MOST_RECORDS:,}, got {index.capacity!r}")
    shape_fits = fits(index.frame_shape, tuple[int, int]) and fits(index.action_shape, tuple[int, ...])
    if not shape_fits or min(index.frame_shape) < 1 or min(index.action_shape, default=1) < 1:
        raise ValueError(f"frame_shape and action_shape: got {index.frame_shape!r} and {index.action_shape!r}")
    if math.prod(index.action_shape) * np.dtype(index.action_dtype).itemsize > _MOST_ROW:
        raise ValueError(f"action_shape: expected actions of at most {_MOST_ROW} bytes, got {index.action_shape}")
    if not fits((index.first, index.stop), tuple[int, int]) or not 0 <= index.first <= index.stop:
        raise ValueError(f"first and stop: expected 0 <= first <= stop, got {index.first!r} and {index.stop!r}")
    if index.stop - index.first > index.capacity:
        raise ValueError(f"stop: expected at most {index.capacity} records, got {index.first} to {index.stop}")
    if Path(index.visits).name != index.visits or not index.visits.startswith("visits-"):
        raise ValueError(f"visits: expected the name of a file in this folder, visits-..., got {index.visits!r}")
    for shard in index.shards:
        if not fits((shard.first, shard.stop), tuple[int, int]) or not 0 <= shard.first < shard.stop:
            raise ValueError(f"shards: expected 0 <= first < stop, got {shard}")
        if shard.name != _shard_name(shard.first):
            raise ValueError(f"shards: expected the name {_shard_name(shard.first)}, got {shard.name!r}")


def _shard_name(first: int) -> str:
    return f"records-{first:012d}.npz"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk and rename it: a reader sees all of it or none."""
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _read_checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReplayError(f"replay file {path} is missing or unreadable: {error}. Restore it from a copy.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ReplayError(
            f"replay file {path} is damaged: its {len(content)} bytes are not those that were saved. "
            "Restore it from a copy."
        )
    return content


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _deflate(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    compressor = zlib.compressobj(level=9)
    parts: list[bytes] = []
    previous = np.zeros((1, *frames.shape[1:]), np.uint8)
    for chunk in _chunks(len(frames)):
        block = frames[chunk]
        differences = block ^ np.concatenate([previous, block[:-1]])
        parts.append(compressor.compress(differences.tobytes()))
        previous = block[-1:]
    parts.append(compressor.flush())
    return np.frombuffer(b"".join(parts), np.uint8)


def _inflate(stream: npt.NDArray[np.uint8], count: int, frame_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    size = count * math.prod(frame_shape)
    if stream.dtype != np.uint8 or stream.ndim != 1 or size > _MOST_INFLATED * (stream.size + 1):
        raise ValueError(f"expected {count} frames of {frame_shape}, {stream.size:,} bytes cannot hold them")
    frames = np.empty((count, *frame_shape), np.uint8)
    decompressor = zlib.decompressobj()
    pending = stream.tobytes()
    previous = np.zeros(frame_shape, np.uint8)
    for chunk in _chunks(count):
        block = frames[chunk]
        content = decompressor.decompress(pending, block.nbytes)
        pending = decompressor.unconsumed_tail
        if len(content) != block.nbytes:
            raise ValueError(f"expected {count} frames of {frame_shape}, the stream ends in frames {chunk}")
        np.bitwise_xor.accumulate(np.frombuffer(content, np.uint8).reshape(block.shape), axis=0, out=block)
        block ^= previous
        previous = block[-1].copy()
    if decompressor.decompress(pending, 1) or not decompressor.eof:
        raise ValueError(f"expected {count} frames of {frame_shape}, the stream holds more")
    return frames
