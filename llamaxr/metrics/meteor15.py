"""METEOR 1.5 (Denkowski and Lavie 2014), by its authors' Java program, if it is installed.

In: cleaned references and predictions. Out: the 23 counts of each study's alignment, whose sums give the
score. METEOR of a set is a function of its summed counts, not a mean over studies, so a resample is scored
without a new alignment. The program and its paraphrase table (LGPL) come with the Python package
pycocoevalcap, which is no dependency of this project: install it and Java to get this one number.
"""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..errors import UserError

MISSING = "--meteor15 needs Java and `pip install pycocoevalcap`; leave it out, or install them"
BATCH = 20_000  # studies per run of the program

# The program's settings for ranking in English: the weights of exact, stem, synonym and paraphrase matches,
# and the four parameters of the score.
_MATCHES = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def program() -> list[str] | None:
    """The command that starts METEOR 1.5, or None if Java or the program is missing (MISSING)."""
    java, package = shutil.which("java"), find_spec("pycocoevalcap")
    if not java or not package:
        return None
    jars = [Path(folder, "meteor", "meteor-1.5.jar") for folder in package.submodule_search_locations or ()]
    jar = next((jar for jar in jars if jar.is_file()), None)
    return jar and [java, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]


def statistics(command: list[str], references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """The program's counts for each study, (n, 23). Starting it takes about 10 seconds and 1.2 GiB.
    UserError if the program fails."""
    assert len(references) == len(predictions)
    parts = [np.zeros((0, 23))]
    for start in range(0, len(references), BATCH):
        pairs = zip(references[start : start + BATCH], predictions[start : start + BATCH], strict=True)
        lines = "".join(f"SCORE ||| {_one_line(r)} ||| {_one_line(p)}\n" for r, p in pairs)
        run = subprocess.run(command, input=lines.encode(), capture_output=True)
        try:
            rows = np.array([line.split() for line in run.stdout.decode().splitlines()], dtype=float)
            parts.append(rows.reshape(min(BATCH, len(references) - start), 23))
        except ValueError:
            message = (run.stderr.decode(errors="replace").strip() or "it gave no answer").splitlines()[-1]
            raise UserError(f"METEOR 1.5 failed ({message}): try `{' '.join(command)}`") from None
    rows = np.concatenate(parts)
    # A text matched in full and in order has no fragments: the program counts it so too when it sums a set.
    rows[(rows[:, 21:23] == rows[:, 0:2]).all(1) & (rows[:, 20] == 1), 20] = 0
    return rows


def score(sums: np.ndarray) -> np.ndarray:
    """Summed counts (..., 23) -> METEOR (...); 0 without a match.

    Columns: words of prediction and reference; function words of each; for each kind of match (exact, stem,
    synonym, paraphrase) the matched content words of prediction and reference, then the function words;
    chunks; all matched words of prediction and reference. A content word has weight delta, a function word
    1 - delta.
    """
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # (..., kind, content or function, side)
    word = np.array([_DELTA, 1 - _DELTA])
    matched = np.einsum("...kws,k,w->...s", stages, _MATCHES, word)  # (..., side)
    lengths, functions = sums[..., 0:2], sums[..., 2:4]
    weighted = _DELTA * (lengths - functions) + (1 - _DELTA) * functions
    precision, recall = np.moveaxis(matched / np.maximum(weighted, 1e-9), -1, 0)
    mean = precision * recall / np.maximum(_ALPHA * precision + (1 - _ALPHA) * recall, 1e-9)
    chunks, totals = sums[..., 20], sums[..., 21:23]
    fragments = chunks / np.maximum(totals.mean(-1), 1e-9)
    return mean * (1 - _GAMMA * fragments**_BETA)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", "").split())
