"""What is explained is the whole answer: every view of a prediction, of changed copies of one film."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pneumonia.attribution.contract import AveragesViews
from pneumonia.attribution.gradient import DeepLift, GradCam, GuidedGradCam, IntegratedGradients, Saliency
from pneumonia.training.averaged import Averaged
from pneumonia.training.classifier import Classifier
from pneumonia.training.views import blurred

SIDE = 32
CNN = {"_target_": "pneumonia.models.cnn.cnn", "blocks": [[4]], "dense": [8], "dropout": 0.5, "image_size": SIDE}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.01, "weight_decay": 0.1}
CONSTANT = {"_target_": "pneumonia.training.schedules.constant", "warmup": 0.0}
EVERY = {"flip_average": True, "crop_average": True, "aligned_view": True, "local_view": True}


def film() -> Tensor:
    """Grey [1, 1, S, S] from 0 to 255: smooth, lighter below and to the right."""
    noise = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return (40 + noise.cumsum(-1).cumsum(-2) / SIDE * 0.3 + 60 * noise).clamp(0, 255).round()


def classifier(**change: Any) -> Classifier:
    """In eval mode, with weights large enough to tell pixels apart; its mean film is not where the film has it."""
    torch.manual_seed(0)
    made = Classifier(**{"model": CNN, "optimizer": ADAM, "schedule": CONSTANT} | change).eval()
    with torch.no_grad():
        list(made.net.parameters())[-2].abs_()  # something speaks for pneumonia: guided Grad-CAM sees no more than that
    if made.alignment is not None:
        made.alignment.learn(film().roll((2, -3), (-2, -1)))
        assert (made.alignment(film()) - film()).abs().max() > 5
    return made


def image_of(grey: Tensor) -> Tensor:
    return (grey.float() / 255).expand(-1, 3, -1, -1).contiguous()


@pytest.mark.parametrize("standardize", ["none", "centre", "local", False, True])
@pytest.mark.parametrize("views", list(product([False, True], repeat=len(EVERY))))
def test_of_the_film_itself_it_is_the_prediction(standardize: str | bool, views: tuple[bool, ...]) -> None:
    model = classifier(standardize=standardize, blurred_views=0.03, **dict(zip(EVERY, views, strict=True)))
    seen = model.as_predicted(film())
    with torch.no_grad():
        torch.testing.assert_close(Averaged(model, seen)(image_of(seen)), model(film()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen, blurred(film(), 0.03))


def test_copies_are_told_apart_and_each_has_the_answer_that_it_has_alone() -> None:
    net = Averaged(classifier(standardize="centre", **EVERY), film())
    images = torch.cat([image_of(film()), image_of(film()) * 0.7, image_of(film()).flip(-2)])
    with torch.no_grad():
        together = net(images)
        torch.testing.assert_close(together, torch.cat([net(image[None]) for image in images]))
    assert together.unique().numel() == 3 and net.copies == 2 * 2 * 4
    assert net.views(images).shape == (3 * net.copies, 3, SIDE, SIDE)


class Looks(nn.Module):
    """A net that sees nothing but one pixel."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :, self.row, self.column].sum(1)


class Mean(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((1, 2, 3))


@pytest.mark.parametrize("change", [{"standardize": "centre"}, {"local_view": True}, {"aligned_view": True}])
def test_what_is_covered_moves_neither_the_level_nor_the_place_of_the_rest(change: dict[str, Any]) -> None:
    model = classifier(**change)
    model.net = Looks(20, 12)
    grey = film()
    covered = grey.clone()
    covered[..., 6:18, 14:28] = 0
    with torch.no_grad():
        held = Averaged(model, grey)
        torch.testing.assert_close(held(image_of(covered)), held(image_of(grey)))
        assert (model(covered) - model(grey)).abs() > 1e-3


def test_a_film_that_fades_to_black_fades_for_the_net_and_its_gradients_sum_to_the_change() -> None:
    model = classifier(standardize="centre", **EVERY)
    seen = image_of(film())
    net = Averaged(model, film())
    with torch.no_grad():
        change = net(seen) - net(torch.zeros_like(seen))
        steps = net(torch.cat([seen * share for share in (1.0, 0.75, 0.5)]))
        faded = model(torch.cat([film() * share for share in (1.0, 0.75, 0.5)]))
    assert (steps.diff().abs() > 0.05).all() and (faded.diff().abs() < 0.03).all()  # but for what makes flat parts flat
    summed = IntegratedGradients(0.0, 200, 64).attribute(net, seen).sum()
    assert change.abs() > 0.1
    torch.testing.assert_close(summed, change[0], atol=0.01 * float(change.abs()), rtol=0)


def test_a_gradient_taken_view_by_view_is_that_of_the_whole() -> None:
    net = Averaged(classifier(**EVERY | {"local_view": False}), film())
    signed = Saliency(absolute=False, internal_batch_size=8)
    whole = signed.attribute(net, image_of(film()))
    by_view = net.by_view(signed.attribute, image_of(film()))
    assert whole.shape == by_view.shape == (1, SIDE, SIDE) and whole.abs().max() > 1e-3
    torch.testing.assert_close(by_view, whole, atol=1e-6, rtol=1e-4)
    with torch.no_grad():  # as Captum's max-sensitivity calls
        assert torch.equal(net.by_view(signed.attribute, image_of(film())), by_view)


@pytest.mark.parametrize(("flat", "lost"), [(0.0, 0.001), (0.3, 0.01)])  # by Captum's rule for max-pooling
def test_deeplift_sums_to_the_change_from_a_flat_film(flat: float, lost: float) -> None:
    net, seen = Averaged(classifier(standardize="centre", **EVERY), film()), image_of(film())
    with torch.no_grad():
        change = net(seen) - net(torch.full_like(seen, flat))
    for batch in (3, 16):
        summed = DeepLift(flat, batch).attribute(net, seen).sum()
        torch.testing.assert_close(summed, change[0], atol=lost * float(change.abs()), rtol=0)


def test_a_pixel_at_the_end_of_the_range_is_explained_where_nothing_cuts_it_off() -> None:
    model, grey = classifier(flip_average=True), film()
    drawn = torch.rand(grey.shape, generator=torch.Generator().manual_seed(0))
    grey[drawn < 0.2], grey[drawn > 0.8] = 0, 255
    net = Averaged(model, grey)
    image = image_of(grey).requires_grad_()
    logit = (model.net(image) + model.net(image.flip(-1))) / 2
    [gradient] = torch.autograd.grad(logit.sum(), image)
    map_ = Saliency(absolute=False, internal_batch_size=8).attribute(net, image.detach())
    torch.testing.assert_close(map_, gradient.sum(1), atol=1e-6, rtol=1e-4)
    assert map_[drawn[0] < 0.2].abs().mean() > 1e-3 < map_[drawn[0] > 0.8].abs().mean()


def test_noise_counts_for_it_as_much_as_for_the_net_within() -> None:
    model = classifier(flip_average=True)
    model.net = Mean()
    noisy = image_of(film()) + torch.randn(50, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(Averaged(model, film())(noisy), model.net(noisy))
    assert isinstance(Averaged(model, film()), AveragesViews) and not isinstance(model.net, AveragesViews)


@pytest.mark.parametrize("method", [GradCam(None, True, 8), GuidedGradCam(None, 8), Saliency(False, 8)])
def test_two_images_are_explained_as_each_alone(method: Any) -> None:
    net = Averaged(classifier(standardize="centre", **EVERY), film())
    images = torch.cat([image_of(film()), image_of(film()).flip(-2)])
    together = method.attribute(net, images)
    assert not torch.allclose(together[0], together[1], atol=0.1 * float(together.abs().max()))
    torch.testing.assert_close(together, torch.cat([method.attribute(net, image[None]) for image in images]))


@pytest.mark.parametrize(("method", "heat"), [(GradCam(None, False, 8), True), (GuidedGradCam(None, 8), False)])
def test_methods_that_read_layers_get_each_view_and_only_grad_cam_is_heat(method: Any, heat: bool) -> None:
    net, seen = Averaged(classifier(crop_average=True, flip_average=True), film()), image_of(film())
    found = method.attribute(net, seen)
    torch.testing.assert_close(found, net.by_view(method.attribute, seen, heat=heat))
    assert not torch.allclose(found, net.by_view(method.attribute, seen, heat=not heat), rtol=0.01, atol=1e-7)


def test_a_heat_of_one_is_one_where_all_views_look_and_less_where_only_some_do() -> None:
    seen = image_of(film())
    ones = lambda net, images: torch.ones_like(images[:, 0])  # noqa: E731
    whole = Averaged(classifier(flip_average=True, local_view=True), film()).by_view(ones, seen, heat=True)
    torch.testing.assert_close(whole, torch.ones(1, SIDE, SIDE))
    cropped = Averaged(classifier(crop_average=True), film()).by_view(ones, seen, heat=True)[0]
    torch.testing.assert_close(cropped[10:22], torch.ones(12, SIDE), atol=1e-5, rtol=0)
    assert (cropped[0] == 0).all() and 0.3 < cropped[3].mean() < 0.4  # one of three middles has that row


def test_a_heat_of_one_is_one_where_an_aligned_film_is_drawn_smaller() -> None:
    net = Averaged(classifier(aligned_view=True), film())
    net.place = torch.tensor([[0.4, 0.4, 0.0, 0.0, 0.0]])  # some pixels hardly count in what is seen
    ones = lambda net, images: torch.ones_like(images[:, 0])  # noqa: E731
    torch.testing.assert_close(net.by_view(ones, image_of(film()), heat=True), torch.ones(1, SIDE, SIDE))


@pytest.mark.parametrize("local", [False, True])
def test_a_heat_in_the_mirror_image_is_put_back(local: bool) -> None:
    net = Averaged(classifier(flip_average=True, local_view=local), film())

    def right_edge(inner: nn.Module, images: Tensor) -> Tensor:
        """Lit on the right of the film itself, on the left of its mirror image."""
        maps = torch.zeros_like(images[:, 0])
        maps[: len(maps) // 2, :, -1] = maps[len(maps) // 2 :, :, 0] = 1
        return maps

    lit = net.by_view(right_edge, image_of(film()), heat=True)[0]
    assert (lit[:, -1] == 1).all() and (lit[:, :-1] == 0).all()
