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
    ("has", "precision", "told"),
    [
        ((), "bf16-mixed", True),
        ((), "32-true", False),
        (("avx512_bf16",), "bf16-mixed", False),
        (("amx_bf16",), "bf16-mixed", False),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has: tuple[str, ...], precision: str, told: bool
) -> None:
    capabilities = {"architecture": "x86_64"} | {name: name in has for name in ("avx512_bf16", "amx_bf16")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    say_emulated(L.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False))
    assert ("32-true is faster here" in caplog.text) == told
