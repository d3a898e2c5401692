"""Full float32 while a finished net is asked, and what was chosen before it afterwards, whatever happens."""

import pytest
import torch

from pneumonia.training.precision import full_float32


@pytest.mark.parametrize("chosen", [True, False])
def test_tf32_is_off_within_and_as_before_after(monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", chosen)
    found = []

    @full_float32()
    def ended() -> None:
        found.append(torch.backends.cudnn.allow_tf32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ended()
    assert found == [False] and torch.backends.cudnn.allow_tf32 == chosen
