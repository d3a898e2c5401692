"""The contract that all methods of conf/attribution share."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from attribution_cases import CONF, NAMES, Net, random_films, small_cnn


class Bounded(Net):
    """Runs out of memory above `limit` images, as a small device would; keeps the largest batch that it was given."""

    def __init__(self, net, limit):
        super().__init__(net.features, net.head)
        self.limit, self.largest = limit, 0

    def forward(self, image):
        self.largest = max(self.largest, len(image))
        if len(image) > self.limit:
            raise torch.OutOfMemoryError(f"{len(image)} images")
        return super().forward(image)


def test_the_nine_methods_are_there():
    assert NAMES == [
        "deeplift", "gradcam", "gradient_shap", "guided_gradcam", "integrated_gradients", "lime", "occlusion",
        "saliency", "smoothgrad",
    ]  # fmt: skip


def test_a_yaml_starts_with_one_comment_that_cites_its_paper(name):
    first, second = (CONF / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ") and "arXiv:" in first
    assert second.startswith("_target_: pneumonia.attribution.")


def test_one_finite_map_per_film_that_is_not_flat(method):
    maps = method.attribute(small_cnn(), random_films(3, 17))
    assert maps.shape == (3, 17, 17) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.isfinite().all() and (maps.flatten(1).std(1) > 0).all()


def test_same_seed_same_bytes_and_the_global_generators_move_on_undisturbed(method):
    net, films = small_cnn(), random_films(2, 17)
    torch.manual_seed(1), np.random.seed(1)
    first = method.attribute(net, films)
    drawn = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1), np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    second = method.attribute(net, films)
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert torch.equal(drawn[0], expected[0]) and np.array_equal(drawn[1], expected[1])


def test_a_film_is_explained_alike_alone_and_among_others(method):
    net, films = small_cnn(), random_films(3, 17)
    together = method.attribute(net, films)
    torch.testing.assert_close(together[1:2], method.attribute(net, films[1:2]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_net_and_the_films_stay_as_they_were(method, frozen, training):
    net, films = small_cnn().train(training), random_films(2, 17)
    net.features.eval()  # a frozen base inside a net that learns
    net.requires_grad_(not frozen)
    net.head[1].weight.grad = torch.ones_like(net.head[1].weight)
    weights, pixels = copy.deepcopy(net.state_dict()), films.clone()
    flags = [module.training for module in net.modules()]
    method.attribute(net, films)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert flags == [module.training for module in net.modules()]
    assert all(parameter.requires_grad is not frozen for parameter in net.parameters())
    assert torch.equal(net.head[1].weight.grad, torch.ones_like(net.head[1].weight))
    assert all(parameter.grad is None for key, parameter in net.named_parameters() if key != "head.1.weight")
    assert torch.equal(films, pixels) and not films.requires_grad
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in net.modules()
    )


def test_a_net_in_training_mode_is_explained_without_its_dropout(method):
    net, films = small_cnn(), random_films(1, 17)
    expected = method.attribute(net.eval(), films)
    assert torch.equal(method.attribute(net.train(), films), expected)


def test_too_little_memory_halves_the_batch_and_changes_nothing(name, method):
    net, films = small_cnn(), random_films(5, 17)
    limit = 4 if name == "deeplift" else 3  # DeepLift passes every film with its baseline
    bounded = Bounded(net, limit)
    maps = method.attribute(bounded, films)
    assert bounded.largest > limit
    if name in ("smoothgrad", "gradient_shap"):  # 17 x 17 films: noise in other portions is other noise
        assert maps.isfinite().all()
    else:
        torch.testing.assert_close(maps, method.attribute(net, films), atol=1e-6, rtol=1e-4)
    assert not any(module._forward_hooks or module._backward_hooks for module in bounded.modules())


def test_no_memory_at_all_is_said_plainly(method):
    with pytest.raises(MemoryError, match="Not even one image"):
        method.attribute(Bounded(small_cnn(), 0), random_films(1, 17))


def test_the_net_never_sees_more_images_than_asked_for(name, method):
    bounded = Bounded(small_cnn(), 10**6)
    dataclasses.replace(method, internal_batch_size=4).attribute(bounded, random_films(6, 17))
    assert bounded.largest <= (8 if name == "deeplift" else 4)


@pytest.mark.parametrize("shape", [(3, 17, 17), (1, 1, 17, 17), (0, 3, 17, 17)])
def test_images_of_another_shape_are_refused(method, shape):
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\]"):
        method.attribute(small_cnn(), torch.zeros(shape))


def test_bytes_are_refused(method):
    with pytest.raises(ValueError, match="uint8"):
        method.attribute(small_cnn(), torch.zeros(1, 3, 17, 17, dtype=torch.uint8))


def test_a_batch_of_none_is_refused(method):
    with pytest.raises(ValueError, match="internal_batch_size=0"):
        dataclasses.replace(method, internal_batch_size=0)
