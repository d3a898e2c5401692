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


def test_no_gradient_is_no_step() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_kernels_go_as_torchs_own_muon_takes_a_matrix() -> None:
    kernel, matrix = (nn.Parameter(torch.ones(4, 24)) for _ in range(2))
    ours = Muon([kernel], lr=0.01, momentum=0.95, **SETTINGS)
    torchs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")

    for step in range(5):
        gradient = torch.randn(4, 24, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in ((kernel, ours), (matrix, torchs)):
            parameter.grad = gradient.clone()
            optimizer.step()

    moved = (matrix - 1).norm()
    assert (kernel - matrix).norm() < 0.02 * moved  # torch's is in bfloat16


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


def test_a_momentum_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum=1.5: expected a share in \[0, 1\)"):
        Muon([nn.Parameter(torch.ones(2, 2))], lr=0.1, momentum=1.5, **SETTINGS)
