"""What the command line's commands do: evaluate, compare, report, play, export, push, pull.

Training, ``plan``, ``data`` and ``info`` are elsewhere.

Their signatures and docstrings are their ``--help``. What needs torch is imported by the command that needs it.
"""

import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from dreamgym.errors import ConfigError, InvalidInputError, ReplayError
from dreamgym.terminal import print_json

if TYPE_CHECKING:
    import torch

    from dreamgym.checkpoint import Dream
    from dreamgym.config import RunConfig
    from dreamgym.replay import Replay

Flag = tyro.conf.FlagCreatePairsOff
RunOrId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_ID")]

RECORDED_EPISODES = 2
"""How many of the real episodes that ``evaluate`` plays are kept to measure the dream's fidelity on."""

MEASURED_EPISODES, MEASURED_STARTS = 8, 512
"""With ``--fidelity``: most of those episodes, and dreams that start anywhere in them."""

LONGEST_RECORD = 27_000 * RECORDED_EPISODES
"""Most real steps kept of them: 27,000 is the longest episode."""

RANKED_EPISODES = 16
"""Most real episodes of each policy that ``--fidelity`` ranks."""

_PICTURED = (0, 1, 2, 3, 5, 8, 12, 16, 20, 25)
"""Steps of a dream that the picture beside a pushed one shows."""

NEW_PLAY = 1_000
"""Real steps that ``compare`` plays where a dream comes without real experience."""


def evaluate(
    run: RunOrId,
    episodes: int = 32,
    seed: int = 0,
    dream_episodes: int = 64,
    num_envs: int = 8,
    deterministic: Annotated[bool, Flag] = False,
    fidelity: Annotated[bool, Flag] = False,
    policies: int = 8,
    json: Annotated[bool, Flag] = False,
    device: str = "auto",
) -> None:
    """Score a run's agent in the real game and in its dream, and measure how faithful the dream is.

    Args:
        run: a run folder, a file that export wrote, or the id of a dream.
        episodes: complete real episodes to count.
        seed: of the games, of the dreams and of the agent's sampling.
        dream_episodes: dreams to count.
        num_envs: real games played side by side.
        deterministic: take the agent's most likely action instead of sampling.
        fidelity: measure the dream thoroughly, on up to 8 of the real episodes, and say what each number means.
        policies: with --fidelity, how many policies, from the agent down to random actions, the dream is to rank as the
            real game does; each plays up to 16 of --episodes. 0 leaves that out.
        json: print JSON: real, dream, fidelity, and with --fidelity held_out and ranking.
        device: auto, cpu, cuda or cuda:<index>.
    """
    from dreamgym.envs import DreamVectorEnv
    from dreamgym.evaluate import evaluate_dream, evaluate_real
    from dreamgym.fidelity_table import fidelity_tables
    from dreamgym.ranking import LEAST_POLICIES, graded_policies, rank_policies
    from dreamgym.real_env import make_real_env

    _at_least(1, episodes=episodes, dream_episodes=dream_episodes, num_envs=num_envs)
    _at_least(0, seed=seed)
    if policies:
        _at_least(LEAST_POLICIES, policies=policies)
    opened = _open(run, device, quiet=json)
    config, agent = opened.agent()
    place, kind = str(opened.device), config.observation
    record = _empty_replay(opened.dream, LONGEST_RECORD)
    games = make_real_env(
        opened.dream, min(num_envs, episodes), device=place, observation=kind, **asdict(config.game_options)
    )
    real = evaluate_real(
        agent,
        games,
        episodes,
        seed,
        deterministic=deterministic,
        record=record,
        record_episodes=min(MEASURED_EPISODES if fidelity else RECORDED_EPISODES, episodes),
        progress=True,
    )
    dreams = DreamVectorEnv(
        min(64, dream_episodes),
        checkpoint=opened.dream,
        device=place,
        observation=kind,
        reward=config.dream.reward,
        temperature=config.dream.temperature,
        horizon_as=config.dream.horizon_as,
    )
    dream = evaluate_dream(agent, dreams, dream_episodes, seed, deterministic=deterministic)
    found: dict[str, Any] = {"real": real.as_dict(), "dream": dream.as_dict()}
    found["fidelity"] = _fidelity(opened.dream, record, config, seed, MEASURED_STARTS if fidelity else 128)
    if fidelity:
        found["held_out"] = {"episodes": len(record.iter_episodes()), "steps": len(record)}
    if fidelity and policies:
        found["ranking"] = rank_policies(
            graded_policies(agent, games.single_action_space, policies, seed),
            games,
            dreams,
            episodes=min(RANKED_EPISODES, episodes),
            seed=seed,
            deterministic=deterministic,
            progress=True,
        ).as_dict()
    games.close()
    about = _about(opened, config, agent)
    steps = dreams.simulator.horizon
    if json:
        print_json({**about, "seed": seed, "device": place, **found})
        return
    print(
        f"{config.game}, {config.algo} of {opened.source()}, seed {seed}: preset {config.preset}, run's seed "
        f"{config.seed}, {about['interactions']:,} real steps, {about['parameters']:,} parameters, "
        f"{about['seconds'] / 60:.1f} min"
    )
    print(f"  real score   {real.mean:9.2f}   95 % {real.low:.2f} to {real.high:.2f}, {episodes} episodes")
    print(
        f"  dream return {dream.mean:9.2f}   95 % {dream.low:.2f} to {dream.high:.2f}, {dream_episodes} dreams "
        f"of {steps} steps"
    )
    if fidelity:
        print(fidelity_tables(found))
        return
    for name, value in found["fidelity"].items():
        if isinstance(value, float):
            print(f"  {name:<26}{value:9.3f}")


def _about(opened: "_Opened", config: "RunConfig", agent: Any) -> dict[str, Any]:
    """What a score says nothing without: where it comes from and what it took, world model and agent together."""
    from dreamgym.hardware import describe_machine
    from dreamgym.run_folder import run_of

    dream, folder = opened.dream, run_of(opened.file)
    networks = sum(dream.world_model.parameter_counts().values())
    return {
        "run": str(opened.source()),
        "game": config.game,
        "algo": config.algo,
        "preset": config.preset,
        "run_seed": config.seed,
        "interactions": dream.metadata.get("interactions", 0),
        "parameters": networks + sum(parameter.numel() for parameter in agent.policy.parameters()),
        "seconds": dream.metadata.get("seconds", 0.0) if folder is None else folder.progress().seconds,
        "machine": describe_machine(opened.device),
    }


def _fidelity(dream: "Dream", record: "Replay", config: "RunConfig", seed: int, starts: int) -> dict[str, Any]:
    """How faithful the dream is; nothing where the recorded episodes are shorter than the context."""
    from dreamgym.fidelity import fidelity

    try:
        return dict(
            fidelity(
                dream.world_model,
                record,
                context=config.dream.context,
                horizon=config.evaluate.fidelity_horizon,
                life_loss_ends=config.fit.life_loss_ends,
                temperature=config.dream.temperature,
                starts=starts,
                seed=seed,
            )
        )
    except ReplayError:
        return {}


def _at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise InvalidInputError(f"{name}: expected at least {least}, got {value}.")


def compare(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_ID...")],
    out: Path,
    steps: int = 50,
    seed: int = 0,
    fps: int = 8,
    json: Annotated[bool, Flag] = False,
    device: str = "auto",
) -> None:
    """Put the dream beside the real game, the same start, the same actions; or several runs beside each other.

    Of one run: a video, or a strip of frames. The real stretch is one that the world model was not fitted to: from the
    run's last evaluations, or, where there is only a dream and no run, played anew: by the agent that came with the
    dream, else with random actions.

    Of several: a page with their real scores by real steps, with intervals, beside published ones and a table, or a
    table for other programs with a row for every scored round.

    Args:
        runs: run folders, dreams' files, or ids of dreams.
        out: of one run a video (.mp4 or .gif) or a strip of frames (.png); of any number a page (.html) or a table
            (.csv).
        steps: length of the dream.
        seed: of the real game, of the start and of the dream.
        fps: frames a second of the video; the game itself runs at 15.
        json: print JSON: out, and of one run steps, same_codes (0..1), real_rewards and dream_rewards (sums), of
            several runs and scores, how many.
        device: auto, cpu, cuda or cuda:<index>.
    """
    from dreamgym.video import compare_rollouts, side_by_side, strip, write_image, write_video

    _at_least(1, steps=steps, fps=fps)
    _at_least(0, seed=seed)
    kind = out.suffix.lower()
    if not runs:
        raise InvalidInputError("runs: expected at least one run folder, file or id, got none.")
    if kind in (".html", ".csv"):
        from dreamgym.run_comparison import write_page, write_table
        from dreamgym.run_facts import run_facts

        print("device: cpu (nothing is computed)", file=sys.stderr if json else sys.stdout)
        known = [run_facts(run) for run in runs]
        (write_page if kind == ".html" else write_table)(out, known)
        scores = sum(len(one.scored) for one in known)
        if json:
            print_json({"out": str(out), "runs": len(known), "scores": scores})
        else:
            print(f"{out}: {len(known)} runs, {scores} scores")
        return
    if kind not in (".mp4", ".gif", ".png"):
        raise InvalidInputError(f"out: expected a file ending in .mp4, .gif or .png, .html or .csv, got {out}.")
    if len(runs) != 1:
        raise InvalidInputError(f"out: expected a file ending in .html or .csv for {len(runs)} runs, got {out}.")
    (run,) = runs
    opened = _open(run, device, quiet=json)
    seen = compare_rollouts(opened.dream, _unseen(opened, seed), horizon=steps, seed=seed)
    if out.suffix.lower() == ".png":
        write_image(out, strip(seen.real, seen.dream))
    else:
        frames = side_by_side(seen.real, seen.dream, real_rewards=seen.real_rewards, dream_rewards=seen.dream_rewards)
        write_video(out, frames, fps)
    same = float((seen.real_latents == seen.dream_latents)[1:].mean())
    if json:
        sums = {"real_rewards": float(seen.real_rewards.sum()), "dream_rewards": float(seen.dream_rewards.sum())}
        print_json({"out": str(out), "steps": len(seen.real) - 1, "same_codes": same, **sums})
        return
    print(
        f"{out}: {len(seen.real) - 1} steps; {same:.0%} of the dreamt codes are the real ones; "
        f"rewards add up to {seen.real_rewards.sum():+.1f} in the game and {seen.dream_rewards.sum():+.1f} in the dream"
    )


def report(
    run: RunOrId,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Write a page on a run that people can read: scores, fidelity, videos, codebook, times, settings.

    One file that needs no network, also for a phone. Every run writes its own when it ends. An exported file or an id
    without a run holds less: the scores and the fidelity after the last round, but no dreamt returns, no times by
    phase. The page says so. Where there are no held-out episodes, the game is played anew for the pictures, as compare
    does.

    Args:
        run: a run folder, finished or not, a dream's file, or the id of a dream.
        out: the page (.html); by default report.html in the run's folder, and for a file <file's name>.html here.
        seed: of the real game, of the drawn starts and of the dreams.
        device: auto, cpu, cuda or cuda:<index>.
    """
    from dreamgym.run_folder import run_of
    from dreamgym.run_report import REPORT_FILE, write_report

    _at_least(0, seed=seed)
    if out is not None and out.suffix.lower() != ".html":
        raise InvalidInputError(f"out: expected a file ending in .html, got {out}.")
    opened = _open(run, device)
    if out is None:
        own = run_of(opened.file) is not None
        out = opened.file.parent / REPORT_FILE if own else Path(f"{opened.file.stem}.html")
    write_report(out, opened.file, opened.dream, _unseen(opened, seed), seed=seed)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def _unseen(opened: "_Opened", seed: int) -> "Replay":
    """Real experience that the world model was not fitted to."""
    from dreamgym.evaluate import Policy, RandomPolicy, evaluate_real
    from dreamgym.real_env import make_real_env
    from dreamgym.run_folder import run_of

    folder = run_of(opened.file)
    if folder is not None:
        held_out = folder.load_held_out(LONGEST_RECORD, MEASURED_EPISODES)
        if len(held_out):
            return held_out
    replay = _empty_replay(opened.dream, NEW_PLAY)
    policy: Policy | None = None
    settings: dict[str, Any] = {"device": str(opened.device), "max_episode_steps": NEW_PLAY}
    if opened.dream.policy:
        config, policy = opened.agent()
        settings |= {"observation": config.observation, **asdict(config.game_options)}
    game = make_real_env(opened.dream, 1, **settings)
    if policy is None:
        policy = RandomPolicy(game.single_action_space, seed)
    try:
        evaluate_real(policy, game, 1, seed, record=replay, record_episodes=1)
    finally:
        game.close()
    return replay


def play(
    run: RunOrId,
    web: Annotated[bool, Flag] = False,
    port: int = 0,
    browser: Annotated[bool, Flag] = True,
    horizon: int = 0,
    fps: int = 15,
    zoom: float = 2.0,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Play inside the dream, and in the real game from the same moment, with the keyboard.

    Keys are those of ALE's games: w a s d and space; besides: r begins anew, p pauses, n takes a single step, m saves a
    moment, f goes back to it and on with other chance, x switches between the dream and the real game where the dream
    branched off from it. Close the window to stop, or press Ctrl-C.

    Args:
        run: a run folder, a dream's file, or the id of a dream.
        web: play in a browser instead of a window: a page for this machine alone, at an address with a secret in it.
        port: of that page; 0 takes one that is free.
        browser: open the page; without it, or where there is no display, its address is only printed.
        horizon: steps after which the dream starts anew; 0 lets it go on until the game ends.
        fps: steps a second; the game itself runs at 15.
        zoom: size of the window; 1 is about 384 pixels wide.
        seed: of the dream and of the game.
        device: auto, cpu, cuda or cuda:<index>.
    """
    from dreamgym.play_server import require_web
    from dreamgym.play_session import PlaySession
    from dreamgym.play_web import play_in_browser
    from dreamgym.play_window import play_in_window, require_window

    _at_least(1, fps=fps)
    _at_least(0, seed=seed, horizon=horizon)
    if not 0 < zoom < math.inf:
        raise InvalidInputError(f"zoom: expected a finite number of more than 0, got {zoom}.")
    if not 0 <= port <= 65_535:
        raise InvalidInputError(f"port: expected 0 to 65535, got {port}.")
    if not web and (port or not browser):
        raise InvalidInputError("port, no-browser: expected with --web only, which was not given; add it.")
    (require_web if web else require_window)()
    opened = _open(run, device)
    session = PlaySession(opened.dream, horizon=horizon or None, seed=seed)
    try:
        print(f"keys: {session.keys.words()}")
        if web:
            play_in_browser(session, port=port, fps=fps, browser=browser)
        else:
            play_in_window(session, fps, zoom)
    finally:
        session.close()


def export(
    run: RunOrId,
    out: Path | None = None,
    starts: int = 400,
    megabytes: float = 10.0,
    device: str = "auto",
) -> None:
    """Write a finished run as one small file: its dream, its policy, and where both come from.

    The file is read wherever a dream is, by path or, as dreamgym/weights/<Game>.safetensors of an installed package, by
    id. Weights are stored in half precision, but for the few whose rounding would change more than one code in a
    thousand.

    Args:
        run: a run folder, or the id of a dream of which there is a run.
        out: the file, by default <Game>.safetensors in the current folder.
        starts: real moments that its dreams may start from.
        megabytes: largest size of the file, in millions of bytes.
        device: auto, cpu, cuda or cuda:<index>; where the effect of rounding is measured.
    """
    from dreamgym.device import resolve_device
    from dreamgym.export import export_dream
    from dreamgym.hardware import describe_machine

    place = resolve_device(device)
    print(f"device: {place} ({describe_machine(place)})")
    done = export_dream(run, out, starts=starts, megabytes=megabytes, device=place)
    found, about = done.precision, done.metadata
    print(f"{done.file}: {done.size / 1e6:.2f} MB, at most {megabytes:g}")
    print(
        f"  in half precision {found.same_codes:.3%} of the codes of {found.frames:,} real frames and "
        f"{found.same_actions:.1%} of the actions stay the same; chances of next codes change by "
        f"{found.prediction_change:.1e}, expected rewards by {found.reward_change:.1e}"
    )
    print(f"  in full precision: vectors{''.join(f', {name}' for name in found.float32)}")
    missing = [name for name in ("commit", "machine") if not about.get(name)]
    if missing:
        print(f"  not recorded by the run: {', '.join(missing)}")
    print(f"  made again by: {about['command']}")


def push(
    run: RunOrId,
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    out: Path | None = None,
    licence: str = "mit",
    branch: str = "main",
    private: Annotated[bool, Flag] = False,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Publish a dream on a model hub: its file, a model card with score and provenance, facts as JSON, a picture.

    A run is exported first, as export does; a file is sent as it is. The hub, its token and its cache are those of
    huggingface_hub: hf auth login, or HF_TOKEN; HF_ENDPOINT for another hub.

    Args:
        run: a finished run folder, a file that export wrote, or the id of a dream.
        repo: where to; it is made if it is not there.
        out: only write the files into this folder, to look at, and send nothing.
        licence: under which the dream is given away, as the hub names it.
        branch: of the repository.
        private: make a new repository for its owner alone.
        seed: of the picture: of the real game, of the start and of the dream.
        device: auto, cpu, cuda or cuda:<index>; where the picture is dreamt.
    """
    from dreamgym.export import export_dream
    from dreamgym.hub import push_page, require_hub, write_page
    from dreamgym.provenance import file_name
    from dreamgym.run_folder import run_of
    from dreamgym.video import compare_rollouts, strip, write_image

    _at_least(0, seed=seed)
    require_hub()
    if out is not None and out.exists():
        raise ConfigError(f"{out}: expected a folder that is not there yet. Choose another --out.")
    opened = _open(run, device)
    with tempfile.TemporaryDirectory(prefix="dreamgym-") as folder:
        file = opened.file
        if run_of(file) is not None:
            name = f"{file_name(opened.dream.world_model.config.game)}.safetensors"
            file = export_dream(opened.file.parent, Path(folder) / name, device=opened.device).file
        seen = compare_rollouts(opened.dream, _unseen(opened, seed), horizon=_PICTURED[-1], seed=seed)
        shown = [step for step in _PICTURED if step < len(seen.real)]
        picture = write_image(Path(folder) / "picture.png", strip(seen.real, seen.dream, steps=shown))
        files = write_page(out or Path(folder) / "page", file, repo, licence, picture)
        if out is not None:
            print(f"{out}: {', '.join(written.name for written in files)}; nothing was sent")
            return
        done = push_page(files, repo, branch=branch, private=private)
    print(f"{done.url}: {', '.join(done.files)}")
    print(f"  commit {done.commit}; pulled by: dreamgym pull {repo} --revision {done.commit}")


def pull(
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    revision: str = "main",
    out: Path | None = None,
    megabytes: float = 10.0,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Fetch a dream from a model hub at one commit, check it as any untrusted file, and say where it is.

    The file is used as an exported one: evaluate FILE, or checkpoint="FILE". What was pulled once needs no network.

    Args:
        repo: where from.
        revision: a commit; or a branch or tag, whose commit is printed.
        out: where to copy the file to; by default it stays in the hub's cache.
        megabytes: largest size of the file, in millions of bytes.
        json: print JSON: file, repo, revision, commit and facts.
    """
    from dreamgym.hub import pull_dream

    print("device: cpu (nothing is computed)", file=sys.stderr)
    done = pull_dream(repo, revision, out, megabytes=megabytes)
    if json:
        print_json({**asdict(done), "file": str(done.file)})
        return
    if done.revision != done.commit:
        print(f"{repo}: {done.revision} is {done.commit}; the same again: --revision {done.commit}")
    print(f"{done.file}")
    print(
        f"  a dream of {done.facts.get('game')}, {done.facts['bytes']:,} bytes, checked; what it is: dreamgym info FILE"
    )


class _Opened(NamedTuple):
    """A dream and where it came from."""

    dream: "Dream"
    file: Path
    device: "torch.device"

    def agent(self) -> tuple["RunConfig", Any]:
        """The settings of the run that trained its agent, and the agent."""
        from dreamgym.agent import read_agent

        return read_agent(self.file, self.dream, str(self.device))

    def source(self) -> Path:
        """What to call it: the run's folder, or the file of a dream that stands for itself."""
        from dreamgym.run_folder import run_of

        return self.file if run_of(self.file) is None else self.file.parent


def _open(run: str, device: str, *, quiet: bool = False) -> _Opened:
    """Load a dream and say where it is computed."""
    from dreamgym.device import resolve_device
    from dreamgym.dreaming import find_dream
    from dreamgym.hardware import describe_machine

    place = resolve_device(device)
    file, dream = find_dream(run, device=place)
    print(f"device: {place} ({describe_machine(place)})", file=sys.stderr if quiet else sys.stdout)
    return _Opened(dream, file, place)


def _empty_replay(dream: "Dream", capacity: int) -> "Replay":
    """A replay for the dream's frames and actions."""
    from dreamgym.replay import Replay

    config, size = dream.world_model.config, dream.world_model.codec.frame_shape[1:]
    if config.continuous:
        return Replay(capacity, size, (config.num_actions,), "float32")
    return Replay(capacity, size)
