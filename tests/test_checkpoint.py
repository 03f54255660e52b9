import json
import os
import stat
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from conftest import make_tiny_dream

import dreamgym
import dreamgym.checkpoint
from dreamgym.checkpoint import (
    DREAM_FILE,
    UNKNOWN_ELAPSED,
    config_from_dict,
    config_to_dict,
    game_of,
    load_dream,
    pack_dream,
    resolve_checkpoint,
    save_dream,
    write_atomic,
)
from dreamgym.errors import CheckpointError, DreamgymError, MissingWeightsError, UnknownGameError
from dreamgym.models.dynamics import ConvLSTM, ConvLSTMConfig
from dreamgym.models.quantizer import QuantizerConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.world_model import WorldModel, WorldModelConfig


def test_a_dream_comes_back_as_it_was_saved(tmp_path, tiny_dream):
    tiny_dream.metadata["score"] = {"mean": -3.5, "episodes": [1, 2]}
    loaded = load_dream(save_dream(tmp_path / "run", tiny_dream))
    before, after = tiny_dream.world_model.state_dict(), loaded.world_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.world_model.config == tiny_dream.world_model.config
    for saved, read in zip(tiny_dream.starts, loaded.starts, strict=True):
        assert saved.dtype == read.dtype and torch.equal(saved, read)
    assert (loaded.latent_stack, loaded.metadata) == (4, tiny_dream.metadata)


@torch.no_grad()
def test_a_dream_predicts_the_same_after_it_was_saved_whatever_its_dynamics(tmp_path, any_dream):
    loaded = load_dream(save_dream(tmp_path, any_dream))
    assert loaded.world_model.config == any_dream.world_model.config
    assert type(loaded.world_model.dynamics) is type(any_dream.world_model.dynamics)
    latents, actions = any_dream.starts.latents[:5].long(), any_dream.starts.actions[:5]
    predictions = []
    for model in (any_dream.world_model, loaded.world_model):
        state = model.initial_state(5)
        for step in range(latents.shape[1]):
            prediction, state = model.step(latents[:, step], actions[:, step], state)
        predictions.append([*prediction, *state])
    assert all(torch.equal(before, after) for before, after in zip(*predictions, strict=True))


@torch.no_grad()
def test_an_aligned_dream_shows_the_same_after_it_was_saved(tmp_path, tiny_dream):
    config = tiny_dream.world_model.config
    model = WorldModel(replace(config, codec=replace(config.codec, aligned=True)), seed=0)
    model.codec.offset.copy_(torch.tensor([4, 8]))
    loaded = load_dream(save_dream(tmp_path, replace(tiny_dream, world_model=model))).world_model
    assert loaded.codec.offset.tolist() == [4, 8]
    latents = tiny_dream.starts.latents[:3, 0].long()
    assert torch.equal(loaded.decode(latents), model.decode(latents))


def test_start_states_from_before_the_clock_are_read_as_of_unknown_time(tmp_path, tiny_dream):
    file = save_dream(tmp_path, tiny_dream)
    rewrite(file, lambda header, tensors: tensors.pop("starts.elapsed"))
    starts = load_dream(file).starts
    assert starts.elapsed.shape == (40,) and (starts.elapsed == UNKNOWN_ELAPSED).all()
    assert torch.equal(starts.latents, tiny_dream.starts.latents)


def test_a_dream_may_have_as_many_codes_as_a_byte_tells_apart(tiny_dream, tmp_path):
    codec = replace(tiny_dream.world_model.config.codec, quantizer=QuantizerConfig(num_codes=256))
    model = WorldModel(replace(tiny_dream.world_model.config, codec=codec), seed=0)
    latents = torch.randint(0, 256, tiny_dream.starts.latents.shape, dtype=torch.uint8)
    dream = replace(tiny_dream, world_model=model, starts=tiny_dream.starts._replace(latents=latents))
    assert torch.equal(load_dream(save_dream(tmp_path, dream)).starts.latents, latents)


def test_a_policy_comes_back_with_its_dream_and_half_precision_is_read_as_full(tmp_path, tiny_dream):
    tiny_dream.policy = {"net.weight": torch.rand(3, 2).half(), "net.count": torch.tensor(7)}
    half = {name: t.half() if t.is_floating_point() else t for name, t in tiny_dream.world_model.state_dict().items()}
    file = tmp_path / "Pong.safetensors"
    file.write_bytes(pack_dream(tiny_dream, half))
    loaded = load_dream(file)
    assert loaded.policy["net.weight"].dtype == torch.float32 and loaded.policy["net.count"].dtype == torch.int64
    for name, tensor in tiny_dream.policy.items():
        assert torch.equal(loaded.policy[name], tensor.float() if name == "net.weight" else tensor)
    for name, tensor in loaded.world_model.state_dict().items():
        assert tensor.dtype == tiny_dream.world_model.state_dict()[name].dtype
        assert torch.equal(tensor, half[name].to(tensor.dtype))


def test_loading_takes_a_run_folder_or_a_file_and_changes_no_global_generator(tmp_path, tiny_dream):
    save_dream(tmp_path, tiny_dream)
    state = torch.random.get_rng_state()
    assert isinstance(dreamgym.load(tmp_path), type(tiny_dream.world_model))
    load_dream(tmp_path / DREAM_FILE)
    assert torch.equal(torch.random.get_rng_state(), state)


def rewrite(path, change):
    """Write a dream again with another header or other tensors."""
    with safetensors.safe_open(path, framework="pt") as opened:
        header = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    # As files are from before there was a checksum: what is wrong in them is found all the same.
    header.pop("sha256")
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, header)


def reshape(header, tensors):
    name = next(n for n in tensors if n.endswith("latent_head.weight"))
    tensors[name] = tensors[name][:-1].clone()


def set_field(text, **values):
    return json.dumps(json.loads(text) | values)


def set_kind(header, kind):
    """Name another kind of dynamics, or none."""
    config = json.loads(header["world_model"])
    config["dynamics"].pop("kind")
    config["dynamics"] |= {} if kind is None else {"kind": kind}
    header["world_model"] = json.dumps(config)


def test_a_file_that_names_no_kind_of_dynamics_holds_a_convlstm(tmp_path, tiny_dream):
    path = save_dream(tmp_path, tiny_dream)
    with safetensors.safe_open(path, framework="pt") as opened:
        assert json.loads(opened.metadata()["world_model"])["dynamics"]["kind"] == "ConvLSTMConfig"
    rewrite(path, lambda header, tensors: set_kind(header, None))
    loaded = load_dream(path).world_model
    assert loaded.config == tiny_dream.world_model.config and isinstance(loaded.dynamics, ConvLSTM)


def test_settings_of_another_kind_of_dynamics_than_the_named_one_are_refused(tmp_path):
    path = save_dream(tmp_path, make_tiny_dream(stages=3, dynamics=ResidualConfig(memory=1, channels=4, blocks=0)))
    rewrite(path, lambda header, tensors: set_kind(header, None))
    with pytest.raises(CheckpointError, match=r"ConvLSTMConfig: unknown fields \['blocks', 'channels'.*'hidden'"):
        load_dream(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h, t: set_kind(h, "Transformer"),
            "dynamics: expected kind ConvLSTMConfig or ResidualConfig or MultiscaleConfig, got 'Tra",
        ),
        (
            lambda h, t: set_kind(h, ["ConvLSTMConfig"]),
            "expected kind ConvLSTMConfig or ResidualConfig or MultiscaleConfig",
        ),
        (lambda h, t: h.update(world_model=set_field(h["world_model"], dynamics=3)), "dynamics: expected an object"),
        (lambda h, t: h.update(format="99"), "format 99"),
        (lambda h, t: h.pop("format"), "names no format"),
        (lambda h, t: h.update(world_model="{"), "header cannot be read"),
        (lambda h, t: h.update(world_model=set_field(h["world_model"], colour="red")), "unknown fields.*colour"),
        (lambda h, t: h.update(world_model=set_field(h["world_model"], codec=3)), "codec"),
        (lambda h, t: h.update(world_model=set_field(h["world_model"], num_actions=0)), "num_actions"),
        (lambda h, t: h.update(world_model=set_field(h["world_model"], num_actions=7)), "do not fit"),
        (reshape, "do not fit"),
        (lambda h, t: t.pop("starts.valid"), "do not fit"),
        (lambda h, t: t.update({"starts.latents": t["starts.latents"].fill_(200)}), "start states"),
        (lambda h, t: t.update({"starts.actions": t["starts.actions"][:3].clone()}), "start states"),
    ],
)
def test_a_file_that_is_not_right_is_refused_and_named(tmp_path, tiny_dream, change, message):
    path = save_dream(tmp_path, tiny_dream)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_dream(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no dream", None], ids=["empty", "garbage", "truncated"])
def test_a_damaged_file_is_refused_and_named(tmp_path, tiny_dream, content):
    path = save_dream(tmp_path, tiny_dream)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_dream(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "temperature"), [({}, 1.0), ({"temperature": 0.1}, 0.1), ({"temperature": 0}, 0.0)]
)
def test_a_dream_has_the_temperature_of_its_run_or_one(tmp_path, tiny_dream, metadata, temperature):
    tiny_dream.metadata = metadata
    assert load_dream(save_dream(tmp_path, tiny_dream)).temperature == temperature


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(MissingWeightsError, match=DREAM_FILE):
        load_dream(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_atomic(path, lambda file: file.write_text("old"))

    def fail(file):
        file.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    path = tmp_path / "file.txt"
    before = os.umask(0o022)
    try:
        write_atomic(path, lambda file: file.write_text("text"))
        dream = save_dream(tmp_path, make_tiny_dream())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(dream.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "dynamics", [ConvLSTMConfig(patch=2), ResidualConfig(memory=2)], ids=lambda d: type(d).__name__
)
def test_configurations_survive_json(dynamics):
    config = WorldModelConfig(game="Krull", num_actions=9, dynamics=dynamics)
    assert config_from_dict(WorldModelConfig, json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize("name", ["Dream-SpaceInvaders-v0", "dreamgym:Dream-SpaceInvaders-v0", "SpaceInvaders"])
def test_an_id_and_a_game_name_the_same_game(name):
    assert game_of(name) == "SpaceInvaders"


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("DREAMGYM_HOME", str(folder))
    # A package without shipped weights, whatever this one ships.
    monkeypatch.setattr(dreamgym.checkpoint, "SHIPPED", tmp_path / "package" / "weights")
    return folder


def dream_of(game, finished=True):
    dream = make_tiny_dream()
    object.__setattr__(
        dream.world_model, "config", WorldModelConfig(**{**vars(dream.world_model.config), "game": game})
    )
    dream.metadata = {"game": game, "finished": finished}
    return dream


def test_weights_are_looked_for_in_the_argument_then_in_runs_then_in_the_package(home, tmp_path):
    shipped = save_dream(tmp_path / "package" / "weights" / "Pong.safetensors", dream_of("Pong"))
    assert resolve_checkpoint("Dream-Pong-v0") == shipped
    run = save_dream(home / "deep" / "pong", dream_of("Pong"))
    assert resolve_checkpoint("Dream-Pong-v0") == run
    given = save_dream(tmp_path / "mine", dream_of("Pong"))
    assert resolve_checkpoint("Dream-Pong-v0", tmp_path / "mine") == given
    assert resolve_checkpoint("Dream-Pong-v0", given) == given
    assert resolve_checkpoint(str(tmp_path / "mine")) == given


@pytest.mark.parametrize("name", ["Pong", "pong", "ALE/Pong-v5", "Dream-Pong-v0"])
def test_the_newest_finished_run_of_the_game_is_found_whatever_its_spelling(home, name):
    old = save_dream(home / "z", dream_of("Pong"))
    new = save_dream(home / "a", dream_of("Pong"))
    unfinished = save_dream(home / "b", dream_of("Pong", finished=False))
    other = save_dream(home / "c", dream_of("Boxing"))
    (home / "d").mkdir()
    (home / "d" / DREAM_FILE).write_bytes(b"damaged")
    for age, file in enumerate((other, unfinished, new, old)):
        os.utime(file, (1e9 - age, 1e9 - age))
    assert resolve_checkpoint(name) == new


def test_without_weights_the_error_lists_the_places_and_the_command(home, tmp_path):
    with pytest.raises(MissingWeightsError) as caught:
        resolve_checkpoint("Dream-Pong-v0")
    message = str(caught.value)
    for part in ("checkpoint=", str(home), str(tmp_path / "package"), "dreamgym train --game Pong"):
        assert part in message
    assert isinstance(caught.value, FileNotFoundError) and isinstance(caught.value, DreamgymError)


def test_an_environments_own_version_belongs_to_its_name(home):
    file = save_dream(home / "walk", dream_of("Walk-v0"))
    assert resolve_checkpoint("Walk-v0") == file


@pytest.mark.parametrize("name", ["Dream-Pnog-v0", "Pnog"])
def test_a_misspelt_game_is_not_one_without_weights(home, name):
    with pytest.raises(UnknownGameError, match="Pong"):
        resolve_checkpoint(name)


@pytest.mark.parametrize(("run", "game"), [("pong", "Pong"), ("mine", "GAME")])
def test_a_run_folder_that_is_not_there_is_told_as_one(home, tmp_path, run, game):
    for arguments in ((str(tmp_path / run),), ("", tmp_path / run)):
        with pytest.raises(MissingWeightsError) as caught:
            resolve_checkpoint(*arguments)
        assert f"{tmp_path / run}: no {DREAM_FILE} there" in str(caught.value)
        assert f"--game {game} --preset laptop --out {tmp_path / run}" in str(caught.value)


def test_a_checkpoint_that_is_given_and_not_there_is_not_replaced_by_another(home, tmp_path):
    save_dream(home / "pong", dream_of("Pong"))
    with pytest.raises(MissingWeightsError, match="nowhere"):
        resolve_checkpoint("Dream-Pong-v0", tmp_path / "nowhere")
