"""The verdict in plain words: rules with their limits, from evidence to findings. No judgement beyond these rules.

stop     the figures can't be believed: a patient or the same film on both sides; no better than chance
warning  the figures hold, but not for the use that one would think of
note     worth knowing

A finding is a rule that objects. No finding means that no rule objected, not that a model is safe.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pneumonia.data.audit import standing
from pneumonia.data.records import CLASSES
from pneumonia.report.pages import counted, estimate

Evidence = Mapping[str, Any]
Finding = dict[str, str]

FEW = 50  # films of a class: below it an interval of a rate is wider than about +-14 points
TOO_FEW = 10  # the same: +-30 points; of a single film AUROC has no interval at all
WIDE = 0.10  # width of the AUROC interval that is called wide
FALL = 0.02  # fall of accuracy or AUROC from validation to test
RATE_FALL = 0.10  # the same of sensitivity or specificity
ORACLE = 0.03  # accuracy that a threshold chosen on test would have gained, where that is more than chance gives
ECE = 0.10  # after scaling on validation, where that is more than chance gives
BELOW = 0.40  # upper end of the interval of a metadata-only AUROC that is told as far below one half
METADATA = 0.60  # lower end of the interval of a metadata-only AUROC
METADATA_OF = ("width", "height", "bytes", "colour mode")
STRESS_AUROC = 0.05  # fall of AUROC under one corruption of the films
STRESS_RATE = 0.15  # the same of sensitivity or specificity at the locked threshold
CORNERS = 0.05  # fall of AUROC when the corners are masked
MARKED = 0.05  # share of a class's patients with a mark that the other class hardly has
HIDDEN = 0.80  # AUROC with the lungs hidden or blurred
WITHOUT_LUNGS = {
    "border_only": "With the centre blanked",
    "common_centre": "With the mean film's centre in every film",
    "blurred": "On blurred films",
}

FALLS = (("accuracy", FALL), ("auroc", FALL), ("sensitivity", RATE_FALL), ("specificity", RATE_FALL))
CALLED = {"sensitivity": "films with pneumonia are called normal", "specificity": "normal films are called pneumonia"}

LEVELS = ("stop", "warning", "note")
HEADLINES = {
    "stop": "Do not rely on these figures",
    "warning": "The figures hold for these films; read the warnings before using them elsewhere",
    "note": "No warning",
}


def verdict(evidence: Evidence) -> dict[str, Any]:
    """{level, headline, findings}; the headline states the judged figures, then the worst level."""
    found = [{"level": level, "text": text} for rule in RULES for level, text in rule(evidence)]
    found.sort(key=lambda finding: LEVELS.index(finding["level"]))
    level = found[0]["level"] if found else "note"
    counts = [(name, sum(finding["level"] == name for finding in found)) for name in ("stop", "warning")]
    told = ", ".join(f"{number} {name}{'' if number == 1 else 's'}" for name, number in counts if number)
    count = f" ({told})" if told else ""
    return {"level": level, "headline": f"{HEADLINES[level]}{count}. {summary(evidence)}", "findings": found}


def summary(evidence: Evidence) -> str:
    """Accuracy and AUROC of the judged split with their intervals, and where the threshold came from."""
    metrics = judged(evidence)["metrics"]
    point = evidence["operating_point"]
    others = f" of {point['runs']} other runs" if point["runs"] else ""
    where = f"locked on validation{others}" if point["chosen_on"] else point["reason"]
    figures = ", ".join(
        f"{name} {estimate(metrics[key])}" for name, key in (("accuracy", "accuracy"), ("AUROC", "auroc"))
    )
    return f"On the {evidence['judged_on']}: {figures}, at threshold {point['threshold']:.3f} ({where})."


def judged(evidence: Evidence) -> Mapping[str, Any]:
    split: Mapping[str, Any] = evidence["splits"][evidence["judged"]]
    return split


def leak(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A patient in two splits under the run's own key stops; under the keys of file names it is told."""
    audit = evidence["audit"]
    if audit is None:
        yield "note", "There is no manifest.csv: whether a patient stands on both sides of the split is not known."
        return
    own, strict, conservative = audit["patients"]
    if own["shared"]:
        named = ", ".join(own["examples"]) + (", ..." if own["shared"] > len(own["examples"]) else "")
        yield "stop", f"{standing(own['shared'], 'patient', 'patients')} in more than one split ({named})."
    elif evidence["patient_key"] == "none" and strict["shared"]:
        text = standing(strict["shared"], "child", "children")
        yield "warning", f"Split without regard to patients: {text} in more than one split."
    if conservative["shared"] and not own["shared"] and evidence["patient_key"] != "none":
        text = f"Under the conservative key (prefix and number) {standing(conservative['shared'], 'person', 'persons')}"
        rest = "the numbering is most likely per subtype, and then they are different children."
        yield "note", f"{text} in more than one split; {rest}"
    for kind, name in (("copies", "exact copies"), ("near", "near copies")):
        if (copies := audit[kind]) and copies["across"]:
            text = standing(copies["across"], f"group of {name}", f"groups of {name}")
            yield "stop", f"{text} in more than one split ({' = '.join(copies['examples'][0])})."


def size(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """No test films, few films, fewer films than the manifest lists, one class only."""
    split = judged(evidence)
    if evidence["judged"] == "val":
        point = evidence["operating_point"]
        own = "threshold and " if point["chosen_on"] and not point["runs"] else ""
        yield "warning", f"There are no test films: {own}(unless keep=last) weights were chosen on those that judge."
    fewest = min(split["positives"], split["n"] - split["positives"])
    if fewest == 0:
        yield "stop", "The films are of one class only: AUROC, balanced accuracy and one of the rates are undefined."
    elif fewest < TOO_FEW:
        yield "stop", f"One class has {counted(fewest, 'film')} only: too few for any figure."
    elif fewest < FEW:
        yield "warning", f"One class has {fewest} films only: the intervals are wide."
    val, point = evidence["splits"].get("val"), evidence["operating_point"]
    if val and evidence["judged"] == "test" and point["chosen_on"] and not point["runs"]:
        of_class = min(val["positives"], val["n"] - val["positives"])
        if of_class < FEW:
            text = f"One class has {counted(of_class, 'validation film')} only: threshold and calibration rest on few."
            yield "warning", text
    planned = evidence["planned"].get(evidence["judged"], 0)
    if planned > split["n"]:
        yield "warning", f"Only {split['n']:,} of the {planned:,} films of this split were predicted."


def chance(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """AUROC not above one half; accuracy not above always calling the larger class; one call only."""
    split = judged(evidence)
    auroc, accuracy = split["metrics"]["auroc"], split["metrics"]["accuracy"]
    if auroc["interval"] and auroc["interval"][1] < 0.5:
        text = (
            f"AUROC is {estimate(auroc)}: shown to be worse than a coin; labels or scores may be the wrong way round."
        )
        yield "stop", text
    elif auroc["interval"] and auroc["interval"][0] <= 0.5:
        yield "stop", f"AUROC is {estimate(auroc)}: not shown to be better than a coin."
    elif auroc["interval"] and auroc["interval"][1] - auroc["interval"][0] > WIDE:
        yield (
            "warning",
            f"The interval of AUROC, {estimate(auroc)}, is wide: more films are needed to rank models by it.",
        )
    share = max(split["positives"], split["n"] - split["positives"]) / split["n"]
    if share < 1 and accuracy["interval"][0] <= share:
        text = f"Accuracy is {estimate(accuracy)}; calling every film by the larger class gives {share:.3f}: "
        yield "warning", text + "the interval does not lie above it."
    counts = split["counts"]
    if split["n"] in (counts["tp"] + counts["fp"], counts["tn"] + counts["fn"]) and share < 1:
        yield "warning", "The model gives every film the same call."


def drifted(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A figure that falls from validation to test by more than chance; a threshold off."""
    if evidence["drift"] is None:
        return
    rows = {row["metric"]: row for row in evidence["drift"]["metrics"]}
    for metric, limit in FALLS:
        row = rows[metric]
        if row["interval"] and row["interval"][1] < 0 and row["difference"] < -limit:
            name = "AUROC" if metric == "auroc" else metric.capitalize()
            text = f"{name} falls from {row['val']:.3f} on validation to {row['test']:.3f} on test"
            wrong = f": {100 * (1 - row['test']):.0f} of 100 {CALLED[metric]}" if metric in CALLED else ""
            yield "warning", f"{text}{wrong}."
    point, oracle = evidence["operating_point"], evidence["drift"]["oracle"]
    if not oracle or point["rule"] != "accuracy" or point["corruptions"]:
        return
    if oracle["gap"] > max(ORACLE, oracle["chance"]):
        gain, rare = (f"{100 * oracle[name]:.1f}" for name in ("gap", "chance"))
        text = f"The threshold does not carry over: another one ({oracle['oracle_threshold']:.3f}) would have gained "
        rest = f"{gain} points of accuracy on test, where chance seldom gives {rare}; chosen on these very films it "
        yield "warning", f"{text}{rest}is flattered, and no result."


def calibrated(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """ECE that is large, and larger than in 95 of 100 draws of films whose probabilities are true."""
    found = judged(evidence)["calibrated"]["ece"]
    if found["value"] is not None and found["value"] > max(ECE, judged(evidence)["chance_ece_most"]):
        point = evidence["operating_point"]
        scaled = "Platt" if evidence["options"]["calibration"] == "platt" else "temperature"
        after = f", even after {scaled} scaling" if point["temperature_fitted"] else ""
        text = f"Probabilities are off by {100 * found['value']:.0f} points on average{after}"
        yield "warning", f"{text}: read the call, not the number."


def kept(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The sensitivity or specificity that the rule asks for, where the judged films fall below it."""
    point = evidence["operating_point"]
    if point["minimum"] is None or point["rule"] is None:
        return
    found = judged(evidence)["metrics"][point["rule"]]
    if found["value"] is None or found["value"] >= point["minimum"]:
        return
    text = f"The rule asks for a {point['rule']} of at least {point['minimum']:g}; here it is {estimate(found)}"
    if found["interval"][1] < point["minimum"]:
        yield "warning", f"{text}."
    else:
        yield "note", f"{text}, which may be chance."


def uneven(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """A subgroup whose sensitivity or specificity interval lies wholly below another's of the same grouping."""
    for group in dict.fromkeys(row["group"] for row in evidence["subgroups"]):
        rows = [row for row in evidence["subgroups"] if row["group"] == group and row["reason"] is None]
        for rate in ("sensitivity", "specificity"):
            known = [row for row in rows if row[rate]["interval"]]
            low = min(known, key=lambda row: row[rate]["interval"][1], default=None)
            high = max(known, key=lambda row: row[rate]["interval"][0], default=None)
            if low and high and low[rate]["interval"][1] < high[rate]["interval"][0]:
                text = f"{rate.capitalize()} is uneven by {group.replace('_', ' ')}: {low[rate]['value']:.3f} for "
                rest = f"{low['name']} (n = {low[rate]['n']}), {high[rate]['value']:.3f} for {high['name']}."
                yield "warning", text + rest


def promised(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Prediction sets that hold the truth less often than promised."""
    sets = evidence["abstention"]["sets"]
    if sets is None:
        return
    for name, covered, interval in zip(("normal", "pneumonia"), sets["covered"], sets["interval"], strict=True):
        if interval and interval[1] < sets["promised"]:
            promised = f"{100 * sets['promised']:.10g} % of {name} films"
            yield (
                "warning",
                f"Prediction sets promise to hold the truth for {promised}, and do for {100 * covered:.1f} %: "
                "validation and test are not alike.",
            )


def shortcuts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The class is told by the file alone, by films whose lungs are hidden, or by their corners."""
    rows = evidence["shortcuts"]["rows"] if evidence["shortcuts"] else []
    clean = next((row for row in rows if row["name"] == "as_is" and row["interval"]), None)
    differ = (evidence["shortcuts"] or {}).get("metadata", METADATA_OF)
    alone = f"{', '.join(differ).capitalize()} alone (of {', '.join(METADATA_OF)})"
    for row in rows:
        if row["auroc"] is None or not row["interval"]:
            continue
        if row["name"] == "metadata" and row["interval"][0] > METADATA:
            text = f"{alone} give an AUROC of {estimate(value_of(row))}: "
            yield "warning", text + "the class can be told without looking at the film."
        if row["name"] == "metadata" and row["interval"][1] < BELOW:
            text = f"{alone} give an AUROC of {estimate(value_of(row))}, far below 0.5: "
            yield "note", text + "the classes are matched on metadata, so there is nothing to read from it."
        if row["name"] in WITHOUT_LUNGS and row["auroc"] > HIDDEN:
            what = WITHOUT_LUNGS[row["name"]]
            yield (
                "warning",
                f"{what} the model still reaches an AUROC of {estimate(value_of(row))}: it reads a shortcut.",
            )
        if (
            row["name"] == "corners_masked"
            and clean
            and row["interval"][1] < clean["interval"][0]
            and clean["auroc"] - row["auroc"] > CORNERS
        ):
            text = f"With the corners masked, where markers sit, AUROC falls from {clean['auroc']:.3f} to "
            yield "warning", f"{text}{estimate(value_of(row))}: part of the answer is read there, and no lung is."


def marked(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Many patients of a class carry marks in the corners that the other class hardly has."""
    found: Evidence | None = (evidence["shortcuts"] or {}).get("marks")
    if not found:
        return
    for number, name in enumerate(CLASSES):
        own, other = found["carrying"][name][number], found["carrying"][name][1 - number]
        patients, others = found["patients"][number], found["patients"][1 - number]
        if own > MARKED * patients:
            text = f"Marks in the corners (letters, lines, how the child lies) come with {name}: {own:,} of its "
            text += f"{patients:,} patients have one, and {other:,} of the {others:,} others. A net can learn them."
            first = next((mark for mark in found["found"] if mark["comes_with"] == name), None)
            where = f" On the most patients: {first['corner']}, as in {first['example']}." if first else ""
            yield "warning", text + where


def stressed(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """AUROC, sensitivity or specificity that falls by more than chance under a corruption of the validation films."""
    if not evidence["stress"]:
        return
    clean, rows = evidence["stress"]["clean"], evidence["stress"]["rows"]
    for key, limit in (("auroc", STRESS_AUROC), ("sensitivity", STRESS_RATE), ("specificity", STRESS_RATE)):
        before = clean[key]
        known = [row for row in rows if row[key]["interval"]]
        low = min(known, key=lambda row: row[key]["value"], default=None)
        if not low or not before["interval"] or low[key]["interval"][1] >= before["interval"][0]:
            continue
        if before["value"] - low[key]["value"] > limit:
            name = "AUROC" if key == "auroc" else key.capitalize()
            text = f"{name} on validation falls from {before['value']:.3f} to {estimate(low[key])} under the "
            yield "warning", f"{text}corruption {low['name'].replace('_', ' ')}: another machine may do the same."


def value_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": row["auroc"], "interval": row["interval"]}


RULES: tuple[Callable[[Evidence], Iterator[tuple[str, str]]], ...] = (
    leak, size, chance, drifted, calibrated, kept, uneven, promised, shortcuts, marked, stressed,
)  # fmt: skip
