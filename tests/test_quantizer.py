import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from dreamgym.errors import ConfigError
from dreamgym.models.codecs import VQVAE, VQVAEConfig
from dreamgym.models.quantizer import (
    QuantizerConfig,
    VectorQuantizer,
    cluster,
    perplexity,
    spread_out,
    tell_apart,
)


def reference(quantizer: VectorQuantizer) -> VectorQuantize:
    """vector-quantize-pytorch with the same codes, counts and sums."""
    config = quantizer.config
    other = VectorQuantize(
        config.embedding_dim, config.num_codes, decay=config.decay, eps=config.epsilon, threshold_ema_dead_code=0
    )
    book = other._codebook
    book.embed.data.copy_(quantizer.codes[None])
    book.embed_avg.data.copy_(quantizer.sums[None])
    book.cluster_size.data.copy_(quantizer.counts[None])
    return other.train()


def test_codes_and_assignments_follow_vector_quantize_pytorch_step_for_step():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=16, embedding_dim=4, dead_below=0.0))
    other = reference(quantizer)
    for _ in range(25):
        vectors = torch.randn(50, 4) * 0.5 + 1
        indices = quantizer.nearest(vectors)
        quantizer.update(vectors, indices)
        _, expected, _ = other(vectors[None])
        assert torch.equal(indices, expected[0])
        assert torch.allclose(quantizer.codes, other._codebook.embed[0], atol=1e-5)
        assert torch.allclose(quantizer.counts, other._codebook.cluster_size[0], atol=1e-5)


def test_nearest_is_the_smallest_euclidean_distance():
    torch.manual_seed(1)
    quantizer = VectorQuantizer()
    vectors = torch.randn(300, 32)
    assert torch.equal(quantizer.nearest(vectors), torch.cdist(vectors, quantizer.codes).argmin(dim=1))


def test_an_unused_code_is_dead_and_is_put_where_the_error_is_largest():
    torch.manual_seed(0)
    codec = VQVAE(VQVAEConfig(width=4, quantizer=QuantizerConfig(num_codes=8, embedding_dim=4, dead_below=0.02)))
    vectors = torch.zeros(1, 6, 6, 4)
    vectors[0, 2, 3] = 7.0
    error = torch.zeros(1, 6, 6)
    error[0, 2, 3] = 1e6
    codec.quantizer.counts[:] = 1.0
    codec.quantizer.counts[5] = 1e-4
    metrics = {"vectors": vectors, "indices": torch.zeros(1, 6, 6, dtype=torch.int64), "cell_error": error}
    codec.update(metrics, torch.Generator().manual_seed(0))
    assert torch.equal(codec.quantizer.codes[5], torch.full((4,), 7.0))
    assert not codec.quantizer.dead()[5]
    assert codec.quantizer.nearest(torch.full((1, 4), 7.0)).item() == 5


def test_with_dead_below_zero_no_code_is_ever_re_seeded():
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=8, dead_below=0.0))
    quantizer.counts[:4] = 0.0
    assert not quantizer.dead().any()


def with_one_seeded_code(**settings) -> VectorQuantizer:
    """Seven codes share 70 cells an update, the eighth is put where none is."""
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=8, embedding_dim=4, **settings))
    quantizer.codes[:] = torch.arange(8.0)[:, None]
    quantizer.counts[:] = torch.tensor([10.0] * 7 + [0])
    quantizer.sums[:] = quantizer.codes * quantizer.counts[:, None]
    quantizer.seed_codes(torch.arange(8) == 7, torch.full((1, 4), 99.0))
    return quantizer


def test_a_re_seeded_code_that_wins_no_cell_is_dead_again_after_some_160_updates():
    quantizer = with_one_seeded_code(dead_below=0.02)
    lasted = 0
    while not quantizer.dead()[7]:
        quantizer.update(quantizer.codes[:7].repeat(10, 1), torch.arange(7).repeat(10))
        lasted += 1
    assert lasted == pytest.approx(160, abs=5)
    assert torch.allclose(quantizer.codes[7], torch.full((4,), 99.0), rtol=0.01)


def test_a_re_seeded_code_soon_follows_the_cells_that_it_wins():
    quantizer = with_one_seeded_code(dead_below=0.02)
    for _ in range(30):
        quantizer.update(torch.full((10, 4), 90.0), torch.full((10,), 7))
    assert quantizer.codes[7].mean().item() == pytest.approx(90, abs=3)


def test_with_dead_below_zero_a_seeded_code_has_an_even_share():
    quantizer = with_one_seeded_code(dead_below=0.0)
    assert quantizer.counts[7].item() == pytest.approx(70 / 8)
    assert torch.equal(quantizer.sums[7], quantizer.codes[7] * quantizer.counts[7])


def test_the_released_bias_inflates_early_codes_about_a_hundredfold():
    torch.manual_seed(0)
    vectors = torch.ones(64, 4)
    codes = {}
    for released in (False, True):
        quantizer = VectorQuantizer(QuantizerConfig(num_codes=2, embedding_dim=4, released_bias=released))
        quantizer.update(vectors, torch.zeros(64, dtype=torch.int64))
        codes[released] = quantizer.codes[0]
    assert codes[True].mean().item() == pytest.approx(100, rel=0.01)
    assert codes[False].abs().max() < 3


def test_the_released_bias_fades():
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=2, embedding_dim=4, released_bias=True))
    for _ in range(1500):
        quantizer.update(torch.ones(64, 4), torch.zeros(64, dtype=torch.int64))
    assert quantizer.codes[0].mean().item() == pytest.approx(1, rel=1e-3)


def test_a_codebook_is_seeded_even_from_fewer_cells_than_codes():
    codec = VQVAE(VQVAEConfig(width=4))
    frames = torch.randint(0, 256, (1, 1, 96, 96), dtype=torch.uint8)
    codec.seed_codebook(frames, torch.Generator().manual_seed(0))
    outputs = codec._encoder_outputs(frames.float() / 255).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(codec.quantizer.codes, outputs).amin(dim=1).max() < 1e-2


def test_spreading_out_finds_the_few_vectors_that_differ_from_the_many():
    common, others = torch.zeros(990, 3), torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    vectors = torch.cat([common, others])[torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
    different = vectors.unique(dim=0)
    for seed in range(5):
        drawn = spread_out(vectors, 11, torch.Generator().manual_seed(seed))
        assert torch.equal(drawn.unique(dim=0), different)
        # There are no more: the rest are drawn again.
        more = spread_out(vectors, 14, torch.Generator().manual_seed(seed))
        assert more.shape == (14, 3) and torch.equal(more[:11], drawn) and torch.equal(more.unique(dim=0), different)


def test_spreading_out_draws_by_the_squared_distance_from_the_nearest_drawn_before():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.tensor([[0.0], [1.0], [3.0]])
    draws = torch.stack([spread_out(vectors, 2, generator) for _ in range(3000)])[..., 0]
    assert draws[:, 0].long().bincount().tolist() == pytest.approx([1000, 1000, 0, 1000], abs=100)
    for first, second, share in ((0.0, 3.0, 9 / 10), (1.0, 3.0, 4 / 5), (3.0, 0.0, 9 / 13)):
        seconds = draws[draws[:, 0] == first, 1]
        assert (seconds == second).float().mean().item() == pytest.approx(share, abs=0.05)


def test_spreading_out_follows_its_generator():
    vectors = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    one, again, other = (spread_out(vectors, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_codebook_is_seeded_on_cells_that_differ_from_the_background():
    torch.manual_seed(0)
    codec = VQVAE(VQVAEConfig(width=4, stages=3, stage_kernel=2, quantizer=QuantizerConfig(num_codes=9))).eval()
    frames = torch.full((4, 1, 96, 96), 80, dtype=torch.uint8)
    for frame in range(4):
        frames[frame, 0, 16 * frame : 16 * frame + 8, 40:48] = 120 + 40 * frame
    codec.seed_codebook(frames, torch.Generator().manual_seed(0))
    cells = codec._encoder_outputs(frames.float() / 255).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(cells, codec.quantizer.codes).amin(dim=1).max() < 1e-2


def test_perplexity_is_the_number_of_codes_evenly_used():
    assert perplexity(torch.arange(7).repeat(3), 128).item() == pytest.approx(7, rel=1e-5)
    assert perplexity(torch.zeros(9, dtype=torch.int64), 128).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("count", [1, 257])
def test_more_codes_than_a_byte_holds_are_refused(count):
    with pytest.raises(ConfigError, match="num_codes"):
        QuantizerConfig(num_codes=count)


def test_vectors_that_are_the_same_are_merged_and_counted():
    few = torch.randn(5, 8)
    which = torch.tensor([0, 3, 3, 1, 0, 0, 2, 4])
    vectors, counts = tell_apart(few[which], torch.ones(8), 100, torch.Generator().manual_seed(0))
    assert sorted(counts.tolist()) == [1, 1, 1, 2, 3]
    for vector, count in zip(vectors, counts, strict=True):
        same = (few == vector).all(dim=1)
        assert same.sum() == 1 and (which == same.nonzero()[0, 0]).sum() == count


def test_of_too_many_different_vectors_some_are_drawn():
    vectors, counts = tell_apart(torch.randn(50, 4), torch.ones(50), 20, torch.Generator().manual_seed(0))
    assert len(vectors) == len(counts) == len(vectors.unique(dim=0)) == 20


def test_where_there_are_fewer_kinds_than_codes_each_has_its_own_however_rare():
    kinds = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    counts = torch.ones(30)
    counts[0] = 2.0**20
    codes, shares = cluster(kinds, counts, 64, torch.Generator().manual_seed(0))
    assert len(codes) == 30 and torch.equal(codes[0], kinds[0])
    assert torch.equal(codes.unique(dim=0), kinds.unique(dim=0)) and shares.sum() == counts.sum()


def test_what_differs_by_rounding_alone_is_one_kind():
    torch.manual_seed(0)
    kinds = torch.randn(40, 16)
    noisy = kinds.repeat(50, 1) * (1 + 1e-6 * torch.randn(2_000, 16))
    vectors, counts = tell_apart(noisy, torch.ones(2_000), 10_000, torch.Generator().manual_seed(0))
    codes, shares = cluster(vectors, counts, 64, torch.Generator().manual_seed(0))
    assert len(codes) == 40 and shares.tolist() == [50] * 40


def test_where_there_are_more_the_codes_are_means_of_those_near_them():
    middles = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    vectors = (middles[:, None] + 0.1 * torch.randn(3, 200, 2)).flatten(0, 1)
    codes, shares = cluster(vectors, torch.ones(600), 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes[codes.sum(1).argsort()][0], middles[0], atol=0.05, rtol=0)
    assert shares.tolist() == [200, 200, 200]


def test_codes_that_are_left_over_are_nearest_to_nothing_and_on_the_others_scale():
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=16, embedding_dim=8))
    codes = torch.randn(10, 8)
    quantizer.set_codes(codes, torch.arange(10, 0, -1.0))
    assert quantizer.nearest(codes).tolist() == list(range(10))
    assert (quantizer.counts > 0).tolist() == [True] * 10 + [False] * 6
    assert quantizer.codes.norm(dim=1).max() < 3 * codes.norm(dim=1).max()


def test_a_settled_codec_gives_each_kind_of_cell_its_own_code():
    torch.manual_seed(0)
    config = VQVAEConfig(frame_size=8, width=16, stages=1, stage_kernel=2, quantizer=QuantizerConfig(num_codes=32))
    codec = VQVAE(config).eval()
    kinds = torch.randint(0, 256, (12, 2, 2), dtype=torch.uint8)
    drawn = torch.randint(0, 12, (40, 4, 4))
    frames = kinds[drawn].permute(0, 1, 3, 2, 4).reshape(40, 1, 8, 8)
    codec.settle(frames.split(7), torch.Generator().manual_seed(0))
    pairs = torch.stack([drawn.flatten(), codec.encode(frames).flatten()], dim=1).unique(dim=0)
    assert len(pairs) == 12 and len(pairs[:, 1].unique()) == 12
    codec.train()
    codec.fix_codes()
    loss, _ = codec.loss(frames)
    loss.backward()
    assert all(weight.grad is None for weight in codec.encoder.parameters())
    assert all(weight.grad is not None for weight in codec.decoder.parameters()) and not codec.encoder.training
