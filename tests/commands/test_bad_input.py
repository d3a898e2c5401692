"""Every mistake is one clear error: it names the value and the way out; no traceback, nothing half-written."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

Command = Callable[..., None]
SMALL = ("trainer=debug", "data.image_size=32")


def refused(command: Command, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with exit code 2, one message on stderr and no run folder; the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command("train", *arguments)
    told = capsys.readouterr()
    assert ending.value.code == 2
    assert "Traceback" not in told.out + told.err
    left = [file for file in Path("outputs").rglob("*") if file.is_file()] if Path("outputs").exists() else []
    assert not left, left
    assert told.err.startswith("pneumonia.train: ")
    return told.err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model=vgg61", "model=vgg61: expected one of baseline, compact, deep"),
        ("model=vgg61", "did you mean vgg16?"),
        ("data.imge_size=3", "there is no setting data.imge_size; did you mean data.image_size?"),
        ("epoch=3", "there is no setting epoch; did you mean epochs?"),
        ("model.dropuot=0.1", "did you mean model.dropout?"),
        ("data.val_fraction=1.5", "data.val_fraction=1.5: expected a share of train between 0 and 1"),
        ("data.val_fraction=abc", "data.val_fraction"),
        ("data.image_size=big", "data.image_size"),
        ("epochs=0", "epochs=0: expected a number >= 1"),
        ("seed=-1", "seed=-1: expected"),
        ("objective=val/acuracy", "did you mean val/accuracy?"),
        ("balance=weigted_loss", "did you mean weighted_loss?"),
        ("data.resize=stretch", "expected one of squash, pad, crop"),
        ("data.patient_key=loose", "expected one of strict, conservative, none"),
        ("data.on_bad_file=ignore", "expected one of error, skip"),
        ("data.folds=5", "data.folds and data.fold go together"),
        ("data.counterexamples=grays", "expected one of greys, border; did you mean greys?"),
        ("data.held_out=NORMAL2-*", "data.held_out=NORMAL2-*: no training film has such a name"),
        ("keep=newest", "keep=newest: expected one of best, last"),
        ("standardize=true", "expected one of none, centre, local"),
        ("optimizer.lr=fast", "optimizer.lr=fast: expected a number"),
        ("model.dropout=true", "expected a number"),
        ("trainer.devices=many", "trainer.devices=many: expected auto or a count"),
        ("augment.steps=null", "type augment=none"),
        ("gradient_clip=0", "gradient_clip=0.0: expected a number > 0"),
        ("blurred_views=6", "blurred_views=6.0: expected a number >= 0 and <= 0.05"),
        ("seed", "seed: expected key=value"),
        ("--seed=1", "--seed=1: there is no such flag"),
        ("data.phantoms=41", "expected an even number"),
        ("model=null", "model=null: expected one of baseline"),
        ("experiment=null", "leave it out for none"),
        ("+foo=1", "+foo=1: there is no setting foo"),
        ("++resume=nowhere", "resume=nowhere: not a run folder"),
        ("+search=cnn", "search=cnn: a search is a sweep"),
        ("~optimizer.lr", "~optimizer.lr: a setting can't be taken away"),
        ("data.cache_dir=", "data.cache_dir= is empty: expected a path"),
        ("++data.val_fracton=0.3", "did you mean data.val_fraction?"),
        ("data.root=a,b", "several values need -m"),
        ("augment.steps=a,b", 'a list is typed as "augment.steps=[a,b]"'),
        ("hydra.run.dir=", "hydra.run.dir= is empty: name a folder, or leave it out"),
        ("data.root=my films, k=v", "a comma, a quote or = is typed as"),
        ("data.root=it's", "typed as \"data.root='it\\'s'\""),
        ("optimizer.betas=[0.9", "look after its brackets"),
        ("augment=[keras]", "expected one of keras, light, none, strong, tone, wide; type augment=keras."),
        ("experiment=[model1,record]", "type experiment=model1."),
        ("+augment.p=1", "augment.p: there is no such setting; expected augment.steps"),
        ("model.image_size=32", "model.image_size=32: films have 64 px: type data.image_size=32."),
        ("data.root=films", "data.root=films: data=synthetic draws its films"),
        ("data.root=", "data.root= is empty"),
        ("trainer.devices=2", "several processes need trainer=ddp"),
    ],
)
def test_a_mistyped_setting(command: Command, capsys: pytest.CaptureFixture[str], typed: str, message: str) -> None:
    assert message in refused(command, capsys, "data=synthetic", typed)


def test_what_this_user_may_not_enter_is_told_and_an_empty_variable_is_as_none(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Path.is_dir

    def closed(folder: Path) -> bool:
        if str(folder) == "/theirs":
            raise PermissionError(errno.EACCES, "Permission denied", "/theirs")
        return real(folder)

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("PNEUMONIA_CACHE")
    from pneumonia.config import compose

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", closed)
        assert "/theirs: permission denied" in refused(command, capsys, "data.root=/theirs", "data.cache=false")
    assert compose("train", []).data.cache_dir == str(Path.home() / ".cache" / "pneumonia")


def test_of_a_setting_typed_twice_the_last_is_meant(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(command, capsys, "data=synthetic", "optimizer.lr=0.004", "optimizer.lr=fast")
    assert "optimizer.lr=fast: expected a number, as optimizer.lr=0.001" in told
    told = refused(command, capsys, "data=synthetic", "optimizer.lr=fast", "optimizer.lr=0.004", "epochs=0")
    assert "epochs=0: expected a number >= 1" in told


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["-m", "--cfg", "job", "seed=1,2"], "-m with --cfg: a sweep has many settings"),
        (["--cfg", "job", "modl=vgg16"], "did you mean model?"),
        (["--info", "defaults", "seed=1,2"], "several values need -m"),
    ],
)
def test_a_mistake_beside_a_question_about_the_settings(
    command: Command, capsys: pytest.CaptureFixture[str], typed: list[str], message: str
) -> None:
    assert message in refused(command, capsys, *typed)


def test_settings_may_stand_on_both_sides_of_a_flag(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command("train", "seed=3", "--cfg", "job", "epochs=2")
    assert {"seed: 3", "epochs: 2"} <= set(capsys.readouterr().out.splitlines())


def test_a_bad_value_anywhere_in_a_sweep_is_told_before_the_first_job(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path
) -> None:
    told = refused(command, capsys, "-m", *SMALL, f"data.root={phantoms}", "seed=1,2", "data.val_fraction=0.2,1.5")
    assert "data.val_fraction=1.5" in told


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model.dropout=2", "dropout=2"),
        ("data.image_size=8", "too small"),
        ("optimizer.lr=-1", "learning rate"),
        ("optimizer.betas=[0.9]", "wants a longer list than it got in"),
        ("schedule.warmup=2", "warmup=2"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed is for a GPU"),
        ("model.dense=[0]", "dense layers of [0] units"),
        ("unfreeze_epoch=1", "only model=vgg16 has frozen blocks"),
        ("augment.steps=[{_target_: albumentations.RandomCrop, height: 10, width: 10}]", "changes the size"),
        ("augment.steps=[{_target_: albumentations.Rotate, limit: 5, bogus: 1}]", "bogus"),
        ("model._target_=os.system", "model._target_=os.system: expected a name that starts with"),
        ("trainer=gpu", "no CUDA GPU is visible"),
    ],
)
def test_a_value_that_only_the_library_can_judge(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, typed: str, message: str
) -> None:
    if typed == "trainer=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert message in refused(command, capsys, *SMALL, f"data.root={phantoms}", typed)


@pytest.mark.parametrize("typed", ["compile=true", "unfreeze_epoch=1"])
def test_what_can_not_be_captured_as_cuda_graphs(
    command: Command, capsys: pytest.CaptureFixture[str], typed: str
) -> None:
    assert f"{typed} can't be captured as CUDA graphs" in refused(command, capsys, *SMALL, "cuda_graphs=true", typed)


def test_torch_compile_without_a_compiler(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = refused(command, capsys, *SMALL, f"data.root={phantoms}", "trainer=cpu", "compile=true")
    assert "a compiler, and g++ can't be found" in told and "CXX=<file>, or type compile=false" in told


def test_blocks_that_unfreeze_later_are_not_for_several_processes(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(command, capsys, *SMALL, "model=vgg16", "unfreeze_epoch=1", "trainer=ddp")
    assert "unfreeze_epoch=1 with trainer.strategy=ddp" in told and "model.trainable_blocks=5" in told


def test_a_mistake_that_is_found_late_leaves_the_users_own_logs(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "slurm-7.log").write_text("of the queue")
    assert "dense layers of [0]" in refused(
        command, capsys, *SMALL, f"data.root={phantoms}", "model.dense=[0]", "hydra.run.dir=mine"
    )
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["slurm-7.log"]


def test_a_path_from_home_is_written_out(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "o'brien"))
    told = refused(command, capsys, *SMALL, "data.root=~/films", "hydra.run.dir=~/run")
    assert f"{tmp_path}/o'brien/films" in told and not (tmp_path / "~").exists()


def test_ctrl_c_while_films_are_opened_is_one_line(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pneumonia.workflows.films.preflight", stopped)
    with pytest.raises(SystemExit) as ending:
        command("train", *SMALL, "data=synthetic")
    assert ending.value.code == 130 and capsys.readouterr().err == "pneumonia.train: interrupted\n"


def test_a_manifest_whose_films_are_elsewhere(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "films.csv").write_text("path,label,patient\na.png,0,a\nb.png,1,b\n")
    told = refused(command, capsys, *SMALL, "data.manifest=films.csv", "data.on_bad_file=skip")
    assert "2 films can't be used" in told and f"looked for below {tmp_path}; set data.root=" in told
    assert "on_bad_file" not in told
    film = next((phantoms / "train" / "NORMAL").iterdir()).relative_to(phantoms)
    (tmp_path / "films.csv").write_text(f"path,label,patient\na.png,0,a\n{film},0,b\n")
    told = refused(command, capsys, *SMALL, "data.manifest=films.csv", f"data.root={phantoms}")
    assert "1 films can't be used" in told and "leave them out with data.on_bad_file=skip" in told


def test_a_manifest_without_training_films(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, tmp_path: Path
) -> None:
    films = [file.relative_to(phantoms) for file in sorted((phantoms / "test").rglob("*.png"))]
    rows = [f"{path},{path.parent.name},{path.stem},test" for path in films]
    (tmp_path / "films.csv").write_text("\n".join(["path,label,patient,split", *rows]) + "\n")
    told = refused(command, capsys, *SMALL, "data.manifest=films.csv", f"data.root={phantoms}")
    assert "There are no training films" in told


def test_shares_of_one_batch_make_at_most_1(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(command, capsys, *SMALL, "border_out=0.4", "lungs_out=0.3", "border_swap=0.4")
    assert "border_out=0.4 lungs_out=0.3 border_swap=0.4: expected shares of one batch, at most 1 in all" in told


def test_a_local_view_of_what_is_local_already(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(command, capsys, *SMALL, "standardize=local", "local_view=true")
    assert "local_view=true adds what standardize=local has: type local_view=false or standardize=centre." in told


def test_stopping_by_epochs_that_are_not_validated(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(command, capsys, *SMALL, "stop_on=val/loss", "validate_every=5")
    assert "stop_on=val/loss looks at every epoch: type validate_every=1 in place of 5, or stop_on=null." in told


def test_a_missing_root(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(command, capsys, *SMALL, "data.root=/nowhere/chest_xray")
    assert "/nowhere/chest_xray" in told and "data=synthetic" in told


def spoil(films: Path, how: str) -> None:
    if how == "no test":
        shutil.rmtree(films / "test")
    elif how == "no class":
        shutil.rmtree(films / "train" / "NORMAL")
    elif how == "empty class":
        for file in (films / "train" / "PNEUMONIA").iterdir():
            file.unlink()
    elif how == "third class":
        (films / "train" / "COVID").mkdir()
    elif how == "one patient":
        for file in sorted((films / "train" / "NORMAL").iterdir())[1:]:
            file.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no test", "test/NORMAL is missing"),
        ("no class", "train/NORMAL is missing"),
        ("empty class", "train/PNEUMONIA has no films"),
        ("third class", "train/COVID: a third class"),
        ("one patient", "Too few patients to split: NORMAL has 1"),
    ],
)
def test_a_folder_that_does_not_fit(
    command: Command, capsys: pytest.CaptureFixture[str], films_copy: Path, how: str, message: str
) -> None:
    spoil(films_copy, how)
    assert message in refused(command, capsys, *SMALL, f"data.root={films_copy}")


def test_bad_files_are_listed_by_name_or_left_out_when_asked(
    command: Command, capsys: pytest.CaptureFixture[str], films_copy: Path, tmp_path: Path
) -> None:
    import json

    first, second = sorted((films_copy / "train" / "NORMAL").iterdir())[:2]
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:900])
    told = refused(command, capsys, *SMALL, f"data.root={films_copy}")
    assert "2 films can't be used" in told and "data.on_bad_file=skip" in told
    assert f"train/NORMAL/{first.name}: zero bytes" in told and f"train/NORMAL/{second.name}: " in told
    command("train", *SMALL, f"data.root={films_copy}", "data.on_bad_file=skip", "hydra.run.dir=run")
    skipped = json.loads((tmp_path / "run" / "run.json").read_text())["skipped"]
    assert [entry["path"] for entry in skipped] == [f"train/NORMAL/{f.name}" for f in (first, second)]
    assert f"left out train/NORMAL/{first.name}: zero bytes" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "no such file"),
        ({"features.0.weight": torch.zeros(1)}, "another architecture"),
        (b"not a state dict", "not a state dict"),
    ],
    ids=["missing", "other", "text"],
)
def test_weights_that_do_not_fit(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, tmp_path: Path, state: object, message: str
) -> None:
    file = tmp_path / "weights.pth"
    if isinstance(state, bytes):
        file.write_bytes(state)
    elif state is not None:
        torch.save(state, file)
    told = refused(command, capsys, *SMALL, f"data.root={phantoms}", "model=vgg16", f"model.weights={file}")
    assert message in told and str(file) in told


def test_an_output_folder_that_cannot_be_written(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    told = refused(command, capsys, *SMALL, f"data.root={phantoms}", f"hydra.run.dir={tmp_path}/file/run")
    assert "not a writable folder" in told


def test_a_diverging_run_stops_with_its_step_and_says_so_in_run_json(
    command: Command, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    with pytest.raises(SystemExit) as ending:
        command(
            "train",
            "trainer=cpu",
            "data.image_size=32",
            f"data.root={phantoms}",
            "optimizer.lr=1e38",
            "hydra.run.dir=run",
        )
    assert ending.value.code == 2
    told = capsys.readouterr().out
    assert "nan or infinite at step" in told and "Traceback" not in told
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_film_under_both_labels_is_told(
    command: Command, films_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("prepare", f"data.root={films_copy}", "data.image_size=32")
    assert "both labels" not in capsys.readouterr().out
    film = sorted((films_copy / "train" / "PNEUMONIA").iterdir())[0]
    shutil.copy(film, films_copy / "train" / "NORMAL" / film.name)
    command("prepare", f"data.root={films_copy}", "data.image_size=32")
    pair = f"train/NORMAL/{film.name} = train/PNEUMONIA/{film.name}"
    told = f"1 film stands there with both labels ({pair}): one label of each is wrong"
    assert told in capsys.readouterr().out


def test_films_that_cannot_be_downloaded(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("kagglehub.dataset_download", refuse)
    told = refused(command, capsys, *SMALL)
    assert "data.root=/path/to/chest_xray" in told and "data=synthetic" in told
    assert "data.download=false" in refused(command, capsys, *SMALL, "data.download=false")


def test_films_in_kagglehubs_cache_are_found_once_and_without_asking_online(
    command: Command, films_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive nests chest_xray/chest_xray and a __MACOSX beside the films; none of them counts twice."""
    archive = tmp_path / "kaggle/datasets/paultimothymooney/chest-xray-pneumonia/versions/2"
    archive.mkdir(parents=True)
    shutil.copytree(films_copy, archive / "chest_xray")
    shutil.copytree(films_copy, archive / "chest_xray" / "chest_xray")
    junk = archive / "chest_xray" / "__MACOSX" / "train" / "NORMAL"
    junk.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(junk / "._IM-0001-0001.png")
    (archive.parents[1] / "2.complete").touch()
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    command("train", *SMALL, "hydra.run.dir=run")
    lines = (tmp_path / "run" / "manifest.csv").read_text().splitlines()
    assert len(lines) - 1 == 80


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["hydra.sweep.dir=", "seed=1,2"], "hydra.sweep.dir= is empty: name a folder"),
        (["optimizer.lr=interval(0.001,0.1)"], "an interval is for a search; type search=cnn or search=vgg16"),
        (["model=glob(dep*)"], "model=glob(dep*): expected some of baseline, compact"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, typed: list[str], message: str
) -> None:
    assert message in refused(command, capsys, "-m", *SMALL, f"data.root={phantoms}", *typed)
    assert not Path("sweep.json").exists()


def test_a_glob_is_every_choice_that_it_names() -> None:
    from pneumonia.config import single_runs

    assert list(single_runs(["model=glob(deep*)", "seed=3"])) == [
        ["model=deep", "seed=3"], ["model=deep_dropout", "seed=3"],
    ]  # fmt: skip


def test_what_is_refused_leaves_a_folder_that_was_there(
    command: Command, capsys: pytest.CaptureFixture[str], phantoms: Path, tmp_path: Path
) -> None:
    """With what lay in it, and nothing beside; one that was made for the run is gone again."""
    mine, log = tmp_path / "mine", tmp_path / "mine" / "train.log"
    mine.mkdir()
    log.write_text("an earlier attempt\n")
    typed = (*SMALL, f"data.root={phantoms}", "augment.steps=[1]")
    refused(command, capsys, *typed, f"hydra.run.dir={mine}")
    assert [file.name for file in mine.iterdir()] == ["train.log"] and log.read_text().startswith("an earlier attempt")
    log.unlink()
    refused(command, capsys, *typed, f"hydra.run.dir={mine}")
    assert not list(mine.iterdir())
    refused(command, capsys, *typed, f"hydra.run.dir={tmp_path}/made")
    assert not (tmp_path / "made").exists()
