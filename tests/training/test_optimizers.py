import pytest
import torch
from torch import nn

from pneumonia.training.optimizers import Muon, orthogonal

SETTINGS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (9, 9)])
def test_a_step_has_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    matrix[0] *= 20
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)

    values = left.T @ orthogonal(matrix) @ right.T

    assert torch.allclose(values, values.diag().diag(), atol=1e-9)
    assert values.diag().min() > 0.5 and values.diag().max() < 1.25


def test_a_blank_matrix_stays_blank() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("momentum", [0.95, 0.5])
@pytest.mark.parametrize("shape", [(4, 24), (24, 4)])
def test_kernels_go_as_torchs_own_muon_takes_a_matrix(shape: tuple[int, int], momentum: float) -> None:
    kernel, matrix = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    ours = Muon([kernel], lr=0.01, momentum=momentum, **SETTINGS)
    torchs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.05, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    for step in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in ((kernel, ours), (matrix, torchs)):
            parameter.grad = gradient.clone()
            optimizer.step()

    moved = (matrix - 1).norm()
    assert (kernel - matrix).norm() < 0.02 * moved  # torch's is in bfloat16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_goes_as_the_matrix_with_a_row_for_each_of_its_filters(layout: torch.memory_format) -> None:
    numbers = torch.randn(2, 4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    kernel, matrix = nn.Parameter(numbers[0].clone(memory_format=layout)), nn.Parameter(numbers[0].flatten(1).clone())
    kernel.grad, matrix.grad = numbers[1].clone(memory_format=layout), numbers[1].flatten(1).clone()

    Muon([kernel, matrix], lr=0.01, momentum=0.95, **SETTINGS).step()

    assert not torch.equal(matrix, numbers[0].flatten(1))
    assert torch.equal(kernel.flatten(1), matrix)


def test_a_frozen_kernel_stays_as_it_is() -> None:
    frozen, learning = (nn.Parameter(torch.ones(3, 5)) for _ in range(2))
    learning.grad = torch.ones(3, 5)

    Muon([frozen, learning], lr=0.01, momentum=0.95, **SETTINGS).step()

    assert torch.equal(frozen, torch.ones(3, 5))
    assert not torch.equal(learning, torch.ones(3, 5))


def test_all_else_goes_as_adamw_takes_it() -> None:
    def stepped(build: type[torch.optim.AdamW], **more: float) -> list[nn.Parameter]:
        kernel, bias, output = (nn.Parameter(torch.ones(shape)) for shape in ((3, 1, 3, 3), (3,), (1, 3)))
        groups = [{"params": [kernel, bias]}, {"params": [output], "weight_decay": 0.0}]
        optimizer = build(groups, lr=0.01, **SETTINGS, **more)
        for step in range(3):
            for parameter in (kernel, bias, output):
                parameter.grad = torch.linspace(-1, step, parameter.numel()).view_as(parameter)
            optimizer.step()
        return [kernel, bias, output]

    (kernel, *others), (adamws, *adamws_others) = stepped(Muon, momentum=0.95), stepped(torch.optim.AdamW)

    assert all(torch.equal(*both) for both in zip(others, adamws_others, strict=True))
    assert not torch.allclose(kernel, adamws)


def test_goes_on_from_its_state() -> None:
    def trained(stopped: bool) -> torch.Tensor:
        parameters = nn.Parameter(torch.ones(2, 1, 3, 3)), nn.Parameter(torch.ones(2))
        optimizer = Muon(parameters, lr=0.1, momentum=0.9, **SETTINGS)
        for step in range(4):
            if stopped and step == 2:
                state = optimizer.state_dict()
                optimizer = Muon(parameters, lr=0.1, momentum=0.9, **SETTINGS)
                optimizer.load_state_dict(state)
            for k, parameter in enumerate(parameters):
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9 * step + k))
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    assert torch.equal(trained(stopped=True), trained(stopped=False))


@pytest.mark.parametrize("momentum", [1, 1.5, -0.1])
def test_a_momentum_that_is_none_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=rf"momentum={momentum}: expected a share in \[0, 1\)"):
        Muon([nn.Parameter(torch.ones(2, 2))], lr=0.1, momentum=momentum, **SETTINGS)
