"""Typed settings of every command: closed sets whose values are checked as soon as they are composed.

Each field is documented in the YAML file that gives its default. This module imports nothing heavy.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from pneumonia.errors import UserError, in_range, not_empty, one_of

CACHE = "${oc.env:PNEUMONIA_CACHE,${oc.env:XDG_CACHE_HOME,${oc.env:HOME,.}/.cache}/pneumonia}"


def named_standardize(value: str | bool) -> str:
    """The name of a way to standardise; the first runs and checkpoints told it as true or false."""
    return ("none", "centre")[value] if isinstance(value, bool) else value


@dataclass(unsafe_hash=True)
class DataConfig:
    """Which films, how they are read and split: closed set, documented line by line in conf/data/chest_xray.yaml."""

    source: str = "folder"
    root: str | None = None
    manifest: str | None = None
    download: bool = True
    phantoms: int = 900
    phantom_seed: int = 0
    image_size: int = 224
    epochs: int = 10
    resize: str = "squash"
    val_fraction: float = 0.2
    folds: int | None = None
    fold: int | None = None
    nested: bool = False
    held_out: str | None = None
    counterexamples: str | None = None
    patient_key: str = "strict"
    on_bad_file: str = "error"
    batch_size: int = 32
    num_workers: int | None = None
    cache: bool = True
    cache_dir: str = CACHE

    def __post_init__(self) -> None:
        not_empty(self, "root", "manifest", "cache_dir", section="data.")
        one_of("data.source", self.source, ("folder", "synthetic"))
        if self.source == "synthetic" and self.root is not None:
            raise UserError(f"data.root={self.root}: data=synthetic draws its films: leave one of them out.")
        one_of("data.resize", self.resize, ("squash", "pad", "crop"))
        one_of("data.patient_key", self.patient_key, ("strict", "conservative", "none"))
        one_of("data.on_bad_file", self.on_bad_file, ("error", "skip"))
        in_range("data.image_size", self.image_size, 8, 4096)
        in_range("data.phantoms", self.phantoms, 40, 1_000_000)
        if self.phantoms % 2:
            raise UserError(f"data.phantoms={self.phantoms}: expected an even number, half of each class.")
        in_range("data.batch_size", self.batch_size, 1)
        in_range("data.num_workers", self.num_workers, 0, 512)
        if not 0 < self.val_fraction < 1:
            raise UserError(
                f"data.val_fraction={self.val_fraction:g}: expected a share of train between 0 and 1, both excluded. "
                "Try data.val_fraction=0.2."
            )
        if (self.folds is None) != (self.fold is None):
            raise UserError("data.folds and data.fold go together: type data.folds=5 data.fold=0 (fold counts from 0).")
        if self.counterexamples is not None:
            one_of("data.counterexamples", self.counterexamples, ("greys", "border"))
        ways = {"held_out": self.held_out, "folds": self.folds, "counterexamples": self.counterexamples}
        told = [f"data.{key}={value}" for key, value in ways.items() if value is not None]
        if len(told) > 1:
            raise UserError(f"{' and '.join(told)}: expected one of them.")
        if self.nested and self.folds is None:
            raise UserError(
                "data.nested=true is of folds: type data.folds=2 data.fold=0 beside it (fold counts from 0)."
            )
        in_range("data.folds", self.folds, 2)
        in_range("data.fold", self.fold, 0, (self.folds or 1) - 1)


@dataclass
class TrainerConfig:
    """Where and in what precision it runs: closed set, documented in conf/trainer/*.yaml."""

    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    precision: str = "auto"
    channels_last: bool = True
    limit_batches: int | None = None

    def __post_init__(self) -> None:
        one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        one_of("trainer.strategy", self.strategy, ("auto", "ddp"))
        one_of("trainer.precision", self.precision, ("auto", "32-true", "bf16-mixed", "16-mixed"))
        if self.devices != "auto" and not (self.devices.isdigit() and int(self.devices) > 0):
            raise UserError(f"trainer.devices={self.devices}: expected auto or a count, as trainer.devices=2.")
        if self.devices not in ("auto", "1") and self.strategy != "ddp":
            raise UserError(f"trainer.devices={self.devices}: several processes need trainer=ddp.")
        in_range("trainer.limit_batches", self.limit_batches, 1)


OBJECTIVES = ("val/accuracy", "val/auroc", "val/loss", "val/average_precision", "val/sensitivity", "val/specificity")


def lower_is_better(objective: str) -> bool:
    """Whether the best value of an objective is the lowest one, as of a loss."""
    return objective.endswith("loss")


# settings that make no other net: where the films lie, and how a run is gone about
FILMS_LAY = ("data.root", "data.download", "data.cache", "data.cache_dir", "data.num_workers")
HOW = ("test", "deterministic", "compile", "cuda_graphs", "resume", "force", "retry_failed")


@dataclass
class TrainConfig:
    """Everything `python -m pneumonia.train` can be told; documented line by line in conf/train.yaml."""

    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    seed: int = MISSING
    epochs: int = MISSING
    objective: str = MISSING
    keep: str = MISSING
    validate_every: int = MISSING
    stop_on: str | None = None
    patience: int = MISSING
    balance: str = MISSING
    hard_films: str | None = None
    label_smoothing: float = MISSING
    mixup: float = MISSING
    cutmix: float = MISSING
    border_out: float = MISSING
    lungs_out: float = MISSING
    border_swap: float = MISSING
    random_conv: float = MISSING
    ema: float | None = None
    standardize: str = MISSING
    flip_average: bool = MISSING
    crop_average: bool = MISSING
    aligned_view: bool = MISSING
    local_view: bool = MISSING
    blurred_views: float = MISSING
    gradient_clip: float | None = None
    unfreeze_epoch: int | None = None
    test: bool = MISSING
    deterministic: bool = MISSING
    compile: bool = MISSING
    cuda_graphs: bool = MISSING
    resume: str | None = None
    force: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        not_empty(self, "hard_films")
        one_of("objective", self.objective, OBJECTIVES)
        one_of("keep", self.keep, ("best", "last"))
        in_range("validate_every", self.validate_every, 1)
        if self.stop_on is not None:
            one_of("stop_on", self.stop_on, OBJECTIVES)
            if self.validate_every > 1:
                raise UserError(
                    f"stop_on={self.stop_on} looks at every epoch: type validate_every=1 in place of "
                    f"{self.validate_every}, or stop_on=null."
                )
        one_of("balance", self.balance, ("none", "weighted_loss", "weighted_sampler", "counterexamples", "marks"))
        if self.hard_films is not None and self.balance == "weighted_loss":
            raise UserError(
                f"hard_films={self.hard_films} draws normal films more often, and balance=weighted_loss counts on each "
                "being drawn once: type another balance, as balance=weighted_sampler."
            )
        one_of("standardize", self.standardize, ("none", "centre", "local"))
        if self.local_view and self.standardize == "local":
            raise UserError(
                "local_view=true adds what standardize=local has: type local_view=false or standardize=centre."
            )
        in_range("seed", self.seed, 0, 2**31)
        in_range("epochs", self.epochs, 1)
        in_range("patience", self.patience, 0)
        in_range("label_smoothing", self.label_smoothing, 0, 0.5)
        in_range("mixup", self.mixup, 0, 10)
        in_range("cutmix", self.cutmix, 0, 10)
        in_range("border_out", self.border_out, 0, 0.5)
        in_range("lungs_out", self.lungs_out, 0, 0.5)
        in_range("border_swap", self.border_swap, 0, 1)
        shares = {name: getattr(self, name) for name in ("border_out", "lungs_out", "border_swap")}
        if sum(shares.values()) > 1:
            typed = " ".join(f"{name}={share}" for name, share in shares.items())
            raise UserError(f"{typed}: expected shares of one batch, at most 1 in all; type smaller ones.")
        in_range("random_conv", self.random_conv, 0, 1)
        in_range("blurred_views", self.blurred_views, 0, 0.05)
        in_range("ema", self.ema, 0, 0.99999, open_low=True)
        in_range("gradient_clip", self.gradient_clip, 0, open_low=True)
        in_range("unfreeze_epoch", self.unfreeze_epoch, 0)
        if unknown := sorted(set(self.augment) - {"steps"}):
            raise UserError(f"augment.{unknown[0]}: there is no such setting; expected augment.steps, a list of steps.")
        if (side := self.model.get("image_size", self.data.image_size)) != self.data.image_size:
            raise UserError(
                f"model.image_size={side}: films have {self.data.image_size} px: type data.image_size={side}."
            )
        if self.augment.get("steps", []) is None:
            raise UserError("augment.steps=null: expected a list of steps; type augment=none for no augmentation.")
        if self.unfreeze_epoch is not None and self.trainer.strategy == "ddp":
            raise UserError(
                f"unfreeze_epoch={self.unfreeze_epoch} with trainer.strategy=ddp: the processes would not share the "
                "gradients of blocks that begin to learn later; type trainer=gpu, or model.trainable_blocks=5 instead."
            )
        if self.cuda_graphs and (self.compile or self.unfreeze_epoch is not None):
            other = "compile=true" if self.compile else f"unfreeze_epoch={self.unfreeze_epoch}"
            raise UserError(f"{other} can't be captured as CUDA graphs: type cuda_graphs=false beside it.")


@dataclass
class PrepareConfig:
    """Everything `python -m pneumonia.prepare` can be told; documented in conf/prepare.yaml."""

    data: DataConfig = field(default_factory=DataConfig)
    seed: int = MISSING
    check: bool = MISSING
    audit: bool = MISSING


NEED_NET = ("shortcuts", "stress", "test", "export")  # of evaluate: more than tables
RULES = ("accuracy", "youden", "sensitivity", "specificity", "cost")


@dataclass
class OperatingPointConfig:
    """How the threshold is chosen on validation; documented in conf/evaluate.yaml."""

    rule: str = "accuracy"
    minimum: float | None = None
    cost_ratio: float | None = None
    stressed: bool = False
    runs: Any = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.runs, list):
            listed = "[]" if self.runs is None else f"[{self.runs}]"
            raise UserError(f"operating_point.runs={self.runs}: expected a list, as 'operating_point.runs={listed}'.")
        self.runs = [str(run) for run in self.runs]
        one_of("operating_point.rule", self.rule, RULES)
        in_range("operating_point.minimum", self.minimum, 0, 1, open_low=True)
        in_range("operating_point.cost_ratio", self.cost_ratio, 0, open_low=True)
        if (self.minimum is not None) != (self.rule in ("sensitivity", "specificity")):
            raise UserError(
                f"operating_point.rule={self.rule} with operating_point.minimum={self.minimum}: the rules sensitivity "
                "and specificity need a minimum, as operating_point.minimum=0.95; the others take none."
            )
        if (self.cost_ratio is not None) != (self.rule == "cost"):
            raise UserError(
                f"operating_point.rule={self.rule} with operating_point.cost_ratio={self.cost_ratio}: the rule cost "
                "needs one, as operating_point.cost_ratio=5; the others take none."
            )


@dataclass
class EvaluateConfig:
    """Everything `python -m pneumonia.evaluate` can be told; documented in conf/evaluate.yaml."""

    run: str | None = None
    predictions: str | None = None
    operating_point: OperatingPointConfig = field(default_factory=OperatingPointConfig)
    calibration: str = "temperature"
    prevalence: float | None = None
    level: float = 0.95
    coverage: float = 0.9
    resamples: int = 2000
    seed: int = 0
    shortcuts: bool = False
    stress: bool = False
    test: bool = False
    export: bool = False

    def __post_init__(self) -> None:
        not_empty(self, "run", "predictions")
        if (self.run is None) == (self.predictions is None):
            raise UserError("Expected one of run=<folder of a finished run> and predictions=<file.csv>.")
        one_of("calibration", self.calibration, ("temperature", "platt"))
        in_range("prevalence", self.prevalence, 0, 1)
        in_range("level", self.level, 0.5, 0.999)
        in_range("coverage", self.coverage, 0.5, 0.999)
        in_range("resamples", self.resamples, 100, 100_000)
        in_range("seed", self.seed, 0, 2**31)
        for option in NEED_NET:
            if getattr(self, option) and self.run is None:
                raise UserError(f"{option}=true needs the model and its films: type run=<folder of a finished run>.")


@dataclass
class PredictConfig:
    """Everything `python -m pneumonia.predict` can be told; documented in conf/predict.yaml."""

    run: str | None = None
    checkpoint: str | None = None
    images: str | None = None
    output: str = "predictions.csv"
    batch_size: int = 32

    def __post_init__(self) -> None:
        not_empty(self, "run", "checkpoint", "images", "output")
        if (self.run is None) == (self.checkpoint is None):
            raise UserError("Expected one of run=<folder of a finished run> and checkpoint=<file, or reference>.")
        if self.images is None:
            raise UserError("images is not set: type images=<film.jpeg>, images=<folder> or images=<list.csv>.")
        in_range("batch_size", self.batch_size, 1, 4096)


@dataclass
class CompareConfig:
    """Everything `python -m pneumonia.compare` can be told; documented in conf/compare.yaml."""

    runs: Any = None
    metric: str = "auroc"
    operating_point: OperatingPointConfig = field(default_factory=OperatingPointConfig)
    ensemble: int | None = None
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        not_empty(self, "output")
        if not self.runs:
            raise UserError("runs is not set: type runs=<sweep folder>, or a list as 'runs=[outputs/a,outputs/b]'.")
        if self.operating_point.runs:
            raise UserError(
                "operating_point.runs is for evaluate: compare judges each run at a threshold of its own validation."
            )
        in_range("ensemble", self.ensemble, 0)
        in_range("level", self.level, 0.5, 0.999)
        in_range("resamples", self.resamples, 100, 100_000)
        in_range("seed", self.seed, 0, 2**31)


OUTCOMES = ("tp", "tn", "fp", "fn")


def same_source(run: str | None, checkpoint: str | None, images: str | None) -> None:
    """Raise UserError unless the settings name one model, and films that it can be shown."""
    if run is None and checkpoint is None:
        raise UserError("Expected run=<folder of a finished run>, or checkpoint=<file> with images=<film or folder>.")
    if run is not None and checkpoint is not None:
        raise UserError("run and checkpoint both name a model: leave one of them out.")
    if checkpoint is not None and images is None:
        raise UserError("checkpoint needs images=<film or folder>; run=<folder> brings films of its own.")


@dataclass
class ExplainConfig:
    """Everything `python -m pneumonia.explain` can be told; documented in conf/explain.yaml."""

    attribution: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    checkpoint: str | None = None
    images: str | None = None
    root: str | None = None
    select: str = "all"
    count: int = 6
    pick: str = "random"
    split: str = "test"
    threshold: float | None = None
    seed: int = 0
    views: str = "all"
    activations: Any = False
    channel: Any = "first"
    relu: str = "before"
    layers: list[str] | None = None
    palette: str = "colour_blind"
    accelerator: str = "auto"
    output: str | None = None

    def __post_init__(self) -> None:
        not_empty(self, "run", "checkpoint", "images", "root", "output")
        same_source(self.run, self.checkpoint, self.images)
        one_of("select", self.select, ("all", *OUTCOMES, "most_confident_mistakes"))
        one_of("pick", self.pick, ("random", "most_confident", "least_confident"))
        one_of("split", self.split, ("val", "test"))
        one_of("views", self.views, ("all", "one"))
        one_of("relu", self.relu, ("before", "after"))
        one_of("palette", self.palette, ("colour_blind", "green_red"))
        one_of("accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        for name in ("root", "select", "pick", "split"):
            if self.images is not None and (typed := getattr(self, name)) != getattr(ExplainConfig, name):
                raise UserError(
                    f"{name}={typed} chooses among a run's own films, and images= names others: leave one out."
                )
        in_range("count", self.count, 1, 300)
        in_range("threshold", self.threshold, 0, 1)
        in_range("seed", self.seed, 0, 2**31)
        if isinstance(self.channel, int) and not isinstance(self.channel, bool):
            in_range("channel", self.channel, 0)
        elif self.channel not in ("first", "strongest", "mean"):
            raise UserError(f"channel={self.channel}: expected first, strongest, mean or the number of a channel.")
        if self.activations not in (False, True, "only"):
            raise UserError(f"activations={self.activations}: expected false, true or only.")
        if self.layers is not None and not self.layers:
            raise UserError("layers=[]: expected null for those that show most, or names as layers=[features.0].")


@dataclass
class ScoreboardConfig:
    """Everything `python -m pneumonia.scoreboard` can be told; documented in conf/scoreboard.yaml."""

    attributions: dict[str, Any] = field(default_factory=dict)
    run: str | None = None
    root: str | None = None
    methods: list[str] | None = None
    select: str = "tp"
    count: int = 10
    split: str = "test"
    views: str = "all"
    threshold: float | None = None
    seed: int = 0
    steps: int = 28
    perturbations: int = 100
    noisy: int = 4
    noisy_lime: int = 2
    seeds: int = 2
    resamples: int = 2000
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        not_empty(self, "run", "root")
        if self.run is None:
            raise UserError("run is not set: type run=<folder of a finished run>.")
        one_of("select", self.select, (*OUTCOMES, "all"))
        one_of("split", self.split, ("val", "test"))
        one_of("views", self.views, ("all", "one"))
        one_of("accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        for method in self.methods or []:
            one_of("methods", method, sorted(self.attributions))
        if twice := sorted({method for method in self.methods or [] if (self.methods or []).count(method) > 1}):
            raise UserError(f"methods: {twice[0]} stands there twice; expected each once.")
        if self.methods is not None and not self.methods:
            raise UserError(f"methods=[]: expected null for all, or some of {', '.join(sorted(self.attributions))}.")
        in_range("count", self.count, 2, 1000)
        in_range("threshold", self.threshold, 0, 1)
        in_range("seed", self.seed, 0, 2**31)
        in_range("steps", self.steps, 2, 10_000)
        in_range("perturbations", self.perturbations, 2, 100_000)
        in_range("noisy", self.noisy, 1, 1000)
        in_range("noisy_lime", self.noisy_lime, 1, 1000)
        in_range("seeds", self.seeds, 2, 100)
        in_range("resamples", self.resamples, 100, 100_000)


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "compare": CompareConfig,
    "explain": ExplainConfig,
    "scoreboard": ScoreboardConfig,
}
for _name, _schema in SCHEMAS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_schema)
