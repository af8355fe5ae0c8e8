"""METEOR 1.5 without Java: its score from counts, and what happens if the program is missing or fails."""

import sys

import numpy as np
import pytest

from llamaxr.errors import UserError
from llamaxr.metrics import meteor15

# The program's counts for "the heart is normal ." and "the heart is big ."; its score is about 0.3976.
COUNTS = [5, 5, 3, 3, 1, 1, 3, 3, *[0] * 12, 2, 4, 4]


def test_the_score_follows_the_papers_equation():
    # one content and three function words of two and three; two chunks of four words
    ratio = (0.75 * 1 + 0.25 * 3) / (0.75 * 2 + 0.25 * 3)
    assert meteor15.score(np.array(COUNTS)) == pytest.approx(ratio * (1 - 0.6 * (2 / 4) ** 0.2))


def test_without_a_match_or_a_study_the_score_is_zero():
    assert meteor15.score(np.zeros(23)) == 0
    assert meteor15.score(np.array([5, 5, 3, 3] + [0] * 19)) == 0
    assert meteor15.statistics([], [], []).shape == (0, 23)


def fake_program(tmp_path, line):
    script = tmp_path / "program.py"
    script.write_text(f"import sys\nfor _ in sys.stdin:\n    print({line!r})\n")
    return [sys.executable, str(script)]


def test_a_text_matched_in_full_has_no_fragments(tmp_path):
    command = fake_program(tmp_path, " ".join(map(str, [2, 2, 0, 0, 2, 2, 0, 0, *[0] * 12, 1, 2, 2])))
    rows = meteor15.statistics(command, ["a b", "c\nd"], ["a b", "c d ||| e"])  # each on one line
    assert rows.shape == (2, 23) and meteor15.score(rows) == pytest.approx([1, 1])


@pytest.mark.parametrize("line", ["", "1 2 3", "Error: what?"])
def test_a_program_that_fails_is_an_error_of_one_line(tmp_path, line):
    with pytest.raises(UserError, match="METEOR 1.5 failed") as error:
        meteor15.statistics(fake_program(tmp_path, line), ["a"], ["b"])
    assert "\n" not in str(error.value)


def test_without_java_or_without_the_package_there_is_no_program(monkeypatch):
    monkeypatch.setattr(meteor15.shutil, "which", lambda name: None)
    assert meteor15.program() is None
    monkeypatch.setattr(meteor15.shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(meteor15, "find_spec", lambda name: None)
    assert meteor15.program() is None
