"""A mistake of explain or scoreboard is one line with the way out: exit 2, no traceback, nothing half-written."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Command = Callable[..., None]


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def refused(command: Command, capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> str:
    """The one line on stderr of a command that must fail with exit code 2 and write nothing."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command(name, *arguments)
    told = capsys.readouterr()
    assert ending.value.code == 2
    assert "Traceback" not in told.out + told.err
    assert told.err.startswith(f"pneumonia.{name}: ") and told.err.count("\n") == 1, told.err
    assert sorted(Path().rglob("*")) == before
    return told.err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((), "Expected run=<folder of a finished run>, or checkpoint=<file>"),
        (("run=RUN", "attribution=limee"), "did you mean lime?"),
        (("run=RUN", "attribution.num_sample=3"), "did you mean attribution.num_samples?"),
        (("run=RUN", "attribution.num_samples=0"), "num_samples=0: expected a number above 0"),
        (("run=RUN", "attribution.segmentation=quick"), "expected one of quickshift, slic, grid"),
        (("run=RUN", "select=tpp"), "did you mean tp?"),
        (("run=RUN", "count=0"), "count=0: expected a number >= 1"),
        (("run=",), "run= is empty: expected a path"),
        (("run=RUN", "layers=[]"), "layers=[]: expected null"),
        (("run=RUN", "layers=input"), "layers=input: expected a list, as layers=[a,b]"),
        (("run=RUN", "views=two"), "views=two: expected one of all, one"),
        (("run=RUN", "palette=rainbow"), "expected one of colour_blind, green_red"),
        (("run=RUN", "channel=loudest"), "expected first, strongest, mean or the number"),
        (("run=RUN", "activations=yess"), "expected false, true or only"),
        (("run=RUN", "checkpoint=x.ckpt"), "both name a model"),
        (("run=nowhere",), "run=nowhere: no such folder"),
        (("run=RUN/figures",), "no checkpoints/best.ckpt"),
        (("checkpoint=RUN/checkpoints/best.ckpt",), "checkpoint needs images="),
        (("checkpoint=nothing.ckpt", "images=RUN"), "checkpoint=nothing.ckpt: no such file"),
        (("run=RUN", "images=nothing.png"), "images=nothing.png: no such file or folder"),
        (("run=RUN", "images=RUN/checkpoints"), "no films in it"),
        (("run=RUN", "images=RUN/predictions.csv"), "not a JPEG or PNG image"),
        (("run=RUN", "images=RUN", "select=fp"), "select=fp chooses among a run's own films"),
        (("run=RUN", "images=RUN", "split=val"), "split=val chooses among a run's own films"),
        (("run=RUN", "select=fn", "threshold=0"), "no false negatives at this operating point"),
        (("run=RUN", "select=most_confident_mistakes", "threshold=0", "root=."), "films can't be read"),
        (("run=RUN", "attribution=gradcam", "attribution.layer=features.99"), "its layers: features, features.0"),
        (("run=RUN", "attribution=occlusion", "attribution.window=40"), "window=40: expected at most the side"),
        (("run=RUN", "activations=only", "channel=9999"), "has only 32 channels"),
        (("run=RUN", "activations=only", "layers=[conv]"), "choose from input, features.0"),
        (("run=RUN", "activations=true", "layers=[conv]"), "activations: No layer conv"),
        (("-m", "run=RUN", "seed=0,1"), "RUN/explanations: two runs of -m would write it"),
        (("-m", "run=RUN", "select=tp,tn", "activations=true"), "RUN/explanations: two runs of -m would write it"),
        (("run=RUN", "attribution=gradcam", "output=RUN/run.json/there"), "is not a writable folder"),
    ],
    ids=lambda value: "_".join(value).replace("/", "-") if isinstance(value, tuple) else "",
)
def test_explain_says_what_is_wrong(
    command: Command, capsys: pytest.CaptureFixture[str], finished: Path, typed: tuple[str, ...], message: str
) -> None:
    arguments = [argument.replace("RUN", str(finished)) for argument in typed]
    assert message.replace("RUN", str(finished)) in refused(command, capsys, "explain", *arguments)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((), "run is not set"),
        (("run=RUN", "methods=[lime,limes]"), "methods=limes: expected one of deeplift"),
        (("run=RUN", "methods=[]"), "expected null for all"),
        (("run=RUN", "methods=[saliency,lime,saliency]"), "methods: saliency stands there twice"),
        (("run=RUN", "attributions.lime.num_sample=3"), "did you mean attributions.lime.num_samples?"),
        (("run=RUN", "select=fn", "threshold=0"), "no false negatives at this operating point"),
        (("run=RUN", "methods=[occlusion]", "attributions.occlusion.window=40"), "window=40: expected at most"),
        (("run=RUN", "resamples=1"), "resamples=1: expected a number >= 100"),
        (("run=RUN", "views=two"), "views=two: expected one of all, one"),
        (("-m", "run=RUN", "threshold=0", "seed=0,1"), "scoreboard.csv: two runs of -m would write it"),
    ],
    ids=lambda value: "_".join(value).replace("/", "-") if isinstance(value, tuple) else "",
)
def test_scoreboard_says_what_is_wrong(
    command: Command, capsys: pytest.CaptureFixture[str], finished: Path, typed: tuple[str, ...], message: str
) -> None:
    arguments = [argument.replace("RUN", str(finished)) for argument in typed]
    assert message in refused(command, capsys, "scoreboard", *arguments)


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (str(self.file), os.O_CREAT)


def test_a_checkpoint_that_would_run_code_is_refused_in_one_line_and_not_run(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    finished: Path,
    tmp_path: Path,
) -> None:
    proof, checkpoint = tmp_path / "proof", finished / "checkpoints" / "best.ckpt"
    for write in (
        lambda: checkpoint.write_bytes(pickle.dumps(Trap(proof))),
        lambda: torch.save({"state_dict": Trap(proof)}, checkpoint),
    ):
        write()
        assert "is not a checkpoint of this project" in refused(command, capsys, "explain", f"run={finished}")
        assert not proof.exists() and not recwarn
    pickle.loads(pickle.dumps(Trap(proof)))  # the trap does work
    assert proof.exists()


@pytest.mark.parametrize("how", ["empty", "text", "other weights", "other settings"])
def test_a_checkpoint_that_does_not_fit(
    command: Command, capsys: pytest.CaptureFixture[str], finished: Path, how: str
) -> None:
    checkpoint = finished / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    if how == "empty":
        checkpoint.write_bytes(b"")
    elif how == "text":
        checkpoint.write_text("weights")
    elif how == "other weights":
        content["state_dict"] = {"net.features.0.weight": torch.zeros(1)}
        torch.save(content, checkpoint)
    else:
        content["hyper_parameters"]["model"]["blocks"] = [[16], [16]]
        torch.save(content, checkpoint)
    told = refused(command, capsys, "explain", f"run={finished}")
    assert str(checkpoint) in told
    assert ("don't fit" if how.startswith("other") else "is not a checkpoint of this project") in told


@pytest.mark.parametrize("name", ["lime", "integrated_gradients", "deeplift", "occlusion"])
def test_no_room_on_the_device(
    command: Command, capsys: pytest.CaptureFixture[str], finished: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from pneumonia.models.cnn import ConvNet

    def full(self: ConvNet, image: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")

    monkeypatch.setattr(ConvNet, "forward", full)
    told = refused(command, capsys, "explain", f"run={finished}", f"attribution={name}", "accelerator=cpu")
    assert f"attribution={name}: Not even one image at a time fits" in told and "accelerator=cpu" in told
    told = refused(
        command, capsys, "scoreboard", f"run={finished}", f"methods=[{name}]", "threshold=0", "accelerator=cpu"
    )
    assert f"attributions.{name}: Not even one image" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(command: Command, capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    assert "no CUDA GPU is visible" in refused(command, capsys, "explain", f"run={finished}", "accelerator=gpu")


def test_a_table_that_is_spoilt(command: Command, capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    (finished / "evidence.json").write_text('{"operating_point": {}}')
    assert "pneumonia.evaluate run=" in refused(command, capsys, "explain", f"run={finished}")
    (finished / "evidence.json").unlink()
    rows = (finished / "predictions.csv").read_text().splitlines()
    for spoilt, message in (
        ([*rows[:2], rows[2].rpartition(",")[0] + ",nan", *rows[3:]], "line 3: probability=nan"),
        ([*rows, rows[1]], "stands already in line 2"),
    ):
        (finished / "predictions.csv").write_text("\n".join(spoilt) + "\n")
        for name in ("explain", "scoreboard"):
            assert message in refused(command, capsys, name, f"run={finished}")
    (finished / "predictions.csv").write_text("\n".join(rows) + "\n")
    assert "Type select=tp or select=fp." in refused(
        command, capsys, "explain", f"run={finished}", "select=fn", "threshold=0"
    )
    (finished / "predictions.csv").write_text("path,label\na,1\n")
    assert "no column probability; expected path,label,probability" in refused(
        command, capsys, "explain", f"run={finished}"
    )
    (finished / "predictions.csv").unlink()
    assert "no predictions.csv" in refused(command, capsys, "explain", f"run={finished}")


def test_a_mistake_in_an_empty_folder_leaves_the_folder(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """These commands have no run folder of their own: Hydra's is the user's, and not to be removed."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused(command, capsys, "explain", f"run={finished}", "attribution=gradcam", "attribution.layer=no")
    assert (tmp_path / "empty").is_dir()
