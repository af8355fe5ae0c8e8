"""report.html: its content; and in a real browser, that it renders, filters, steps and downloads, and that no
report, however hostile, is ever more than text."""

import base64
import importlib
import io
import json
import re
import shutil
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.metrics import table, verdicts
from llamaxr.metrics.findings import FINDINGS
from llamaxr.report_page import page as report_page
from llamaxr.runs.features import study_features
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.vision import PATHOLOGIES

HOME = Path(__file__).resolve().parents[2]
HOSTILE = (
    "</script><img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
    "<!--<script> &lt;b&gt; \u2028 ]]> ${1} @DATA@ There is a small left pleural effusion."
)
TEXTS = (  # id, reference, generated
    # cardiomegaly right, effusion on the wrong side
    ("one", "The heart is enlarged. Left effusion.", "The heart is enlarged. Right effusion."),
    # pneumothorax missed, cardiomegaly invented
    ("two", "There is a left pneumothorax.", "No pneumothorax. The heart is enlarged."),
    ("three", "The lungs are clear. The heart is not enlarged.", "The lungs are clear."),
    ("four <b>", HOSTILE, "No effusion. </p><svg onload=document.title='hacked'>"),  # effusion missed
    ("__proto__", "There is scoliosis.", "There is scoliosis."),  # right
)


class Score(dict):
    """Of each pair of texts."""

    def __contains__(self, pair):
        return True

    def __getitem__(self, pair):
        return 0.25 + 0.5 * (pair[0] == pair[1])


def evaluation_of(texts):
    references, predictions = [r for _, r, _ in texts], [g for _, _, g in texts]
    train = ["The lungs are clear.", "The heart is enlarged.", "There is scoliosis."]
    findings = [table.true_findings(r) for r in references]
    return table.Evaluation(references, predictions, findings, FINDINGS, train, outlines=findings)


@cache
def results():
    """TEXTS' results. Pages of other texts show the same tables: only their studies are tested."""
    evaluation = evaluation_of(TEXTS)
    constant = "The heart is enlarged."
    evaluation = replace(evaluation, extra={"GREEN": table.Extra(Score())})
    systems = {table.SYSTEM: evaluation.predictions, table.CONSTANT: [constant] * len(TEXTS)}
    groups = table.evaluate(evaluation, systems, table.Scorer(evaluation))
    return {"settings": {"score": "x.jsonl", "studies": len(TEXTS)}, "groups": groups,
            "in_words": verdicts.in_words(groups), "constant_report": constant}  # fmt: skip


def write_page(path, texts=TEXTS, views_of=None, seed=0):
    rows = [{"id": i, "reference": r, "generated": g} for i, r, g in texts]
    report_page.write(path, results(), rows, evaluation_of(texts), table.titles(), views_of, seed)
    return data_of(path)


def data_of(path):
    tag = '<script type="application/json" id="data">'
    return json.loads(path.read_text(encoding="utf-8").split(tag)[1].split("</script>")[0])


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """The embedded DenseNet, phantoms with the ids of TEXTS, and their features."""
    folder, studies = tmp_path_factory.mktemp("films"), []
    for i, (name, report, _) in enumerate(TEXTS):
        paths = [folder / f"{i}-{view}.png" for view in range(2)]
        for path, film in zip(paths, phantom(5, i)[1], strict=False):
            Image.fromarray(film).save(path)
        views = [path if path.exists() else None for path in paths]
        studies.append(Study(name, *views, report, "test"))
    vision = load_vision()
    return vision, studies, study_features(vision, studies, torch.device("cpu"))


@pytest.fixture(scope="module")
def with_images(tmp_path_factory, phantoms):
    vision, studies, features = phantoms
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, views_of=lambda i: report_page.views(vision, studies[i], features[i]))
    return path


# Its content


def test_both_texts_are_complete_and_each_finding_is_marked_by_its_outcome(tmp_path):
    studies = {s["id"]: s for s in write_page(tmp_path / "report.html")["studies"]}
    for name, reference, generated in TEXTS:
        assert "".join(text for text, _ in studies[name]["reference"]) == reference
        assert "".join(text for text, _ in studies[name]["generated"]) == generated
    marks = lambda s, which: [(text, *mark) for text, marks in studies[s][which] for mark in marks]
    assert marks("one", "generated") == [
        ("heart is enlarged", "cardiomegaly", "right", "asserted"),
        ("effusion", "effusion", "wrong side", "asserted"),
    ]
    assert studies["one"]["findings"]["effusion"] == ["wrong side", ["left"], ["right"]]
    assert marks("two", "reference") == [("pneumothorax", "pneumothorax", "missed", "asserted")]
    assert marks("two", "generated") == [
        ("pneumothorax", "pneumothorax", "missed", "denied"),
        ("heart is enlarged", "cardiomegaly", "invented", "asserted"),
    ]
    assert studies["three"]["findings"] == {} and marks("three", "reference") == []  # rightly denied: no mark


def test_an_invented_finding_is_marked_in_the_reference_where_that_denies_it():
    pieces = report_page.marked_pieces("The heart is not enlarged.", {"cardiomegaly": "invented"}, "invented")
    assert [["cardiomegaly", "invented", "denied"]] in [marks for _, marks in pieces]


def test_words_of_two_findings_carry_both_marks():
    outcome_of = {"effusion": "right", "pneumothorax": "missed"}
    (mark,) = [m for _, m in report_page.marked_pieces("A hydropneumothorax.", outcome_of, "missed") if m]
    assert {name for name, _, _ in mark} == {"effusion", "pneumothorax"}


def test_a_long_report_costs_what_it_is_long():
    report = "The heart is enlarged. No effusion. " * 3_300  # 20,000 words
    began = time.process_time()
    pieces = report_page.marked_pieces(report, {"cardiomegaly": "right", "effusion": "missed"}, "missed")
    assert time.process_time() - began < 5  # comparing every mark with every piece took 40
    assert "".join(text for text, _ in pieces) == report and sum(map(bool, (m for _, m in pieces))) == 6_600


def test_labels_of_another_labeller_decide_what_is_right(tmp_path):
    label = {"A": {"effusion": frozenset()}, "B": {}}.get
    evaluation = replace(evaluation_of([("x", "A", "B")]), label=label, findings=[label("A")])
    rows = [{"id": "x", "reference": "A", "generated": "B"}]
    report_page.write(tmp_path / "report.html", results(), rows, evaluation, table.titles())
    assert data_of(tmp_path / "report.html")["studies"][0]["findings"] == {"effusion": ["missed", [], []]}


def test_the_worst_studies_come_first(tmp_path):
    names = [s["id"] for s in write_page(tmp_path / "report.html")["studies"]]
    assert names[0] == "two" and set(names[1:3]) == {"one", "four <b>"}  # 2 errors; then 1


def test_the_review_order_is_independent_of_the_errors_and_each_text_is_a_equally_often(tmp_path):
    reports = ("There is scoliosis.", "The lungs are clear.")
    texts = [(f"s{i}", reports[0], reports[i % 2]) for i in range(400)]
    studies = write_page(tmp_path / "report.html", texts)["studies"]
    assert [s["findings"]["scoliosis"][0] for s in studies] == ["missed"] * 200 + ["right"] * 200
    in_order = sorted(studies, key=lambda s: s["review_position"])
    wrong_early = sum(s["findings"]["scoliosis"][0] == "missed" for s in in_order[:200])
    generated_is_a = sum(s["a_is_generated"] for s in studies)
    assert 70 < wrong_early < 130 and 160 < generated_is_a < 240  # within four standard deviations of chance
    again = write_page(tmp_path / "again.html", texts, seed=1)["studies"]
    order = lambda studies: {s["id"]: (s["review_position"], s["a_is_generated"]) for s in studies}
    assert order(studies) != order(again)


def test_a_large_split_is_sampled_not_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "MAX_STUDIES", 30)
    texts = [(f"s{i}", "The lungs are clear.", "Clear.") for i in range(300)]
    data = write_page(tmp_path / "report.html", texts)
    numbers = [int(s["id"][1:]) for s in data["studies"]]
    assert len(set(numbers)) == 30 and data["n_evaluated"] == 300
    assert max(numbers) > 200 and min(numbers) < 100


def test_a_heat_map_averages_to_the_score_of_its_view(phantoms):
    vision, _, features = phantoms
    maps = report_page.activation_maps(vision, features[0].grids)
    # the grids are fp16, the scores were computed before rounding
    torch.testing.assert_close(maps.mean(2).sigmoid(), features[0].scores, atol=2e-3, rtol=0)


def test_operating_points_move_a_map_to_zero_where_the_score_is_a_half(phantoms):
    vision, _, features = phantoms
    points = torch.linspace(0.05, 0.9, len(PATHOLOGIES))
    points[PATHOLOGIES.index("Effusion")] = torch.nan  # never labelled
    with torch.no_grad():
        scores = vision.scores(features[0].grids.float())
    vision = SimpleNamespace(net=vision.net, op_threshs=points, has_scores=True)
    calibrated = report_page.activation_maps(vision, features[0].grids).mean(2)
    known = ~points.isnan()
    assert torch.equal((calibrated > 0)[:, known], (scores > points)[:, known])
    columns = report_page.score_columns(vision)
    assert "effusion" not in columns and "pneumothorax" in columns


def test_maps_of_a_finding_share_one_scale_and_counter_evidence_is_cold():
    ramp = np.arange(-24, 25, dtype=np.float32)
    heats = [{"effusion": ramp}, {"effusion": ramp / 2}, {"effusion": ramp * 0 - 1}]
    assert report_page.encode_heat_maps(heats) == {"effusion"}
    top = [max(base64.b64decode(heat["effusion"])) for heat in heats]
    assert top == [255, 128, 0] and base64.b64decode(heats[0]["effusion"])[:25] == bytes(25)


def test_the_image_is_visions_crop(phantoms):
    vision, (study, *_), (features, *_) = phantoms
    (view, *_) = report_page.views(vision, study, features)
    kind, content = view["image"].split(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    film = np.asarray(Image.open(study.frontal)).astype(float)
    assert kind == "data:image/jpeg;base64" and image.size == (224, 224) and image.mode == "L"
    assert np.abs(np.asarray(image) - film).mean() < 4  # grey levels lost to JPEG
    assert len(content) < 20_000


def test_without_its_file_a_view_is_left_out(phantoms, tmp_path):
    vision, (study, *_), (features, *_) = phantoms
    study = Study(study.id, tmp_path / "gone.png", study.lateral, study.report, "test")
    assert [view["name"] for view in report_page.views(vision, study, features)] == ["lateral"]


def test_the_page_is_one_file_that_names_no_other(with_images):
    page = with_images.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link", page.split("<script")[0])
    assert [p.name for p in with_images.parent.iterdir()] == ["report.html"]
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "<img" not in page


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: tests/requirements.txt has it")
    options, folder = webdriver.ChromeOptions(), tmp_path_factory.mktemp("browser")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 "disable-dev-shm-usage", "window-size=1280,1000",
                 f"user-data-dir={folder / 'profile'}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.folder = folder
        yield driver


class Page:
    """A freshly opened page."""

    def __init__(self, browser, path, fragment=""):
        self.browser, self.path = browser, path
        browser.get("about:blank")  # a changed #blind alone would not load the page again
        browser.get(path.as_uri() + fragment)

    def js(self, expression, *arguments):
        return self.browser.execute_script(f"return {expression}", *arguments)

    def texts(self, selector):
        return self.js("[...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def study(self):
        return self.texts("#study h2")[0]

    def listed(self):
        return self.js("[...document.querySelectorAll('#list button')].map(e => e.firstChild.textContent)")

    def click(self, selector):
        self.browser.find_element("css selector", selector).click()

    def choose(self, name, value):
        self.click(f"#{name} option[value='{value}']")

    def press(self, key, on="body"):
        self.browser.find_element("css selector", on).send_keys(key)

    def errors(self):
        return [line for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture
def page(browser, with_images):
    page = Page(browser, with_images)
    yield page
    page.js("localStorage.clear()")


@pytest.fixture
def review(browser, with_images):
    page = Page(browser, with_images, "#blind")
    yield page
    page.js("localStorage.clear()")


def test_it_renders_the_tables_and_the_worst_study_with_its_films(page):
    (head,) = page.texts("#settings")
    assert head == "score x.jsonl · studies 5"
    assert [t for t in page.texts("#scores tr:first-child td:first-child") if t == "system"] == ["system"] * 6
    assert page.texts("#scores tr.outline td:first-child") == ["outline"] * 2  # scored as findings only
    assert "true reports" in page.texts("#scores td:first-child") and "GREEN" in page.texts("#scores th")
    lead = verdicts.told(results()["groups"]["all"]["differences"]["constant"]["llama_xr"]["bleu_1"])
    assert page.texts("#scores tr.constant small.lead")[0] == lead  # paired, below the floor's score
    f1 = page.js("data.writers.all.system.findings.micro_f1[0].toFixed(3)")
    assert any(text.startswith(f1) for text in page.texts("#scores tr.system td"))
    assert page.study() == "two" and len(page.listed()) == len(TEXTS)
    assert page.js("[...document.querySelectorAll('#study img')].map(i => i.naturalWidth)") == [224, 224]
    assert page.texts("#reference mark.missed") == page.texts("#generated mark.missed") == ["pneumothorax"]
    assert page.texts("#generated mark.invented") == ["heart is enlarged"] and page.errors() == []


def test_the_tables_change_with_the_group(page):
    page.choose("group", "normal")
    head = page.js("[...document.querySelectorAll('#scores th')].map(e => e.textContent)")
    assert "micro-precision" in head and "micro-f1" not in head  # undefined: nothing is true
    value, low, high = page.js("data.writers.normal.system.llama_xr.bleu_1")
    assert page.texts("#scores tr.system td")[1] == f"{value:.3f}{low:.3f}–{high:.3f}"
    assert value != page.js("data.writers.all.system.llama_xr.bleu_1[0]")


def test_it_filters_by_finding_and_outcome(page):
    for finding, outcome, expected in [
        ("effusion", "", {"one", "four <b>"}),
        ("effusion", "missed", {"four <b>"}),
        ("", "wrong side", {"one"}),
        ("", "any error", {"one", "two", "four <b>"}),
        ("", "no error", {"three", "__proto__"}),
        ("scoliosis", "no error", {"__proto__"}),
        ("cardiomegaly", "invented", {"two"}),
        ("fracture", "", set()),
    ]:
        page.choose("finding", finding)
        page.choose("outcome", outcome)
        assert set(page.listed()) == expected
        assert page.texts("#count") == [f"{len(expected)} of 5 studies"]
        assert page.study() in expected if expected else page.texts("#study") == ["No study matches."]
        page.click("#all")
        assert len(page.listed()) == 5 and page.errors() == []


def test_a_number_in_the_table_leads_to_its_studies(page):
    page.js("[...document.querySelectorAll('#scores tr')].find("
            "r => r.cells[0].textContent === 'effusion').querySelectorAll('button')[1].click()")  # fmt: skip
    assert page.listed() == ["four <b>"]


def test_keys_step_and_stop_at_the_ends_and_not_while_typing(page):
    from selenium.webdriver.common.keys import Keys

    order = page.listed()
    shown = [page.study()]
    for key in ("j", Keys.ARROW_RIGHT, "j", "j", "j"):  # the last has no further study
        page.press(key)
        shown.append(page.study())
    assert shown == [*order, order[-1]]
    page.press("k")
    page.press(Keys.ARROW_LEFT)
    assert page.study() == order[2]
    page.click("#blind")
    first = page.study()
    page.press("jjj", on="#text-A textarea")
    assert page.study() == first
    page.press("j", on="#text-A input[type=radio]")
    assert page.study() != first


def test_a_finding_shows_its_heat_map_on_the_films_and_hides_it_again(page):
    opacity = (
        "[...document.querySelectorAll('#study canvas')].map(c => "
        "[...c.getContext('2d').getImageData(0, 0, 224, 224).data.filter((_, i) => i % 4 === 3)])"
    )
    (study,) = [s for s in data_of(page.path)["studies"] if s["id"] == page.study()]
    heat_of = lambda view, name: np.frombuffer(base64.b64decode(view["heat"][name]), np.uint8).reshape(7, 7)
    # what the network finds nowhere has a map of zeros
    strength = lambda name: min(heat_of(view, name).max() for view in study["views"])
    found = max(study["views"][0]["heat"], key=strength)
    page.choose("heat", found)
    for view, alpha in zip(study["views"], np.array(page.js(opacity)).reshape(2, 7, 32, 7, 32), strict=True):
        heat = heat_of(view, found)
        # smoothing lowers peaks and raises valleys, but every place stays where it is
        assert np.corrcoef(alpha.mean((1, 3)).ravel(), heat.ravel())[0, 1] > 0.95
        assert 0.65 * heat.max() < alpha.max() <= 0.8 * heat.max()
    assert f"vision's score of {found}" in page.texts("figcaption")[0]
    page.click(".chip[data-finding=pneumothorax]")
    assert page.js("state.heat") == "pneumothorax" and page.js("document.querySelector('#heat').value") == ""
    page.click(".chip[data-finding=pneumothorax]")
    assert not np.any(page.js(opacity)) and page.texts("figcaption") == ["frontal", "lateral"]


def test_hostile_reports_and_names_stay_text(page):
    for fragment in ("", "#blind"):
        page = Page(page.browser, page.path, fragment)
        page.js("step(state.rows.findIndex(i => data.studies[i].id === 'four <b>') - state.current)")
        assert page.study() == "four <b>" and HOSTILE in page.texts(".report")
        assert page.js("document.querySelectorAll('script').length") == 2
        foreign = "img:not([src^='data:image/jpeg;base64,']), svg, b:not(.chip b)"
        assert page.js("document.querySelectorAll(arguments[0]).length", foreign) == 0
        loaded = page.js("performance.getEntriesByType('resource').map(r => r.name)")
        assert all(name.startswith("data:") for name in loaded)
        assert page.js("document.title") == "llamaxr: reports of a split" and page.errors() == []


def test_even_inserted_markup_cannot_run(page):
    page.js("document.body.insertAdjacentHTML('beforeend', arguments[0])", HOSTILE)
    time.sleep(0.2)
    assert page.js("document.title") == "llamaxr: reports of a split"
    assert any("Content Security Policy" in line["message"] for line in page.errors())


def answer(page, letter, **answers):
    for question, value in answers.items():
        page.click(f"#text-{letter} input[name='{letter} {question.replace('_', ' ')}'][value={value}]")


def downloaded(page):
    file = page.browser.folder / "review.json"
    file.unlink(missing_ok=True)
    page.click("#download")
    deadline = time.monotonic() + 10
    # Chromium reserves the name with an empty file and moves the finished download there
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_blind_review_hides_which_text_is_which(review):
    page = review
    in_order = sorted(data_of(page.path)["studies"], key=lambda s: s["review_position"])
    assert page.listed() == [s["id"] for s in in_order]
    for study in in_order:
        texts = ["".join(text for text, _ in study[which]) for which in ("reference", "generated")]
        a, b = page.texts("#text-A .report") + page.texts("#text-B .report")
        assert [a, b] == (texts[::-1] if study["a_is_generated"] else texts)
        shown = page.js("document.body.innerText + document.getElementById('study').outerHTML")
        assert not re.search(r"reference|generated|missed|invented|wrong side|system|x\.jsonl", shown, re.I)
        assert page.texts("mark, .chip") == []
        page.press("j")
    for hidden in ("#tables", "#filters"):
        assert not page.browser.find_element("css selector", hidden).is_displayed()


def test_answers_are_stored_and_downloaded_with_the_text_that_they_judge(review):
    page = review
    page.press('Dr. "Ä"', on="#reader")
    answered = page.study()
    answer(page, "A", correct="partly", complete="no", would_sign="no")
    assert page.texts("#list small")[0] == "started"
    answer(page, "B", correct="yes", complete="yes", would_sign="yes")
    page.press("side </script> \u00e4", on="#text-A textarea")
    assert page.texts("#list small")[0] == "answered"
    assert page.texts("#answered") == ["1 of 5 studies answered"]
    page.press("j", on="#text-B input[value=yes]")
    answer(page, "B", correct="no")
    file = downloaded(page)
    assert file["reader"] == 'Dr. "Ä"' and file["settings"] == {"score": "x.jsonl", "studies": 5}
    a_is_generated = {s["id"]: s["a_is_generated"] for s in data_of(page.path)["studies"]}
    texts = ["generated", "reference"] if a_is_generated[answered] else ["reference", "generated"]
    assert [a for a in file["answers"] if a["id"] == answered] == [
        {"id": answered, "text": texts[0], "shown_as": "A", "correct": "partly", "complete": "no",
         "would_sign": "no", "remarks": "side </script> ä", "seen_open_before": False},
        {"id": answered, "text": texts[1], "shown_as": "B", "correct": "yes", "complete": "yes",
         "would_sign": "yes", "remarks": "", "seen_open_before": False},
    ]  # fmt: skip
    (other,) = [a for a in file["answers"] if a["id"] != answered]  # started: no answer is null
    assert (other["shown_as"], other["correct"], other["would_sign"]) == ("B", "no", None)

    again = Page(page.browser, page.path, "#blind")  # opened again
    assert again.texts("#answered") == ["1 of 5 studies answered"]
    assert again.js("document.querySelector('#text-A textarea').value") == "side </script> ä"
    assert downloaded(again)["answers"] == file["answers"]


def test_a_study_that_was_opened_before_its_review_is_flagged(page):
    opened = page.study()
    page.click("#blind")
    for _ in TEXTS:
        answer(page, "A", correct="yes")
        page.press("j", on="#text-A input")
    flags = {a["id"]: a["seen_open_before"] for a in downloaded(page)["answers"]}
    assert flags == {name: name == opened for name, _, _ in TEXTS}


def test_without_images_only_the_films_are_missing(browser, tmp_path):
    write_page(tmp_path / "report.html")
    page = Page(browser, tmp_path / "report.html")
    page.press("j")
    assert len(page.listed()) == 5 and page.texts("#study img") == page.texts("#heat") == []
    assert page.texts("#study mark") and page.errors() == []
    page.click("#blind")
    assert len(page.texts(".report")) == 2 and page.errors() == []


def test_eval_score_leaves_a_page(browser, tmp_path, capsys):
    sys.path.insert(0, str(HOME))
    evaluate = importlib.import_module("eval")
    rows = [{"id": i, "reference": r, "generated": ""} for i, r, _ in TEXTS]  # a system that writes nothing
    (tmp_path / "theirs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    evaluate.main(["--score", str(tmp_path / "theirs.jsonl")])
    assert str(tmp_path / "theirs-scores" / "report.html") in capsys.readouterr().out
    page = Page(browser, tmp_path / "theirs-scores" / "report.html")
    assert len(page.listed()) == 5 and page.texts("#generated .report") == [""] and page.errors() == []
