"""The reports that a training shows: wrapped, and what changed since the last validation is marked."""

import io
import json
import re
import sys

import pytest

from llamaxr.data.study import Study
from llamaxr.runs import reports, samples
from llamaxr.runs.samples import as_text, word_changes

TRUE = "The heart is enlarged. There is a right effusion."
BEFORE = "The heart is normal in size. There is no effusion."
AFTER = "The heart is enlarged in size. There is no effusion."


def test_new_and_gone_words_are_told_apart_from_those_that_stayed():
    words = word_changes(BEFORE, AFTER)
    assert [word for word, mark in words if mark != "-"] == AFTER.split()
    assert [word for word, mark in words if mark != "+"] == BEFORE.split()
    assert [pair for pair in words if pair[1]] == [("normal", "-"), ("enlarged", "+")]
    assert word_changes(None, AFTER) == word_changes("Scoliosis.", AFTER) == [(w, "") for w in AFTER.split()]


def test_a_file_gets_marks_and_no_colour_and_an_unchanged_report_says_so(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    text = as_text("12", TRUE, AFTER, BEFORE)
    assert "[-normal-] {+enlarged+} in size." in text and "\x1b" not in text
    assert text.splitlines()[0] == "  study 12" and "  true       The heart" in text
    assert "  unchanged  The heart" in as_text("12", TRUE, AFTER, AFTER)


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_lines_fit_the_terminal_and_are_coloured_on_it_alone(monkeypatch, columns):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = as_text("12", TRUE, AFTER + " \x1b[2J", BEFORE)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "\x1b[32menlarged\x1b[0m" in text and "\x1b[9;31mnormal\x1b[0m" in text
    assert "\x1b" not in plain and "\\x1b[2J" in plain
    assert all(len(line) <= max(columns, samples.HEAD + len("enlarged.")) for line in plain.splitlines())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in as_text("12", TRUE, AFTER, BEFORE)


def test_of_outlines_one_after_the_other_the_first_is_shown(tmp_path, monkeypatch, capsys):
    texts = ["Findings: nodule left.\nFindings: none.\nFindings: none.", "Findings: none.\nClear."]
    monkeypatch.setattr(reports, "_generate", lambda *_: texts)
    studies = [Study(name, None, None, "A report.", "val") for name in "ab"]
    reports.write_samples(tmp_path, {"step": 1, "val_loss": 1.0}, None, [(None, s) for s in studies], 2, 9)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["generated"] for row in rows] == ["Findings: nodule left.", texts[1]]
    assert "Findings: none. Clear." in capsys.readouterr().out
