"""Zips of tensors, as ``torch.save`` and Stable-Baselines3 write them, read without trust."""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

_PLAIN = re.compile(r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor_v2|parameter)|torch Size")
"""What a pickle of tensors, numbers and containers names: everything else is refused before it is looked at."""


def open_archive(content: bytes) -> zipfile.ZipFile:
    """Open a zip whose members are there in full, as they were written.

    Args:
        content: of the file.

    Raises:
        ValueError: it is no zip, a member's checksum is not that of its bytes, or a member is compressed, named twice
            or larger than the file: neither torch nor Stable-Baselines3 writes such a thing, and it may inflate to
            more than the memory.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = archive.infolist()
        if len({member.filename for member in members}) != len(members):
            raise ValueError("expected a zip that names each member once")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"expected members that are not compressed, {member.filename} is")
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("its members claim to be larger than the file")
        bad = archive.testzip()
    except Exception as error:
        # A broken zip ends in errors of many kinds, some of them from decoding names.
        raise ValueError(f"the zip cannot be read: {error}") from error
    if bad is not None:
        raise ValueError(f"the bytes of {bad} are not those that were saved")
    return archive


def load_tensors(content: bytes, device: str = "cpu") -> Any:
    """What ``torch.save`` wrote, if it is tensors, numbers, text and containers of them.

    Args:
        content: of the file.
        device: where to put the tensors.

    Raises:
        ValueError: it is damaged, or a pickle in it asks for anything else.
    """
    with open_archive(content) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                _check_pickle(name, archive.read(name))
    try:
        values = torch.load(io.BytesIO(content), device, weights_only=True)
    except Exception as error:
        # A broken pickle may end in any error; those of torch advise to open it in full, which is the last thing to do.
        raise ValueError(f"its tensors cannot be read ({type(error).__name__})") from error
    for name, tensor in _tensors(values):
        # One number, repeated by a stride of zero, can pass for any number of them.
        if tensor.numel() * tensor.element_size() > len(content):
            raise ValueError(f"{name} claims to be larger than the file: {tuple(tensor.shape)}")
    return values


def _check_pickle(name: str, content: bytes) -> None:
    """See what a pickle names, without running it."""
    try:
        named = [
            str(argument)
            for opcode, argument, _ in pickletools.genops(content)
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
        ]
    except Exception as error:
        raise ValueError(f"the pickle {name} cannot be read ({type(error).__name__})") from error
    for found in named:
        if _PLAIN.fullmatch(found) is None:
            raise ValueError(f"the pickle {name} expected tensors alone, it asks for {found!r} and was not opened")


def non_finite(values: Any) -> str | None:
    """The name of the first tensor in nested containers that holds a NaN or an infinity; None if there is none."""
    return next((name for name, tensor in _tensors(values) if not bool(torch.isfinite(tensor).all())), None)


def _tensors(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, each with the names that lead to it."""
    items: Any = ()
    if isinstance(values, Tensor):
        yield name, values
    elif isinstance(values, dict):
        items = cast("dict[Any, Any]", values).items()
    elif isinstance(values, list | tuple):
        items = enumerate(cast("list[Any]", values))
    for key, value in items:
        yield from _tensors(value, f"{name}.{key}".lstrip("."))
