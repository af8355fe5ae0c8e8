"""The text scores against rouge-score, NLTK and pycocoevalcap, on random texts and on real reports."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from llamaxr.metrics import coco, meteor15, overlap, wordnet
from llamaxr.metrics.overlap import rouge_l, stems, tokenize

WORDS = (
    "The heart is enlarged normal lungs are clear hyperinflated effusion effusions opacities opacity nodules "
    "Calcified calcification pneumothorax bilaterally There's T-spine 1.2cm 12 2019 XXXX no NOT dying skies "
    "right-sided cardiomégalie Größe İstanbul \u212aelvin 肺 café _under_ a/b e.g. ?? ... - x 3rd happily"
).split()
MARKS = ["", "", "", ".", ",", ";", ":", "!", "\n", "\t", " (", ") ", "\u00a0", "\u200b", "…"]


def random_text(rng, most=60):
    return " ".join(rng.choice(WORDS) + rng.choice(MARKS) for _ in range(rng.integers(0, most)))


def perturbed(text, rng):
    """text with words dropped, replaced and doubled: it shares long runs with it, like a model's report."""
    changes = [lambda w: [w]] * 7 + [lambda w: [], lambda w: [rng.choice(WORDS)], lambda w: [w, w]]
    return " ".join(word for w in text.split(" ") for word in changes[rng.integers(len(changes))](w))


def test_rouge_l_equals_rouge_score_with_its_stemmer():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    rng = np.random.default_rng(0)
    references = [random_text(rng) for _ in range(400)]
    pairs = [(r, perturbed(r, rng) if i % 2 else random_text(rng)) for i, r in enumerate(references)]
    pairs += [("", ""), ("", "heart"), ("heart", ""), ("heart", "hearts"), ("its", "it"), ("...", "?!")]
    pairs.append(("肺", "肺"))
    for reference, prediction in pairs:
        expected = scorer.score(reference, prediction)["rougeL"].fmeasure
        # the same counts in both, divided in another order
        actual = rouge_l(stems(tokenize(reference)), stems(tokenize(prediction)))
        assert actual == pytest.approx(expected, abs=1e-9), (reference, prediction)


def peer_coco(references, predictions):
    """pycocoevalcap's BLEU-1 to 4, ROUGE-L and CIDEr."""
    pytest.importorskip("pycocoevalcap.bleu.bleu")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    texts = [{i: [text] for i, text in enumerate(side)} for side in (references, predictions)]
    return [
        *Bleu(4).compute_score(*texts, verbose=0)[0],
        *(p().compute_score(*texts)[0] for p in (Rouge, Cider)),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_coco_scores_equal_pycocoevalcap_on_random_texts(seed):
    rng = np.random.default_rng(seed)
    references = [random_text(rng, most=20 + 10 * seed) for _ in range(40)]
    pairs = [(r, perturbed(r, rng)) for r in references]
    # half of the sets are cut short, so that the brevity penalty is compared too
    pairs = [(r, p[: len(p) * 2 // 3] if seed % 2 else p) for r, p in pairs]
    references, predictions = zip(
        *((coco.clean(r), coco.clean(p)) for r, p in pairs if coco.clean(r)), strict=True
    )
    _, rows = coco.statistics(references, predictions)
    assert coco.scores(rows.sum(0)) == pytest.approx(peer_coco(references, predictions), abs=1e-9)


def test_without_a_match_bleu_is_as_small_as_pycocoevalcaps():
    texts = ["the heart is normal", "x"], ["the heart is big", "y"]
    _, rows = coco.statistics(*texts)
    assert coco.scores(rows.sum(0)) == pytest.approx(peer_coco(*texts), rel=1e-9, abs=0)


# Written for every patient, this report scores about what the literature reports.
CONSTANT = (
    "The heart size and mediastinal silhouette are within normal limits for contour. The lungs are clear. "
    "No pneumothorax or pleural effusions. The XXXX are intact."
)
SYSTEMS = ("constant", "shuffled", "dropped")


@pytest.fixture(scope="module")
def iu():
    """R2Gen's split: the reports of train and test."""
    beside = Path(__file__).parents[3] / "shared"
    shared = Path(os.environ.get("LLAMAXR_SHARED") or (beside if beside.is_dir() else "/work/shared"))
    file = shared / "data" / "iu_xray" / "annotation.json"
    if not file.is_file():
        pytest.skip(f"no {file}: set LLAMAXR_SHARED")
    splits = json.loads(file.read_text())
    train, _, test = ([study["report"] for study in studies] for studies in splits.values())
    assert (len(train), len(test)) == (2069, 590)
    return train, test


@pytest.fixture(scope="module")
def systems(iu):
    train, test = iu
    rng = np.random.default_rng(0)
    dropped = [" ".join(word for word in text.split() if rng.random() > 0.2) for text in test]
    dropped[:3] = ["", "effusion", "Größe 肺 ..."]
    shuffled = [train[i] for i in rng.permutation(len(train))[: len(test)]]
    return {"constant": [CONSTANT] * len(test), "shuffled": shuffled, "dropped": dropped}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return wordnet.find(tmp_path_factory.mktemp("wordnet"), download=False) or pytest.skip(wordnet.MISSING)


@pytest.mark.parametrize("system", SYSTEMS)
def test_llama_xrs_convention_equals_nltk_and_rouge_score_on_real_reports(system, iu, systems):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    references, predictions = iu[1], systems[system]
    words = [[re.findall("[a-z0-9]+", text.lower()) for text in side] for side in (references, predictions)]
    peer = {
        f"bleu_{n}": np.mean(
            [
                sentence_bleu([r], g, (1 / n,) * n, SmoothingFunction().method1) if g else 0
                for r, g in zip(*words, strict=True)
            ]
        )
        for n in range(1, 5)
    }
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, predictions, strict=True)
    peer["rouge_l"] = np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs])
    assert overlap.score(references, predictions) == pytest.approx(peer, abs=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_meteor_equals_nltks_on_real_reports(system, iu, systems, reader):
    from nltk.translate.meteor_score import meteor_score

    words = [[re.findall("[a-z0-9]+", text.lower()) for text in side] for side in (iu[1], systems[system])]
    peer = np.mean([meteor_score([r], g, wordnet=reader) for r, g in zip(*words, strict=True)])
    assert overlap.score(iu[1], systems[system], reader)["meteor"] == pytest.approx(peer, abs=1e-9)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_cocos_convention_equals_pycocoevalcap_on_real_reports(system, compat, iu, systems):
    options = (coco.CUT, coco.vocabulary(iu[0])) if compat else ()
    cleaned = [[coco.clean(text, *options) for text in side] for side in (iu[1], systems[system])]
    peer = peer_coco(*cleaned)
    assert list(coco.score(iu[1], systems[system], *options).values()) == pytest.approx(peer, abs=1e-9)


def test_the_constant_report_scores_what_the_literature_reports(iu, reader):
    references, predictions = iu[1], [CONSTANT] * 590
    ours = overlap.score(references, predictions, reader)
    assert round(ours["rouge_l"], 3) == 0.364 and round(ours["meteor"], 3) == 0.391
    compat = coco.score(references, predictions, coco.CUT, coco.vocabulary(iu[0]))
    assert round(compat["rouge_l"], 3) == 0.396 and round(compat["bleu_4"], 3) == 0.146
    assert round(compat["cider"], 2) == 0.39
    # 0.136 is corpus BLEU of uncleaned words and punctuation: of neither convention, but often reported
    marks = [
        [" ".join(re.findall(r"\w+|[^\w\s]+", t.lower())) for t in side] for side in (references, predictions)
    ]
    _, rows = coco.statistics(*marks)
    assert round(coco.scores(rows.sum(0))[3], 3) == 0.136


def test_meteor_15_equals_pycocoevalcaps_java_for_each_study_and_for_the_set(iu, systems):
    if shutil.which("java") is None or (command := meteor15.program()) is None:
        pytest.skip(meteor15.MISSING)
    from pycocoevalcap.meteor.meteor import Meteor

    peer = Meteor()  # its Java starts while ours runs
    words = coco.vocabulary(iu[0])
    references = [coco.clean(text, coco.CUT, words) for text in iu[1]]
    constant, dropped = (
        [coco.clean(text, coco.CUT, words) for text in systems[name]] for name in SYSTEMS[::2]
    )
    rows = meteor15.statistics(command, references + references[:100], constant + dropped[:100])
    for predictions, part in ((constant, rows[:590]), (dropped[:100], rows[590:])):
        texts = [dict(enumerate([text] for text in side)) for side in (references[: len(part)], predictions)]
        expected, each = peer.compute_score(*texts)
        assert meteor15.score(part) == pytest.approx(each, abs=1e-9)
        assert meteor15.score(part.sum(0)) == pytest.approx(expected, abs=1e-9)
        names, all_rows = coco.statistics(references[: len(part)], predictions, part)
        assert names[-1] == "meteor" and coco.scores(all_rows.sum(0))[-1] == pytest.approx(expected, abs=1e-9)
    assert round(float(meteor15.score(rows[:590].sum(0))), 3) == 0.204
