"""The loop: collect -> fit -> train -> evaluate, round by round, resumable after every phase (Robine et al. 2023, Sect. 3.3).

Every phase is a function of the files that the phases before it left and of named random streams, so a run that was killed
and resumed ends with the weights of one that was not.
"""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard.writer import SummaryWriter

from dreamgym.agent import (
    POLICY_FILE,
    ExploringPolicy,
    make_agent,
    observation_kind,
    save_agent,
)
from dreamgym.checkpoint import Dream, StartStates, save_dream
from dreamgym.collect import GameSession, collect_random, collect_with
from dreamgym.config import RunConfig, per_round
from dreamgym.device import resolve_device
from dreamgym.dreaming import DreamOptions
from dreamgym.envs import DreamVectorEnv
from dreamgym.evaluate import RandomPolicy, evaluate_dream, evaluate_real, random_score
from dreamgym.fidelity import fidelity
from dreamgym.fit import Fitter
from dreamgym.hardware import describe_machine, matmul_rates
from dreamgym.observations import ObservationBuilder
from dreamgym.plots import plot_fidelity, plot_scores
from dreamgym.pong import ball_located
from dreamgym.real import make_game_env
from dreamgym.real_env import make_real_env
from dreamgym.replay import Replay
from dreamgym.run_folder import Progress, RunFolder, derive_seed
from dreamgym.sb3 import make_sb3_env
from dreamgym.video import compare_rollouts, side_by_side, strip, write_image, write_video
from dreamgym.world_model import WorldModel, WorldModelConfig

Record = dict[str, Any]


def train(
    config: RunConfig, out: Path | str, *, resume: bool = False, device: str = "auto", progress: bool = True
) -> Path:
    """Run the whole loop into a folder.

    Args:
        config: what to do.
        out: the run folder.
        resume: go on with the run that is there.
        device: where networks compute: "auto", "cpu", "cuda" ...
        progress: show progress bars.

    Returns:
        The run folder.

    Raises:
        ConfigError: the folder holds a run and ``resume`` is False, or that run has another configuration.
        DeviceError: the device is not there.
    """
    target = resolve_device(device)
    folder = RunFolder(out)
    state = folder.begin(config, resume)
    run = _Run(config, folder, target, state, progress)
    try:
        run.play()
    finally:
        run.writer.close()
    return folder.path


class _Run:
    """One run in progress: what the phases share."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, device: torch.device, state: Progress, progress: bool
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.state = state
        self.progress = progress
        self.writer = SummaryWriter(str(folder.tensorboard))
        self.replay = folder.load_replay(config.interactions)
        self.game_options = {
            "sticky_actions": config.game_options.sticky_actions,
            "noop_max": config.game_options.noop_max,
        }
        self.world_model = self._new_world_model().to(device)
        self.fitter = Fitter(self.world_model, config.fit)
        self.parameters: dict[str, Any] | None = None
        self._restore()

    def play(self) -> None:
        """All phases from where the run stands."""
        config, state = self.config, self.state
        rates = matmul_rates(self.device)
        self._say(
            f"{config.game}, preset {config.preset}, seed {config.seed}, {config.algo}, device {self.device}: "
            f"{config.rounds} rounds, {config.interactions:,} real steps. {describe_machine(self.device)}; matrix products "
            f"{rates['float32']:.0f} GFLOP/s float32, {rates['bfloat16']:.0f} bfloat16."
        )
        phases: dict[str, Callable[[int], Record]] = {
            "collect": self._collect,
            "fit": self._fit,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        while state.round < config.rounds:
            started, round_index, phase = time.monotonic(), state.round, state.phase
            record = phases[phase](round_index)
            seconds = time.monotonic() - started
            state.seconds += seconds
            self._write_scalars(record, round_index)
            self.folder.finish_phase(state, {"seconds": seconds, **record})
            if phase == "evaluate":
                self._say(_round_line(self.folder.log(), round_index, state.seconds))
        self._finish(rates)

    # Phases. Each returns its record for the log.

    def _collect(self, index: int) -> Record:
        config = self.config
        steps = config.collect.first_steps if index == 0 else config.collect.steps
        planned = config.collect.first_steps + index * config.collect.steps
        # A crash between saving the records and counting the phase leaves them all there.
        missing = planned - len(self.replay)
        if missing > 0:
            self._play_game(index, missing)
            self.replay.save(self.folder.replay)
        recent = np.arange(planned - steps, planned)
        rewards = self.replay.rewards_at(recent)
        return {
            "interactions": planned,
            "collect/reward": float(rewards.sum()),
            "collect/episodes": int(self.replay.ends_at(recent).sum()),
        }

    def _play_game(self, index: int, steps: int) -> None:
        config = self.config
        size = config.codec.frame_size
        env = make_game_env(config.game, stack=1, size=size, **self.game_options)
        try:
            session = GameSession(env, self.replay, lambda n: derive_seed(config.seed, "episode", n))
            seed = derive_seed(config.seed, "collect", index)
            if index == 0:
                collect_random(session, steps, RandomPolicy(env.action_space, seed), progress=self.progress)
                return
            explore = config.collect
            policy = ExploringPolicy(self._agent(index), explore.temperature, explore.epsilon, seed)
            builder = ObservationBuilder(
                self.world_model, observation_kind(config.algo), config.dream.latent_stack, hidden_state=False
            )
            stack = config.dream.latent_stack
            collect_with(session, steps, policy, self.world_model, builder, stack, seed, progress=self.progress)
        finally:
            env.close()

    def _fit(self, index: int) -> Record:
        config = self.config
        report = self.fitter.fit(
            self.replay,
            per_round(config.codec_updates, index),
            per_round(config.dynamics_updates, index),
            np.random.default_rng(derive_seed(config.seed, "fit", index)),
            torch.Generator().manual_seed(derive_seed(config.seed, "fit", index)),
            progress=self.progress,
        )
        state = {
            "world_model": self.world_model.state_dict(),
            "fitter": self.fitter.state_dict(),
            "visits": torch.from_numpy(self.replay.visits),
        }
        self.folder.save_model(index, state)
        save_dream(self.folder.path, self._dream(index))
        return {f"fit/{name}": value for name, value in report.items()}

    def _train(self, index: int) -> Record:
        config = self.config
        steps = per_round(config.imagined_steps, index)
        agent = self._agent(index, tensorboard_log=str(self.folder.tensorboard))
        agent.learn(steps, tb_log_name=f"agent_round_{index}", progress_bar=self.progress and sys.stderr.isatty())
        self.parameters = agent.get_parameters()
        self.folder.save_policy(index, self.parameters)
        save_agent(self.folder.path / POLICY_FILE, agent)
        self.state.imagined_steps += agent.num_timesteps
        agent.get_env().close()
        return {"imagined_steps": self.state.imagined_steps}

    def _evaluate(self, index: int) -> Record:
        config, measure = self.config, self.config.evaluate
        last = index == config.rounds - 1
        episodes = measure.final_episodes if last else measure.episodes
        dream, agent = self._dream(index), self._agent(index)
        kind = observation_kind(config.algo)
        seed = derive_seed(config.seed, "evaluate", index)
        held_out = Replay(27_000 * max(1, measure.record_episodes), (config.codec.frame_size,) * 2)
        envs = min(measure.num_envs, episodes)
        real = make_real_env(dream, envs, device=str(self.device), observation=kind, **self.game_options)
        recorded = min(measure.record_episodes, episodes)
        try:
            score = evaluate_real(
                agent, real, episodes, seed, record=held_out, record_episodes=recorded, progress=self.progress
            )
        finally:
            real.close()
        count = min(config.dream.num_envs, measure.dream_episodes)
        dreams = DreamVectorEnv(
            count, checkpoint=dream, device=str(self.device), observation=kind, seed=seed, **self._dream_options()
        )
        dreamt = evaluate_dream(agent, dreams, measure.dream_episodes, seed)
        dreams.close()
        record: Record = {"real": score.as_dict(), "dream": dreamt.as_dict()}
        if index == 0:
            played = random_score(config.game, measure.final_episodes, seed, **self.game_options)
            record["random"] = played.as_dict()
        if len(held_out):
            record["fidelity"] = self._measure_dream(dream, held_out, seed)
            shutil.rmtree(self.folder.held_out, ignore_errors=True)
            held_out.save(self.folder.held_out)
        if last:
            save_dream(self.folder.path, self._dream(index, finished=True, score=score.as_dict()))
        return record

    def _measure_dream(self, dream: Dream, held_out: Replay, seed: int) -> Record:
        """Fidelity on real episodes that were not fitted to; in Pong also whether the ball is there."""
        config = self.config
        measured: Record = dict(
            fidelity(
                dream.world_model,
                held_out,
                context=config.dream.context,
                horizon=config.dream.horizon,
                starts=config.evaluate.fidelity_starts,
                life_loss_ends=config.fit.life_loss_ends,
                seed=seed,
            )
        )
        if config.game == "Pong" and dream.world_model.frame_stack == 1:
            frames = held_out.frames_at(np.arange(0, len(held_out), max(1, len(held_out) // 1000)))
            located = ball_located(dream.world_model, frames, held_out.background())
            measured |= {"ball_located": located} if np.isfinite(located) else {}
        return measured

    # What the phases are made of.

    def _new_world_model(self) -> WorldModel:
        config = self.config
        env = make_game_env(config.game, stack=1, size=config.codec.frame_size, **self.game_options)
        space: Any = env.action_space
        env.close()
        continuous = not hasattr(space, "n")
        return WorldModel(
            WorldModelConfig(
                game=config.game,
                num_actions=int(np.prod(space.shape)) if continuous else int(space.n),
                continuous=continuous,
                codec=config.codec,
                dynamics=config.dynamics,
                bf16=config.bf16,
            ),
            seed=derive_seed(config.seed, "world model"),
        )

    def _restore(self) -> None:
        """Load the weights that the next phase builds on."""
        fitted = self.state.round if self.state.phase in ("train", "evaluate") else self.state.round - 1
        if fitted >= 0:
            saved = self.folder.load_model(fitted)
            self.world_model.load_state_dict(saved["world_model"])
            self.fitter.load_state_dict(saved["fitter"])
            visits = np.zeros(len(self.replay), dtype=np.int64)
            visits[: len(saved["visits"])] = saved["visits"].numpy()
            self.replay.visits = visits
        trained = self.state.round if self.state.phase == "evaluate" else self.state.round - 1
        if trained >= 0:
            self.parameters = self.folder.load_policy(trained)

    def _agent(self, index: int, **settings: Any) -> Any:
        """The agent on this round's dream, made anew from its tensors, so that a resumed run is like any other."""
        config = self.config
        env = make_sb3_env(
            self._dream(index),
            config.dream.num_envs,
            device=str(self.device),
            observation=observation_kind(config.algo),
            stagger=config.dream.stagger,
            seed=derive_seed(config.seed, "dream", index),
            **self._dream_options(),
        )
        agent = make_agent(config, env, derive_seed(config.seed, "agent", index), str(self.device), **settings)
        if self.parameters is not None:
            agent.set_parameters(self.parameters, device=str(self.device))
        return agent

    def _dream_options(self) -> DreamOptions:
        dream = self.config.dream
        return {"reward": dream.reward, "temperature": dream.temperature, "horizon_as": dream.horizon_as}

    def _dream(self, index: int, finished: bool = False, score: Record | None = None) -> Dream:
        config = self.config
        metadata = {
            "game": config.game,
            "preset": config.preset,
            "seed": config.seed,
            "round": index,
            "interactions": config.collect.first_steps + index * config.collect.steps,
            "horizon": config.dream.horizon,
            "finished": finished,
            "score": score,
        }
        return Dream(self.world_model, self._starts(index), config.dream.latent_stack, metadata)

    def _starts(self, index: int) -> StartStates:
        """Real moments for this round's dreams, with the context before each."""
        config = self.config
        rng = np.random.default_rng(derive_seed(config.seed, "starts", index))
        windows = self.replay.sample_starts(min(config.dream.start_states, len(self.replay)), config.dream.context, rng)
        needed, places = np.unique(windows.indices, return_inverse=True)
        latents = torch.cat(
            [
                self.world_model.encode(self.replay.frames_at(part, self.world_model.frame_stack))
                for part in np.array_split(needed, max(1, len(needed) // 512))
            ]
        )
        chosen = latents.to(torch.uint8).cpu()[torch.as_tensor(places.reshape(windows.indices.shape))]
        actions = torch.as_tensor(self.replay.actions_at(windows.indices))
        return StartStates(chosen, actions, torch.as_tensor(windows.mask))

    def _write_scalars(self, record: Record, index: int) -> None:
        step = self.config.collect.first_steps + index * self.config.collect.steps
        for name, value in _flat(record):
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def _finish(self, rates: dict[str, float]) -> None:
        """Pictures of the finished run, and its table."""
        log, path = self.folder.log(), self.folder.path
        evaluated = [entry for entry in log if entry["phase"] == "evaluate"]
        interactions = [entry["interactions"] for entry in log if entry["phase"] == "collect"]
        plot_scores(
            path / "scores.png",
            {self.config.game: [entry["real"] for entry in evaluated]},
            interactions=interactions,
            random=evaluated[0]["random"]["mean"],
            title=f"{self.config.game}, real score by round",
        )
        measured = {f"round {e['round'] + 1}": e["fidelity"] for e in evaluated[-1:] if "fidelity" in e}
        if measured:
            plot_fidelity(path / "fidelity.png", measured, title="Fidelity on held-out real episodes")
        video = write_comparison(self._dream(self.config.rounds - 1), self._shown(), path / "imagined_vs_real.mp4")
        self._say(summary_table(log))
        self._say(
            f"{self.state.seconds / 60:.1f} min of phases on {describe_machine(self.device)} at {rates['bfloat16']:.0f} "
            f"GFLOP/s bfloat16 (2048^3 matrix product); {self.state.imagined_steps:,} imagined steps.\nVideo: {video}"
        )

    def _shown(self) -> Replay:
        held_out = self.folder.load_held_out(27_000 * max(1, self.config.evaluate.record_episodes))
        return held_out if len(held_out) else self.replay

    def _say(self, text: str) -> None:
        print(text, flush=True)


def write_comparison(dream: Dream, replay: Replay, path: Path, horizon: int = 50, seed: int = 0) -> Path:
    """Write a video of the dream beside the real game, same start and same actions, and a strip of it beside the video.

    Args:
        dream: what dreams.
        replay: real experience with an episode of some length.
        path: of the video, .mp4 or .gif; the strip has the same name and ends in .png.
        horizon: steps shown.
        seed: of the start and of the dream.

    Returns:
        The video's path.
    """
    shown = compare_rollouts(dream, replay, horizon=horizon, seed=seed)
    frames = side_by_side(shown.real, shown.dream, real_rewards=shown.real_rewards, dream_rewards=shown.dream_rewards)
    write_image(path.with_suffix(".png"), strip(shown.real, shown.dream, steps=list(range(min(25, len(shown.real))))))
    return write_video(path, frames)


def summary_table(log: list[Record]) -> str:
    """The run round by round: real score with its interval beside the random one, dream return, fidelity.

    Args:
        log: the run's records.

    Returns:
        Lines of text.
    """
    evaluated = {e["round"]: e for e in log if e["phase"] == "evaluate"}
    steps = {e["round"]: e["interactions"] for e in log if e["phase"] == "collect"}
    lines = [
        f"{'round':>6} {'real steps':>10} {'real score':>11} {'95 % interval':>17} {'dream':>7}  codes@1 codes@25  lost   won"
    ]
    first = evaluated[0].get("random")
    if first:
        lines.append(f"{'random':>6} {0:>10} {first['mean']:>11.2f} {_interval(first):>17}")
    for index, entry in sorted(evaluated.items()):
        measured = entry.get("fidelity", {})
        last = max(
            (int(n.removeprefix("code_accuracy_")) for n in measured if n.startswith("code_accuracy_")), default=1
        )
        columns = [measured.get(n) for n in ("code_accuracy_1", f"code_accuracy_{last}", "recall_lost", "recall_won")]
        shown = ["-" if c is None else f"{c:.2f}" for c in columns]
        lines.append(
            f"{index + 1:>6} {steps[index]:>10} {entry['real']['mean']:>11.2f} {_interval(entry['real']):>17} "
            f"{entry['dream']['mean']:>7.2f}  {shown[0]:>7} {shown[1]:>8} {shown[2]:>5} {shown[3]:>5}"
        )
    return "\n".join(lines)


def _interval(score: Record) -> str:
    return f"[{score['low']:.2f}, {score['high']:.2f}]"


def _round_line(log: list[Record], index: int, seconds: float) -> str:
    entries = {e["phase"]: e for e in log if e["round"] == index}
    real, fit = entries["evaluate"]["real"], entries["fit"]
    measured = entries["evaluate"].get("fidelity", {})
    spent = ", ".join(f"{phase} {entries[phase]['seconds']:.0f} s" for phase in entries)
    return (
        f"round {index + 1}: {entries['collect']['interactions']:,} real steps, real score {real['mean']:.2f} {_interval(real)}, "
        f"dream {entries['evaluate']['dream']['mean']:.2f}, codec {fit.get('fit/codec/reconstruction', float('nan')):.0f} nats, "
        f"codes {measured.get('code_accuracy_1', float('nan')):.2f}, lost points seen {measured.get('recall_lost', float('nan')):.2f}, "
        f"ball {measured.get('ball_located', float('nan')):.2f}; {spent}; {seconds / 60:.1f} min in all"
    )


def _flat(record: Record, prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of a nested record by path; lists are left out."""
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found.append((f"{prefix}{name}", float(value)))
    return found
