"""One finished run, for all tests that look at what a run leaves."""

from pathlib import Path

import pytest

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
