"""The published schedule as it is: what every faster way is compared with.

Robine et al. 2023, Sect. 3.3.2 and Table 5: the dynamics fitted in batches of 4 windows of 11 steps, float32, each
batch encoded anew within the loop, the model's own samples as inputs after 4 steps, and a codec update every second
time; one game played at a time, each frame encoded and shown to the policy as it comes; 16 dreams of 50 steps.
"""

from typing import Any

import numpy as np
import torch
from measures import Workload
from workloads import Bench

from dreamgym.fit import FitConfig, Fitter
from dreamgym.models.policy import TRUNKS
from dreamgym.real_env import make_real_env
from dreamgym.sb3 import codebook_of

_UPDATES = 2
"""Dynamics updates of a call, so that one codec update belongs to it."""


def training(bench: Bench, with_codec: bool = False) -> Workload:
    """Samples (windows x steps) of the published loop.

    Args:
        bench: of the published networks, in float32.
        with_codec: with the codec's updates between those of the dynamics.
    """
    fit = FitConfig.published()
    fitter = Fitter(bench.model, fit)
    # All codec updates of the first round's start are over.
    fitter.codec_updates = 1
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    codec = _UPDATES // 2 if with_codec else 0

    def act() -> Any:
        return fitter.fit(bench.replay, codec, _UPDATES, rng, generator, progress=False)

    kind = "with its codec updates" if with_codec else "of the dynamics"
    items = _UPDATES * fit.dynamics_batch_size * fit.sequence_length
    return Workload(f"the paper's training {kind}, 4 x 11, float32", items, act, "samples")


def playing(bench: Bench) -> Workload:
    """Real steps of one game: encode its frame, ask the policy, act."""
    model = bench.model
    game = make_real_env(bench.dream, 1, device=str(bench.device), observation="codes")
    bench.closing.callback(game.close)
    codes, _ = game.reset(seed=0)
    grid = tuple(model.codec.latent_shape)
    codebook = codebook_of(model).to(bench.device)
    trunk = TRUNKS["paper"](bench.dream.latent_stack * codebook.shape[1], *grid).to(bench.device)
    head = torch.nn.Linear(trunk.out_features, model.num_actions).to(bench.device)

    @torch.no_grad()
    def act() -> None:
        nonlocal codes
        shown = torch.as_tensor(codes, device=bench.device)
        logits = head(trunk.from_codes(shown, codebook, grid))
        codes = game.step(logits.argmax(1).cpu().numpy())[0]

    return Workload("the paper's collecting, one game, policy and encoder", 1, act)
