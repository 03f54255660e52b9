import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from dreamgym.errors import ConfigError
from dreamgym.models.codecs import VQVAE, VQVAEConfig
from dreamgym.models.quantizer import QuantizerConfig, VectorQuantizer, perplexity


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


def test_perplexity_is_the_number_of_codes_evenly_used():
    assert perplexity(torch.arange(7).repeat(3), 128).item() == pytest.approx(7, rel=1e-5)
    assert perplexity(torch.zeros(9, dtype=torch.int64), 128).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("count", [1, 257])
def test_more_codes_than_a_byte_holds_are_refused(count):
    with pytest.raises(ConfigError, match="num_codes"):
        QuantizerConfig(num_codes=count)
