"""The loss and the metrics are what they say, and a checkpoint holds nothing but tensors and plain values."""

import csv
import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from sklearn.metrics import average_precision_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from pneumonia.errors import UserError
from pneumonia.models.vgg import VGG
from pneumonia.training.callbacks import (
    AveragedWeights,
    Bar,
    CompiledNet,
    History,
    NonFiniteLoss,
    ReseedEachStep,
    StopEarly,
    StopOnNonFiniteLoss,
    TensorBoardPictures,
    UnfreezeAt,
    ValidateEvery,
    best_checkpoint,
    epoch_line,
    kept_row,
    last_checkpoint,
)
from pneumonia.training.checkpoint import AtomicCheckpointIO, load_classifier
from pneumonia.training.classifier import Classifier, Mean, parameter_groups
from pneumonia.training.views import KEPT, blurred, middle

CNN = {"_target_": "pneumonia.models.cnn.cnn", "blocks": [[4]], "dense": [8], "dropout": 0.5, "image_size": 16}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.01, "weight_decay": 0.1}
CONSTANT = {"_target_": "pneumonia.training.schedules.constant", "warmup": 0.0}


def classifier(**change: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**{"model": CNN, "optimizer": ADAM, "schedule": CONSTANT} | change)  # type: ignore[arg-type]


def batches(films: int = 22, size: int = 8, channels: int = 16) -> DataLoader:
    """Bright films are positive, mostly; the last batch is short."""
    rng = np.random.default_rng(0)
    target = np.arange(films) % 3 > 0
    image = (
        rng.integers(0, 120, (films, 1, channels, channels))
        + 60 * target[:, None, None, None]
        + rng.integers(0, 70, (films, 1, 1, 1))
    )
    rows = [
        {"image": torch.tensor(i, dtype=torch.uint8), "target": torch.tensor(float(t)), "index": torch.tensor(n)}
        for n, (i, t) in enumerate(zip(image, target, strict=True))
    ]
    return DataLoader(rows, size)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: Callback, epochs: int = 1, **settings: object) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), plugins=[AtomicCheckpointIO()],
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        enable_checkpointing=any("Checkpoint" in type(c).__name__ for c in callbacks),
        **{"logger": False, "enable_progress_bar": False} | settings,
    )  # type: ignore[arg-type]  # fmt: skip


def test_the_loss_is_smoothed_and_weighted_cross_entropy() -> None:
    model = classifier(positive_weight=0.3, label_smoothing=0.1, model=CNN | {"dropout": 0.0})
    batch = next(iter(batches()))
    z, y = model(batch["image"]).double(), batch["target"].double() * 0.9 + 0.05
    p = 1 / (1 + torch.exp(-z))
    by_hand = -(0.3 * y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert model.training_step(batch, 0).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_validation_metrics_equal_sklearns_whatever_the_batches(tmp_path: Path) -> None:
    """What training does to the loss, weights of a class and soft labels, is none of validation's."""
    model = classifier(positive_weight=0.3, label_smoothing=0.1)
    films = batches(61, 9)
    model.eval()
    with torch.no_grad():
        logit = torch.cat([model(batch["image"]) for batch in films]).double()
    target = torch.cat([batch["target"] for batch in films]).numpy()
    probability = torch.sigmoid(logit).numpy()
    [got] = trainer(tmp_path).validate(model, films, verbose=False)
    assert got["val/auroc"] == pytest.approx(roc_auc_score(target, probability), abs=1e-5)
    assert got["val/average_precision"] == pytest.approx(average_precision_score(target, probability), abs=1e-5)
    assert got["val/accuracy"] == pytest.approx(np.mean((probability >= 0.5) == target), abs=1e-6)
    assert got["val/sensitivity"] == pytest.approx(np.mean(probability[target == 1] >= 0.5), abs=1e-6)
    assert got["val/specificity"] == pytest.approx(np.mean(probability[target == 0] < 0.5), abs=1e-6)
    loss = -np.mean(np.where(target == 1, np.log(probability), np.log(1 - probability)))
    assert got["val/loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(("of", "other"), [("sensitivity", "specificity"), ("specificity", "sensitivity")])
def test_what_one_class_leaves_undefined_is_not_zero(tmp_path: Path, of: str, other: str) -> None:
    rows = [row for batch in batches(20, 1) for row in [batch] if batch["target"] == (of == "sensitivity")]
    films = DataLoader([{k: v[0] for k, v in row.items()} for row in rows], 4)  # type: ignore[arg-type]
    [got] = trainer(tmp_path).validate(classifier(), films, verbose=False)
    assert all(math.isnan(got[f"val/{name}"]) for name in ("auroc", "average_precision", other))
    assert got[f"val/{of}"] == pytest.approx(float(got["val/accuracy"]))


def test_films_without_lungs_count_in_no_training_accuracy() -> None:
    model = classifier(mixing={"lungs_out": 0.5}).train()
    torch.manual_seed(0)
    film = torch.randint(0, 255, (64, 1, 16, 16), dtype=torch.uint8)
    model.training_step({"image": film, "target": torch.ones(64)}, 0)
    metric = model.train_metrics["accuracy"]
    assert 20 < int(metric.tp + metric.fn) < 45 and int(metric.fp + metric.tn) == 0


def test_decay_is_for_hidden_kernels_only() -> None:
    net = classifier().net
    decays, rest = parameter_groups(net, 0.1)
    assert {id(p) for p in decays["params"]} == {id(net.features[0].weight), id(net.head[1].weight)}  # type: ignore[index]
    assert len(decays["params"]) + len(rest["params"]) == len(list(net.parameters()))
    assert (decays["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", ["RMSprop", "NAdam", "AdamW"])
def test_an_optimizer_need_not_know_of_fused(name: str) -> None:
    made = classifier(optimizer={"_target_": f"torch.optim.{name}", "lr": 0.01}).build_optimizer()
    assert type(made).__name__ == name and bool(made.defaults.get("fused")) == (name == "AdamW")


def test_adams_decay_of_2e_3_is_the_gradient_of_kerass_l2_of_1e_3() -> None:
    """One step of two nets: by the decay, and by the penalty in the loss."""
    means = []
    for decay, l2 in ((2e-3, 0.0), (0.0, 1e-3)):
        model = classifier(optimizer=ADAM | {"weight_decay": decay})
        hidden = parameter_groups(model.net, 1.0)[0]["params"]
        optimizer = model.build_optimizer()
        loss = model(next(iter(batches()))["image"]).mean() + l2 * sum(kernel.square().sum() for kernel in hidden)
        loss.backward()
        optimizer.step()
        means.append([optimizer.state[parameter]["exp_avg"] for parameter in model.net.parameters()])
    for one, other in zip(*means, strict=True):
        torch.testing.assert_close(one, other)
    assert max(float(mean.abs().max()) for mean in means[0]) > 1e-4


def test_a_checkpoint_loads_with_weights_only_and_gives_the_same_logits(tmp_path: Path) -> None:
    model = classifier()
    saver = best_checkpoint(tmp_path, "val/auroc")
    trainer(tmp_path, saver, epochs=2).fit(model, batches(), batches())
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["model"] == CNN
    assert "optimizer_states" not in checkpoint
    loaded = load_classifier(tmp_path / "best.ckpt")
    assert not loaded.training
    image = next(iter(batches()))["image"]
    assert torch.isfinite(loaded(image)).all()
    loaded.load_state_dict(checkpoint["state_dict"])  # strict: no tensor is missing


def test_a_loss_is_best_where_it_is_lowest_and_of_equal_epochs_the_first() -> None:
    rows: list[dict[str, float | None]] = [
        {"epoch": epoch, "val/loss": loss, "val/auroc": auroc}
        for epoch, loss, auroc in ((0, 0.4, 0.8), (1, 0.2, 0.9), (2, 0.2, 0.9), (3, 0.3, None))
    ]
    assert kept_row(rows, "val/loss") is kept_row(rows, "val/auroc") is rows[1]


def test_the_weights_of_the_lowest_loss_are_kept_and_a_rising_one_stops(tmp_path: Path) -> None:
    """What is learnt makes the loss rise on films of the other class."""
    denied = DataLoader([row | {"target": 1 - row["target"]} for row in batches().dataset], 8)  # type: ignore[arg-type]
    losses, saver = Losses(), best_checkpoint(tmp_path, "val/loss")
    trainer(tmp_path, losses, saver, StopEarly("val/loss", 2), epochs=9).fit(classifier(), batches(), denied)
    best = int(np.argmin(losses.seen))
    assert len(losses.seen) == best + 3 < 9 and losses.seen[best] < losses.seen[-1]
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == best


def test_the_last_epoch_is_kept_where_no_choice_is_asked_for(tmp_path: Path) -> None:
    steps, saver = Weights(), best_checkpoint(tmp_path, "val/auroc", keep="last")
    trainer(tmp_path, steps, saver, epochs=3).fit(classifier(model=COMPACT), batches(), batches())
    kept: Any = load_classifier(tmp_path / "best.ckpt").net
    assert torch.equal(kept.head[-1].weight.detach(), steps.after[-1])
    history: list[dict[str, float | None]] = [{"epoch": 0.0, "val/auroc": 0.9}, {"epoch": 1.0, "val/auroc": 0.8}]
    assert kept_row(history, "val/auroc", "last") is history[1] and kept_row(history, "val/auroc") is history[0]
    unseen: dict[str, float | None] = {"epoch": 2.0, "train/loss": 0.1, "val/auroc": None}
    assert (
        kept_row([*history, unseen], "val/auroc", "last") is history[1]
        and kept_row([unseen], "val/auroc", "last") is None
    )


def test_a_failed_save_leaves_the_former_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, target)

    def full(_: object, stream: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pneumonia.training.checkpoint.torch.save", full)
    with pytest.raises(UserError, match="No space"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, target)
    monkeypatch.undo()
    assert torch.load(target)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SIGTERMException])
def test_a_signal_in_the_midst_of_a_write_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: type[BaseException]
) -> None:
    """torch then complains of a file that is not whole."""
    target = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, target)

    class Stopped(io.FileIO):
        def write(self, content: Any) -> int:
            if self.tell() > 0:
                raise signal
            return super().write(content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: Stopped(path, mode))
        with pytest.raises(signal):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, target)
    assert torch.load(target, weights_only=True) == {"epoch": 1}
    assert [file.name for file in target.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("content", [b"text", {"weights": 1}], ids=["text", "no spec"])
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_classifier(file)
    with pytest.raises(UserError, match="no such file"):
        load_classifier(tmp_path / "none.ckpt")


def test_a_nan_loss_stops_the_run_at_its_step_and_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    class Poison(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                pl_module.net.head[-1].bias.data.fill_(math.nan)

    saver = best_checkpoint(tmp_path, "val/loss")
    with pytest.raises(NonFiniteLoss, match=rf"step 5 \(epoch 1\).*{tmp_path / 'best.ckpt'}"):
        trainer(tmp_path, StopOnNonFiniteLoss(tmp_path), Poison(), saver, epochs=3).fit(
            classifier(), batches(), batches()
        )
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_nan_of_the_very_last_step_is_found_before_the_epochs_pictures_and_checkpoint(tmp_path: Path) -> None:
    class Poison(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.net.head[-1].bias.data.fill_(math.nan)

    saver = best_checkpoint(tmp_path, "val/loss")
    with pytest.raises(NonFiniteLoss, match="no epoch was finished"):
        trainer(tmp_path, StopOnNonFiniteLoss(tmp_path), Poison(), saver).fit(classifier(), batches(8), batches(8))
    assert not (tmp_path / "best.ckpt").exists()


def test_a_nan_of_an_epochs_last_step_reaches_no_checkpoint_where_that_epoch_is_not_validated(tmp_path: Path) -> None:
    class Poison(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx + 1 == trainer.num_training_batches:
                pl_module.net.head[-1].bias.data.fill_(math.nan)

    watched = (ValidateEvery(5), Poison(), StopOnNonFiniteLoss(tmp_path), last_checkpoint(tmp_path))
    with pytest.raises(NonFiniteLoss, match=rf"step 6 \(epoch 1\).*last good checkpoint is {tmp_path / 'last.ckpt'}"):
        trainer(tmp_path, *watched, epochs=3).fit(classifier(), batches(), batches())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0 and all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_a_nan_batch_makes_the_mean_nan() -> None:
    mean = Mean()
    mean.update(torch.tensor(1.0), 4)
    mean.update(torch.tensor(3.0), 12)
    assert mean.compute() == 2.5
    mean.update(torch.tensor(math.nan), 1)
    assert mean.compute().isnan()


@pytest.mark.parametrize(
    ("epochs", "stop", "every", "drawn"),
    [
        (3, None, 1, [1, 2, 3]),
        (12, None, 1, [1, 3, 5, 7, 9, 11, 12]),
        (60, None, 1, [*range(1, 58, 7), 60]),
        (60, 5, 1, [1, 5]),
        (62, None, 5, [5, 15, 25, 35, 45, 55, 62]),
    ],
)
def test_tensorboard_gets_ten_confusion_matrices_at_most_and_the_last_among_them(
    tmp_path: Path, epochs: int, stop: int | None, every: int, drawn: list[int]
) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch + 1 == stop

    logger = TensorBoardLogger(tmp_path, name="", version="")
    shown = trainer(tmp_path, ValidateEvery(every), TensorBoardPictures(), Stop(), epochs=epochs, logger=logger)
    shown.fit(classifier(), batches(8), batches(8))
    events = EventAccumulator(str(tmp_path), {"images": 0, "tensors": 0}).Reload()  # 0: all of them
    assert [event.step + 1 for event in events.Images("val/confusion_matrix")] == drawn  # one step an epoch
    assert len(events.Tensors("val/precision_recall")) == math.ceil((stop or epochs) / every)


def test_the_bar_counts_epochs_from_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = trainer(tmp_path, Bar(refresh_rate=1), epochs=2, enable_progress_bar=True)
    shown.fit(classifier(), batches(), batches())
    told = "".join(capfd.readouterr())
    assert list(dict.fromkeys(re.findall(r"Epoch (\S+): +100%", told))) == ["1/2", "2/2"]


def test_the_schedule_sets_the_rate_of_every_step(tmp_path: Path) -> None:
    """Three steps an epoch: the first half of all steps is warm-up, and from the second epoch on it is a tenth."""
    rates: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    step = {"_target_": "pneumonia.training.schedules.step", "milestones": [1], "gamma": 0.1, "warmup": 0.5}
    shown = trainer(tmp_path, Watch(), History(tmp_path / "metrics.csv"), epochs=2)
    shown.fit(classifier(schedule=step), batches(), batches())
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.001, 0.001, 0.001])
    told = [float(row["learning_rate"]) for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert told == pytest.approx([0.01, 0.001])


def test_what_goes_on_has_the_rate_and_decay_of_its_settings_and_else_the_state_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    step = {"_target_": "pneumonia.training.schedules.step", "milestones": [1], "gamma": 0.1, "warmup": 0.0}
    trainer(tmp_path, last_checkpoint(tmp_path), epochs=1).fit(classifier(schedule=step), batches(), batches())
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"][0]["exp_avg_sq"]
    seen: list[Any] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            [*groups], state = trainer.optimizers[0].param_groups, trainer.optimizers[0].state_dict()["state"]
            seen.append([(group["lr"], group["weight_decay"]) for group in groups] + [state[0]["exp_avg_sq"].clone()])

    changed = ADAM | {"lr": 0.5, "weight_decay": 0.3}
    trainer(tmp_path, Watch(), epochs=2).fit(
        classifier(schedule=step, optimizer=changed), batches(), batches(), ckpt_path=tmp_path / "last.ckpt",
        weights_only=True,
    )  # fmt: skip
    kernels, others, moment = seen[0]
    assert kernels == pytest.approx((0.05, 0.3)) and others == pytest.approx((0.05, 0.0))
    assert torch.equal(moment, before)
    assert [rates[0][0] for rates in seen] == pytest.approx([0.05] * 3)


def test_an_early_stop_that_goes_on_has_the_patience_of_its_settings() -> None:
    saved, stop = StopEarly("val/auroc", 9), StopEarly("val/auroc", 4)
    saved.wait_count = 2
    stop.load_state_dict(saved.state_dict())
    assert (stop.patience, stop.wait_count) == (4, 2)


def test_an_epoch_without_a_value_is_one_that_is_no_better(tmp_path: Path) -> None:
    ill = DataLoader([row for row in batches().dataset if row["target"] == 1], 4)
    fit = trainer(tmp_path, StopEarly("val/auroc", 3), epochs=9)
    fit.fit(classifier(), batches(), ill)
    assert fit.current_epoch == 3


def test_dropout_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    drawn: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            drawn.append(torch.rand(1).item())

    def weights(burn: int, seed: int) -> torch.Tensor:
        model = classifier()
        torch.rand(burn)
        trainer(tmp_path, ReseedEachStep(seed), Watch()).fit(model, batches())
        return model.net.head[1].weight.detach()  # type: ignore[index]

    assert torch.equal(weights(0, 0), weights(999, 0))
    assert drawn[:3] == drawn[3:] and len(set(drawn)) == 3  # the same in both, another in each step
    assert not torch.equal(weights(0, 0), weights(0, 1))


def test_vgg_blocks_learn_from_the_epoch_asked_for(tmp_path: Path) -> None:
    spec = {"_target_": "pneumonia.models.vgg.vgg16", "weights": None, "trainable_blocks": 0}
    spec |= {"head": [4], "dropout": 0.0, "image_size": 32}
    model = classifier(model=spec)
    net = model.net
    assert isinstance(net, VGG)
    start = net.features[0].weight.detach().clone()
    changed: list[bool] = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            changed.append(not torch.equal(start, net.features[0].weight))

    trainer(tmp_path, UnfreezeAt(1), Watch(), epochs=2).fit(model, batches(8, 4, 32))
    assert changed == [False, True]


def test_a_net_is_compiled_where_it_trains_and_keeps_its_names() -> None:
    """No pickle holds what is compiled: a net that is sent to another process must be compiled there."""
    sent = pickle.loads(pickle.dumps(classifier()))
    names = list(sent.state_dict())
    CompiledNet().setup(trainer=None, pl_module=sent, stage="fit")  # type: ignore[arg-type]
    assert sent.net._compiled_call_impl is not None and list(sent.state_dict()) == names
    assert pickle.loads(pickle.dumps(sent)).net._compiled_call_impl is None


def test_weights_of_another_model_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    model = classifier()
    content = {"hyper_parameters": dict(model.hparams), "state_dict": {"net.other": torch.zeros(1)}}
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="don't fit the model"):
        load_classifier(tmp_path / "x.ckpt")


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"model": None}, None], ids=["more", "no model", "another's"])
def test_a_checkpoint_of_another_project_or_version_is_refused(tmp_path: Path, change: dict | None) -> None:
    model = classifier()
    told = {"lr": 1e-3} if change is None else dict(model.hparams) | change
    torch.save({"hyper_parameters": told, "state_dict": model.state_dict()}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="its settings are not those of a model of this version"):
        load_classifier(tmp_path / "x.ckpt")


def test_the_flip_average_is_the_mean_logit_of_a_film_and_its_mirror_image_outside_training_only() -> None:
    plain, averaged = (classifier(model=CNN | {"dropout": 0.0}, flip_average=flag) for flag in (False, True))
    film = next(iter(batches()))["image"]
    by_hand = (plain.eval()(film) + plain(film.flip(-1))) / 2
    torch.testing.assert_close(averaged.eval()(film), by_hand)
    assert not torch.allclose(averaged(film), plain(film))
    batch = next(iter(batches()))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(by_hand, batch["target"])
    torch.testing.assert_close(averaged.validation_step(batch, 0), loss)
    torch.testing.assert_close(averaged.train()(film), plain(film))


def test_the_crop_average_is_the_mean_logit_of_three_middles_outside_training_and_validation() -> None:
    plain, averaged = (
        classifier(model=CNN | {"dropout": 0.0}, flip_average=True, crop_average=flag) for flag in (False, True)
    )
    film = next(iter(batches()))["image"]
    by_hand = torch.stack([plain.eval()(middle(film, kept)) for kept in KEPT]).mean(0)
    torch.testing.assert_close(averaged.eval()(film), by_hand)
    assert not torch.allclose(averaged(film), plain(film))
    batch = next(iter(batches()))
    torch.testing.assert_close(averaged.validation_step(batch, 0), plain.validation_step(batch, 0))
    torch.testing.assert_close(averaged.train()(film), plain.train()(film))


def test_blurred_views_are_all_views_of_a_prediction_and_none_of_training_and_validation() -> None:
    plain, denoised = (
        classifier(model=CNN | {"dropout": 0.0}, crop_average=True, aligned_view=True, blurred_views=share)
        for share in (0.0, 0.05)
    )
    film = next(iter(batches()))["image"]
    for model in (plain, denoised):
        assert model.alignment is not None
        model.alignment.learn(film)
    torch.testing.assert_close(denoised.eval()(film), plain.eval()(blurred(film, 0.05)))
    assert not torch.allclose(denoised(film), plain(film))
    batch = next(iter(batches()))
    torch.testing.assert_close(denoised.validation_step(batch, 0), plain.validation_step(batch, 0))
    torch.testing.assert_close(denoised.train()(film), plain.train()(film))


def test_the_aligned_view_counts_half_and_half_of_the_training_films_are_aligned(tmp_path: Path) -> None:
    plain, both = (classifier(model=CNN | {"dropout": 0.0}, aligned_view=flag) for flag in (False, True))
    assert both.alignment is not None
    film = 255 * torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(-1) / 16
    both.alignment.learn(film)
    aligned = both.alignment(film)
    by_hand = (plain.eval()(film) + plain(aligned)) / 2
    torch.testing.assert_close(both.eval()(film), by_hand)
    assert not torch.allclose(aligned, film, atol=1)
    half = both.half_aligned(film)
    chosen = (half == aligned).flatten(1).all(1)
    assert torch.equal(half, torch.where(chosen.view(-1, 1, 1, 1), aligned, film)) and 20 < chosen.sum() < 44
    torch.save({"hyper_parameters": dict(both.hparams), "state_dict": both.state_dict()}, tmp_path / "x.ckpt")
    torch.testing.assert_close(load_classifier(tmp_path / "x.ckpt")(film), by_hand)


@pytest.mark.parametrize(("name", "fused"), [("Adam", True), ("SGD", True), ("Adagrad", None)])
def test_an_optimizer_is_fused_where_every_torch_can_and_is_not_told_so_otherwise(
    name: str, fused: bool | None
) -> None:
    model = classifier(optimizer={"_target_": f"torch.optim.{name}", "lr": 0.01})
    assert model.build_optimizer().defaults["fused"] is fused
    assert model.build_optimizer(fused=False).defaults["fused"] is None  # false: a loop over parameters on a GPU


def test_the_local_view_counts_half_and_half_of_the_training_films_are_seen_so(tmp_path: Path) -> None:
    settings = {"model": CNN | {"dropout": 0.0}, "flip_average": True, "crop_average": True, "aligned_view": True}
    centre, local = (classifier(**settings, standardize=name) for name in ("centre", "local"))
    both = classifier(**settings, standardize="centre", local_view=True)
    batch = next(iter(batches()))
    film = batch["image"]
    for model in (centre, local, both):
        assert model.alignment is not None
        model.alignment.learn(film)
    by_hand = (centre.eval()(film) + local.eval()(film)) / 2
    torch.testing.assert_close(both.eval()(film), by_hand)
    assert not torch.allclose(centre(film), local(film), atol=1e-3)
    logit = (centre.of_one_view(film) + local.of_one_view(film)) / 2
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, batch["target"])
    torch.testing.assert_close(both.validation_step(batch, 0), loss)
    many = film[:1].expand(64, -1, -1, -1)
    logit = both.train()(many)
    near = [(logit - one.train()(many)).abs() < 1e-5 for one in (centre, local)]
    assert torch.equal(near[0], ~near[1]) and 20 < near[1].sum() < 44
    torch.save({"hyper_parameters": dict(both.hparams), "state_dict": both.state_dict()}, tmp_path / "x.ckpt")
    torch.testing.assert_close(load_classifier(tmp_path / "x.ckpt")(film), by_hand)


def test_training_aligns_what_mixing_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(aligned_view=True).train()
    batch: Any = next(iter(batches()))
    seen: list[torch.Tensor] = []
    mixed = torch.full_like(batch["image"], 7).float()
    monkeypatch.setattr(model.mix, "forward", lambda film, target: (mixed, target))
    monkeypatch.setattr(model.alignment, "forward", lambda film: seen.append(film) or film + 50)
    monkeypatch.setattr(model, "of_one_view", lambda film: seen.append(film) or film.mean((1, 2, 3)))
    torch.manual_seed(0)
    model.training_step(batch, 0)
    assert seen[0] is mixed and set(seen[1].unique().tolist()) == {7.0, 57.0}


COMPACT = {
    "_target_": "pneumonia.models.compact.compact", "stem": 4, "widths": [4], "blocks": [1], "dropout": 0.0,
    "image_size": 16,
}  # fmt: skip


class Losses(Callback):
    """The validation loss of each epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.seen.append(float(trainer.callback_metrics["val/loss"]))


class Weights(Callback):
    """The weights of the last layer after each step."""

    def __init__(self) -> None:
        self.after: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_: object) -> None:
        self.after.append(pl_module.net.head[-1].weight.detach().clone())
        self.variance = pl_module.net.features[1].running_var.clone()


def test_the_best_checkpoint_holds_the_moving_average_of_the_weights(tmp_path: Path) -> None:
    steps, films = Weights(), batches()
    best = best_checkpoint(tmp_path, "val/loss")
    model = classifier(model=COMPACT)
    trainer(tmp_path, steps, AveragedWeights(decay=0.6), best, epochs=1).fit(model, films, films)
    average = steps.after[0]
    for weight in steps.after[1:]:
        average = 0.6 * average + 0.4 * weight
    kept: Any = load_classifier(Path(best.best_model_path)).net
    torch.testing.assert_close(kept.head[-1].weight.detach(), average)
    assert torch.equal(kept.features[1].running_var, steps.variance)
    assert not torch.allclose(average, steps.after[-1])
    torch.testing.assert_close(model.net.head[-1].weight.detach(), average)  # type: ignore[index, union-attr]


def test_the_moving_average_lies_where_the_net_will_train(tmp_path: Path) -> None:
    """Lightning makes it before it moves the module there."""
    callback, loop = AveragedWeights(decay=0.6), trainer(tmp_path)
    loop.strategy.accelerator = None
    loop.strategy._root_device = torch.device("meta")  # type: ignore[attr-defined]
    callback.setup(loop, classifier(), "fit")
    assert callback._average_model is not None
    assert {weight.device.type for weight in callback._average_model.parameters()} == {"meta"}


def test_fewer_validations_make_the_same_net_and_the_last_epoch_has_one(tmp_path: Path) -> None:
    """Of five epochs the third and the last; what Lightning still has of the third stands in no later row."""
    kept, rows = [], []
    for every in (1, 3):
        folder = tmp_path / str(every)
        folder.mkdir()
        shown = trainer(
            folder, ValidateEvery(every), ReseedEachStep(0), History(folder / "metrics.csv"),
            AveragedWeights(decay=0.6), best_checkpoint(folder, "val/loss", "last"), epochs=5,
        )  # fmt: skip
        shown.fit(classifier(), batches(), batches())
        kept.append(torch.load(folder / "best.ckpt", weights_only=True))
        rows.append(list(csv.DictReader((folder / "metrics.csv").open())))
    assert kept[0]["epoch"] == kept[1]["epoch"] == 4
    assert all(torch.equal(value, kept[1]["state_dict"][name]) for name, value in kept[0]["state_dict"].items())
    always, seldom = rows
    for name in ("val/loss", "val/auroc"):
        assert [row[name] for row in seldom] == ["", "", always[2][name], "", always[4][name]]
    assert [row["train/loss"] for row in seldom] == [row["train/loss"] for row in always]


def test_the_line_of_an_epoch_without_a_validation_has_no_val() -> None:
    row = {"epoch": 1, "train/loss": 0.5, "train/accuracy": 0.75, "images_per_second": 90.0, "waiting_for_data": 0.1}
    assert epoch_line(row, 3) == "epoch 2/3  train: loss 0.500  accuracy 0.750  90 images/s, 10 % waiting for data"


def test_standardized_films_lose_exposure_and_contrast_but_not_tone() -> None:
    model = classifier(model=CNN | {"dropout": 0.0}, standardize="centre").eval()
    film = torch.randint(40, 200, (3, 1, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(model(0.5 * film + 60), model(film), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(film**2 / 255), model(film), atol=1e-4)


def test_a_checkpoint_of_before_local_standardising_is_read_as_it_was_meant() -> None:
    film = next(iter(batches()))["image"]
    for told, meant in ((True, "centre"), (False, "none")):
        plain = classifier(model=CNN | {"dropout": 0.0}, standardize=meant).eval()
        torch.testing.assert_close(classifier(model=CNN | {"dropout": 0.0}, standardize=told).eval()(film), plain(film))
