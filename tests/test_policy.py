"""The policy networks: the paper's size, and codes that mean the same as embeddings."""

import pytest
import torch
from torch import nn

from dreamgym.models.policy import LightTrunk, PaperTrunk, PolicyNetwork, embed_codes


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_policy_fits_other_grids():
    features = torch.randn(3, 16, 2, 3)
    assert PolicyNetwork(16, 4, "light", (2, 3))(features)[0].shape == (3, 4)


def test_the_papers_policy_has_its_number_of_parameters() -> None:
    assert count(PolicyNetwork(32, 18)) == 1_303_571


def test_the_policy_maps_features_to_logits_and_values() -> None:
    logits, values = PolicyNetwork(128, 6)(torch.randn(3, 128, 6, 6))
    assert logits.shape == (3, 6)
    assert values.shape == (3,)


@pytest.mark.parametrize(("trunk", "width"), [(PaperTrunk, 512), (LightTrunk, 256)])
def test_trunks_take_any_number_of_channels(trunk: type[PaperTrunk | LightTrunk], width: int) -> None:
    for channels in (8, 33):
        network = trunk(channels)
        assert network(torch.randn(2, channels, 6, 6)).shape == (2, width)
        assert network.out_features == width


def test_the_light_trunk_is_much_smaller_than_the_papers() -> None:
    assert count(LightTrunk(128)) * 4 < count(PaperTrunk(128))


def test_the_convolutions_of_the_papers_policy_have_no_bias() -> None:
    convolutions = [module for module in PaperTrunk(32).modules() if isinstance(module, nn.Conv2d)]
    assert [module.kernel_size for module in convolutions] == [(1, 1), (5, 5)]
    assert all(module.bias is None for module in convolutions)


def test_embedded_codes_are_stacked_along_the_channels_oldest_first() -> None:
    codebook = torch.arange(10.0).reshape(5, 2)
    codes = torch.tensor([[[0, 4], [1, 3], [2, 2], [3, 1]]])  # (1, 2 x 2 cells, stack 2)
    features = embed_codes(codes, codebook, (2, 2))
    assert features.shape == (1, 4, 2, 2)
    assert features[0, :, 0, 0].tolist() == [0.0, 1.0, 8.0, 9.0]
    assert features[0, :, 1, 0].tolist() == [4.0, 5.0, 4.0, 5.0]


def test_codes_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 36, stack\)"):
        embed_codes(torch.zeros(1, 4, 2), torch.zeros(5, 2), (6, 6))


def some_codes(batch: int, changed: float) -> torch.Tensor:
    """Stacked codes (batch, 4 x 6 cells, stack 3), of which a share is drawn anew in each row."""
    codes = torch.randint(0, 7, (1, 24, 3), dtype=torch.uint8).repeat(batch, 1, 1)
    return torch.where(torch.rand(codes.shape) < changed, torch.randint_like(codes, 7), codes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("batch", "changed"), [(9, 1.0), (9, 0.1), (9, 0.0), (1, 1.0)], ids=["random", "mostly equal", "equal", "one"]
)
@pytest.mark.parametrize("trunk", [PaperTrunk, LightTrunk])
def test_looking_codes_up_in_tables_is_the_same_as_convolving_their_embeddings(
    trunk: type[PaperTrunk | LightTrunk], batch: int, changed: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    network, codebook = trunk(3 * 5, 4, 6), torch.randn(7, 5)
    codes = some_codes(batch, changed).to(dtype)
    looked_up = network.from_codes(codes, codebook, (4, 6))
    convolved = network(embed_codes(codes, codebook, (4, 6)))
    torch.testing.assert_close(looked_up, convolved)
    # Every row counts differently, or a gradient of one row could stand for that of another.
    weights = torch.randn(batch, 1)
    gradients = [
        torch.autograd.grad((weights * out.square()).sum(), list(network.parameters()))
        for out in (looked_up, convolved)
    ]
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_the_light_trunk_stays_small_on_a_larger_grid() -> None:
    assert count(LightTrunk(128, 12, 12)) < 2.5 * count(LightTrunk(128, 6, 6))
