"""Gradient methods against the axioms they promise and against calculations by hand."""

import pytest
import torch
from attribution_cases import Net, method_of, random_films, small_cnn, weighing
from torch import nn
from torch.nn import functional


@pytest.fixture
def weights():
    return torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 0.25, -0.5]])


@pytest.fixture
def films():
    return random_films(2, 17)


def change_in_logit(net, films, baseline=0.0):
    net.eval()
    with torch.no_grad():
        return net(films) - net(torch.full_like(films, baseline))


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_integrated_gradients_sum_to_the_change_in_logit(films, baseline):
    net = small_cnn()
    maps = method_of("integrated_gradients", baseline=baseline, n_steps=1000).attribute(net, films)
    change = change_in_logit(net, films, baseline)
    assert (change.abs() > 0.5).all()
    torch.testing.assert_close(maps.flatten(1).sum(1), change, atol=1e-3, rtol=0)


def test_deeplift_sums_to_the_change_in_logit_across_max_pools_of_odd_sizes(films):
    net = small_cnn()
    maps = method_of("deeplift").attribute(net, films)
    torch.testing.assert_close(maps.flatten(1).sum(1), change_in_logit(net, films), atol=1e-3, rtol=0)


def test_on_a_linear_net_every_gradient_method_gives_weight_or_weight_times_grey(weights):
    net, film = weighing(weights, bias=0.7), random_films(1, 3)
    for baseline in (0.0, 0.5):
        product = weights * (film[:, 0] - baseline)
        for name in ("integrated_gradients", "deeplift"):
            seen = method_of(name, baseline=baseline).attribute(net, film)
            torch.testing.assert_close(seen, product, atol=1e-5, rtol=1e-5)
        shap = method_of("gradient_shap", stdev=0.0, baseline=baseline).attribute(net, film)
        torch.testing.assert_close(shap, product, atol=1e-5, rtol=1e-5)
    for name in ("saliency", "smoothgrad"):
        torch.testing.assert_close(method_of(name).attribute(net, film), weights.abs()[None], atol=1e-5, rtol=1e-5)
        signed = method_of(name, absolute=False).attribute(net, film)
        torch.testing.assert_close(signed, weights[None], atol=1e-5, rtol=1e-5)


def test_saliency_is_the_logits_change_per_grey_step():
    torch.manual_seed(0)
    net, film = small_cnn().double().eval(), random_films(1, 17).double()
    brighter, step = film.clone(), 1e-6
    brighter[0, :, 8, 6] += step
    with torch.no_grad():
        slope = (net(brighter) - net(film)).item() / step
    assert method_of("saliency", absolute=False).attribute(net, film)[0, 8, 6].item() == pytest.approx(slope, rel=1e-3)


def cam_net():
    """Two feature maps from 1 x 1 convolutions, relu(x) and relu(0.5 - x), added up with weights 2 and -1."""
    convolution = nn.Conv2d(3, 2, 1)
    head = nn.Linear(2 * 4, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1) / 3)
        convolution.bias.copy_(torch.tensor([0.0, 0.5]))
        head.weight.copy_(torch.tensor([[2.0] * 4 + [-1.0] * 4]))
    return Net(nn.Sequential(convolution, nn.ReLU()), nn.Sequential(nn.Flatten(), head))


@pytest.mark.parametrize("relu", [True, False])
def test_gradcam_by_hand(relu):
    film = torch.tensor([[0.0, 1.0], [0.25, 0.5]]).expand(1, 3, 2, 2).contiguous()
    # maps after the ReLU: [0, 1, .25, .5] and [.5, 0, .25, 0]; mean gradients 2 and -1
    expected = torch.tensor([[[-0.5, 2.0], [0.25, 1.0]]])
    expected = expected.clamp(min=0) if relu else expected
    torch.testing.assert_close(method_of("gradcam", relu=relu).attribute(cam_net(), film), expected)


def test_gradcam_on_a_named_convolution_sees_it_before_the_relu():
    film = torch.tensor([[0.0, 1.0], [0.25, 0.5]]).expand(1, 3, 2, 2).contiguous()
    # before the ReLU: [0, 1, .25, .5] and [.5, -.5, .25, 0]; gradients pass where it is above 0: 3/4 of 2 and 2/4 of -1
    expected = torch.tensor([[[-0.25, 1.75], [0.25, 0.75]]])
    maps = method_of("gradcam", relu=False, layer="features.0").attribute(cam_net(), film)
    torch.testing.assert_close(maps, expected)


def test_gradcam_is_enlarged_bilinearly(films):
    net = small_cnn().eval()
    maps = method_of("gradcam", relu=False).attribute(net, films)
    features = net.features[1][:2](net.features[0](films)).detach().requires_grad_()
    net.head(net.features[1][2](features)).sum().backward()
    small = (features.grad.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)
    expected = functional.interpolate(small, (17, 17), mode="bilinear")[:, 0]
    torch.testing.assert_close(maps, expected.detach())


def test_guided_gradcam_by_hand():
    film = torch.tensor([[0.0, 1.0], [0.25, 0.5]]).expand(1, 3, 2, 2).contiguous()
    # guided gradient: only the positive weight 2 passes back, where relu(x) is open; times relu(Grad-CAM) of above
    expected = torch.tensor([[[0.0, 2.0], [0.25, 1.0]]]) * torch.tensor([[[0.0, 2.0], [2.0, 2.0]]])
    torch.testing.assert_close(method_of("guided_gradcam").attribute(cam_net(), film), expected)


@pytest.mark.parametrize("name", ["gradcam", "guided_gradcam"])
def test_an_unknown_layer_is_refused_with_the_list(name, films):
    with pytest.raises(ValueError, match=r"No layer 'features\.9'.*features\.0\.0, .*head\.4"):
        method_of(name, layer="features.9").attribute(small_cnn(), films)


@pytest.mark.parametrize("name", ["gradcam", "guided_gradcam"])
@pytest.mark.parametrize(("layer", "gives"), [("head", r"\[1\], no"), ("head.0", r"\[\d+\], no")])
def test_a_layer_without_feature_maps_is_refused_with_those_that_have_some(name, layer, gives, films):
    with pytest.raises(ValueError, match=f"layer={layer} gives {gives} feature maps; try one of features.0.0"):
        method_of(name, layer=layer).attribute(small_cnn(), films)


@pytest.mark.parametrize("name", ["smoothgrad", "gradient_shap"])
def test_a_spread_below_zero_is_refused(name):
    with pytest.raises(ValueError, match=r"stdev=-0.1: expected a number from 0"):
        method_of(name, stdev=-0.1)


@pytest.mark.parametrize("name", ["smoothgrad", "gradient_shap"])
def test_another_seed_is_another_draw(name, films):
    net = small_cnn()
    maps = [method_of(name, seed=seed).attribute(net, films) for seed in (0, 1)]
    assert not torch.equal(*maps)


def test_smoothgrad_without_noise_is_saliency(films):
    net = small_cnn()
    smooth = method_of("smoothgrad", stdev=0.0).attribute(net, films)
    torch.testing.assert_close(smooth, method_of("saliency").attribute(net, films))


def test_noise_does_not_depend_on_the_batch_where_films_have_a_multiple_of_16_values():
    net, film = small_cnn(size=16), random_films(1, 16)
    maps = [method_of("smoothgrad", internal_batch_size=size).attribute(net, film) for size in (25, 4)]
    torch.testing.assert_close(*maps, atol=1e-6, rtol=1e-4)


def test_films_made_in_inference_mode_can_be_explained():
    with torch.inference_mode():
        film = random_films(1, 17)
    assert method_of("saliency").attribute(small_cnn(), film).isfinite().all()
