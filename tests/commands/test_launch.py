"""Several processes and launchers: one folder, one writer, one voice, and a line for each way to start them wrongly."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from sweep_cases import attempts, start_sweep, status, table

from pneumonia.errors import UserError
from pneumonia.launch import Launch, launched
from pneumonia.workflows.sweep import only_one

Command = Callable[..., None]
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2"]
GLOO = ("trainer=ddp", "trainer.accelerator=cpu", "data.image_size=32", "data.batch_size=16", "epochs=2")
WRITTEN = ("metrics.json", "predictions.csv", "manifest.csv")


def torchrun(rank: int) -> dict[str, str]:
    """What torchrun sets for one of two processes of this machine."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def srun(rank: int) -> dict[str, str]:
    """What srun sets for one of two tasks of one node."""
    named = {"JOB_ID": "4321", "JOB_NAME": "x", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "NODEID": "0"}
    mine = {"PROCID": str(rank), "LOCALID": str(rank), "NODELIST": "127.0.0.1"}
    return {f"SLURM_{name}": value for name, value in (named | mine).items()}


@pytest.fixture
def told(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that fails says, with these variables set; it makes no folder."""

    def run(variables: dict[str, str], *typed: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ending:
                command("train", *typed)
        assert ending.value.code == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err and not Path("outputs").exists()
        return said.out + said.err

    return run


def test_the_launch_is_read_from_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == Launch(0, 1, 1)
    with monkeypatch.context() as patch:
        for name, value in torchrun(1).items():
            patch.setenv(name, value)
        assert launched() == Launch(1, 2, 2, "torchrun")
    for name, value in (srun(1) | {"SLURM_NTASKS": "8", "SLURM_PROCID": "5"}).items():
        monkeypatch.setenv(name, value)
    assert launched() == Launch(5, 8, 2, "srun")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="ask for --nodes and --ntasks-per-node"):
        launched()


def test_processes_that_do_not_fit_are_refused_in_one_line(
    told: Callable[..., str], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = f"data.root={phantoms}"
    assert "each would train by itself: type trainer=ddp" in told(torchrun(0), films)
    assert told(torchrun(1), films) == ""  # one voice
    assert "trainer.devices=3: torchrun started 2" in told(torchrun(0), films, *GLOO, "trainer.devices=3")
    assert "name one folder for all processes" in told(srun(0), "-m", films, *GLOO, "seed=1,2")
    assert "torchrun can't start a search" in told(torchrun(0), "-m", films, *GLOO, "search=cnn")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "MASTER_PORT=abc: expected a port" in told({"MASTER_PORT": "abc"}, films, *GLOO, "trainer.devices=2")
        assert f"MASTER_PORT={port} is in use" in told({"MASTER_PORT": port}, films, *GLOO, "trainer.devices=2")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumonia.settings import TrainerConfig
    from pneumonia.workflows.trainer import uses_gpu

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert uses_gpu(TrainerConfig(strategy="ddp"), Launch(0, 4, 2, "srun"))
    assert not uses_gpu(TrainerConfig(accelerator="cpu", strategy="ddp"), Launch(0, 4, 4, "srun"))
    with pytest.raises(UserError, match="torchrun started 4 processes on this machine: expected at most 2"):
        uses_gpu(TrainerConfig(strategy="ddp"), Launch(0, 4, 4, "torchrun"))
    with pytest.raises(UserError, match=r"trainer.devices=3: expected at most 2"):
        uses_gpu(TrainerConfig(devices="3", strategy="ddp"), Launch())


def test_processes_that_share_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumonia.settings import TrainerConfig
    from pneumonia.workflows.trainer import processes_here

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert processes_here(TrainerConfig(), Launch(), True) == 1
    assert processes_here(TrainerConfig(strategy="ddp"), Launch(), True) == 4
    assert processes_here(TrainerConfig(strategy="ddp", devices="2"), Launch(), False) == 2
    assert processes_here(TrainerConfig(strategy="ddp"), Launch(1, 8, 4, "torchrun"), True) == 4
    assert processes_here(TrainerConfig(strategy="ddp"), Launch(1, 8, 4, "srun"), True) == 1


@pytest.mark.parametrize(("on_gpu", "names"), [(False, ["g++"]), (True, ["gcc", "clang"])])
def test_any_compiler_that_torch_compile_takes_is_enough(
    on_gpu: bool, names: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pneumonia.workflows.trainer import check_compiler

    variable = "CC" if on_gpu else "CXX"
    monkeypatch.delenv(variable, raising=False)
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path / name))
        check_compiler(on_gpu)
    monkeypatch.setenv(variable, "/nowhere/icpx")  # torch asks for this one alone
    with pytest.raises(UserError, match=f"/nowhere/icpx can't be found.*{variable}=<file>"):
        check_compiler(on_gpu)
    monkeypatch.setenv(variable, str(tmp_path / names[0] / names[0]))
    check_compiler(on_gpu)


def test_a_full_disk_and_a_taken_port_are_told_in_a_users_words() -> None:
    from pneumonia.workflows.ending import of_child

    folder = Path("/scratch/run 7")
    full = str(of_child(OSError(errno.ENOSPC, "No space left on device"), folder))
    assert "make room" in full and "resume='/scratch/run 7'" in full
    assert "is in use" in str(of_child(RuntimeError("The server socket has failed to listen, EADDRINUSE"), folder))
    other = OSError(errno.EIO, "Input/output error")
    assert of_child(other, folder) is other


def test_one_process_at_a_time_is_at_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumonia.workflows.sweep.GRACE", 0.1)
    lock = tmp_path / "run" / ".hydra" / "lock"
    taken = pytest.raises(UserError, match="another process is at this run")
    with only_one(lock, wait=False), taken, only_one(lock, wait=False):
        pass
    assert not FileLock(lock).is_locked
    with only_one(lock, wait=False):
        pass


@pytest.mark.slow
def test_torchrun_and_srun_leave_what_spawned_processes_leave(phantoms: Path, tmp_path: Path) -> None:
    def typed(name: str) -> list[str]:
        return ["-m", "pneumonia.train", *GLOO, f"data.root={phantoms}", f"hydra.run.dir={tmp_path / name}"]

    subprocess.run([sys.executable, *typed("spawned"), "trainer.devices=2"], check=True, cwd=tmp_path)
    done = subprocess.run([*TORCHRUN, *typed("torchrun")], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "an effective batch of 32" in done.stdout and done.stdout.count("epoch 1/2") == 1
    tasks = [
        subprocess.Popen([sys.executable, *typed("srun")], env=os.environ | srun(rank), cwd=tmp_path) for rank in (0, 1)
    ]
    assert [task.wait(200) for task in tasks] == [0, 0]
    for name in WRITTEN:
        spawned = (tmp_path / "spawned" / name).read_bytes()
        assert spawned == (tmp_path / "torchrun" / name).read_bytes() == (tmp_path / "srun" / name).read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) == ["spawned", "srun", "torchrun"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(tmp_path / "torchrun" / "tensorboard"))
    events.Reload()
    curve = tensor_util.make_ndarray(events.Tensors("val/precision_recall")[-1].tensor_proto)
    films = json.loads((tmp_path / "torchrun" / "metrics.json").read_text())["val"]["n"]
    assert curve[:4, 0].sum() == films  # the pictures are of the films of all processes


@pytest.mark.slow
def test_processes_that_get_sigterm_leave_a_run_that_goes_on(phantoms: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    typed = ["-m", "pneumonia.train", *GLOO, "epochs=40", f"data.root={phantoms}", f"hydra.run.dir={run}"]
    started = subprocess.Popen([*TORCHRUN, *typed], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while not (run / "metrics.csv").exists() and time.monotonic() < end:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    started.wait(60)
    assert status(run) == "interrupted"
    subprocess.run([*TORCHRUN, "-m", "pneumonia.train", f"resume={run}"], check=True, cwd=tmp_path)
    assert status(run) == "finished" and len((run / "metrics.csv").read_text().splitlines()) == 41


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_parent_of_spawned_processes_ends_them_all(
    phantoms: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    typed = [*GLOO, "trainer.devices=2", "epochs=300", f"data.root={phantoms}", f"hydra.run.dir={tmp_path / 'run'}"]
    with (tmp_path / "log").open("w") as log:
        words = [sys.executable, "-m", "pneumonia.train", *typed]
        heard = partial(signal.signal, number, signal.SIG_DFL)  # a suite that a shell's & started ignores SIGINT
        parent = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=heard)
        end = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < end:
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(60) == code
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert "goes on" in (tmp_path / "log").read_text()
    rows = (tmp_path / "run" / "metrics.csv").read_bytes()
    time.sleep(2)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == rows  # no child trains on


@pytest.mark.slow
@pytest.mark.parametrize("start", [[sys.executable], TORCHRUN], ids=["spawn", "torchrun"])
def test_a_sweep_of_several_processes_lands_in_one_folder_and_skips_what_is_finished(
    phantoms: Path, tmp_path: Path, start: list[str]
) -> None:
    typed = [*GLOO, "optimizer.lr=0.001,0.002", f"data.root={phantoms}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    typed += ["trainer.devices=2"] if start == [sys.executable] else []
    for _ in range(2):
        subprocess.run([*start, "-m", "pneumonia.train", "-m", *typed], check=True, cwd=tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["sweep"]
        assert [row["status"] for row in table(tmp_path / "sweep")] == ["finished", "finished"]
    assert all(len(when) == 1 for when in attempts(tmp_path / "sweep").values())
    assert (tmp_path / "sweep" / "comparison" / "comparison.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_trials_at_once_end_as_trials_in_turn(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    small = ("trainer=cpu", "data.image_size=32", "data.batch_size=16", "epochs=2", "optimizer.lr=0.001,1e38,0.002")
    in_turn, at_once = tmp_path / "in_turn", tmp_path / "at_once"
    assert start_sweep(phantoms, in_turn, *small).wait(300) == 1
    if launcher == "joblib":
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # as a user has it: each trial gets its share of the cores
    assert start_sweep(phantoms, at_once, *small, f"hydra/launcher={launcher}").wait(300) == 1
    named = [[(row["job"], row["status"], row["value"]) for row in table(folder)] for folder in (in_turn, at_once)]
    assert named[0] == named[1] and [row[1] for row in named[0]] == ["finished"] * 2 + ["failed"]
    for job, how, _ in named[0]:
        for name in WRITTEN if how == "finished" else ():
            assert (in_turn / job / name).read_bytes() == (at_once / job / name).read_bytes()
    before = attempts(at_once)
    assert start_sweep(phantoms, at_once, *small, f"hydra/launcher={launcher}").wait(300) == 1
    assert attempts(at_once) == before
    threads = [json.loads((at_once / job / "run.json").read_text())["machine"]["threads"] for job, *_ in named[0]]
    assert launcher != "joblib" or max(threads) <= max(1, (os.cpu_count() or 1) // 2)
    assert all(status(at_once / job) == how for job, how, _ in named[0])


@pytest.mark.slow
def test_a_killed_sweep_of_trials_at_once_leaves_no_process_and_goes_on(phantoms: Path, tmp_path: Path) -> None:
    typed = (
        "trainer=cpu",
        "data.image_size=32",
        "epochs=40",
        "seed=1,2,3",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )
    sweep = tmp_path / "sweep"
    started = start_sweep(phantoms, sweep, *typed)
    end = time.monotonic() + 100
    while len(list(sweep.glob("*/metrics.csv"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    begun = list(attempts(sweep))
    for job in begun:
        with only_one(sweep / job / ".hydra" / "lock", wait=True):  # let go of when its process has ended
            assert status(sweep / job) == "interrupted"
    assert start_sweep(phantoms, sweep, *typed).wait(300) == 0
    assert {job: len(when) for job, when in attempts(sweep).items()} == {
        job: 2 if job in begun else 1 for job in attempts(sweep)
    }
    assert all(len(file.read_text().splitlines()) == 41 for file in sweep.glob("*/metrics.csv"))
