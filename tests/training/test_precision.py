"""Full float32 while a finished net is asked, and what was chosen before it afterwards, whatever happens; bfloat16 on
a processor that lacks it is told."""

import lightning as L
import pytest
import torch

from pneumonia.training.precision import full_float32
from pneumonia.workflows.trainer import say_emulated


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


@pytest.mark.parametrize(
    ("capability", "precision", "told"),
    [("AVX2", "bf16-mixed", True), ("AVX2", "32-true", False), ("AVX512", "bf16-mixed", False)],
)
def test_bfloat16_on_a_processor_without_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: str, precision: str, told: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    say_emulated(L.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False))
    assert ("32-true is many times faster" in caplog.text) == told
