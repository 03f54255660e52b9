"""The command line: finds the command, turns its errors into one message and an exit status.

Importing it is quick: what needs torch is imported by the command that needs it.
"""

import argparse
import difflib
import io
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from dreamgym import __version__
from dreamgym.commands import compare, evaluate, export, play, pull, push, report
from dreamgym.data_commands import export_data, import_data
from dreamgym.errors import ConfigError, DreamgymError, HubError, InvalidInputError, SickRunError, StorageError
from dreamgym.info import info
from dreamgym.interrupts import Interrupted, stops_on_signals, unmasked
from dreamgym.listing import list_dreams
from dreamgym.terminal import let_go_of_stdout, prepare_output, print_json, wide_enough

if TYPE_CHECKING:
    from dreamgym.config import RunConfig

USER_ERROR = 2
"""Exit status after an error of the user's, the same as for an option that does not exist."""

FAULT = 1
"""Exit status after a file, folder or hub that could not be read or written, or training that went wrong."""

INTERRUPTED = 128
"""Exit status after a signal, less its number, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""

PIPE_CLOSED = INTERRUPTED + 13
"""Exit status where the output went to a program that has ended (``| head``): as shells have it after SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those after the program's name; None takes them from the command line.

    Returns:
        The exit status: 0, 2 after an error of the user's, 1 where a file, folder or hub fails or training
        goes wrong, 130 after Ctrl-C, 143 after SIGTERM, 141 where whoever read the output has gone.
    """
    prepare_output()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        let_go_of_stdout()
        return PIPE_CLOSED


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    if not given or given[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if given else sys.stderr)
        return 0 if given else USER_ERROR
    if given[0] == "--version":
        print(f"dreamgym {__version__}")
        return 0
    name, *rest = given
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(f"dreamgym: there is no command {name!r}{f'; did you mean {near[0]}?' if near else '.'}", file=sys.stderr)
        print(f"\n{_usage()}", file=sys.stderr)
        return USER_ERROR
    try:
        with stops_on_signals(), wide_enough() if {"-h", "--help"} & set(rest) else nullcontext():
            tyro.cli(COMMANDS[name].make(rest), prog=f"dreamgym {name}", args=rest)
    except BrokenPipeError:
        raise
    except (DreamgymError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"dreamgym {name}: {error}", file=sys.stderr)
        user = isinstance(error, DreamgymError) and not isinstance(error, HubError | SickRunError | StorageError)
        return USER_ERROR if user else FAULT
    except KeyboardInterrupt as interrupt:
        print(f"\nInterrupted. {interrupt}".rstrip(), file=sys.stderr)
        return INTERRUPTED + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT)
    return 0


def _usage() -> str:
    return "\n".join(
        [
            "usage: dreamgym COMMAND ...",
            "",
            "A learned simulator that you can gym.make: train one, measure it, look at it, play in it.",
            "",
            *(f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()),
            "",
            "dreamgym COMMAND --help lists what a command takes; with --debug an error comes with its traceback.",
            "RUN_OR_ID is a run folder, a dream's .safetensors",
            "file, or an id such as Dream-Pong-v0: the newest finished run of that game below $DREAMGYM_HOME",
            "(./runs by default), else the dream of that game that comes with the package.",
        ]
    )


def _data(
    do: Annotated[
        Annotated[None, tyro.conf.subcommand("export", constructor=export_data)]
        | Annotated[None, tyro.conf.subcommand("import", constructor=import_data)],
        tyro.conf.arg(name=""),
    ],
) -> None:
    """Real steps as a Minari dataset, and a Minari dataset as real steps that a run begins from."""


def _train(arguments: Sequence[str]) -> Callable[..., None]:
    """The command ``train``, whose defaults are those of what the arguments name."""
    from dreamgym.config import RunConfig
    from dreamgym.loop import train as run
    from dreamgym.real import resolve_game
    from dreamgym.run_folder import RunFolder
    from dreamgym.world_model import DYNAMICS

    default = _starting_config(arguments)

    def train(
        out: Path | None = None,
        config: Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = default,
        dynamics_kind: Annotated[
            str, tyro.conf.arg(name="dynamics.kind", metavar="|".join(kind.__name__ for kind in DYNAMICS))
        ] = type(default.dynamics).__name__,
        resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "auto",
    ) -> None:
        """Collect, fit, train in the dream and evaluate, round by round, into a run folder.

        Presets: smoke (a minute, for tests), quick (minutes), laptop (a sitting on two cores), gpu (the paper's network
        sizes), paper (the published networks and schedule). The defaults below are those of the preset that is named on
        the command line, or of the run that is resumed.

        Args:
            out: the run folder, by default the game's name below $DREAMGYM_HOME (./runs); it must not hold a run yet,
                unless that is to be resumed.
            config: settings of the run.
            dynamics_kind: which dynamics; where it is not the preset's, the settings below are that kind's defaults.
            resume: go on with the run in the folder after the last phase that it finished; with more --rounds than it
                was begun with also beyond its end.
            device: auto, cpu, cuda or cuda:<index>.
        """
        folder = out or _default_folder(config.game)
        if resume and RunFolder(folder).progress().round >= config.rounds:
            print(f"{folder} is finished; its results once more:")
        try:
            with unmasked():
                run(replace(config, game=resolve_game(config.game)), folder, resume=resume, device=device)
        except KeyboardInterrupt as interrupt:
            number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
            raise Interrupted(RunFolder(folder).how_to_go_on(device), number) from interrupt

    return train


def _plan(arguments: Sequence[str]) -> Callable[..., None]:
    """The command ``plan``, likewise."""
    from dreamgym.config import RunConfig
    from dreamgym.device import resolve_device
    from dreamgym.plan import plan as measure
    from dreamgym.real import resolve_game
    from dreamgym.world_model import DYNAMICS

    default = _starting_config(arguments)

    def plan(
        config: Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = default,
        dynamics_kind: Annotated[
            str, tyro.conf.arg(name="dynamics.kind", metavar="|".join(kind.__name__ for kind in DYNAMICS))
        ] = type(default.dynamics).__name__,
        seconds: float = 20.0,
        json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "auto",
    ) -> None:
        """Say what a run would take on this machine: time, operations, memory and disk.

        Takes the settings that ``train`` takes, and measures each kind of work on a short game and young networks.

        Args:
            config: settings of the run.
            dynamics_kind: which dynamics; where it is not the preset's, the settings below are that kind's defaults.
            seconds: for which to measure, about; building the networks comes on top.
            json: print JSON, in seconds, operations and bytes.
            device: auto, cpu, cuda or cuda:<index>.
        """
        if not seconds > 0:
            raise InvalidInputError(f"seconds: expected more than 0, got {seconds}.")
        found = measure(replace(config, game=resolve_game(config.game)), resolve_device(device), seconds)
        if json:
            print_json(found.as_dict())
        else:
            print(found.table())

    return plan


def _completion(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> None:
    """Print a script that completes dreamgym's commands and options in a shell.

    bash: dreamgym completion bash > ~/.local/share/bash-completion/completions/dreamgym
    zsh: dreamgym completion zsh > a file _dreamgym in a folder of $fpath
    fish: dreamgym completion fish > ~/.config/fish/completions/dreamgym.fish

    Args:
        shell: bash, zsh or fish.
    """
    functions: dict[str, Callable[..., Any]] = {name: command.make(()) for name, command in COMMANDS.items()}
    script = io.StringIO()
    # tyro prints, and ends.
    with redirect_stdout(script), suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(functions, prog="dreamgym", args=["--tyro-write-completion", shell, "-"])
    # It completes no positional arguments, such as RUN_OR_ID: where it knows nothing, files are offered.
    found = "completions = get_completions(words, current_index, COMPLETION_SPEC)"
    text = script.getvalue().replace(found, f'{found} or ["__TYRO_COMPLETE_FILES__"]')
    # Nor is what bash splits at colons a path.
    print(text.replace('compgen -f -- "$cur"', 'compgen -f -- "${COMP_WORDS[COMP_CWORD]}"'), end="")


def _starting_config(arguments: Sequence[str]) -> "RunConfig":
    """What the other options of ``train`` and ``plan`` replace parts of: a resumed run's settings, or the preset's."""
    from dreamgym.config import make_config
    from dreamgym.run_folder import RunFolder

    parser = argparse.ArgumentParser(prog="dreamgym train", add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--dynamics.kind", dest="kind")
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args(arguments)
    folder = RunFolder(known.out or _default_folder(known.game)) if known.resume else None
    if folder is not None and folder.config_file.is_file():
        config = folder.config()
        if known.preset not in (None, config.preset):
            raise ConfigError(
                f"preset: the run in {folder.path} was begun with {config.preset!r}, which cannot be resumed as "
                f"{known.preset!r}. Leave --preset out, or choose another folder."
            )
        return _with_dynamics(config, known.kind)
    return _with_dynamics(make_config(known.preset or "laptop"), known.kind)


def _with_dynamics(config: "RunConfig", name: str | None) -> "RunConfig":
    """The settings with dynamics of the named kind: as they are where they have that kind already."""
    from dreamgym.world_model import DYNAMICS

    kinds = {kind.__name__: kind for kind in DYNAMICS}
    if name in (None, type(config.dynamics).__name__):
        return config
    if name not in kinds:
        raise ConfigError(f"dynamics.kind: expected {' or '.join(kinds)}, got {name!r}.")
    return replace(config, dynamics=kinds[name]())


def _default_folder(game: str) -> Path:
    """Where a run goes that was not told where, and where its dream is found by id afterwards."""
    from dreamgym.checkpoint import dreamgym_home, run_folder_name
    from dreamgym.real import resolve_game

    return dreamgym_home() / run_folder_name(resolve_game(game))


class Command(NamedTuple):
    """What ``dreamgym --help`` says of a command, and what makes its function, given its arguments."""

    summary: str
    make: Callable[[Sequence[str]], Callable[..., None]]


def _always(function: Callable[..., None]) -> Callable[[Sequence[str]], Callable[..., None]]:
    """A command whose defaults do not depend on its arguments."""
    return lambda arguments: function


COMMANDS: dict[str, Command] = {
    "train": Command("collect, fit, train in the dream, evaluate: round by round, resumable", _train),
    "plan": Command("what a run would take on this machine: time, operations, memory, disk", _plan),
    "evaluate": Command("score in the real game, return in the dream, fidelity of the dream", _always(evaluate)),
    "compare": Command(
        "a video of imagined beside real, or several runs on one page or in one table", _always(compare)
    ),
    "report": Command("a page on a run for people: scores, fidelity, videos, codebook, times", _always(report)),
    "play": Command("play inside the dream with the keyboard", _always(play)),
    "export": Command("a finished run as one small file: dream, policy and where they come from", _always(export)),
    "push": Command("a dream, its picture and a model card to a model hub", _always(push)),
    "pull": Command("a dream from a model hub, at a pinned revision, checked", _always(pull)),
    "data": Command("real steps to a Minari dataset (export) and from one (import)", _always(_data)),
    "list": Command("the dreams that are here: scores, sizes, and which of them ids open", _always(list_dreams)),
    "info": Command(
        "what a dream is, what it scored and where it comes from, or what a preset would be", _always(info)
    ),
    "completion": Command("a script with which bash, zsh or fish complete commands and options", _always(_completion)),
}
