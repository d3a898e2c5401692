"""`python -m pneumonia.evaluate` as a user types it: what it writes, what it says, and what it refuses."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import COLUMNS, FIELDS, make_run, records_of, rows_of, with_logit, write_table
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, matthews_corrcoef, roc_auc_score

from pneumonia.evaluation.calibration import fit_temperature
from pneumonia.evaluation.conformal import fit_conformal
from pneumonia.evaluation.intervals import wilson
from pneumonia.evaluation.metrics import METRICS
from pneumonia.evaluation.operating_point import choose_threshold
from pneumonia.report.verdict import uneven, verdict

Command = Callable[..., None]
QUICK = "resamples=200"
ROOT = Path(__file__).resolve().parents[2]


def evidence_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evidence.json").read_text())


def weigh_quickly(run: Path, **options: Any) -> dict[str, Any]:
    """The evidence without its pages."""
    from pneumonia.settings import EvaluateConfig
    from pneumonia.workflows.sources import read_run
    from pneumonia.workflows.weighing import weigh

    evidence = weigh(read_run(run), EvaluateConfig(run=str(run), resamples=200, **options))
    return evidence | {"verdict": verdict(evidence)}


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its evidence, at the default settings."""
    from pneumonia.settings import EvaluateConfig
    from pneumonia.workflows.evidence import evaluate

    folder = make_run(tmp_path_factory.mktemp("evidence") / "run", rows_of(shift=1.0))
    evaluate(EvaluateConfig(run=str(folder)))
    return folder


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Evidence of a run with nothing to warn of."""
    return weigh_quickly(make_run(tmp_path_factory.mktemp("steady") / "run", rows_of(val=1000, test=1000)))


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_writes_four_files_and_nothing_half_written(weighed: Path) -> None:
    left = {file.name for file in weighed.iterdir() if file.is_file()}
    made = {"evidence.json", "report.html", "report.md", "model_card.md"}
    assert left == made | {"predictions.csv", "manifest.csv", "metrics.csv", "run.json"}
    assert (weighed / "report.html").stat().st_size < 5_000_000


def test_every_figure_is_that_of_the_libraries(weighed: Path) -> None:
    evidence = evidence_of(weighed)
    threshold = evidence["operating_point"]["threshold"]
    for split in ("val", "test"):
        rows = [row for row in rows_of(shift=1.0) if row["split"] == split]
        y, p = np.array([r["label"] for r in rows]), np.array([r["probability"] for r in rows])
        called = p >= threshold
        found = evidence["splits"][split]["metrics"]
        for name, value in {
            "accuracy": accuracy_score(y, called), "auroc": roc_auc_score(y, p), "mcc": matthews_corrcoef(y, called),
            "average_precision": average_precision_score(y, p), "brier": brier_score_loss(y, p),
            "sensitivity": called[y == 1].mean(), "specificity": (~called)[y == 0].mean(),
        }.items():  # fmt: skip
            assert found[name]["value"] == pytest.approx(value, abs=1e-6), (split, name)
        wilson = binomtest(int((called == y).sum()), len(y)).proportion_ci(method="wilson")
        assert found["accuracy"]["interval"] == pytest.approx([wilson.low, wilson.high], abs=1e-9)
        for name, estimate in found.items():
            low, high = estimate["interval"]
            assert low <= estimate["value"] <= high, name


def test_the_threshold_comes_from_validation_and_test_has_no_say(
    weighed: Path, command: Command, tmp_path: Path
) -> None:
    other = make_run(
        tmp_path / "other", [r | {"label": 1 - r["label"]} if r["split"] == "test" else r for r in rows_of()]
    )
    command("evaluate", f"run={other}", QUICK)
    point, first = evidence_of(other)["operating_point"], evidence_of(weighed)["operating_point"]
    assert point["threshold"] == first["threshold"] and point["chosen_on"] == "val"
    assert point["temperature"] == first["temperature"]
    oracle = evidence_of(weighed)["drift"]["oracle"]
    assert oracle["locked_threshold"] == first["threshold"] and oracle["gap"] >= 0


def test_the_validation_of_other_runs_chooses_for_a_run_and_its_own_has_no_say(
    command: Command, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", rows_of())
    first, second = (rows_of(seed, films_seed=seed) for seed in (1, 2))
    write_table(make_run(tmp_path / "first", first) / "beside.csv", second, COLUMNS)
    (tmp_path / "vote").mkdir()
    write_table(tmp_path / "vote" / "predictions.csv", second, COLUMNS)
    command("evaluate", f"run={run}", QUICK, "operating_point.runs=[first,vote/predictions.csv]")
    point = evidence_of(run)["operating_point"]
    both = [row for row in first + second if row["split"] == "val"]
    pooled = choose_threshold([r["label"] for r in both], [r["probability"] for r in both], "accuracy")
    assert point["threshold"] == pytest.approx(pooled.threshold) and point["n"] == len(both) == 240
    fitted = fit_temperature(np.array([r["label"] for r in both]), np.array([r["logit"] for r in both]))
    assert point["temperature"] == pytest.approx(fitted) and point["runs"] == 2 and point["chosen_on"] == "val"
    told = evidence_of(run)["operating_point"]
    command("evaluate", f"run={run}", QUICK, "operating_point.runs=[first,first/beside.csv]")  # two of one folder
    assert evidence_of(run)["operating_point"] == told
    command("evaluate", f"run={run}", QUICK, "operating_point.runs=[first,vote/predictions.csv]")
    assert "first" not in (run / "evidence.json").read_text()  # their names are the command's, not the evidence's
    assert f"run={run}" in (page := (run / "report.html").read_text()) and "runs=[first,vote/predictions.csv]" in page
    assert "chosen on 240 validation films of 2 other runs" in " ".join((run / "report.md").read_text().split())


def test_platt_scaling_mends_a_level_that_a_temperature_cannot(command: Command, tmp_path: Path) -> None:
    rows = [with_logit(row, row["logit"] + 2) for row in rows_of()]
    run = make_run(tmp_path / "run", rows)
    figures = {}
    for calibration in ("temperature", "platt"):
        command("evaluate", f"run={run}", QUICK, f"calibration={calibration}")
        evidence = evidence_of(run)
        figures[calibration] = evidence["splits"]["test"]["calibrated"]["ece"]["value"]
        point = evidence["operating_point"]
        scaled = expit(np.log(point["threshold"] / (1 - point["threshold"])) / point["temperature"] + point["bias"])
        assert point["threshold_calibrated"] == pytest.approx(scaled)
    assert point["bias"] < -1 and figures["platt"] < 0.7 * figures["temperature"], figures
    assert "Platt scaling fitted on validation" in (run / "report.html").read_text()


def test_a_level_that_balance_is_known_to_have_moved_is_moved_back(command: Command, tmp_path: Path) -> None:
    rows = rows_of()
    val = [row for row in rows if row["split"] == "val"]
    honest = fit_temperature(np.array([row["label"] for row in val]), np.array([row["logit"] for row in val]))
    assert honest is not None
    moved = make_run(tmp_path / "moved", [with_logit(row, row["logit"] - 1.5 * honest) for row in rows])
    plain = make_run(tmp_path / "plain", rows)

    def weighed(run: Path, told: object) -> tuple[dict, float]:
        """Its operating point, and the log loss on validation after scaling."""
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"prior_correction": told}))
        command("evaluate", f"run={run}", QUICK)
        evidence = evidence_of(run)
        return evidence["operating_point"], evidence["splits"]["val"]["calibrated"]["log_loss"]["value"]

    _, wanted = weighed(plain, 0.0)
    for told in (None, "1.5", float("nan")):  # of an earlier version, or spoilt
        point, loss = weighed(moved, told)
        assert point["bias"] == 0 and loss > wanted + 0.01
    point, loss = weighed(moved, 1.5)
    assert loss <= wanted  # which the temperature of the plain one would reach
    page = (moved / "report.html").read_text()
    assert point["bias"] == 1.5 and "Temperature scaling fitted on validation" in page
    assert "training drew the classes in another ratio" in page
    command("evaluate", f"run={moved}", QUICK, "calibration=platt")  # which finds its own
    assert evidence_of(moved)["operating_point"]["bias"] != 1.5


def test_the_page_says_how_sure_the_model_is(command: Command, tmp_path: Path) -> None:
    rows = rows_of()
    val = [row for row in rows if row["split"] == "val"]
    honest = fit_temperature(np.array([row["label"] for row in val]), np.array([row["logit"] for row in val]))
    assert honest is not None
    for temperature, said in (
        (2, "too sure of itself"),
        (1.04, "about as sure as it may be"),
        (0.5, "not sure enough"),
    ):
        scaled = [with_logit(row, row["logit"] * temperature / honest) for row in rows]
        run = make_run(tmp_path / str(temperature), scaled)
        command("evaluate", f"run={run}", QUICK)
        assert f"temperature {temperature:.3f} (the model is {said})" in (run / "report.html").read_text()


def test_a_choice_that_a_later_call_undoes_is_told(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", rows_of())
    typed = ("operating_point.rule=youden", "calibration=platt")
    said = "locked anew by those of this call"
    command("evaluate", f"run={run}", QUICK)
    command("evaluate", f"run={run}", QUICK, *typed)  # what train wrote was nobody's choice
    command("evaluate", f"run={run}", QUICK, *typed, "prevalence=0.1")
    assert said not in "".join(capsys.readouterr())
    command("evaluate", f"run={run}", QUICK, "prevalence=0.1")
    told = "".join(capsys.readouterr())
    assert said in told and "operating_point.rule=youden" in told and "calibration=platt" in told
    assert evidence_of(run)["operating_point"]["rule"] == "accuracy"


def test_two_calls_of_a_sweep_write_no_report_over_one_another(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", rows_of())
    with pytest.raises(SystemExit) as ending:
        command("evaluate", "-m", f"run={run}", "operating_point.rule=accuracy,youden", QUICK)
    told = capsys.readouterr().err
    assert ending.value.code == 2 and f"{run}: two runs of -m would write it" in told and not told.count("\n") > 1
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("typed", ["operating_point=youden", "operating_point=[youden]"])
def test_a_section_that_is_typed_as_a_value(command: Command, capsys: pytest.CaptureFixture[str], typed: str) -> None:
    with pytest.raises(SystemExit):
        command("evaluate", "run=run", typed)
    told = "a section is typed by its settings, as operating_point.rule=accuracy"
    assert f"{typed}: {told}" in capsys.readouterr().err


def test_one_run_that_chooses_is_a_list_too(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    for typed, listed in (("other", "[other]"), ("null", "[]")):
        with pytest.raises(SystemExit):
            command("evaluate", f"run={run}", QUICK, f"operating_point.runs={typed}")
        assert f"expected a list, as 'operating_point.runs={listed}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("nowhere", "operating_point.runs: run=nowhere: no such folder"),
        ("tested", "holds no validation films"),
        ("run", "run is the judged run or listed twice"),
        ("other,other", "other is the judged run or listed twice"),
        ("leaked", "leaked validates on test films of"),
        ("unseen:leaked", "leaked validates on test films of"),
        ("unlisted:leaked", "leaked validates on test films of"),
        ("called", "was written by predict"),
        ("larger", "larger is a cnn at 64 px, "),
    ],
)
def test_runs_that_cannot_choose_are_refused(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str, told: str
) -> None:
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "tested", [row for row in rows_of() if row["split"] == "test"])
    make_run(tmp_path / "other", rows_of(1, films_seed=1))
    make_run(tmp_path / "leaked", [row | {"split": "val"} for row in rows_of() if row["split"] == "test"])
    larger = make_run(tmp_path / "larger", rows_of(3, films_seed=3)) / ".hydra" / "config.yaml"
    larger.write_text(larger.read_text().replace("image_size: 32", "image_size: 64"))
    called = make_run(tmp_path / "called", rows_of(2, films_seed=2))
    rows = [row | {"threshold": 0.4} for row in rows_of(2, films_seed=2)]
    write_table(called / "predictions.csv", rows, (*COLUMNS, "threshold"))
    how, _, typed = typed.rpartition(":")
    if how == "unseen":  # trained with test=false
        write_table(run / "predictions.csv", [row for row in rows_of() if row["split"] == "val"], COLUMNS)
    elif how == "unlisted":
        (run / "manifest.csv").unlink()
    with pytest.raises(SystemExit):
        command("evaluate", f"run={run}", QUICK, f"operating_point.runs=[{typed}]", "stress=true")  # told before it
    assert told in capsys.readouterr().err and not (run / "evidence.json").exists()


def test_runs_under_other_corruptions_do_not_choose_together(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for seed, corruption in enumerate(("gamma_darker", "blur_light")):
        run = make_run(tmp_path / corruption, rows := rows_of(seed, films_seed=seed))
        val = sorted((r for r in rows if r["split"] == "val"), key=lambda r: r["path"])
        lines = ["path,as_is," + corruption, *(f"{r['path']},{r['probability']},0.5" for r in val)]
        (run / "stress.csv").write_text("\n".join(lines) + "\n")
    run = make_run(tmp_path / "run", rows_of(2, films_seed=2))
    typed = ("operating_point.stressed=true", "operating_point.runs=[gamma_darker,blur_light]")
    with pytest.raises(SystemExit) as ending:
        command("evaluate", f"run={run}", QUICK, *typed)
    assert ending.value.code == 2 and "hold other corruptions in their stress.csv" in capsys.readouterr().err
    assert not (run / "evidence.json").exists()


def test_equal_runs_give_equal_bytes_wherever_they_lie(weighed: Path, command: Command, tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere", rows_of(shift=1.0))
    command("evaluate", "run=elsewhere")
    assert (tmp_path / "elsewhere" / "evidence.json").read_bytes() == (weighed / "evidence.json").read_bytes()


def test_the_page_asks_for_nothing_outside_itself(weighed: Path) -> None:
    text = (weighed / "report.html").read_text()
    page = Tags(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    pictures = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(pictures) >= 6
    for picture in pictures:
        assert base64.b64decode(str(picture).partition(",")[2])[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_the_page_says_what_a_reader_must_know(weighed: Path) -> None:
    text = Tags((weighed / "report.html").read_text()).text
    for words in (
        "Not for clinical use", "locked on validation", "60.9 %", "contradicts the 86 %", "as the seed reports it",
        "doi:10.17632/rscbjbr9sj", "python -m pneumonia.train data=synthetic", "resamples of patients",
    ):  # fmt: skip
        assert words in text, words
    assert "Not for clinical use" in (weighed / "model_card.md").read_text()
    assert "| AUROC |" in (weighed / "report.md").read_text()


def test_the_pages_tell_the_figures_of_the_evidence_where_they_belong(weighed: Path) -> None:
    evidence = evidence_of(weighed)
    parts, point = evidence["splits"], evidence["operating_point"]
    page, text = (weighed / "report.html").read_text(), (weighed / "report.md").read_text()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    table = {cells[0]: cells for cells in reversed(rows) if cells}
    lines = {line.split(" | ")[0]: line.split(" | ")[1:] for line in reversed(text.splitlines())}
    for name in ("accuracy", "sensitivity", "specificity"):
        val, test = (parts[split]["metrics"][name]["value"] for split in ("val", "test"))
        assert val != test
        assert (table[name][1], table[name][4]) == (f"{test:.4f}", f"{val:.4f}")  # the judged split first
        assert [cell.split()[0] for cell in lines[f"| {name}"]] == [f"{val:.4f}", f"{test:.4f}"]
        drift = next(re.finditer(rf"## Drift.*?\| {name} \| ([\d.]+) \| ([\d.]+)", text, re.DOTALL))
        assert drift.groups() == (f"{val:.3f}", f"{test:.3f}")
    [row] = [row for row in evidence["subgroups"] if row["name"] == "virus"]
    told = f"| subtype | virus | {row['n']} | {row['sensitivity']['value']:.3f} ["
    assert told in text and f"] | {row['specificity']['value']:.3f} [" in text.partition(told)[2].partition("\n")[0]
    card = (weighed / "model_card.md").read_text()
    assert f"at least {point['threshold_calibrated']:.4f} after scaling, {point['threshold']:.4f} before it" in card


def test_a_film_named_like_a_script_stays_text(command: Command, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>.jpeg"
    rows = [
        *rows_of(),
        rows_of()[-1] | {"path": evil, "label": 0, "logit": 9, "probability": 0.9999, "subtype": "<u>x"},
    ]
    run = make_run(tmp_path / "run", rows)
    (run / "run.json").write_text(json.dumps({"status": "<i>"}))
    (run / ".hydra" / "overrides.yaml").write_text('- "a=</pre><script>alert(2)</script>"\n')
    command("evaluate", f"run={run}", QUICK)
    page = Tags((run / "report.html").read_text())
    assert evil in page.text and "alert(2)" in page.text
    assert not {"script", "u", "i"} & {tag for tag, _ in page.tags} and "<u>x" in page.text
    assert "wbr" in {tag for tag, _ in page.tags}  # a long name breaks at its joints
    outside_code = [line for line in (run / "report.md").read_text().splitlines() if not line.startswith("    ")]
    assert not [line for line in outside_code if "<" in line]


def test_tables_are_read_once_and_anew_by_the_next_call(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pneumonia.workflows import sources

    run, real, count = make_run(tmp_path / "run"), sources.read_table, []
    monkeypatch.setattr(sources, "read_table", lambda file: (count.append(file), real(file))[1])
    command("evaluate", f"run={run}", QUICK)
    assert count == [run / "predictions.csv"]
    assert evidence_of(run)["splits"]["test"]["n"] == 80
    write_table(run / "predictions.csv", rows_of(test=30), COLUMNS)
    command("evaluate", f"run={run}", QUICK)
    assert len(count) == 2 and evidence_of(run)["splits"]["test"]["n"] == 30


def test_no_torch_is_loaded_and_it_is_quick(weighed: Path, tmp_path: Path) -> None:
    import shutil

    run = shutil.copytree(weighed, tmp_path / "run")
    probe = (
        "import sys, time; start = time.monotonic(); import pneumonia.evaluate\n"
        f"sys.argv[1:] = ['run={run}']\n"
        "pneumonia.evaluate.main()\n"
        "assert time.monotonic() - start < 30, time.monotonic() - start\n"
        "sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_drop_on_test_is_said_in_words(weighed: Path, command: Command, tmp_path: Path, capsys: Any) -> None:
    run = make_run(tmp_path / "run", rows_of(shift=1.5, val=400, test=400))
    command("evaluate", f"run={run}", "prevalence=0.0004", "coverage=0.992")
    assert "where 0.04 % are ill" in (run / "report.html").read_text()
    assert "for 99.2 % of the films" in (run / "report.html").read_text()
    assert "| PPV where 0.04 % are ill |" in (run / "report.md").read_text()
    capsys.readouterr()
    command("evaluate", f"run={run}", "prevalence=0.1")
    told = capsys.readouterr().out
    assert "Specificity falls from" in told and "of 100 normal films are called pneumonia" in told
    assert "The threshold does not carry over" in told and "report.html" in told
    found = evidence_of(run)["splits"]["test"]
    assert found["at_prevalence"]["ppv"]["value"] < found["metrics"]["ppv"]["value"]
    val = [row for row in rows_of(shift=1.5, val=400, test=400) if row["split"] == "val"]
    limit = fit_conformal([row["label"] for row in val], [row["probability"] for row in val]).limit
    assert evidence_of(run)["abstention"]["sets"]["limit"] == pytest.approx(limit) and "Prediction sets promise" in told


def test_a_model_without_drift_gets_no_warning(steady: dict[str, Any]) -> None:
    assert steady["verdict"]["findings"] == []


@pytest.mark.parametrize("rule", ["sensitivity", "accuracy"])
def test_a_threshold_of_another_rule_tells_of_no_drift(command: Command, tmp_path: Path, rule: str) -> None:
    """One for a sensitivity of .99 costs accuracy on any films; one for accuracy only where the films differ."""
    run = make_run(tmp_path / "run", rows_of(val=1000, test=1000, shift=2 * (rule == "accuracy")))
    minimum = ("operating_point.minimum=0.99",) if rule == "sensitivity" else ()
    command("evaluate", f"run={run}", QUICK, f"operating_point.rule={rule}", *minimum)
    found = evidence_of(run)
    assert found["drift"]["oracle"]["gap"] > 0.05
    told = " ".join(finding["text"] for finding in found["verdict"]["findings"])
    page = Tags((run / "report.html").read_text()).text
    assert ("does not carry over" in told) == ("would have gained" in page) == (rule == "accuracy")
    assert ("not chosen for accuracy on films as they are" in page) == (rule == "sensitivity")
    locked = {split: found["splits"][split]["metrics"] for split in ("val", "test")}  # everything is at one threshold
    for row in found["drift"]["metrics"]:
        for split in ("val", "test"):
            assert row[split] == pytest.approx(locked[split][row["metric"]]["value"])
    for group in ("bacteria", "virus"):
        [row] = [row for row in found["subgroups"] if row["name"] == group]
        assert row["specificity"]["value"] == pytest.approx(locked["test"]["specificity"]["value"])
    assert found["abstention"]["risk"][-1] == pytest.approx(1 - locked["test"]["accuracy"]["value"])
    stressed = verdict(found | {"operating_point": found["operating_point"] | {"corruptions": 20}})
    assert "does not carry over" not in " ".join(finding["text"] for finding in stressed["findings"])


def test_a_group_of_a_few_films_hides_no_uneven_ones() -> None:
    def group(name: str, right: int, n: int) -> dict[str, Any]:
        rate = {"value": right / n, "interval": wilson(right, n), "n": n}
        undefined = {"value": None, "interval": None, "n": 0}
        return {"group": "mode", "name": name, "reason": None, "sensitivity": rate, "specificity": undefined}

    apart = [group("L", 950, 1000), group("RGB", 60, 100)]
    for rows in (apart, [*apart, group("RGBA", 1, 1)], [*apart, group("P", 0, 1)]):
        [(level, text)] = uneven({"subgroups": rows})
        assert level == "warning" and "0.600 for RGB (n = 100), 0.950 for L." in text
    assert not list(uneven({"subgroups": [group("L", 950, 1000), group("RGBA", 8, 9), group("P", 9, 9)]}))


def test_a_planted_leak_stops(tmp_path: Path) -> None:
    rows = rows_of()
    records = records_of(rows)
    records[0] |= {"patient": rows[-1]["patient"]}
    records[1] |= {"sha256": records[-1]["sha256"]}
    found = weigh_quickly(make_run(tmp_path / "run", rows, records))["verdict"]
    assert found["level"] == "stop" and found["headline"].startswith("Do not rely on these figures")
    told = " ".join(finding["text"] for finding in found["findings"])
    assert "1 patient stands in more than one split" in told and "1 group of exact copies stands in more" in told


def intervals(value: Any, place: str = "") -> dict[str, list[float]]:
    """{where it stands: [low, high]} of every interval in the evidence."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in intervals(part, f"{place}/{name}").items()}
    if isinstance(value, list) and len(value) == 2 and all(isinstance(x, float) for x in value):
        return {place: value} if "interval" in place or "clustered" in place else {}
    if isinstance(value, list):
        return {k: v for n, part in enumerate(value) for k, v in intervals(part, f"{place}/{n}").items()}
    return {}


def bands(evidence: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The width of each band, summed over its curve."""
    return {
        (split, kind): float(np.sum(np.subtract(band["high"], band["low"])))
        for split, part in evidence["splits"].items()
        for kind, band in part["curves"].items()
    }


def test_the_level_is_that_of_every_interval(command: Command, tmp_path: Path) -> None:
    records = [r | {"width": 80 + k % 7} for k, r in enumerate(records_of(rows_of()))]
    run = make_run(tmp_path / "run", rows_of(), records)
    command("evaluate", f"run={run}", QUICK, "level=0.8", "prevalence=0.2")
    narrow, slim = intervals(evidence_of(run)), bands(evidence_of(run))
    page = Tags((run / "report.html").read_text()).text
    assert "80 %" in page and "95 %" not in page and "95 %" not in (run / "report.md").read_text()
    command("evaluate", f"run={run}", QUICK, "level=0.99", "prevalence=0.2")
    wide = intervals(evidence_of(run))
    for part in ("splits", "drift", "subgroups", "abstention"):
        assert any(place.startswith(f"/{part}") for place in wide), part
    assert len(wide) > 100 and wide.keys() == narrow.keys()
    assert all(area > 1.2 * slim[place] > 0 for place, area in bands(evidence_of(run)).items())
    for place, (low, high) in narrow.items():
        assert high - low < wide[place][1] - wide[place][0] or low == high, place


def test_near_copies_across_splits_stop_and_a_run_without_them_names_the_command(
    command: Command, tmp_path: Path, weighed: Path
) -> None:
    assert "python -m pneumonia.prepare audit=true" in Tags((weighed / "report.html").read_text()).text
    run = make_run(tmp_path / "run")
    near = {"groups": 2, "films": 4, "across": 1, "two_classes": 0, "examples": [["train/<b>.png", "test/a.png"]]}
    (run / "audit.json").write_text(json.dumps({"near": near}))
    command("evaluate", f"run={run}", QUICK)
    found = evidence_of(run)["verdict"]
    assert found["level"] == "stop"
    text = "1 group of near copies stands in more than one split (train/<b>.png = test/a.png)."
    assert text in [finding["text"] for finding in found["findings"]]
    page = Tags((run / "report.html").read_text())
    assert "4 films in 2 groups, 1 of them across splits" in page.text and "prepare audit=true" not in page.text
    (run / "audit.json").write_text("{")  # cut short: as if it was not there
    command("evaluate", f"run={run}", QUICK)
    assert evidence_of(run)["audit"]["near"] is None


@pytest.mark.parametrize(
    ("rule", "options", "held"),
    [
        ("sensitivity", {"minimum": 0.97}, 0.97),
        ("specificity", {"minimum": 0.95}, 0.95),
        ("cost", {"cost_ratio": 5.0}, None),
        ("youden", {}, None),
    ],
)
def test_the_operating_point_can_be_asked_for(tmp_path: Path, rule: str, options: Any, held: float | None) -> None:
    from pneumonia.settings import OperatingPointConfig

    run = make_run(tmp_path / "run")
    evidence = weigh_quickly(run, operating_point=OperatingPointConfig(rule, **options))
    assert evidence["operating_point"]["rule"] == rule
    val = [row for row in rows_of() if row["split"] == "val"]
    chosen = choose_threshold([r["label"] for r in val], [r["probability"] for r in val], rule, **options)  # type: ignore[arg-type]
    assert evidence["operating_point"]["threshold"] == pytest.approx(chosen.threshold)
    if held:
        assert evidence["splits"]["val"]["metrics"][rule]["value"] >= held


def test_one_class_is_undefined_and_said_so(command: Command, tmp_path: Path, capsys: Any) -> None:
    run = make_run(tmp_path / "run", [row for row in rows_of() if row["split"] == "val" or row["label"]])
    command("evaluate", f"run={run}", QUICK)
    found = evidence_of(run)["splits"]["test"]["metrics"]
    assert found["auroc"]["value"] is None and found["specificity"]["value"] is None
    assert found["sensitivity"]["value"] is not None
    told = capsys.readouterr().out
    assert "undefined" in told and "one class only" in told
    assert "undefined" in (run / "report.html").read_text()


def test_validation_of_one_class_chooses_no_threshold(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row for row in rows_of() if row["split"] == "test" or row["label"]])
    point = weigh_quickly(run)["operating_point"]
    assert point["threshold"] == 0.5 and point["chosen_on"] is None and "one class only" in point["reason"]


def test_a_run_that_left_test_alone_is_judged_on_validation_with_a_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row for row in rows_of() if row["split"] == "val"])
    evidence = weigh_quickly(run)
    assert evidence["judged"] == "val" and evidence["drift"] is None
    told = " ".join(finding["text"] for finding in evidence["verdict"]["findings"])
    assert "There are no test films: threshold and (unless keep=last) weights were chosen on those" in told
    with_runs = evidence | {"operating_point": evidence["operating_point"] | {"runs": 2}}
    again = verdict(with_runs)
    assert "locked on validation of 2 other runs" in again["headline"]
    assert "no test films: (unless keep=last) weights were" in " ".join(f["text"] for f in again["findings"])


def test_an_older_runs_tables_are_read_with_a_note(command: Command, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_table(run / "predictions.csv", rows_of(), ("path", "label", "split", "probability"))
    write_table(run / "manifest.csv", records_of(rows_of()), ("path", "label", "patient", "split"))
    (run / "run.json").write_text('{"status": "fin')
    (run / ".hydra" / "config.yaml").write_text("data: {size: 3}\nbatch: 7\n")
    command("evaluate", f"run={run}", QUICK)
    evidence = evidence_of(run)
    assert any("no column patient" in note for note in evidence["notes"])
    assert evidence["splits"]["test"]["metrics"]["auroc"]["value"] > 0.8


def test_a_bare_predictions_csv_is_enough(command: Command, tmp_path: Path) -> None:
    write_table(tmp_path / "mine.csv", [r for r in rows_of() if r["split"] == "test"], ("path", "label", "probability"))
    command("evaluate", "predictions=mine.csv", QUICK)
    evidence = evidence_of(tmp_path)
    assert evidence["operating_point"]["reason"].startswith("no validation films here")
    assert "nothing is known of the films" in (tmp_path / "report.html").read_text()


def test_another_table_in_a_runs_folder_does_not_replace_its_report(
    command: Command, tmp_path: Path, capsys: Any
) -> None:
    run = make_run(tmp_path / "run")
    (run / "evidence.json").write_text("of the run")
    write_table(run / "other.csv", rows_of(), COLUMNS)
    assert "whose report it would overwrite; move it elsewhere" in refused(
        command, capsys, f"predictions={run}/other.csv"
    )
    assert (run / "evidence.json").read_text() == "of the run"
    command("evaluate", f"predictions={run}/predictions.csv", QUICK)
    assert evidence_of(run)["judged"] == "test"


def test_sheets_that_cannot_be_shown_are_left_out_with_a_reason(
    weighed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from PIL import Image

    from pneumonia.workflows import provenance

    run = Path(shutil.copytree(weighed, tmp_path / "run"))
    threshold = evidence_of(run)["operating_point"]["threshold"]
    folder = run / "explanations" / "lime"
    folder.mkdir(parents=True)
    for name, made in (("fp", threshold), ("tp", 0.123), ("tn", None)):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8)).save(folder / f"{name}.png")
        if made is not None:
            (folder / f"{name}.json").write_text(json.dumps({"threshold": made}))
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n")
    sheets = {sheet["name"]: sheet for sheet in provenance.sheets_of(run, threshold)}
    assert set(sheets) == {"lime/fp", "lime/tp", "lime/tn"}
    assert sheets["lime/fp"]["picture"] and sheets["lime/tn"]["picture"]
    assert sheets["lime/tp"]["reason"] == "made at threshold 0.123, before this operating point"
    monkeypatch.setattr(provenance, "ROOM", len(sheets["lime/fp"]["picture"]) + 10)
    sizes = [len(sheet["picture"]) for sheet in provenance.sheets_of(run, threshold)]
    assert 0 < sum(sizes) <= provenance.ROOM


def test_a_perfect_ranking_is_not_certain(command: Command, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [with_logit(row, 3 * row["label"] - 1.5) for row in rows_of()])
    command("evaluate", f"run={run}", QUICK, "prevalence=0.1")
    found = evidence_of(run)["splits"]["test"]
    assert found["at_prevalence"]["ppv"] == {"value": 1, "interval": None}
    low, high = found["metrics"]["auroc"]["interval"]
    assert 0.8 < low < 0.95 and high == 1 and found["metrics"]["auroc"]["method"] == "DeLong"
    assert found["metrics"]["average_precision"] | {"of": 0} == {
        "value": 1, "interval": None, "method": "bootstrap over patients", "clustered": None, "of": 0
    }  # fmt: skip
    assert "so the interval is DeLong's" in Tags((run / "report.html").read_text()).text


def test_all_intervals_of_a_split_are_over_the_same_resamples(tmp_path: Path) -> None:
    """Where no temperature can be fitted, a figure after scaling is the figure before it, and so is its interval."""
    rows = [row for row in rows_of() if row["split"] == "test" or row["label"]]  # validation of one class
    evidence = weigh_quickly(make_run(tmp_path / "run", rows))
    assert not evidence["operating_point"]["temperature_fitted"]
    part = evidence["splits"]["test"]
    for name, found in part["calibrated"].items():
        assert found["interval"] == pytest.approx(part["metrics"][name]["interval"], abs=1e-6), name
    assert [evidence["splits"][name]["seed"] for name in ("val", "test")] == [0, 1]


def test_three_films_tell_no_width_of_ece(tmp_path: Path) -> None:
    test = [row for row in rows_of() if row["split"] == "test"]
    few = [next(row for row in test if not row["label"]), *[row for row in test if row["label"]][:2]]
    rows = [with_logit(row, 4 * row["label"] - 2) for row in few]  # all resamples that hold both classes agree
    part = weigh_quickly(make_run(tmp_path / "run", [r for r in rows_of() if r["split"] == "val"] + rows))["splits"][
        "test"
    ]
    assert part["metrics"]["ece"]["value"] > 0 and part["metrics"]["ece"]["interval"] is None
    assert part["calibrated"]["ece"]["interval"] is None


def test_a_page_counts_one_film_as_one_and_says_what_is_left_out(command: Command, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rows_of())
    near = {"groups": 29, "films": 1234, "across": 0, "two_classes": 0, "examples": [["a.png", "b.png"]] * 5}
    (run / "audit.json").write_text(json.dumps({"near": near}))
    told = json.loads((run / "run.json").read_text()) | {"skipped": ["x.png"]}
    (run / "run.json").write_text(json.dumps(told))
    rule = ("operating_point.rule=cost", "operating_point.cost_ratio=5")
    command("evaluate", f"run={run}", QUICK, *rule)
    page = " ".join(Tags((run / "report.html").read_text()).text.split())
    assert "1 film was left out as unreadable" in page and "1,234 films in 29 groups" in page
    assert "The first 5 of the 29 groups of near copies:" in page
    assert "of the class that each was called" in page and "called NORMAL: p(pneumonia) 0." in page
    for name in ("report.md", "model_card.md"):
        assert "a missed case weighs 5" in (run / name).read_text()
    assert all("tabindex" in a for tag, a in Tags((run / "report.html").read_text()).tags if a.get("class") == "scroll")


def test_a_drift_without_intervals_is_not_drawn(tmp_path: Path) -> None:
    from pneumonia.report.pages import figures

    evidence = weigh_quickly(make_run(tmp_path / "run"))
    page = {"history": [], "keep": "best", "objective": None}
    assert "drift" in figures(evidence, page)
    for row in evidence["drift"]["metrics"]:
        row["interval"] = None
    assert "drift" not in figures(evidence, page)


def test_films_whose_probability_is_one_as_written_are_told_as_ties(tmp_path: Path) -> None:
    sure = [with_logit(row, 15.0 + k) if k % 9 == 0 else row for k, row in enumerate(rows_of(val=90, test=80))]
    notes = weigh_quickly(make_run(tmp_path / "run", sure))["notes"]
    assert [note for note in notes if "ties" in note] == [
        "10 val films have a probability of 1 to six digits: AUROC takes them as ties",
        "9 test films have a probability of 1 to six digits: AUROC takes them as ties",
    ]
    assert not [note for note in weigh_quickly(make_run(tmp_path / "other"))["notes"] if "ties" in note]


def test_the_command_that_repeats_the_page_does(command: Command, tmp_path: Path) -> None:
    import re
    import shlex
    import shutil

    run = make_run(tmp_path / "my run, 2")
    typed = ("prevalence=0.1", "coverage=0.8", "operating_point.rule=cost", "operating_point.cost_ratio=5.0", QUICK)
    command("evaluate", f"run='{run}'", *typed)
    first = (run / "evidence.json").read_bytes()
    page = Tags((run / "report.html").read_text()).text
    [told] = re.findall(r"python -m pneumonia\.evaluate (.*prevalence.*)", page)
    (run / "evidence.json").unlink()
    command("evaluate", *shlex.split(told))
    assert (run / "evidence.json").read_bytes() == first
    shutil.copy(run / "predictions.csv", tmp_path / "mine.csv")
    command("evaluate", "predictions=mine.csv", QUICK)
    assert "python -m pneumonia.evaluate predictions=mine.csv " in (tmp_path / "report.html").read_text()


def test_the_command_that_repeats_the_run_can_be_typed(command: Command, tmp_path: Path) -> None:
    """What was typed beside it is quoted for a shell; where the run went on, or of what sweep it was, is left out."""
    run = make_run(tmp_path / "run")
    typed = ["data.root=/my films", "search.lr=tag(log,interval(0.001,0.1))", f"resume={run}", "force=true"]
    typed.append("search=cnn")  # a trial of it is none by itself
    (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {json.dumps(override)}\n" for override in typed))
    command("evaluate", "run=run", QUICK)
    told = "python -m pneumonia.train 'data.root=/my films' 'search.lr=tag(log,interval(0.001,0.1))'"
    page = Tags((run / "report.html").read_text()).text
    assert told in page and "resume=" not in page and "force=" not in page
    (run / ".hydra" / "overrides.yaml").write_text("- a: [")
    command("evaluate", "run=run", QUICK)
    assert "repeats the run" not in (run / "report.html").read_text()
    (run / ".hydra" / "overrides.yaml").unlink()
    command("evaluate", "run=run", QUICK)
    assert "repeats the run" not in (run / "report.html").read_text()


def test_findings_in_words(tmp_path: Path) -> None:
    from pneumonia.report.verdict import verdict

    rows = rows_of()
    records = records_of(rows)
    records[-1]["sha256"] = records[0]["sha256"]
    evidence = weigh_quickly(make_run(tmp_path / "run", rows, records))
    evidence["splits"]["test"]["calibrated"]["ece"]["value"] = 0.2
    evidence["shortcuts"] = {"rows": [{"name": "metadata", "auroc": 0.1, "interval": [0.05, 0.2], "reason": None}]}
    found = verdict(evidence)
    texts = [finding["text"] for finding in found["findings"]]
    assert any(text.startswith("1 group of exact copies stands in more than one split (") for text in texts)
    assert "(1 stop, " in found["headline"] and "warning" in found["headline"]
    assert any("matched on metadata" in text for text in texts)
    assert any("even after temperature scaling" in text for text in texts)
    evidence["operating_point"]["temperature_fitted"] = False
    assert "temperature scaling" not in str(verdict(evidence))


def spoilt(evidence: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The evidence with another value at a dotted place."""
    changed = json.loads(json.dumps(evidence))
    *way, last = place.split(".")
    part = changed
    for name in way:
        part = part[int(name) if isinstance(part, list) else name]
    part[int(last) if isinstance(part, list) else last] = value
    return changed


SHARED = {"shared": 2, "examples": ["a", "b"]}
ASKED = {"operating_point.rule": "sensitivity", "operating_point.minimum": 0.95}
FALLEN = {
    f"drift.metrics.{METRICS.index('sensitivity')}":
    {"metric": "sensitivity", "val": 0.95, "test": 0.6, "difference": -0.35, "interval": [-0.4, -0.3]}
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"splits.test.metrics.auroc": {"value": 0.6, "interval": [0.5, 0.7]}}, "stop", "better than a coin"),
        ({"splits.test.metrics.auroc": {"value": 0.7, "interval": [0.51, 0.9]}}, "warning", "is wide: more films"),
        (
            {"splits.test.metrics.accuracy": {"value": 0.6, "interval": [0.5, 0.7]}, "splits.test.positives": 600},
            "warning", "calling every film by the larger class gives 0.600",
        ),
        ({"splits.test.counts": {"tp": 600, "fp": 400, "tn": 0, "fn": 0}}, "warning", "every film the same call"),
        ({"abstention.sets.interval.0": [0.5, 0.6]}, "warning", "90 % of normal films"),
        ({"abstention.sets.interval.1": [0.5, 0.6]}, "warning", "90 % of pneumonia films"),
        ({"patient_key": "none", "audit.patients.1": SHARED}, "warning", "to patients: 2 children stand"),
        ({"audit.patients.2": SHARED}, "note", "Under the conservative key (prefix and number) 2 persons stand"),
        ({"splits.test.metrics.auroc": {"value": 0.3, "interval": [0.1, 0.49]}}, "stop", "to be worse than a coin"),
        ({"splits.test.positives": 1}, "stop", "One class has 1 film only: too few for any figure."),
        ({"splits.test.positives": 3}, "stop", "One class has 3 films only"),
        ({"splits.test.positives": 30}, "warning", "One class has 30 films only: the intervals are wide."),
        ({"splits.val.positives": 7}, "warning", "One class has 7 validation films only: threshold and calibration"),
        (FALLEN, "warning", "from 0.950 on validation to 0.600 on test: 40 of 100 films with pneumonia"),
        (
            ASKED | {"splits.test.metrics.sensitivity": {"value": 0.9, "interval": [0.85, 0.94]}},
            "warning", "asks for a sensitivity of at least 0.95; here it is 0.900 [0.850, 0.940].",
        ),
        (
            ASKED | {"splits.test.metrics.sensitivity": {"value": 0.94, "interval": [0.9, 0.97]}},
            "note", "here it is 0.940 [0.900, 0.970], which may be chance.",
        ),
        ({"drift.oracle.gap": 0.06}, "warning", "would have gained 6.0 points of accuracy on test"),
        ({"planned.test": 1100}, "warning", "Only 1,000 of the 1,100 films of this split were predicted."),
        ({"splits.test.calibrated.ece.value": 0.2}, "warning", "off by 20 points on average"),
    ],
)  # fmt: skip
def test_each_finding_is_told_where_it_holds_and_only_there(
    steady: dict[str, Any], changes: dict[str, Any], level: str, text: str
) -> None:
    evidence = steady
    for place, value in changes.items():
        evidence = spoilt(evidence, place, value)
    assert [f["level"] for f in verdict(evidence)["findings"] if text in f["text"]] == [level]


@pytest.mark.parametrize(
    "changes",
    [
        {"splits.test.calibrated.ece.value": 0.2, "splits.test.chance_ece_most": 0.21},
        {"drift.oracle.gap": 0.06, "drift.oracle.chance": 0.07},
        ASKED | {"splits.test.metrics.sensitivity": {"value": 0.95, "interval": [0.93, 0.97]}},
        {"splits.val.positives": 7, "operating_point.runs": 2},  # other runs chose
    ],
)
def test_what_chance_gives_is_no_finding(steady: dict[str, Any], changes: dict[str, Any]) -> None:
    evidence = steady
    for place, value in changes.items():
        evidence = spoilt(evidence, place, value)
    assert verdict(evidence)["findings"] == []


def test_a_handful_of_films_holds_no_figures_and_promises_no_sets(command: Command, tmp_path: Path) -> None:
    rows = {split: [row for row in rows_of() if row["split"] == split] for split in ("val", "test")}
    few = [row for row in rows["val"] if not row["label"]][:3] + [row for row in rows["val"] if row["label"]][:4]
    three = [next(r for r in rows["test"] if not r["label"]), *[row for row in rows["test"] if row["label"]][:2]]
    run = make_run(tmp_path / "run", few + [with_logit(row, 4 * row["label"] - 2) for row in three])
    command("evaluate", f"run={run}", QUICK)
    evidence = evidence_of(run)
    assert evidence["verdict"]["headline"].startswith("Do not rely on these figures")
    auroc = evidence["splits"]["test"]["metrics"]["auroc"]
    assert auroc["interval"] is None and auroc["method"] == "bootstrap over patients"
    page = Tags((run / "report.html").read_text()).text
    assert "AUROC on test: every resample ranks alike" not in page and "AUROC on val: every resample" in page
    assert "the model does not know" not in page
    assert "a coverage of 0.9 needs 9 validation films of each class; there are 3 normal and 4 ill" in page


def test_half_and_whole_of_the_official_test_set_are_told_apart(tmp_path: Path) -> None:
    from pneumonia.workflows.sources import read_run
    from pneumonia.workflows.weighing import told_split

    told = {}
    for normal, ill in ((117, 195), (234, 390), (118, 195)):
        names = [f"test/NORMAL/IM-{k:04d}-0001.jpeg" for k in range(normal)]
        names += [f"test/PNEUMONIA/person{k}_virus_1.jpeg" for k in range(ill)]
        row = {"subtype": "", "split": "test", "logit": 0.0, "probability": 0.5}
        rows = [row | {"path": name, "patient": name, "label": int("PNEU" in name)} for name in names]
        told[normal] = told_split(read_run(make_run(tmp_path / str(normal), rows)), "test")
    assert told[117] == "development half of the official test set, n = 312"
    assert told[234] == "official test set, n = 624" and told[118] == "test films, n = 313"


def test_a_page_that_cannot_be_drawn_fails_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pneumonia.workflows import evidence

    def broken(*_: Any) -> str:
        raise RuntimeError("no such glyph")

    monkeypatch.setattr(evidence, "report_html", broken)
    evidence.after_training(make_run(tmp_path / "run"))
    assert "No evidence was written" in caplog.text and "no such glyph" in caplog.text


def spoil(run: Path, how: str) -> None:
    rows = rows_of()
    if how == "crashed":
        (run / "predictions.csv").unlink()
        (run / "run.json").write_text(json.dumps({"status": "failed", "reason": "NonFiniteLoss"}))
    elif how == "no run":
        for file in [f for f in run.rglob("*") if f.is_file()]:
            file.unlink()
    elif how == "nan":
        rows[3]["probability"] = "nan"
    elif how == "text":
        rows[3]["probability"] = "high"
    elif how == "outside":
        rows[3]["probability"] = 1.5
    elif how == "label":
        rows[3]["label"] = 2
    elif how == "other label":
        rows[3]["label"] = 1 - rows[3]["label"]
    elif how == "twice":
        rows.append(rows[3])
    elif how == "no labels":
        rows = [row | {"label": ""} for row in rows]
    elif how == "train":
        rows = [row | {"split": "train"} for row in rows]
    elif how == "split":
        rows[3]["split"] = "holdout"
    elif how == "empty":
        rows = []
    if how not in ("crashed", "no run"):
        columns = ("path", "label") if how == "column" else COLUMNS
        write_table(run / "predictions.csv", rows, columns)
    if how == "cut short":
        write_table(run / "predictions.csv", rows, ("probability", "label", "path"))
        whole = (run / "predictions.csv").read_text()
        (run / "predictions.csv").write_text(whole[: whole.rstrip().rindex(",")])
    if how == "binary":
        (run / "predictions.csv").write_bytes(b"\xff\xfe\x00")
    if how == "manifest":
        write_table(run / "manifest.csv", [r | {"label": "x"} for r in records_of(rows)], FIELDS)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crashed", "has no predictions.csv; run.json says failed (NonFiniteLoss): expected a finished run"),
        ("no run", "it holds no run.json either"),
        ("nan", "line 5: probability=nan: expected a finite number"),
        ("text", "line 5: probability=high: expected a finite number"),
        ("outside", "outside [0, 1]"),
        ("label", "line 5: label=2: expected 0 or NORMAL, 1 or PNEUMONIA"),
        ("other label", "another label than in manifest.csv"),
        ("twice", "stands already in line 5"),
        ("no labels", "holds no film with a label"),
        ("train", "training films only"),
        ("split", "split=holdout: expected train, val, test"),
        ("empty", "no films in it"),
        ("column", "no column probability"),
        ("cut short", f"line {len(rows_of()) + 1}: no path: the line is cut short"),
        ("binary", "can't be read"),
        ("manifest", "manifest.csv can't be read"),
    ],
)
def test_a_table_that_does_not_fit(command: Command, tmp_path: Path, capsys: Any, how: str, message: str) -> None:
    run = make_run(tmp_path / "run")
    spoil(run, how)
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(command, capsys, f"run={run}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "Expected one of run="),
        (["run=nowhere"], "run=nowhere: no such folder"),
        (["predictions=nowhere.csv"], "predictions=nowhere.csv: can't be read"),
        (["run=run", "predictions=x.csv"], "Expected one of run="),
        (["run=run", "level=95"], "level=95"),
        (["run=run", "operating_point.rule=accurate"], "did you mean accuracy?"),
        (["run=run", "operating_point.rule=sensitivity"], "need a minimum"),
        (["run=run", "operating_point.rule=cost"], "needs one, as operating_point.cost_ratio=5"),
        (["run=run", "prevalence=2"], "prevalence=2"),
        (["run=run", "resample=9"], "did you mean resamples?"),
        (["predictions=x.csv", "shortcuts=true"], "shortcuts=true needs the model"),
        (["predictions=x.csv", "stress=true"], "stress=true needs the model"),
        (["run=run", "stress=true"], "best.ckpt"),
        (
            ["run=run", "operating_point.rule=sensitivity", "operating_point.minimum=0.95", "shortcuts=true"],
            "best.ckpt",
        ),
    ],
    ids=lambda value: str(value[-1:]),
)
def test_a_setting_that_does_not_fit(
    command: Command, tmp_path: Path, capsys: Any, typed: list[str], message: str
) -> None:
    make_run(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(command, capsys, *typed)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_in_an_empty_folder_leaves_the_folder(command: Command, tmp_path: Path, capsys: Any) -> None:
    """A command that leaves no run folder works in the user's own: Hydra's output folder is where it was typed."""
    (tmp_path / "here").mkdir()
    run = make_run(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "here")
        refused(command, capsys, f"run={run}", "shortcuts=true")
    assert (tmp_path / "here").is_dir()


def refused(command: Command, capsys: Any, *typed: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command("evaluate", *typed)
    told = capsys.readouterr()
    assert ending.value.code == 2
    assert "Traceback" not in told.out + told.err and told.err.startswith("pneumonia.evaluate: "), told
    return told.err


@pytest.mark.slow
def test_a_hundred_thousand_predictions_take_half_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    """From predictions.csv and manifest.csv to report.html, as a process of its own."""
    import os
    import time

    run = make_run(tmp_path / "run", rows_of(val=20_000, test=80_000))
    start = time.monotonic()
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a user has it
    process = subprocess.Popen([sys.executable, "-m", "pneumonia.evaluate", f"run={run}"], cwd=ROOT, env=env)
    _, status, used = os.wait4(process.pid, 0)
    seconds, gigabytes = time.monotonic() - start, used.ru_maxrss * 1024 / 1e9
    assert status == 0 and (run / "report.html").is_file()
    assert evidence_of(run)["splits"]["test"]["n"] == 80_000
    assert seconds < 30 and gigabytes < 2, (seconds, gigabytes)
