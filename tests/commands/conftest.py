"""One finished run, for all tests that look at what a run leaves; of other runs the pictures are not drawn."""

from pathlib import Path
from typing import IO, Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

SMALL = ("trainer=cpu", "data.image_size=32", "data.batch_size=16", "augment=light")


@pytest.fixture(scope="session")
def run(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run of two epochs on phantom films."""
    from pneumonia.train import main

    folder = tmp_path_factory.mktemp("outputs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        arguments = [*SMALL, f"data.root={phantoms}", "epochs=2", "objective=val/auroc"]
        arguments += [
            "trainer.precision=bf16-mixed",
            f"hydra.run.dir={folder}",
        ]  # predictions are in full precision all the same
        patch.setattr("sys.argv", ["pneumonia.train", *arguments])
        main()
    return folder


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end without their report, a third of a short one's time."""
    monkeypatch.setattr("pneumonia.workflows.experiment.after_training", lambda _: None)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but saved as one white pixel, and white in TensorBoard: drawing is half of a command's time.
    `pictures` marks the tests that look at one; what is drawn is tested under tests/report."""

    def one_pixel(self: Figure, target: Path | IO[bytes], **_: Any) -> None:
        Image.new("L", (1, 1), 255).save(target, "png")

    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(Figure, "savefig", one_pixel)
        monkeypatch.setattr(Figure, "draw", lambda figure, renderer: None)
