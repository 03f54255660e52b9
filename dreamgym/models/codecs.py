"""Codecs: real observation <-> latent. The default is the VQ-VAE of Robine et al. 2023, Sect. 3.2.1."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.errors import ConfigError
from dreamgym.models.layers import ResidualBlock, parameter_count
from dreamgym.models.losses import continuous_bernoulli_logit, continuous_bernoulli_mean, continuous_bernoulli_nll
from dreamgym.models.quantizer import QuantizerConfig, VectorQuantizer, cluster, perplexity, spread_out, tell_apart
from dreamgym.objects import find_parts, learn_kinds, no_kinds
from dreamgym.screens import SHRINKS, SHRINKS_NAMED, Screen, Shrink
from dreamgym.shifts import shift_rows

Metrics = dict[str, Tensor]

_KINDS = 16_384
"""Different cells from which codes are chosen, at most."""


class Codec(Protocol):
    """What everything above the networks knows of a codec. A new one is a new class with these names."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(height, width) of a latent."""
        ...

    @property
    def num_codes(self) -> int:
        """Latent entries lie in [0, num_codes)."""
        ...

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the features of one latent."""
        ...

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an observation, uint8."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 (batch, C, H, W) to latents int64 (batch, height, width)."""
        ...

    def embed(self, latents: Tensor) -> Tensor:
        """Latents (batch, height, width) to features float32 (batch, channels, height, width)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (batch, height, width) to grey values float32 (batch, C, H, W) in [0, 1]."""
        ...

    def loss(
        self, frames: Tensor, previous: Tensor | None = None, *, quantized: bool = True, shifts: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """uint8 frames (those one step before, the rows by which they were moved down) to (scalar, metrics)."""
        ...

    def update(self, metrics: Metrics, generator: torch.Generator) -> None:
        """What learning does besides gradients (moving averages), after each optimiser step, from loss's metrics."""
        ...

    def prepare(self, background: Tensor, frames: Tensor | None = None) -> None:
        """Called before the first fit with the median frame, uint8 (H, W), and frames (batch, C, H, W) if aligned."""
        ...

    def seed_codebook(self, frames: Tensor, generator: torch.Generator) -> None:
        """Called once, when quantisation begins, with a batch of uint8 frames (batch, C, H, W)."""
        ...

    def settle(self, frames: Iterable[Tensor], generator: torch.Generator) -> None:
        """Choose the codes anew from batches of uint8 frames (batch, C, H, W)."""
        ...

    def learn_sprites(self, frames: Iterable[Tensor]) -> None:
        """Called after a fit, where there are sprites, with batches of frames (batch, C, H, W) uint8."""
        ...

    def learn_objects(self, latents: npt.NDArray[np.uint8], follows: npt.NDArray[np.bool_]) -> None:
        """Called before the dynamics are fitted, where there are objects, with all latents (steps, height, width)."""
        ...

    def parameter_counts(self) -> dict[str, int]:
        """Numbers learned, by part."""
        ...

    def fix_codes(self) -> None:
        """Keep what the codes stand for, in training mode: only the decoder learns until gradients are asked for."""
        ...


@dataclass(frozen=True)
class VQVAEConfig:
    """Settings of the VQ-VAE. The defaults see a ball at a small budget; ``published()`` is the paper's network.

    Attributes:
        frame_stack: C, frames stacked in one observation.
        frame_size: height of a frame in pixels; a multiple of a cell's side.
        frame_width: its width, likewise. The game's screen is then shown at a whole fraction of its size. 0 is a square
            frame, onto which the screen is resized.
        shrink: "area" (paper), "nearest", "row" or "brightest", see :func:`dreamgym.real.make_game_env`: with every
            second pixel instead of means of four, what moves has fewer pictures; with means of two in every second row,
            or the brighter of them, it shows whether it is on odd or even columns.
        max_pool: whether a frame is the maximum of the last two emulator frames (paper), see there.
        width: channels of the first convolution (the paper's is 32); the later ones have 2, 4 and 8 times as many.
        stages: strided convolutions, each halving the side of the map. 4 (paper) makes a latent cell of 16 px, 3 one
            of 8 px.
        stage_kernel: kernel of the encoder's strided convolutions: 4 (paper), or 2, with which a code sees its own cell
            and nothing beside it.
        residual_kernel: kernel of the encoder's residual blocks: 3 (paper, receptive field 110 px) or 1 (46 px with
            ``stage_kernel`` 4, and 22 px with three stages).
        quantizer: the codebook.
        commitment_weight: of the commitment loss, averaged over the latent's elements.
        foreground_weight: extra weight of a pixel that differs from the background; 0 weighs all alike (paper).
        motion_weight: extra weight of a pixel that changed since the previous frame, for games that scroll.
        foreground_threshold: how far a grey value must be from the background to count as foreground, in [0, 1].
        pixel_bias: a bias per pixel in the decoder, set to the background's logits before the first fit.
        sprites: whether what each code looks like is measured after each fit, for dynamics that follow what moves
            (:mod:`dreamgym.models.motion`).
        objects: whether the kinds of objects that codes show are learned with the first sprites, for agents that see
            objects instead of codes (:mod:`dreamgym.objects`); needs ``sprites``.
        pictures: whether a code also has a picture of its cell that is added to what the decoder makes of it and its
            neighbours: where a code sees its own cell alone, that is sharp after fewer updates.
        aligned: whether the grid of cells lies on the screen where it makes the fewest kinds of cells. Where a paddle
            and a ball that touches it share one, each of their many joint pictures needs a code of its own.
        bounded: whether black and white are taken for half a grey level less: the likelihood of an exact 0 or 1 has no
            upper bound. False is the paper's loss.
    """

    frame_stack: int = 1
    frame_size: int = 96
    frame_width: int = 0
    shrink: Shrink = "area"
    max_pool: bool = True
    width: int = 32
    stages: int = 4
    stage_kernel: int = 4
    residual_kernel: int = 1
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    commitment_weight: float = 0.25
    foreground_weight: float = 20.0
    motion_weight: float = 0.0
    foreground_threshold: float = 0.06
    pixel_bias: bool = True
    pictures: bool = False
    sprites: bool = False
    objects: bool = False
    aligned: bool = False
    bounded: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.stage_kernel not in (2, 4):
            raise ConfigError(f"stage_kernel: expected 2 or 4, got {self.stage_kernel}.")
        if not 1 <= self.stages <= 5:
            raise ConfigError(f"stages: expected 1 to 5, got {self.stages}.")
        if self.frame_size % self.cell or self.frame_size <= 0:
            raise ConfigError(f"frame_size: expected a positive multiple of {self.cell}, got {self.frame_size}.")
        if self.frame_width % self.cell or self.frame_width < 0:
            raise ConfigError(f"frame_width: expected 0 or a multiple of {self.cell}, got {self.frame_width}.")
        if self.sprites and self.frame_stack > 1:
            # Codes that differ in older frames alone would be taken for each other.
            raise ConfigError(f"frame_stack: expected 1 where codes have sprites, got {self.frame_stack}.")
        if self.objects and not self.sprites:
            raise ConfigError("objects: expected False where codes have no sprites; set sprites=True.")
        if self.shrink not in SHRINKS:
            raise ConfigError(f"shrink: expected {SHRINKS_NAMED}, got {self.shrink!r}.")
        if self.frame_stack < 1 or self.width < 1 or self.residual_kernel % 2 == 0:
            raise ConfigError(
                "frame_stack and width must be at least 1 and residual_kernel odd, got "
                f"{self.frame_stack}, {self.width} and {self.residual_kernel}."
            )

    @property
    def cell(self) -> int:
        """Side of a latent cell in pixels."""
        return 2**self.stages

    @property
    def frame(self) -> tuple[int, int]:
        """(height, width) of a frame in pixels."""
        return self.frame_size, self.frame_width or self.frame_size

    @property
    def screen(self) -> Screen:
        """How :func:`dreamgym.real.make_game_env` is to show the game."""
        size = self.frame if self.frame_width else self.frame_size
        return {"size": size, "shrink": self.shrink, "max_pool": self.max_pool}

    @classmethod
    def published(cls, frame_stack: int = 4) -> "VQVAEConfig":
        """The networks and loss of the paper, with the codebook of the released code."""
        quantizer = QuantizerConfig(dead_below=0.0, released_bias=True)
        return cls(
            frame_stack,
            residual_kernel=3,
            quantizer=quantizer,
            foreground_weight=0.0,
            pixel_bias=False,
            bounded=False,
        )


class Encoder(nn.Sequential):
    """Strided convolutions and two residual blocks, BatchNorm throughout (Robine et al. 2023, Fig. 4, top).

    (batch, C, H, W) grey values in [0, 1] to (batch, embedding_dim, H / cell, W / cell).
    """

    def __init__(self, config: VQVAEConfig) -> None:
        """Build the network."""
        layers: list[nn.Module] = []
        channels, kernel = config.frame_stack, config.stage_kernel
        for factor in (2**stage for stage in range(config.stages)):
            layers += [nn.Conv2d(channels, config.width * factor, kernel, 2, kernel // 2 - 1, bias=False)]
            channels = config.width * factor
            layers += [nn.BatchNorm2d(channels), nn.LeakyReLU()]
        for _ in range(2):
            layers += [ResidualBlock(channels, config.residual_kernel, normalised=True), nn.LeakyReLU()]
        dim = config.quantizer.embedding_dim
        super().__init__(*layers, nn.Conv2d(channels, dim, 1, bias=False), nn.BatchNorm2d(dim))


class Decoder(nn.Sequential):
    """Convolution, two residual blocks, deconvolutions (Robine et al. 2023, Fig. 4, bottom).

    (batch, embedding_dim, H / cell, W / cell) to logits (batch, C, H, W) of continuous Bernoullis.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        """Build the network."""
        channels = config.width * 2 ** (config.stages - 1)
        layers: list[nn.Module] = [nn.Conv2d(config.quantizer.embedding_dim, channels, 3, padding=1), nn.LeakyReLU()]
        for _ in range(2):
            layers += [ResidualBlock(channels, normalised=False), nn.LeakyReLU()]
        for factor in (2**stage for stage in reversed(range(config.stages - 1))):
            layers += [nn.ConvTranspose2d(channels, config.width * factor, 4, 2, 1), nn.LeakyReLU()]
            channels = config.width * factor
        super().__init__(*layers, nn.ConvTranspose2d(channels, config.frame_stack, 4, 2, 1))


class VQVAE(nn.Module):
    """The vector-quantised autoencoder: a frame becomes a map of code indices (Robine et al. 2023, Sect. 3.2.1)."""

    background: Tensor
    offset: Tensor
    """(2,) int64: rows and columns by which the screen is moved on the grid, round its edges; -1: not chosen yet."""
    sprites: Tensor
    """(codes, cell, cell) float32 in [0, 1]: what a code looks like; zeros before the first fit."""
    rest: Tensor
    """(height, width) int64: the codes of the background."""
    looks: Tensor
    """(256, 4) int64: see :class:`dreamgym.objects.Kinds`; -1 before the first fit."""
    slots: Tensor
    """(8, 9) float32: likewise."""

    def __init__(self, config: VQVAEConfig | None = None) -> None:
        """Build the networks with random weights."""
        super().__init__()
        self.config = config = config or VQVAEConfig()
        self.encoder = Encoder(config)
        self.quantizer = VectorQuantizer(config.quantizer)
        self.decoder = Decoder(config)
        self.register_buffer("background", torch.zeros(config.frame))
        # Files from before have none.
        self.register_buffer("offset", torch.full((2,), -1), persistent=config.aligned)
        cell, kept = config.cell, config.sprites
        self.register_buffer("sprites", torch.zeros(self.num_codes, cell, cell), persistent=kept)
        self.register_buffer("rest", torch.zeros(*self.latent_shape, dtype=torch.int64), persistent=kept)
        kinds = no_kinds()
        self.register_buffer("looks", torch.from_numpy(kinds.looks), persistent=config.objects)
        self.register_buffer("slots", torch.from_numpy(kinds.slots), persistent=config.objects)
        self.pixel_bias = nn.Parameter(torch.zeros(1, *config.frame)) if config.pixel_bias else None
        pixels = config.frame_stack * config.cell**2
        self.pictures = nn.Conv2d(config.quantizer.embedding_dim, pixels, 1, bias=False) if config.pictures else None
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(height, width) of a latent: (6, 6) for frames of 96 pixels."""
        height, width = self.config.frame
        return height // self.config.cell, width // self.config.cell

    @property
    def num_codes(self) -> int:
        """K, the number of codes."""
        return self.config.quantizer.num_codes

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """(embedding_dim, height, width)."""
        return self.config.quantizer.embedding_dim, *self.latent_shape

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an observation."""
        return self.config.frame_stack, *self.config.frame

    def encode(self, frames: Tensor) -> Tensor:
        """p(z_t | s_t): frames uint8 (batch, C, H, W) to indices int64 (batch, height, width)."""
        outputs = self._encoder_outputs(_to_unit(frames))
        return self._nearest(outputs)

    def embed(self, latents: Tensor) -> Tensor:
        """Look the codes up: (batch, height, width) to float32 (batch, embedding_dim, height, width)."""
        return F.embedding(latents, self.quantizer.codes).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (batch, height, width) to pictures float32 (batch, C, H, W) in [0, 1].

        The mean of p(s_t | z_t); where it is known what codes look like, the background and what they show before it:
        a young decoder blurs what is small.
        """
        if self.config.sprites and bool(self.sprites.any()):
            shown = self.sprites[latents] - self.sprites[self.rest]
            screens = self._on_grid(shown.transpose(2, 3).flatten(3, 4).flatten(1, 2), -1)
            return (self.background + screens).clamp(0, 1).unsqueeze(1)
        return continuous_bernoulli_mean(self._logits(self.embed(latents)))

    def loss(
        self, frames: Tensor, previous: Tensor | None = None, *, quantized: bool = True, shifts: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """Evidence lower bound with a constant KL term left out (Robine et al. 2023, Eq. 9), plus the commitment loss.

        Args:
            frames: (batch, C, H, W) uint8.
            previous: the same one step earlier, for ``motion_weight``; None where unknown.
            shifts: (batch,) int64, the rows by which each frame was moved down (:mod:`dreamgym.shifts`): background and
                pixel bias are moved along. None where none was.
            quantized: False trains a plain autoencoder, to give the encoder a start before the codes matter.

        Returns:
            (scalar in nats a frame, metrics). The metrics hold what :meth:`update` needs: encoder outputs ``vectors``
            (batch, height, width, embedding_dim), their ``indices``, and ``cell_error`` (batch, height, width).
        """
        targets = _to_unit(frames)
        # Settled codes can lie closer together than half precision tells apart.
        full = not self.encoder.training
        with torch.autocast(targets.device.type, enabled=False) if full else nullcontext():
            outputs = self._encoder_outputs(targets)
        vectors = outputs.permute(0, 2, 3, 1)
        indices = self._nearest(outputs.detach())
        codes = self.embed(indices)
        features = outputs + (codes - outputs).detach() if quantized else outputs
        weights = self._pixel_weights(targets, previous, shifts)
        logits = self._logits(features, shifts)
        likely = targets.clamp(1 / 510, 509 / 510) if self.config.bounded else targets
        likelihood = weights * continuous_bernoulli_nll(logits, likely)
        reconstruction = likelihood.sum(dim=(1, 2, 3)).mean()
        # Not the likelihood: that of a grey pixel is worse than a black one's however well both are shown.
        errors = weights * (continuous_bernoulli_mean(logits.detach()) - targets).square()
        commitment = F.mse_loss(outputs, codes)
        metrics = {
            "reconstruction": reconstruction.detach(),
            "commitment": commitment.detach(),
            "perplexity": perplexity(indices, self.num_codes),
            "vectors": vectors.detach(),
            "indices": indices,
            "cell_error": F.avg_pool2d(self._on_grid(errors.sum(dim=1, keepdim=True)), self.config.cell)[:, 0],
        }
        return reconstruction + self.config.commitment_weight * commitment * float(quantized), metrics

    @torch.no_grad()
    def update(self, metrics: Metrics, generator: torch.Generator) -> None:
        """Move the codebook's averages, then re-seed dead codes on cells drawn in proportion to their error."""
        vectors, indices = metrics["vectors"].flatten(0, 2), metrics["indices"].flatten()
        self.quantizer.update(vectors, indices)
        dead = self.quantizer.dead()
        error = metrics["cell_error"].flatten()
        chances = error.cpu() + 1e-9
        drawn = torch.multinomial(chances, self.num_codes, replacement=True, generator=generator)
        self.quantizer.seed_codes(dead, vectors[drawn.to(vectors.device)][dead])

    @torch.no_grad()
    def prepare(self, background: Tensor, frames: Tensor | None = None) -> None:
        """Take the background (H, W) uint8: what foreground is measured from, and the pixel bias's first value.

        An aligned codec looks at the frames (batch, C, H, W) uint8 for where its grid is to lie, once and for all.
        """
        self.background.copy_(_to_unit(background))
        if self.config.aligned and frames is not None and bool((self.offset < 0).any()):
            self.offset.copy_(torch.tensor(best_offset(frames.cpu().numpy(), self.config.cell)))
        if self.pixel_bias is not None:
            self.pixel_bias.copy_(continuous_bernoulli_logit(self.background)[None])

    @torch.no_grad()
    def seed_codebook(self, frames: Tensor, generator: torch.Generator) -> None:
        """Put the codes on encoder outputs of (batch, C, H, W) uint8 frames that are far from each other.

        Most cells of a frame show the same background: cells drawn evenly would give it nearly all codes.
        """
        vectors = self._encoder_outputs(_to_unit(frames)).permute(0, 2, 3, 1).flatten(0, 2)
        every = torch.ones(self.num_codes, dtype=torch.bool, device=vectors.device)
        self.quantizer.seed_codes(every, spread_out(vectors, self.num_codes, generator))

    @torch.no_grad()
    def settle(self, frames: Iterable[Tensor], generator: torch.Generator) -> None:
        """Choose the codes anew among what the encoder makes of all cells.

        Averages that move while the encoder does leave what is rare, a ball at one of many places in a cell, with the
        code of something else. Where a code sees its own few pixels alone, a game has fewer kinds of cells than there
        are codes: then each has its own. Else the codes are k-means centres (as Lancucki et al. 2020 re-learn theirs).
        """
        vectors, counts = torch.zeros(0, self.config.quantizer.embedding_dim), torch.zeros(0)
        self.encoder.eval()
        for batch in frames:
            seen = self._encoder_outputs(_to_unit(batch)).permute(0, 2, 3, 1).flatten(0, 2).cpu()
            vectors, counts = tell_apart(
                torch.cat([vectors, seen]), torch.cat([counts, torch.ones(len(seen))]), _KINDS, generator
            )
        codes, shares = cluster(vectors, counts, self.num_codes, generator)
        self.quantizer.set_codes(codes.to(self.background.device), shares.to(self.background.device))

    @torch.no_grad()
    def learn_sprites(self, frames: Iterable[Tensor]) -> None:
        """Measure what every code looks like, the mean of its cells in batches (batch, C, H, W) uint8 of frames."""
        device, side = self.background.device, self.config.cell
        sums = torch.zeros_like(self.sprites)
        counts = torch.zeros(self.num_codes, device=device)
        for batch in frames:
            codes = self.encode(batch).flatten()
            screens = self._on_grid(_to_unit(batch[:, -1]))
            cells = screens.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(0, 2)
            sums.index_add_(0, codes, cells)
            counts += torch.bincount(codes, minlength=self.num_codes)
        self.sprites.copy_(sums / counts.clamp(min=1)[:, None, None])
        still = (255 * self.background).round().to(torch.uint8)
        self.rest.copy_(self.encode(still[None, None])[0])

    def learn_objects(self, latents: npt.NDArray[np.uint8], follows: npt.NDArray[np.bool_]) -> None:
        """Find out, once, which objects there are: what an agent is shown must stay in its place.

        Args:
            latents: (steps, height, width) in the order in which they were played.
            follows: (steps,) whether each is the next one of the same episode.
        """
        if (self.slots[:, 0] >= 0).any():
            return
        kinds = learn_kinds(find_parts(self, latents), follows)
        self.looks.copy_(torch.from_numpy(kinds.looks))
        self.slots.copy_(torch.from_numpy(kinds.slots))

    def fix_codes(self) -> None:
        """Freeze the encoder and its norms."""
        self.encoder.eval().requires_grad_(False)

    def parameter_counts(self) -> dict[str, int]:
        """Numbers learned by part; the codebook's by moving averages."""
        return {
            "encoder": parameter_count(self.encoder),
            "codebook": self.quantizer.codes.numel(),
            "decoder": parameter_count(self.decoder) + parameter_count(self.pictures),
            "pixel_bias": 0 if self.pixel_bias is None else self.pixel_bias.numel(),
        }

    def _encoder_outputs(self, targets: Tensor) -> Tensor:
        return self.encoder(self._on_grid(targets).contiguous(memory_format=torch.channels_last)).float()

    def _on_grid(self, screens: Tensor, sign: int = 1) -> Tensor:
        """Screens (..., H, W) moved by the offset; back again with a ``sign`` of -1."""
        if not self.config.aligned:
            return screens
        rows, columns = (
            (torch.arange(size, device=screens.device) - sign * by) % size
            for size, by in zip(self.config.frame, self.offset.clamp(min=0), strict=True)
        )
        return screens[..., rows[:, None], columns]

    def _nearest(self, outputs: Tensor) -> Tensor:
        vectors = outputs.permute(0, 2, 3, 1)
        with torch.autocast(outputs.device.type, enabled=False):
            return self.quantizer.nearest(vectors.flatten(0, 2)).unflatten(0, vectors.shape[:3])

    def _logits(self, features: Tensor, shifts: Tensor | None = None) -> Tensor:
        features = features.contiguous(memory_format=torch.channels_last)
        logits = self.decoder(features).float()
        if self.pictures is not None:
            logits = logits + F.pixel_shuffle(self.pictures(features).float(), self.config.cell)
        logits = self._on_grid(logits, -1)
        return logits if self.pixel_bias is None else logits + _moved(self.pixel_bias, shifts)

    def _pixel_weights(self, targets: Tensor, previous: Tensor | None, shifts: Tensor | None = None) -> Tensor:
        config = self.config
        foreground = (targets - _moved(self.background[None], shifts)).abs() > config.foreground_threshold
        weights = 1 + config.foreground_weight * foreground
        if config.motion_weight and previous is not None:
            moved = (targets - _to_unit(previous)).abs() > config.foreground_threshold
            weights = weights + config.motion_weight * moved
        return weights


def best_offset(frames: npt.NDArray[np.uint8], cell: int) -> tuple[int, int]:
    """Rows and columns by which to move frames, round their edges, so that fewest kinds of cells are left.

    Args:
        frames: (batch, C, H, W); H and W are multiples of ``cell``.
        cell: side of a cell in pixels. Moves are multiples of a quarter of it, of a pixel where that is less.

    Returns:
        The first of the best, each at least 0 and less than ``cell``.
    """
    step = max(1, cell // 4)
    # A cell is known by a sum of its pixels with random weights, modulo 2^64.
    weights = np.random.default_rng(0).integers(2**64, size=(frames.shape[1], cell, cell), dtype=np.uint64)

    def kinds(rows: int, columns: int) -> int:
        moved = np.roll(frames, (rows, columns), (2, 3))
        sums = sum(
            moved[:, c, i::cell, j::cell].astype(np.uint64) * weights[c, i, j] for c, i, j in np.ndindex(*weights.shape)
        )
        return len(np.unique(sums))

    offsets = [(rows, columns) for rows in range(0, cell, step) for columns in range(0, cell, step)]
    return min(offsets, key=lambda offset: kinds(*offset))


def _moved(image: Tensor, shifts: Tensor | None) -> Tensor:
    """One image (1, H, W), or where there are shifts a copy for each, (batch, 1, H, W)."""
    return image if shifts is None else shift_rows(image.expand(len(shifts), 1, -1, -1), shifts)


def _to_unit(frames: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1."""
    return frames.float() / 255
