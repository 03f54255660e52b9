"""Dreams on a model hub, through huggingface_hub: pushed in one commit, pulled at a pinned one.

A repository holds one exported dream, its facts as JSON (:mod:`dreamgym.model_card`), a model card and a picture. Of
these only the JSON and the safetensors file are ever fetched, and nothing of them is used before it was checked.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dreamgym import __version__
from dreamgym.checkpoint import DREAM_FILE, load_dream, write_atomic, write_text
from dreamgym.errors import CheckpointError, ConfigError, DreamgymError, HubError, InvalidInputError
from dreamgym.export import MEGABYTES
from dreamgym.json_files import fits, parse_json, read_text, unsealed
from dreamgym.model_card import CARD_FILE, FACTS_FILE, FORMAT, PICTURE_FILE, dream_facts, model_card

LICENCE = "mit"
BRANCH = "main"

_MOST_FACTS = 2**20
_DREAM_NAME = re.compile(r"[\w][\w.-]{0,100}\.safetensors")
_LICENCE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")


@dataclass(frozen=True)
class Pushed:
    """A dream that was pushed.

    Attributes:
        repo: "owner/name".
        commit: of the hub's repository, 40 hexadecimal digits: the revision to pull.
        url: of its page.
        files: their names there.
    """

    repo: str
    commit: str
    url: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Pulled:
    """A dream that was pulled.

    Attributes:
        file: where it is: in the hub's cache, or where it was asked for; as good as an exported one.
        repo: "owner/name".
        revision: what was asked for.
        commit: what that is, 40 hexadecimal digits.
        facts: what its maker says of it.
    """

    file: Path
    repo: str
    revision: str
    commit: str
    facts: dict[str, Any]


def write_page(folder: Path, file: Path, repo: str, licence: str = LICENCE, picture: Path | None = None) -> list[Path]:
    """Write all that a repository is to hold.

    Args:
        folder: an empty one, or one that is made.
        file: that ``dreamgym export`` wrote.
        repo: where it will be, "owner/name".
        licence: under which it is given away, as the hub names it.
        picture: a PNG of it.

    Returns:
        The files.

    Raises:
        ConfigError: a licence that is no word, or huggingface_hub is not installed.
        CheckpointError: the file is no dream.
    """
    require_hub()
    if not _LICENCE_NAME.fullmatch(licence):
        raise ConfigError(f"licence: expected the hub's name of one, such as mit or cc-by-4.0, got {licence!r}.")
    facts = dream_facts(file, load_dream(file), licence)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        FACTS_FILE: json.dumps(facts, indent=2) + "\n",
        CARD_FILE: model_card(facts, repo, picture is not None),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    copies = {facts["file"]: file} | ({} if picture is None else {PICTURE_FILE: picture})
    for name, source in copies.items():
        write_atomic(folder / name, lambda part, source=source: cast(Any, shutil.copyfile(source, part)))
    return [folder / name for name in (*texts, *copies)]


def push_page(
    files: list[Path], repo: str, *, branch: str = BRANCH, private: bool = False, endpoint: str | None = None
) -> Pushed:
    """Send what :func:`write_page` wrote to the hub, as one commit; the repository is made where there is none.

    Args:
        files: all of them.
        repo: "owner/name"; the token is huggingface_hub's own: ``hf auth login``, or ``$HF_TOKEN``.
        branch: of the repository.
        private: whether a new repository is for its owner alone.
        endpoint: the hub's address; None takes huggingface_hub's own, ``$HF_ENDPOINT`` where it is set.

    Raises:
        InvalidInputError: a repository that may not be written, or a name that cannot be one.
        HubError: the hub cannot be reached, or refuses.
        ConfigError: huggingface_hub is not installed.
    """
    api = _client(endpoint)
    from huggingface_hub import CommitOperationAdd

    game = next(file.stem for file in files if file.suffix == ".safetensors")
    with _hub_errors(repo, branch):
        page = api.create_repo(repo, private=private, exist_ok=True)
        if branch != BRANCH:
            api.create_branch(repo, branch=branch, exist_ok=True)
        done = api.create_commit(
            repo,
            [CommitOperationAdd(file.name, str(file)) for file in files],
            commit_message=f"A dream of {game}",
            revision=branch,
        )
    return Pushed(repo, str(done.oid), str(page), tuple(file.name for file in files))


def pull_dream(
    repo: str,
    revision: str = BRANCH,
    out: Path | None = None,
    *,
    megabytes: float = MEGABYTES,
    endpoint: str | None = None,
) -> Pulled:
    """Fetch a dream at one commit, check it, and say where it is.

    Nothing but ``dream.json`` and the safetensors file that it names is fetched. Both must have the size and the hash
    that the hub gives them, the file also those that the facts name, and it must pass all of
    :func:`dreamgym.checkpoint.load_dream`. What has another hash is removed from the cache. What is in the cache
    already needs no network; where the hub cannot be reached a branch is what it was when it was last asked for.

    Args:
        repo: "owner/name".
        revision: a commit, or a branch or tag, which may be another commit tomorrow.
        out: where to copy the file; None leaves it in the hub's cache alone.
        megabytes: largest size of the file, in millions of bytes.
        endpoint: the hub's address; None takes huggingface_hub's own, ``$HF_ENDPOINT`` where it is set.

    Raises:
        InvalidInputError: no such repository or revision, one that may not be read or holds no dream, or a file that is
            larger.
        CheckpointError: the file is damaged, or no dream.
        HubError: the hub cannot be reached and the cache does not have it, or what it sent is not what it announced.
        ConfigError: a name to copy to that no dream can have, or huggingface_hub is not installed.
    """
    api = _client(endpoint)
    if out is not None and (out.suffix != ".safetensors" or out.name == DREAM_FILE):
        raise ConfigError(f"out: expected a file name that ends in .safetensors and is not {DREAM_FILE}, got {out}.")
    with _hub_errors(repo, revision):
        commit = api.resolve_revision(repo, revision=revision).resolved
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise HubError(f"{repo}: expected a commit of 40 hexadecimal digits, got {commit!r}. Try again later.")
    about = _fetch(api, repo, commit, FACTS_FILE, _MOST_FACTS)
    facts = _read_facts(repo, about, megabytes)
    file = _fetch(api, repo, commit, facts["file"], facts["bytes"])
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != facts["file_sha256"]:
        _forget(file)
        raise CheckpointError(
            f"{repo}: expected {facts['file']} with the sha256 {facts['file_sha256']} of {FACTS_FILE}, got {found}. "
            "It was removed from the cache: pull it again, or ask its maker."
        )
    load_dream(file)
    if out is not None:
        write_atomic(out, lambda part: cast(Any, shutil.copyfile(file, part)))
    return Pulled(out or file, repo, revision, commit, facts)


def _client(endpoint: str | None) -> Any:
    """The library's client for a hub: the one that is named, else ``$HF_ENDPOINT``, else the library's own."""
    require_hub()
    from huggingface_hub import HfApi

    return HfApi(
        endpoint=endpoint or os.environ.get("HF_ENDPOINT"), library_name="dreamgym", library_version=__version__
    )


def _fetch(api: Any, repo: str, commit: str, name: str, most: int) -> Path:
    """A file at a commit, from the cache if it is there; else from the hub, of the size and hash that it announces."""
    from huggingface_hub import try_to_load_from_cache

    with _hub_errors(repo, commit):
        cached = try_to_load_from_cache(repo, name, revision=commit)
        if isinstance(cached, str):
            return Path(cached)
        found: list[Any] = api.get_paths_info(repo, [name], revision=commit)
        if not found or not hasattr(found[0], "blob_id"):
            raise _no_dream(repo, f"no file {name}")
        if found[0].size > most:
            raise InvalidInputError(
                f"{repo}: expected {name} of at most {most:,} bytes, got {found[0].size:,}. Ask its maker."
            )
        file = Path(api.hf_hub_download(repo, name, revision=commit))
        content = file.read_bytes()
        announced = found[0].lfs.sha256 if found[0].lfs is not None else found[0].blob_id
        got = hashlib.sha256(content) if found[0].lfs is not None else _git_blob(content)
        if got.hexdigest() != announced:
            _forget(file)
            raise HubError(
                f"{repo}: expected {name} with the hash {announced} that the hub announces, got {got.hexdigest()}. It "
                "was removed from the cache: try again later."
            )
    return file


def _git_blob(content: bytes) -> Any:
    """The hash that git knows a file by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)


def _forget(file: Path) -> None:
    """Remove a file from the hub's cache, its name in the snapshot and what that points to: it is fetched anew."""
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _read_facts(repo: str, file: Path, megabytes: float) -> dict[str, Any]:
    """What a repository says of its dream, as far as it is used."""
    try:
        facts = unsealed(parse_json(read_text(file)))
    except (OSError, ValueError) as error:
        _forget(file)
        raise _no_dream(repo, f"{FACTS_FILE}: {error}") from error
    kinds = {"format": int, "file": str, "bytes": int, "file_sha256": str}
    wrong = [name for name, kind in kinds.items() if not fits(facts.get(name), kind)]
    if wrong:
        raise _no_dream(repo, f"{FACTS_FILE} without {', '.join(wrong)}")
    if facts["format"] != FORMAT:
        raise InvalidInputError(
            f"{repo}: expected {FACTS_FILE} of format {FORMAT}, got {facts['format']}; use a newer dreamgym."
        )
    # A file called as a run's would be taken for one.
    if not _DREAM_NAME.fullmatch(facts["file"]) or facts["file"] == DREAM_FILE:
        raise _no_dream(repo, f"a file called {facts['file']!r}")
    if not 0 < facts["bytes"] <= megabytes * 1e6:
        raise InvalidInputError(
            f"{repo}: expected a dream of at most {megabytes:g} MB, got {facts['bytes'] / 1e6:.1f} MB. Allow more "
            "--megabytes."
        )
    return facts


def _no_dream(repo: str, got: str) -> InvalidInputError:
    return InvalidInputError(f"{repo}: expected a repository that 'dreamgym push' wrote, got {got}. Choose another.")


def require_hub() -> None:
    """See that huggingface_hub is there.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError("push and pull need huggingface_hub, which is not installed: pip install 'dreamgym[hub]'.")


@contextmanager
def _hub_errors(repo: str, revision: str) -> Generator[None]:
    """Say in our own errors what huggingface_hub says in its own, and in those of what it is built on."""
    from huggingface_hub import errors as hub

    try:
        yield
    except DreamgymError:
        raise
    except hub.HFValidationError as error:
        raise InvalidInputError(f"repo: expected a name such as owner/name, got {repo!r}: {error}") from error
    except hub.RevisionNotFoundError as error:
        raise InvalidInputError(
            f"{repo}: expected one of its commits, branches or tags, got {revision!r}. Its page lists them."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise InvalidInputError(
            f"{repo}: expected a repository on the hub that you may use, found none. Check its name, or log in: "
            "hf auth login."
        ) from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, hub.RevisionResolutionError) as error:
        raise HubError(
            f"{repo} at {revision}: expected it on the hub or in the cache, but the hub cannot be reached "
            f"({_first_line(error.__cause__ or error)}) and the cache does not have it. Pull it once with network (and "
            "without HF_HUB_OFFLINE)."
        ) from error
    except hub.EntryNotFoundError as error:
        raise _no_dream(repo, _first_line(error)) from error
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InvalidInputError(
                f"{repo}: expected a token that may do this, the hub says no ({status}). Log in with another: hf auth "
                "login."
            ) from error
        raise HubError(f"{repo}: expected the hub to answer, got {status}: {_first_line(error)}. Try later.") from error
    except Exception as error:
        # Of connections, of answers that are none, of the cache's disk: the client lets them through as they come.
        raise HubError(
            f"{repo}: expected to reach the hub, got {type(error).__name__}: {_first_line(error)}. Check the network, "
            "or pull what the cache has with HF_HUB_OFFLINE=1."
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
