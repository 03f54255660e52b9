"""Convolutions of small maps by few products: the same results, gradients and weights as those of torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dreamgym.models.dynamics import ConvLSTM, ConvLSTMConfig
from dreamgym.models.map_conv import MapConv, fourier_products


def layer(height: int = 6, width: int = 6, kernel: int = 5) -> MapConv:
    torch.manual_seed(0)
    return MapConv(64, 96, kernel, height, width)


@pytest.mark.parametrize("size", [(6, 6, 5), (4, 7, 3), (12, 12, 5), (5, 5, 5), (3, 8, 7)], ids=str)
def test_any_map_and_kernel_come_to_what_the_convolution_does(size):
    height, width, kernel = size
    products = fourier_products(*size)
    maps, weight = torch.randn(3, 2, height, width), torch.randn(4, 2, kernel, kernel)
    left = torch.einsum("ps,bcs->pbc", products.inputs, maps.flatten(2))
    right = torch.einsum("pk,ock->pco", products.weights, weight.flatten(2))
    found = torch.einsum("sp,pbo->bos", products.outputs, left @ right).view(3, 4, height, width)
    torch.testing.assert_close(found, F.conv2d(maps, weight, padding=kernel // 2), atol=1e-4, rtol=1e-4)


def test_the_papers_convolution_takes_94_products_instead_of_900():
    assert len(fourier_products(6, 6, 5).inputs) == 94


def test_outputs_and_gradients_are_those_of_a_convolution():
    conv = layer()
    assert conv.by_products
    maps = torch.randn(2, 64, 6, 6, requires_grad=True)
    cotangent = torch.randn(2, 96, 6, 6)
    expected = F.conv2d(maps, conv.weight, padding=2)
    wanted = torch.autograd.grad(expected, (maps, conv.weight), cotangent)
    found = conv(maps)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(torch.autograd.grad(found, (maps, conv.weight), cotangent), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_in_bfloat16_it_errs_about_as_a_convolution_does():
    conv = layer()
    maps = torch.randn(8, 64, 6, 6)
    exact = F.conv2d(maps, conv.weight, padding=2)
    half = F.conv2d(maps.bfloat16(), conv.weight.bfloat16(), padding=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(maps)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).std() < 2 * (half.float() - exact).std()


def test_weights_that_change_in_place_are_prepared_anew():
    conv = layer().eval()
    maps = torch.randn(1, 64, 6, 6)
    other = {"weight": torch.randn_like(conv.weight)}
    for change in (lambda: conv.load_state_dict(other), lambda: conv.weight.mul_(2), lambda: conv.double().float()):
        with torch.no_grad():
            kept = conv.prepare()
            assert conv.prepare() is kept
            change()
            torch.testing.assert_close(conv(maps), F.conv2d(maps, conv.weight, padding=2), atol=1e-3, rtol=1e-3)


def test_weights_that_a_fused_optimiser_has_changed_are_prepared_anew():
    conv = layer()
    maps = torch.randn(1, 64, 6, 6)
    optimizer = torch.optim.AdamW(conv.parameters(), lr=0.1, fused=True)
    for looked_at in (False, True):
        with torch.no_grad():
            conv.eval()(maps)
        conv.train()(maps).sum().backward()
        if looked_at:
            with torch.no_grad():
                conv(maps)
        optimizer.step()
        with torch.no_grad():
            found = conv.eval()(maps)
        torch.testing.assert_close(found, F.conv2d(maps, conv.weight, padding=2), atol=1e-3, rtol=1e-3)


def test_a_copy_has_weights_of_its_own():
    conv = layer()
    maps = torch.randn(1, 64, 6, 6)
    with torch.no_grad():
        before = conv(maps)
        other = copy.deepcopy(conv)
        other.weight.zero_()
        assert not other(maps).any()
        assert torch.equal(conv(maps), before)


def test_weights_are_those_of_an_ordinary_convolution():
    plain = nn.Conv2d(64, 96, 5, padding=2, bias=False)
    conv = layer()
    conv.load_state_dict(plain.state_dict())
    assert set(conv.state_dict()) == {"weight"}
    maps = torch.randn(1, 64, 6, 6)
    torch.testing.assert_close(conv(maps), plain(maps), atol=1e-5, rtol=1e-4)


def test_where_it_saves_little_it_is_the_convolution_itself():
    conv = MapConv(8, 16, 3, 6, 6)
    maps = torch.randn(2, 8, 6, 6)
    assert not conv.by_products
    assert torch.equal(conv(maps), F.conv2d(maps, conv.weight, padding=1))


@torch.no_grad()
def test_dynamics_foretell_the_same_with_it_as_without_in_steps_and_in_sequences():
    torch.manual_seed(0)
    dynamics = ConvLSTM(ConvLSTMConfig(hidden=32, reward_hidden=8), (16, 6, 6), 8, 3)
    convs = [module for module in dynamics.modules() if isinstance(module, MapConv)]
    assert len(convs) == 4 and all(conv.by_products for conv in convs)
    features, actions = torch.randn(2, 3, 16, 6, 6), torch.randint(0, 3, (2, 3))
    whole, state = dynamics.sequence(features, actions, dynamics.initial_state(2)), dynamics.initial_state(2)
    for step in range(3):
        prediction, state = dynamics.step(features[:, step], actions[:, step], state)
        torch.testing.assert_close(prediction.latent, whole[0].latent[:, step], atol=1e-4, rtol=1e-4)
    for conv in convs:
        conv.by_products = False
    plain = dynamics.sequence(features, actions, dynamics.initial_state(2))
    for ours, theirs in zip((*whole[0], *whole[1]), (*plain[0], *plain[1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
