"""The loop: collect -> fit -> train -> evaluate, round by round (Robine et al. 2023, Sect. 3.3).

Every phase is a function of the files that the phases before it left and of named random streams, so a run that was
killed and resumed ends with the weights of one that was not.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch.utils.tensorboard.writer import SummaryWriter

from dreamgym.acts import real_acts
from dreamgym.agent import (
    POLICY_FILE,
    ExploringPolicy,
    make_agent,
    save_agent,
    set_parameters,
)
from dreamgym.checkpoint import DREAM_FILE, Dream, StartStates, save_dream
from dreamgym.collect import GameSession, SessionGames, collect_random, collect_with
from dreamgym.config import RunConfig, per_round
from dreamgym.device import resolve_device
from dreamgym.dreaming import DreamOptions
from dreamgym.envs import DreamVectorEnv
from dreamgym.errors import CheckpointError, ConfigError, DreamgymError, ReplayError, SickRunError
from dreamgym.evaluate import RandomPolicy, evaluate_dream, evaluate_real, random_score
from dreamgym.fidelity import fidelity
from dreamgym.fit import Fitter
from dreamgym.hardware import describe_machine, forget_peak_memory, matmul_rates, most_memory
from dreamgym.health import LOWER_RATE, below_random, finite_weights, sick_agent, sick_fit
from dreamgym.held_out import MOST_HELD_OUT, longest_episode, missing_episodes
from dreamgym.imported import Experience
from dreamgym.observations import ObservationBuilder
from dreamgym.plots import plot_fidelity, plot_scores
from dreamgym.pong import ball_survival
from dreamgym.provenance import machine_record
from dreamgym.real import flicker, make_game_env
from dreamgym.real_env import GameOptions, RealVectorEnv, make_real_env
from dreamgym.replay import Replay
from dreamgym.report import Record, flat_numbers, rollout_strip, round_line, summary_table, write_comparison
from dreamgym.run_folder import Progress, RunFolder, derive_seed, evaluations
from dreamgym.run_lock import locked
from dreamgym.run_report import REPORT_FILE, write_report
from dreamgym.sb3 import VectorEnvAdapter, is_off_policy, is_on_policy, lower_rate, make_sb3_env
from dreamgym.storage import check_clock, storage_faults
from dreamgym.terminal import shows_bars
from dreamgym.transitions import real_transitions, remember
from dreamgym.world_model import WorldModel, WorldModelConfig

_log = logging.getLogger("dreamgym")

_FLICKER = 5.0
"""Pixels of a screen that may come and go with every emulator frame before it is said."""


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
        RunInUseError: another process works on the folder.
        SickRunError: training went wrong, and again at a lower rate; the run can be resumed.
        StorageError: the disk is full, or the folder cannot be written; the run can be resumed.
    """
    target = resolve_device(device)
    folder = RunFolder(out)
    with storage_faults(folder.path, folder.resume_command(device)), locked(folder.path):
        check_clock()
        folder.remove_remains()
        _train(config, folder, target, resume, progress)
    return folder.path


def _train(config: RunConfig, folder: RunFolder, target: torch.device, resume: bool, progress: bool) -> None:
    """:func:`train` in a folder that nobody else works on."""
    new = not folder.config_file.is_file()
    state = folder.begin(config, resume)
    try:
        run = _Run(config, folder, target, state, progress)
    except DreamgymError:
        if new:
            # It was never a run: the folder stays free for one with other settings.
            folder.config_file.unlink()
        raise
    folder.lengthen(config)
    try:
        run.play()
    finally:
        # What it still holds are scalars: they must not hide what went wrong before.
        with suppress(OSError):
            run.writer.close()


def game_actions(config: RunConfig) -> spaces.Discrete | spaces.Box:
    """The action space of a run's game.

    Raises:
        ConfigError: no dream can be acted in like that.
    """
    env = make_game_env(config.game, stack=1, **config.codec.screen)
    env.close()
    space = env.action_space
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return space
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded("both"):
        return space
    raise ConfigError(f"{config.game}: expected actions counted from 0 or a bounded vector of numbers, got {space}.")


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
        self.game_options: GameOptions = {
            "sticky_actions": config.game_options.sticky_actions,
            "noop_max": config.game_options.noop_max,
        }
        self.actions = game_actions(config)
        self.imported: Experience | None = None
        if config.data and (state.round, state.phase) == (0, "collect"):
            self.imported = Experience(config.data)
            self.imported.check(config, self.actions)
        self._open()
        # What cannot work shall fail now, not after the first fit.
        self._check_learning(self._agent(state.round, self._blank_dream()))
        self.writer = SummaryWriter(str(folder.tensorboard))

    def play(self) -> None:
        """All phases from where the run stands."""
        config, state = self.config, self.state
        rates = matmul_rates(self.device)
        if state.round < config.rounds:
            self.folder.save_machine(machine_record(config, self.device, rates))
        self._say(
            f"{config.game}, preset {config.preset}, seed {config.seed}, {config.algo}, device {self.device}: "
            f"{config.rounds} rounds, {config.interactions:,} real steps. {describe_machine(self.device)}; "
            f"matrix products {rates['float32']:.0f} GFLOP/s float32, {rates['bfloat16']:.0f} bfloat16."
        )
        if not config.codec.max_pool and flicker(config.game) > _FLICKER:
            _log.warning(
                "%s draws some things in every second frame only, and codec.max_pool=False may never show them: "
                "--codec.max-pool shows the maximum of two frames.",
                config.game,
            )
        phases: dict[str, Callable[[int], Record]] = {
            "collect": self._collect,
            "fit": self._fit,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        while state.round < config.rounds:
            started, round_index, phase = time.monotonic(), state.round, state.phase
            forget_peak_memory(self.device)
            try:
                record = phases[phase](round_index)
            except SickRunError as error:
                state.seconds += time.monotonic() - started
                self._remedy(str(error))
                continue
            seconds = time.monotonic() - started
            state.seconds += seconds
            self._write_scalars(record, round_index)
            if state.sick:
                record["sick"] = list(state.sick)
            if state.damage:
                record["damage"] = list(state.damage)
            self.folder.finish_phase(state, {"seconds": seconds, **most_memory(self.device), **record})
            if phase == "evaluate":
                self._say(round_line(self.folder.log(), round_index, state.seconds))
        self._finish(rates)

    def _remedy(self, seen: str) -> None:
        """Go back to what the phase began with, and lower its learning rate; done once for a phase.

        Raises:
            SickRunError: it was done before. The run stays where it can be resumed, at a rate lower still.
        """
        state, config = self.state, self.config
        if state.phase == "collect":
            seen += f" The {config.collected(state.round):,} real steps of this try are thrown away, and not counted."
        given_up = bool(state.sick)
        rate = f"at {LOWER_RATE ** (len(state.sick) + 1):.2g} of the learning rate"
        seen = f"Round {state.round + 1}, {state.phase}: {seen}"
        done = "Stopped" if given_up else f"Back to what the phase began with, and once more {rate}"
        state.sick = (*state.sick, f"{seen} {done}.")
        self.folder.save_progress(state)
        if given_up:
            raise SickRunError(
                f"{seen} It went wrong before, at a higher rate; nothing of this try was kept. Go on with: "
                f"{self.folder.resume_command()}, which tries this phase once more {rate}."
            )
        _log.warning("%s", state.sick[-1])
        # There may be no memory for the experience twice.
        del self.replay, self.fitter
        self._open()

    # Phases. Each returns its record for the log.

    def _collect(self, index: int) -> Record:
        config = self.config
        steps, planned = config.collected(index), self._interactions(index)
        # A crash between saving the records and counting the phase leaves them all there, and what they taught.
        missing = planned - self.state.lost - len(self.replay)
        imported, self.imported = self.imported, None
        if missing > 0:
            if imported is not None:
                imported.append_to(self.replay, config.codec.screen)
                missing -= imported.facts.steps
            if missing > 0:
                self._play_game(index, missing)
            self.replay.save(self.folder.replay)
        elif self._learns_in_game(index):
            self.parameters = self.folder.load_played(index)
        recent = np.arange(len(self.replay) - steps, len(self.replay))
        rewards = self.replay.rewards_at(recent)
        return {
            "interactions": planned,
            "collect/reward": float(rewards.sum()),
            "collect/episodes": int(self.replay.ends_at(recent).sum()),
            **({} if imported is None else {"data": asdict(imported.facts)}),
        }

    def _play_game(self, index: int, steps: int) -> None:
        config = self.config
        env = make_game_env(config.game, stack=1, **config.codec.screen, **self.game_options)
        try:
            session = GameSession(env, self.replay, self._episode_seed)
            seed = derive_seed(config.seed, "collect", index)
            if index == 0:
                collect_random(session, steps, RandomPolicy(env.action_space, seed), progress=self.progress)
                return
            if self._learns_in_game(index):
                agent = self._agent_in_game(index, session, tensorboard_log=str(self.folder.tensorboard))
                self._learn(agent, steps, f"agent_in_game_round_{index}")
                self.parameters = agent.get_parameters()
                self.folder.save_played(index, self.parameters)
                return
            explore = config.collect
            policy = ExploringPolicy(
                self._agent(index, self._blank_dream()), explore.temperature, explore.epsilon, seed
            )
            stack = config.dream.latent_stack
            collect_with(session, steps, policy, self.world_model, self._builder(), stack, seed, progress=self.progress)
        finally:
            env.close()

    def _fit(self, index: int) -> Record:
        config = self.config
        self.fitter.rate = self._rate
        with finite_weights(self.world_model.state_dict):
            report = self.fitter.fit(
                self.replay,
                per_round(config.codec_updates, index),
                per_round(config.dynamics_updates, index),
                np.random.default_rng(derive_seed(config.seed, "fit", index)),
                torch.Generator().manual_seed(derive_seed(config.seed, "fit", index)),
                progress=self.progress,
            )
        before = next((e for e in reversed(self.folder.log()) if e["phase"] == "fit" and e["round"] < index), {})
        losses = {name.removeprefix("fit/"): value for name, value in before.items() if name.startswith("fit/")}
        if seen := sick_fit(self.fitter, self.replay, report, losses):
            raise SickRunError(seen)
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
        if index in config.fresh_agent:
            self.parameters = {}
        agent = self._agent(index, self._dream(index), tensorboard_log=str(self.folder.tensorboard))
        if steps:
            self._remind(agent)
        try:
            self._learn(agent, steps, f"agent_round_{index}")
        finally:
            self.state.imagined_steps += agent.num_timesteps
        self.parameters = agent.get_parameters()
        self.folder.save_policy(index, self.parameters)
        save_agent(self.folder.path / POLICY_FILE, agent)
        agent.get_env().close()
        return {"imagined_steps": self.state.imagined_steps}

    def _evaluate(self, index: int) -> Record:
        config, measure = self.config, self.config.evaluate
        last = index == config.rounds - 1
        if not last and (index + 1) % measure.every:
            return self._measure_dream(derive_seed(config.seed, "evaluate", index))
        episodes = measure.final_episodes if last else measure.episodes
        recorded = min(measure.record_episodes, episodes)
        if recorded:
            recorded = max(
                recorded, missing_episodes(len(self.replay.iter_episodes()), self.folder.held_out_before(index))
            )
        episodes = max(episodes, recorded)
        dream = self._dream(index)
        agent = self._agent(index, dream)
        kind = config.observation
        seed = derive_seed(config.seed, "evaluate", index)
        held_out = self._empty_replay(MOST_HELD_OUT)
        envs = min(measure.num_envs, episodes)
        real = make_real_env(dream, envs, device=str(self.device), observation=kind, **self.game_options)
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
        random = next((e["random"] for e in evaluations(self.folder.log()) if e["round"] < index), None)
        if random is None:
            played = random_score(config.game, measure.final_episodes, seed, **self.game_options)
            random = record["random"] = played.as_dict()
        if seen := below_random(record["real"], random):
            # Nothing to do again: what it was trained in is what there was, and the next round learns of this play.
            following = "more rounds (--resume --rounds) go on from it" if last else "the next round collects with it"
            record["sick"] = [f"Round {index + 1}, evaluate: {seen} No phase is done again: {following}."]
            _log.warning("%s", record["sick"][0])
        if recorded:
            self.folder.save_held_out(index, held_out)
            record["held_out"] = {"episodes": len(held_out.iter_episodes()), "steps": len(held_out)}
            record |= self._measure_dream(seed)
            if longest_episode(held_out) >= config.dream.context:
                picture = rollout_strip(dream, held_out, seed)
                self.writer.add_image("imagined_beside_real", picture, self._interactions(index), dataformats="HWC")
        if last:
            if config.newest_share(index):
                # What is handed on is for policies that play otherwise, too.
                dream = replace(dream, starts=self._starts(index, newest_share=0.0))
            dream.metadata |= {"finished": True, "score": score.as_dict()}
            save_dream(self.folder.path, dream)
        return record

    def _measure_dream(self, seed: int) -> Record:
        """Fidelity on the newest held-out episodes, if there are any; in Pong also whether the ball is there."""
        config = self.config
        held_out = self.folder.load_held_out(MOST_HELD_OUT, config.evaluate.fidelity_episodes)
        if longest_episode(held_out) < config.dream.context:
            return {}
        measured: Record = dict(
            fidelity(
                self.world_model,
                held_out,
                context=config.dream.context,
                horizon=config.evaluate.fidelity_horizon,
                starts=config.evaluate.fidelity_starts,
                life_loss_ends=config.fit.life_loss_ends,
                temperature=config.dream.temperature,
                seed=seed,
            )
        )
        located = ball_survival(self.world_model, held_out)
        if located is not None:
            measured["ball_located"] = located
        return {"fidelity": measured}

    # What the phases are made of.

    def _open(self) -> None:
        """All that the phases work on, as the phase to go on with begins: from the files, or new."""
        self.replay = self._load_replay()
        self.world_model = self._new_world_model().to(self.device)
        self.fitter = Fitter(self.world_model, self.config.fit)
        self.parameters: dict[str, Any] = {}
        self._restore()

    @property
    def _counted(self) -> int:
        """Real steps that the finished phases collected."""
        counted = self.state.round + (self.state.phase != "collect")
        return self._interactions(counted - 1) if counted else 0

    def _load_replay(self) -> Replay:
        """The experience so far; what is damaged of it is put aside, and said."""
        capacity = self.config.interactions
        try:
            return self.folder.load_replay(self._empty_replay(capacity))
        except ReplayError:
            replay = self.folder.salvage_replay(self.state, capacity, self._counted)
        _log.warning("%s", self.state.damage[-1])
        return replay

    def _episode_seed(self, number: int) -> int:
        """Of an episode of real play; where some were lost their numbers stand for others, which are seeded anew."""
        lost = self.state.lost
        return derive_seed(self.config.seed, "episode", *((lost, number) if lost else (number,)))

    @property
    def _rate(self) -> float:
        """What the learning rate of the phase to go on with is multiplied by."""
        return LOWER_RATE ** len(self.state.sick)

    def _learn(self, agent: Any, steps: int, name: str) -> None:
        """Let an agent learn for so many steps, of the game or of dreams.

        Raises:
            SickRunError: what it learned is of no use.
        """
        lower_rate(agent, self._rate)
        with finite_weights(agent.get_parameters):
            agent.learn(steps, tb_log_name=name, progress_bar=self._shows_bars)
        if seen := sick_agent(agent, self.config.ppo.gamma):
            raise SickRunError(seen)

    def _empty_replay(self, capacity: int) -> Replay:
        frame = self.config.codec.frame
        if isinstance(self.actions, spaces.Box):
            return Replay(capacity, frame, self.actions.shape, np.float32)
        return Replay(capacity, frame)

    def _new_world_model(self) -> WorldModel:
        config, actions = self.config, self.actions
        return WorldModel(
            WorldModelConfig(
                game=config.game,
                num_actions=int(actions.shape[0]) if isinstance(actions, spaces.Box) else int(actions.n),
                continuous=isinstance(actions, spaces.Box),
                codec=config.codec,
                dynamics=config.dynamics,
                bf16=config.bf16,
                phase_bits=config.phase_bits,
            ),
            seed=derive_seed(config.seed, "world model"),
        )

    def _restore(self) -> None:
        """Load the weights that the next phase builds on.

        Raises:
            CheckpointError: weights are missing or damaged.
            ReplayError: experience is missing.
        """
        expected = self._counted - self.state.lost
        if len(self.replay) < expected:
            raise ReplayError(
                f"{self.folder.replay}: expected {expected} records, got {len(self.replay)}. Restore the folder."
            )
        fitted = self.state.round if self.state.phase in ("train", "evaluate") else self.state.round - 1
        if fitted >= 0:
            saved = self.folder.load_model(fitted)
            try:
                self.world_model.load_state_dict(saved["world_model"])
                self.fitter.load_state_dict(saved["fitter"])
                visits = np.zeros(len(self.replay), dtype=np.int64)
                if fitted >= self.state.visits_from:
                    visits[: len(saved["visits"])] = saved["visits"].numpy()
                self.replay.visits = visits
            except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(
                    f"{self.folder.checkpoints}: the model of round {fitted} does not fit the run's settings: {error}. "
                    "Restore it or start the run anew."
                ) from error
        trained = self.state.round if self.state.phase == "evaluate" else self.state.round - 1
        if self.state.phase in ("fit", "train") and self.folder.has_played(self.state.round):
            self.parameters = self.folder.load_played(self.state.round)
        elif trained >= 0:
            self.parameters = self.folder.load_policy(trained)

    def _agent(self, index: int, dream: Dream, **settings: Any) -> Any:
        """The agent on a dream, made anew from its tensors, so that a resumed run is like any other."""
        config = self.config
        options: DreamOptions = {**self._dream_options(), "stagger": config.dream.stagger}
        env = make_sb3_env(
            dream,
            config.dream.num_envs,
            device=str(self.device),
            observation=config.observation,
            seed=derive_seed(config.seed, "dream", index),
            horizon=config.dream.late_horizon if config.is_late(index) and config.dream.late_horizon else None,
            **options,
        )
        agent = make_agent(config, env, derive_seed(config.seed, "agent", index), str(self.device), **settings)
        if self.parameters:
            set_parameters(agent, self.parameters, self.world_model)
        return agent

    def _agent_in_game(self, index: int, session: GameSession, **settings: Any) -> Any:
        """The agent on the real game that a session records."""
        config, dream = self.config, self._blank_dream()
        games = SessionGames(session, self.world_model.frame_stack, config.fit.life_loss_ends)
        env = VectorEnvAdapter(RealVectorEnv(dream, self._builder(), games, None, None))
        if is_off_policy(config.algo):
            settings["gradient_steps"] = config.off_policy.real_updates
        else:
            imagining = self._agent(index, dream)
            settings["n_steps"] = together = self._learned_at_once(imagining)
            if hasattr(imagining, "batch_size"):
                # Minibatches of one size.
                sizes = range(1, imagining.batch_size + 1)
                settings["batch_size"] = max(size for size in sizes if together % size == 0)
        agent = make_agent(config, env, derive_seed(config.seed, "agent in game", index), str(self.device), **settings)
        if self.parameters:
            set_parameters(agent, self.parameters, self.world_model)
        self._remind(agent)
        return agent

    def _builder(self) -> ObservationBuilder:
        config = self.config
        return ObservationBuilder(self.world_model, config.observation, config.dream.latent_stack, hidden_state=False)

    def _remind(self, agent: Any) -> None:
        """An algorithm that keeps a replay buffer of its own begins with all real experience in it."""
        config = self.config
        if not is_off_policy(config.algo):
            return
        past = real_transitions(
            self.fitter.latents(self.replay),
            self.replay,
            config.dream.latent_stack,
            config.fit.life_loss_ends,
            self._builder(),
        )
        if remember(agent.replay_buffer, past) >= config.off_policy.batch_size:
            agent.learning_starts = 0

    def _learns_in_game(self, index: int) -> bool:
        algo = self.config.algo
        return self.config.learns_in_game(index) and (is_on_policy(algo) or is_off_policy(algo))

    def _learned_at_once(self, imagining: Any) -> int:
        """Real steps that an agent learns from together, given that which does so in dreams."""
        return self.config.collect.learn_every or imagining.n_steps * self.config.dream.num_envs

    def _check_learning(self, agent: Any) -> None:
        """Whether the agent can learn from all the real steps that the run is to collect while it learns.

        Raises:
            ConfigError: some would be left over.
        """
        config = self.config
        learning = [index for index in range(config.rounds) if self._learns_in_game(index)]
        if not learning or is_off_policy(config.algo):
            return
        steps, together = config.collected(learning[0]), self._learned_at_once(agent)
        if steps % together:
            raise ConfigError(
                f"collect.learn_steps: expected a multiple of the {together:,} steps that {config.algo} learns from at "
                f"once, got {steps:,}."
            )

    def _dream_options(self) -> DreamOptions:
        dream = self.config.dream
        return {"reward": dream.reward, "temperature": dream.temperature, "horizon_as": dream.horizon_as}

    def _blank_dream(self) -> Dream:
        """A dream to build an agent on that does not dream yet."""
        shape = (1, self.config.dream.context)
        latents = torch.zeros(*shape, *self.world_model.codec.latent_shape, dtype=torch.uint8)
        kind = torch.float32 if isinstance(self.actions, spaces.Box) else torch.int64
        taken = torch.zeros(*shape, *(self.actions.shape or ()), dtype=kind)
        actions = self.world_model.acts(taken, self.world_model.phase_digits(torch.zeros(shape))).cpu()
        valid, elapsed = torch.ones(shape, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
        starts = StartStates(latents, actions, valid, elapsed)
        return Dream(self.world_model, starts, self.config.dream.latent_stack, self._metadata(0))

    def _dream(self, index: int) -> Dream:
        return Dream(self.world_model, self._starts(index), self.config.dream.latent_stack, self._metadata(index))

    def _interactions(self, index: int) -> int:
        """Real steps by the end of a round's collecting."""
        return self.config.interactions_by(index)

    def _metadata(self, index: int) -> Record:
        config = self.config
        metadata: Record = {
            "game": config.game,
            "preset": config.preset,
            "seed": config.seed,
            "round": index,
            "interactions": self._interactions(index),
            "horizon": config.dream.horizon,
            "temperature": config.dream.temperature,
            "finished": False,
            "score": None,
        }
        if isinstance(self.actions, spaces.Box):
            metadata |= {"action_low": self.actions.low.tolist(), "action_high": self.actions.high.tolist()}
        return metadata

    def _starts(self, index: int, newest_share: float | None = None) -> StartStates:
        """Real moments for this round's dreams, with the context before each; None takes the run's own share."""
        config = self.config
        rng = np.random.default_rng(derive_seed(config.seed, "starts", index))
        dream = config.dream
        count = min(dream.start_states, len(self.replay))
        share = config.newest_share(index) if newest_share is None else newest_share
        newest = config.collected(index) if index else len(self.replay)
        windows = self.replay.sample_starts(count, dream.context, rng, newest, share)
        needed, places = np.unique(windows.indices, return_inverse=True)
        latents = torch.cat(
            [
                self.world_model.encode(self.replay.frames_at(part, self.world_model.frame_stack))
                for part in np.array_split(needed, max(1, len(needed) // 512))
            ]
        )
        chosen = latents.to(torch.uint8).cpu()[torch.as_tensor(places.reshape(windows.indices.shape))]
        actions = real_acts(self.world_model, self.replay, windows.indices).cpu()
        elapsed = torch.as_tensor(self.replay.elapsed_at(windows.indices[:, 0]))
        return StartStates(chosen, actions, torch.as_tensor(windows.mask), elapsed)

    def _write_scalars(self, record: Record, index: int) -> None:
        step = self._interactions(index)
        for name, value in flat_numbers(record):
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def _finish(self, rates: dict[str, float]) -> None:
        """Pictures of the finished run, and its table."""
        log, path = self.folder.log(), self.folder.path
        evaluated = evaluations(log)
        steps = {entry["round"]: entry["interactions"] for entry in log if entry["phase"] == "collect"}
        plot_scores(
            path / "scores.png",
            {self.config.game: [entry["real"] for entry in evaluated]},
            interactions=[steps[entry["round"]] for entry in evaluated],
            random=evaluated[0]["random"]["mean"],
            title=f"{self.config.game}, real score by round",
        )
        measured = {f"round {e['round'] + 1}": e["fidelity"] for e in evaluated[-1:] if "fidelity" in e}
        if measured:
            plot_fidelity(path / "fidelity.png", measured, title="Fidelity on held-out real episodes")
        dream, shown = self._dream(self.config.rounds - 1), self._shown()
        video = write_comparison(dream, shown, path / "imagined_vs_real.mp4")
        report = write_report(path / REPORT_FILE, path / DREAM_FILE, dream, shown)
        self._say(summary_table(log))
        for damage in self.state.damage:
            self._say(f"Damaged: {damage}")
        self._say(
            f"Preset {self.config.preset}, seed {self.config.seed}, {self.config.interactions:,} real steps, "
            f"{sum(self.world_model.parameter_counts().values()):,} parameters in the world model; "
            f"{self.state.seconds / 60:.1f} min of phases on {describe_machine(self.device)} at "
            f"{rates['bfloat16']:.0f} GFLOP/s bfloat16 (2048^3 matrix product); "
            f"{self.state.imagined_steps:,} imagined steps.\nVideo: {video}\nReport: {report}"
        )

    def _shown(self) -> Replay:
        held_out = self.folder.load_held_out(MOST_HELD_OUT, self.config.evaluate.fidelity_episodes)
        return held_out if len(held_out) else self.replay

    @property
    def _shows_bars(self) -> bool:
        return shows_bars(self.progress)

    def _say(self, text: str) -> None:
        print(text, flush=True)
