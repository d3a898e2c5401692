import pytest
import torch
from attribution_cases import small_cnn

from pneumonia.attribution import batching


def test_the_batch_is_halved_until_it_fits():
    tried = []

    def run(batch):
        tried.append(batch)
        if batch > 5:
            raise torch.OutOfMemoryError("too many")
        return batch

    assert batching.halved_until_it_fits(run, 48) == 3
    assert tried == [48, 24, 12, 6, 3]


def test_when_one_image_does_not_fit_the_error_says_so():
    def run(batch):
        raise torch.OutOfMemoryError(f"{batch}")

    with pytest.raises(MemoryError, match="Not even one image at a time"):
        batching.halved_until_it_fits(run, 4)


def test_other_errors_are_not_swallowed():
    def run(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        batching.halved_until_it_fits(run, 4)


def test_output_bytes_by_hand():
    image = torch.zeros(1, 3, 17, 17)
    values = 3 * 17 * 17 + 2 * 4 * 15 * 15 + 4 * 7 * 7 + 2 * 6 * 5 * 5 + 6 * 2 * 2 + 24 + 3 * 8 + 1
    net = small_cnn()
    assert batching.output_bytes(net, image) == 4 * values
    assert net.training and not any(module._forward_hooks for module in net.modules())


def test_on_a_gpu_the_batch_follows_the_free_memory(monkeypatch):
    class OnGpu:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(batching, "output_bytes", lambda net, image: 1000)
    monkeypatch.setattr(batching, "free_bytes", lambda device: 50_000)
    choose = batching.batch_for
    assert choose(small_cnn(), OnGpu(), 256, gradients=False) == 40  # 0.8 x 50,000 / 1,000
    assert choose(small_cnn(), OnGpu(), 256, gradients=True) == 13  # outputs, gradients and work space: a third
    assert choose(small_cnn(), OnGpu(), 8, gradients=False) == 8
    monkeypatch.setattr(batching, "free_bytes", lambda device: 10)
    assert choose(small_cnn(), OnGpu(), 256, gradients=False) == 1


def test_a_net_that_averages_views_of_each_image_gets_fewer_images(monkeypatch):
    class OnGpu:
        device = torch.device("cuda", 0)

    net = small_cnn()
    net.copies, net.views, net.by_view = 3, len, len
    assert batching.batch_for(net, torch.zeros(1, 3, 17, 17), 256, gradients=False) == batching.CPU_BATCH // 3
    assert batching.batch_for(net, torch.zeros(1, 3, 17, 17), 2, gradients=False) == 1
    monkeypatch.setattr(batching, "output_bytes", lambda net, image: 1000)
    monkeypatch.setattr(batching, "free_bytes", lambda device: 50_000)
    assert batching.batch_for(net, OnGpu(), 30, gradients=False) == 10
    assert batching.batch_for(net, OnGpu(), 256, gradients=False) == 40  # what an image takes has its copies in it
    assert batching.batch_for(net, OnGpu(), 2, gradients=False) == 1


def test_on_a_cpu_the_batch_is_bounded():
    image = torch.zeros(1, 3, 17, 17)
    assert batching.batch_for(small_cnn(), image, 10_000, gradients=False) == batching.CPU_BATCH
    assert batching.batch_for(small_cnn(), image, 2, gradients=True) == 2


def test_predictions_do_not_depend_on_the_batch():
    net, images = small_cnn(), torch.rand(7, 3, 17, 17)
    expected = net.eval()(images).detach()
    for batch in (1, 3, 7, 64):
        found = batching.predict(net, lambda start, stop: images[start:stop], 7, batch)
        torch.testing.assert_close(found, expected)
