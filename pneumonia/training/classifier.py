"""One LightningModule for every network: one logit, binary cross-entropy, metrics on the device."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryRecall,
    BinarySpecificity,
)
from torchmetrics.utilities import dim_zero_cat

from pneumonia.build import build
from pneumonia.data.dataset import Batch
from pneumonia.settings import named_standardize
from pneumonia.training.alignment import Alignment
from pneumonia.training.mixing import Mix
from pneumonia.training.schedules import Factor
from pneumonia.training.views import KEPT, STANDARDIZE, blurred, by_surroundings, middle

FUSED = ("Adam", "AdamW", "SGD")  # torch's optimizers that can be on any device, from torch 2.11 on
NEITHER = -1  # a label that no metric counts
ASKED = {"val/auroc": (0, 1), "val/average_precision": (0, 1), "val/sensitivity": (1,), "val/specificity": (0,)}


class Classifier(L.LightningModule):
    """uint8 [N, 1, S, S] -> logit [N]; positive means pneumonia.

    Its hyperparameters are plain values (`model`, `optimizer`, `schedule` are specs for build), so that a checkpoint
    loads under weights_only=True. `net` takes float [N, 3, S, S] in [0, 1].
    """

    positive_weight: Tensor

    def __init__(
        self,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        schedule: dict[str, Any],
        positive_weight: float = 1.0,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
        mixing: dict[str, float] | None = None,
        standardize: str | bool = "none",
        flip_average: bool = False,
        crop_average: bool = False,
        aligned_view: bool = False,
        blurred_views: float = 0.0,
        local_view: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: nn.Module = build("model", model)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self.memory_format)
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.mix = Mix(**mixing or {})
        self.standardize = named_standardize(standardize)
        self.standardized = STANDARDIZE[self.standardize]
        self.flip_average = flip_average
        self.crop_average = crop_average
        self.blurred_views = blurred_views
        self.local_view = local_view
        self.alignment = Alignment() if aligned_view else None
        self.build_optimizer()  # settings that don't fit are told before the first step
        self.build_factor(1, 1)
        self.register_buffer("positive_weight", torch.tensor(positive_weight), persistent=False)
        # validate_args=False: the checks wait for the device at every step
        self.train_metrics = MetricCollection(
            {"accuracy": BinaryAccuracy(ignore_index=NEITHER, validate_args=False)}, prefix="train/"
        )
        self.val_metrics = MetricCollection(
            {
                "accuracy": BinaryAccuracy(validate_args=False),
                "auroc": BinaryAUROC(validate_args=False),
                "average_precision": BinaryAveragePrecision(validate_args=False),
                "sensitivity": BinaryRecall(validate_args=False),
                "specificity": BinarySpecificity(validate_args=False),
            },
            prefix="val/",
        )
        self.train_loss, self.val_loss = Mean(), Mean()

    def forward(self, film: Tensor) -> Tensor:
        """uint8 [N, 1, S, S] -> logit float32 [N]; outside training with `crop_average` the mean logit of each film's
        middles (views.KEPT); with `aligned_view` the mean of that and the logit of the aligned film; each of these as
        `of_one_view` has it, of the film as `as_predicted` has it."""
        if self.training:
            return self.of_one_view(film)
        film = self.as_predicted(film)
        middles = [middle(film, kept) for kept in KEPT] if self.crop_average else [film]
        logit = torch.stack([self.of_one_view(view) for view in middles]).mean(0)
        return logit if self.alignment is None else (logit + self.of_one_view(self.alignment(film))) / 2

    @property
    def averages_views(self) -> bool:
        """Whether a prediction is the mean over several views of a film."""
        return self.flip_average or self.crop_average or self.local_view or self.alignment is not None

    def as_predicted(self, film: Tensor) -> Tensor:
        """Grey [N, 1, S, S] from 0 to 255 -> the same as predictions see it, with `blurred_views` blurred."""
        return blurred(film, self.blurred_views) if self.blurred_views else film

    def of_one_view(self, film: Tensor) -> Tensor:
        """Grey [N, 1, S, S] from 0 to 255 -> logit float32 [N] as `logit` has it; outside training with `flip_average`
        the mean of a film's and its mirror image's."""
        if self.flip_average and not self.training:
            return (self.logit(film) + self.logit(film.flip(-1))) / 2
        return self.logit(film)

    def logit(self, film: Tensor) -> Tensor:
        """Grey [N, 1, S, S] from 0 to 255 -> logit float32 [N]; with `local_view` the mean of the film as `images` has
        it and standardised by its surroundings; in training one of both by chance, 1/2, so that the net knows both."""
        images = self.images(film)
        if not self.local_view:
            return self.net(images).float()
        local = self.repeated(by_surroundings(film.float() / 255))
        if self.training:
            return self.net(by_chance(local, images)).float()
        return (self.net(images).float() + self.net(local).float()) / 2

    def images(self, film: Tensor) -> Tensor:
        """Grey [N, 1, S, S] from 0 to 255 -> [N, 3, S, S] in [0, 1] as `net` takes it, standardised if the model was
        trained so; without the local view."""
        return self.repeated(self.standardized(film.float() / 255))

    def repeated(self, grey: Tensor) -> Tensor:
        """[N, 1, S, S] -> [N, 3, S, S]; here, on the device, so that loaders carry one channel."""
        return grey.expand(-1, 3, -1, -1).contiguous(memory_format=self.memory_format)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        film, target = self.mix(batch["image"], batch["target"])
        logit = self(self.half_aligned(film))
        smooth = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = binary_cross_entropy_with_logits(logit, smooth, pos_weight=self.positive_weight)
        self.train_loss.update(loss.detach(), len(target))
        label = torch.where(target == 0.5, NEITHER, (target > 0.5).int())  # lungs_out: nothing to call
        self.train_metrics.update(logit.detach().sigmoid(), label)
        return loss

    def half_aligned(self, film: Tensor) -> Tensor:
        """Grey [N, 1, S, S] from 0 to 255 -> the same; with `aligned_view` each film by chance, 1/2, in the place
        of the mean film, so that the net knows both views. After mixing, so that swapped borders are moved too."""
        if self.alignment is None:
            return film
        return by_chance(self.alignment(film), film.float())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx + 1 == self.trainer.num_training_batches:  # before validation, so that both stand in one row
            values = closed(self.train_metrics) | {"train/loss": closed_mean(self.train_loss)}
            self.log_dict(values, on_step=False, on_epoch=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # the whole film: three middles would take half as long as the epoch's training and tell epochs apart no better
        logit, target = self.of_one_view(batch["image"]), batch["target"]
        loss = binary_cross_entropy_with_logits(logit, target)
        self.val_loss.update(loss, len(target))
        self.val_metrics.update(logit.sigmoid(), target.int())  # probabilities: torchmetrics would guess at logits
        return loss

    def on_validation_epoch_end(self) -> None:
        classes = self.validation_scores()[1].unique().tolist()
        values = closed(self.val_metrics) | {"val/loss": closed_mean(self.val_loss)}
        for name, asked in ASKED.items():
            if not set(asked) <= set(classes):  # torchmetrics would say 0
                values[name] = torch.tensor(torch.nan)
        shown = ("val/loss", "val/accuracy", "val/auroc")
        self.log_dict({name: values[name] for name in shown}, prog_bar=True)
        self.log_dict({name: value for name, value in values.items() if name not in shown})

    def validation_scores(self) -> tuple[Tensor, Tensor]:
        """(probability [N], target [N]) of the validation films seen since the last epoch, by all processes."""
        curve = self.val_metrics["auroc"]
        assert isinstance(curve, BinaryAUROC)
        own = dim_zero_cat(curve.preds).cpu(), dim_zero_cat(curve.target).cpu()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return own
        every: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, own)  # shares differ in size
        return torch.cat([scores for scores, _ in every]), torch.cat([target for _, target in every])

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"index": batch["index"], "logit": self(batch["image"])}

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(fused=not self.trainer.gradient_clip_val)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, self.build_factor(max(1, total // (self.trainer.max_epochs or 1)), total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """The rate, decay and the like are those of the settings, which force=true may have changed, where a checkpoint
        brought its own with the optimizer's state."""
        schedule = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(schedule, LambdaLR)
        told = self.build_optimizer().param_groups
        schedule.base_lrs = [group["lr"] for group in told]
        schedule._last_lr = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, new, rate in zip(schedule.optimizer.param_groups, told, schedule._last_lr, strict=True):
            flags = {name for name, value in new.items() if value is None or isinstance(value, bool)}  # fit the state
            numbers = {name: value for name, value in new.items() if name not in (*flags, "params")}
            group.update(numbers | {"initial_lr": new["lr"], "lr": rate})

    def build_optimizer(self, fused: bool = True) -> torch.optim.Optimizer:
        """Lightning clips no gradients of a fused optimizer under mixed precision; one that isn't told `fused` takes a
        few kernels for all parameters on a GPU, one that is told false several for each."""
        groups = parameter_groups(self.net, self.optimizer.get("weight_decay", 0.0))
        told = {"fused": True} if fused and self.optimizer["_target_"].rpartition(".")[2] in FUSED else {}
        return build("optimizer", self.optimizer | told, params=groups)

    def build_factor(self, steps_per_epoch: int, total_steps: int) -> Factor:
        return build("schedule", self.schedule, steps_per_epoch=steps_per_epoch, total_steps=total_steps)


class Mean(Metric):
    """Mean over films; nan stays nan, where torchmetrics' MeanMetric drops it, and no update waits for the device."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, count: int) -> None:
        self.total = self.total + value * count
        self.count = self.count + count

    def compute(self) -> Tensor:
        return self.total / self.count


def by_chance(one: Tensor, other: Tensor) -> Tensor:
    """Two of [N, ., ., .] -> the same: each row of `one` by chance, 1/2, else that of `other`."""
    drawn = torch.rand(len(one), 1, 1, 1, device=one.device) < 0.5
    return torch.where(drawn, one, other)


def closed(metrics: MetricCollection) -> dict[str, Tensor]:
    """The values of this epoch over all processes; the metrics begin anew."""
    values = metrics.compute()
    metrics.reset()
    return values


def closed_mean(metric: Mean) -> Tensor:
    """The mean of this epoch over all processes; the metric begins anew."""
    value: Tensor = metric.compute()
    metric.reset()
    return value


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels of every layer but the last decay; biases, norms and the output layer do not, as in the notebooks."""
    parameters = list(net.parameters())
    output = {id(parameter) for parameter in parameters[-2:]}
    decays = [p for p in parameters if p.ndim > 1 and id(p) not in output]
    chosen = {id(parameter) for parameter in decays}
    rest = [p for p in parameters if id(p) not in chosen]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
