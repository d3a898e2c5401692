"""Explain films with one attribution method, and show what each layer makes of one: sheets, arrays, TensorBoard.

Layout    <output>/<attribution>/<outcome>.png   a contact sheet: film, overlay, scale
          <output>/<attribution>/<outcome>.npz   attribution float32 [N, H, W], film uint8 [N, H, W], path str [N],
                                                 probability [N]; LIME's superpixels too, int64 [N, H, W]
          <output>/<attribution>/<outcome>.json  what it was computed with
          <output>/activations.png
Everything is computed before the first file is written; every file appears whole.
"""

import logging
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from pneumonia.attribution.activations import activations
from pneumonia.attribution.contract import Method
from pneumonia.attribution.superpixel import Explanation, Lime
from pneumonia.build import build
from pneumonia.data.records import CLASSES
from pneumonia.errors import UserError
from pneumonia.files import written
from pneumonia.report import overlays
from pneumonia.report.figures import save
from pneumonia.settings import OUTCOMES, ExplainConfig
from pneumonia.training.averaged import Averaged
from pneumonia.training.checkpoint import load_classifier
from pneumonia.training.classifier import Classifier
from pneumonia.training.precision import full_float32
from pneumonia.workflows.predictions import sigmoid
from pneumonia.workflows.record import write_json
from pneumonia.workflows.selection import NAMES, Film, Request, films_to_explain, pictured

log = logging.getLogger(__name__)

Part = TypeVar("Part")
TITLES = {
    "lime": "LIME", "saliency": "saliency", "integrated_gradients": "integrated gradients", "gradcam": "Grad-CAM",
    "guided_gradcam": "guided Grad-CAM", "occlusion": "occlusion", "gradient_shap": "gradient SHAP",
    "deeplift": "DeepLIFT", "smoothgrad": "SmoothGrad",
}  # fmt: skip
UNITS = {"saliency": "logit / grey", "smoothgrad": "logit / grey", "gradcam": "", "guided_gradcam": ""}
GRADIENTS = ("saliency", "smoothgrad", "guided_gradcam")  # whose sign is what a brighter pixel would do
COARSE = ("lime", "occlusion", "gradcam")  # drawn as they are; the others pixel by pixel, smoothed for the eye
FOR_THE_EYE = 1 / 112  # of the side: 2 pixels at 224
RANKED = ("images", "most_confident_mistakes")  # taken in order, of a name or of their probability: none is drawn
TOLERANCE = 0.05  # of a probability computed here against predictions.csv: other precision, not other films


@dataclass(frozen=True)
class Sheet:
    """The films of one sheet with their maps [N, H, W], probabilities [N], of LIME what it fitted, and a note."""

    films: list[Film]
    maps: NDArray[np.float32]
    probability: list[float]
    fitted: list[Explanation]
    note: str = ""


@full_float32()
def explain_films(config: ExplainConfig) -> None:
    """What `python -m pneumonia.explain` does from start to end."""
    request, classifier = ready(films_to_explain(config), config.accelerator)
    for note in request.notes:
        log.info(note)
    only = config.activations == "only"
    name, method = method_of(config.attribution)
    sheets: dict[str, Sheet] = {}
    shown: list[Any] = []
    with told_plainly("activations"):  # one film's, so a layer that is not there is told before the maps are made
        if config.activations:
            image = images_of(request.films[:1], classifier)
            shown = activations(classifier.net, image, config.channel, config.relu, config.layers)
    with told_plainly(f"attribution={name}"):
        if not only:
            sheets = {
                outcome: explained(method, classifier, films, request, config.views)
                for outcome, films in request.sheets.items()
            }
    for sheet in sheets.values():
        warn_of_other_probabilities(sheet.films, sheet.probability)
    try:
        if sheets:
            write_sheets(config, request, name, method, sheets)
        if shown:
            write_activations(config, request, shown)
    except OSError as error:
        raise UserError(f"{request.output} can't be written to: {error}. Set output=/a/writable/folder.") from error
    tell_of_report(request)


def tell_of_report(request: Request) -> None:
    """How the sheets of a run come into its report."""
    if request.run is not None and request.output.resolve() == (request.run / "explanations").resolve():
        log.info(
            "python -m pneumonia.evaluate run=%s puts these sheets into report.html", shlex.quote(str(request.run))
        )


def ready(request: Request, accelerator: str) -> tuple[Request, Classifier]:
    """The classifier on its device in eval mode, and the request with pixels of the net's size. Raises UserError."""
    classifier = load_classifier(request.checkpoint)
    device = device_of(accelerator)
    try:
        classifier = classifier.to(device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"accelerator={accelerator}: the model does not fit on the device; free memory or type accelerator=cpu."
        ) from error
    if request.image_size is None:
        request = pictured(replace(request, image_size=int(str(classifier.net.image_size))), "/", "images")
    return request, classifier.eval()


def device_of(accelerator: str) -> torch.device:
    """Raises UserError when a GPU is asked for and there is none."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: no CUDA GPU is visible here. Type accelerator=cpu, or mend the driver.")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def method_of(spec: Mapping[str, Any]) -> tuple[str, Method]:
    """(name in conf/attribution, method)."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices["attribution"]), build("attribution", spec)


@contextmanager
def told_plainly(what: str) -> Iterator[None]:
    """A layer that is not there, a window that does not fit, no room on the device: one line of what and why."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        told = str(error).splitlines()[0] if isinstance(error, MemoryError) else "the device is out of memory"
        raise UserError(
            f"{what}: {told}. Type accelerator=cpu, a smaller internal_batch_size, or views=one where all are averaged."
        ) from error


def grey_of(films: list[Film], classifier: Classifier) -> Tensor:
    """The pixels of films, uint8 [N, 1, S, S] on the classifier's device."""
    pixels = np.stack([film.pixels for film in films if film.pixels is not None])
    return torch.from_numpy(pixels)[:, None].to(classifier.device)


def images_of(films: list[Film], classifier: Classifier) -> Tensor:
    """Films as the net takes them in a prediction, float [N, 3, S, S] in [0, 1] on its device."""
    return classifier.images(classifier.as_predicted(grey_of(films, classifier))).contiguous()


def one_view(classifier: Classifier, views: str) -> str:
    """What to say below maps that are of less than the probability."""
    less = views == "one" and classifier.averages_views
    return "the maps are of one view, the whole film" if less else ""


def explained(method: Method, classifier: Classifier, films: list[Film], request: Request, views: str) -> Sheet:
    """Maps of the films, of `views` all or one; probabilities as the films are called."""
    shown = shown_to(classifier, films, views)
    parts = [attributed(method, net, images) for net, images in with_bar(shown, "explaining")]
    maps = np.concatenate([part for part, _ in parts])
    fitted = [fit for _, fits in parts for fit in fits]
    return Sheet(films, maps, called(classifier, films, request), fitted, one_view(classifier, views))


def called(classifier: Classifier, films: list[Film], request: Request) -> list[float]:
    """The probability by which each film is called."""
    with torch.inference_mode():
        logits = [float(classifier(film[None])) for film in grey_of(films, classifier)]
    return [sigmoid(logit / request.temperature + request.bias) for logit in logits]


def shown_to(classifier: Classifier, films: list[Film], views: str) -> list[tuple[nn.Module, Tensor]]:
    """(net, images [n, 3, S, S]) to explain: all at once, but each film by itself where its views are averaged."""
    if views == "one" or not classifier.averages_views:
        return [(classifier.net, images_of(films, classifier))]
    seen = classifier.as_predicted(grey_of(films, classifier)).split(1)
    return [(Averaged(classifier, grey).eval(), classifier.repeated(grey.float() / 255).contiguous()) for grey in seen]


def with_bar(films: Sequence[Part], what: str) -> Iterable[Part]:
    """What is done film by film with a bar on a terminal; as it is where all are done at once."""
    return tqdm(films, what, unit="film", leave=False, disable=None if len(films) > 1 else True)


def attributed(method: Method, net: nn.Module, images: Tensor) -> tuple[NDArray[np.float32], list[Explanation]]:
    """The maps [N, H, W] and, of LIME, what it fitted."""
    fitted = method.explain(net, images) if isinstance(method, Lime) else []
    maps = np.stack([fit.painted() for fit in fitted]) if fitted else method.attribute(net, images).cpu().numpy()
    return maps, fitted


def warn_of_other_probabilities(films: Sequence[Film], probability: Sequence[float]) -> None:
    """The film that is explained should be the film that was called."""
    pairs = [(film, p) for film, p in zip(films, probability, strict=True) if film.probability is not None]
    differ = [(film, p) for film, p in pairs if abs(p - (film.probability or 0)) > TOLERANCE]
    if differ:
        film, p = differ[0]
        log.warning(
            "%d of %d films have another probability than in predictions.csv (%s: %.3f, there %.3f): other weights or "
            "other pixels", len(differ), len(pairs), film.path, p, film.probability,
        )  # fmt: skip


def write_sheets(
    config: ExplainConfig, request: Request, name: str, method: Method, sheets: Mapping[str, Sheet]
) -> None:
    """PNG, arrays and settings of every outcome; of one that has no films now, an earlier call's are removed."""
    figures = {outcome: drawn(config, request, name, method, outcome, sheet) for outcome, sheet in sheets.items()}
    folder = request.output / name
    folder.mkdir(parents=True, exist_ok=True)
    if config.select == "all" and config.images is None:
        for empty in set(OUTCOMES) - set(sheets):
            for suffix in (".png", ".npz", ".json"):
                (folder / f"{empty}{suffix}").unlink(missing_ok=True)
    for outcome, sheet in sheets.items():
        save(figures[outcome], folder / f"{outcome}.png")
        write_arrays(folder / f"{outcome}.npz", sheet)
        drawn_by = {} if outcome in RANKED else {"pick": config.pick, "seed": config.seed}
        content = {
            "attribution": config.attribution, "checkpoint": str(request.checkpoint), **drawn_by,
            **({} if outcome == "images" else {"split": config.split}),
            "threshold": request.threshold, "views": config.views,
            "films": [film.path for film in sheet.films], "of": request.totals[outcome],
        }  # fmt: skip
        write_json(folder / f"{outcome}.json", content)
        if request.run is not None:
            into_tensorboard(request.run, f"explanations/{name}/{outcome}", folder / f"{outcome}.png")
        log.info("%s", folder / f"{outcome}.png")


def drawn(config: ExplainConfig, request: Request, name: str, method: Method, outcome: str, sheet: Sheet) -> Any:
    """The contact sheet of one outcome."""
    side = sheet.maps.shape[-1]
    smooth = 0.0 if name in COARSE else side * FOR_THE_EYE
    shown = [drawn_film(*row) for row in zip(sheet.films, sheet.maps, sheet.probability, strict=True)]
    if isinstance(method, Lime):
        shown = [with_regions(film, fit, method.num_features) for film, fit in zip(shown, sheet.fitted, strict=True)]
    return overlays.contact_sheet(
        shown,
        f"{NAMES[outcome].capitalize()}: {TITLES.get(name, name)}",
        f"n = {len(sheet.films)} of {request.totals[outcome]}",
        unit_of(name, method),
        config.palette,
        sign_of(name, method),
        smooth,
        " \N{MIDDLE DOT} ".join(text for text in notes(config, request, method, outcome, smooth, sheet) if text),
    )


def drawn_film(film: Film, attribution: NDArray[np.float32], probability: float) -> overlays.Explained:
    """What the sheet shows of a film, with the probability that predictions.csv has, where it has one."""
    assert film.pixels is not None
    called = probability if film.probability is None else film.probability
    truth = "" if film.label is None else CLASSES[film.label]
    return overlays.Explained(
        film.pixels, attribution, Path(film.path).name, film.subtype, called, truth, opacity=film.mask
    )


def with_regions(film: overlays.Explained, fit: Explanation, num_features: int) -> overlays.Explained:
    """The strongest superpixels alone, outlined."""
    painted = fit.painted(num_features)
    regions = [fit.segments == number for number in np.unique(fit.segments[painted != 0])]
    return replace(film, attribution=painted, regions=regions)


def sign_of(name: str, method: Any) -> str:
    """Whether a map tells for from against, or what a change of grey would do."""
    if getattr(method, "absolute", False):
        return "magnitude"
    if name in GRADIENTS:
        return "brighter"
    return "for" if getattr(method, "relu", False) else "signed"


def unit_of(name: str, method: Any) -> str:
    """What an attribution of 1 is."""
    return str(getattr(method, "output", UNITS.get(name, "logit")))


def strongest(num_features: int, fitted: list[Explanation]) -> str:
    """How many superpixels of how many are outlined."""
    of = sorted(fit.weights.size for fit in fitted)
    shown = sorted({min(num_features, count) for count in (of[0], of[-1])})
    ranges = [str(pair[0]) if pair[0] == pair[-1] else f"{pair[0]} to {pair[-1]}" for pair in (shown, of)]
    return f"the {ranges[0]} strongest of {ranges[1]} superpixels, outlined"


def notes(config: ExplainConfig, request: Request, method: Any, outcome: str, smooth: float, sheet: Sheet) -> list[str]:
    """The footnote of a sheet: how films were chosen, what was drawn, whose films they are."""
    mistakes = outcome == "most_confident_mistakes"
    how = {
        "random": f"drawn from seed {config.seed}", "most_confident": "the most confident ones",
        "least_confident": "the least confident ones",
    }[config.pick]  # fmt: skip
    first = "the first by name" if len(request.films) < request.totals.get("images", 0) else ""
    masked = any(film.mask is not None for film in request.films)
    return [
        "" if outcome == "images" else f"{config.split} films",
        "" if outcome == "images" else request.locked,
        first if outcome == "images" else "the most confident ones" if mistakes else how,
        strongest(method.num_features, sheet.fitted) if sheet.fitted else "",
        f"smoothed by {smooth:.1f} px for the eye" if smooth else "",
        "yellow line: the true opacity" if masked else "",
        "frame: the true class, orange pneumonia, blue normal" if outcome != "images" else "",
        f"{sheet.note}; p is of the mean over views" if sheet.note else "",
        request.source,
    ]


def write_arrays(file: Path, sheet: Sheet) -> None:
    """The .npz of a sheet; nothing in it needs pickle."""
    arrays: dict[str, Any] = {
        "attribution": sheet.maps,
        "film": np.stack([film.pixels for film in sheet.films if film.pixels is not None]),
        "path": np.array([film.path for film in sheet.films]),
        "probability": np.array(sheet.probability),
    }
    if sheet.fitted:
        arrays["segments"] = np.stack([fit.segments for fit in sheet.fitted])
    with written(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def into_tensorboard(run: Path, tag: str, png: Path) -> None:
    """Show a sheet under Images of the run's TensorBoard; a run that can't be written to goes without."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    folder = run / "tensorboard"
    if not os.access(folder if folder.exists() else run, os.W_OK):
        log.warning("%s is not shown in TensorBoard: %s can't be written to", png, folder)
        return
    with Image.open(png) as picture, SummaryWriter(str(folder)) as writer:
        writer.add_image(tag, np.asarray(picture.convert("RGB")), dataformats="HWC")


def write_activations(config: ExplainConfig, request: Request, shown: list[Any]) -> None:
    """One sheet of what each layer makes of the first film."""
    film = request.films[0]
    channel = config.channel if isinstance(config.channel, str) else f"number {config.channel}"
    what = "mean over the channels" if channel == "mean" else f"{channel} channel"
    figure = overlays.activation_sheet(
        [(item.layer, item.kind, item.map) for item in shown],
        f"Activations of {Path(film.path).name}: {what} of each layer, {config.relu} ReLU",
        f"n = {len(shown)} maps",
        request.source,
    )
    request.output.mkdir(parents=True, exist_ok=True)
    save(figure, request.output / "activations.png")
    if request.run is not None:
        into_tensorboard(request.run, "explanations/activations", request.output / "activations.png")
    log.info("%s", request.output / "activations.png")
