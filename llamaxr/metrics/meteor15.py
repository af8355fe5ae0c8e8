"""METEOR 1.5 (Denkowski and Lavie 2014), by its authors' Java program where there is one.

In: cleaned reports, true and generated. Out: for each study the 23 counts of its alignment, whose sums give
the score: METEOR of a set is a function of its summed counts and no mean over studies, so a resample is
scored without aligning anything again. The program and its paraphrase table (LGPL) come with the Python
package pycocoevalcap, which is no dependency of this project: who wants this one number installs it and Java.
"""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..errors import UserError

MISSING = "METEOR 1.5 is left out: it needs Java and `pip install pycocoevalcap`"
BATCH = 20_000  # studies that one run of the program aligns

# The program's settings for English ranking: weights of exact, stem, synonym and paraphrase matches, and the
# four parameters of the score.
_MATCHES = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def program() -> list[str] | None:
    """The command that starts METEOR 1.5, or None where Java or the program is missing (MISSING)."""
    java, package = shutil.which("java"), find_spec("pycocoevalcap")
    if not java or not package:
        return None
    jars = [Path(folder, "meteor", "meteor-1.5.jar") for folder in package.submodule_search_locations or ()]
    jar = next((jar for jar in jars if jar.is_file()), None)
    return jar and [java, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]


def statistics(command: list[str], references: Sequence[str], generated: Sequence[str]) -> np.ndarray:
    """The program's counts of each study, (n, 23). Starting it takes about 10 seconds and 1.2 GiB.
    UserError where the program fails."""
    assert len(references) == len(generated)
    parts = [np.zeros((0, 23))]
    for at in range(0, len(references), BATCH):
        pairs = zip(references[at : at + BATCH], generated[at : at + BATCH], strict=True)
        lines = "".join(f"SCORE ||| {_one_line(r)} ||| {_one_line(g)}\n" for r, g in pairs)
        run = subprocess.run(command, input=lines.encode(), capture_output=True)
        try:
            rows = np.array([line.split() for line in run.stdout.decode().splitlines()], dtype=float)
            parts.append(rows.reshape(min(BATCH, len(references) - at), 23))
        except ValueError:
            said = (run.stderr.decode(errors="replace").strip() or "it gave no answer").splitlines()[-1]
            raise UserError(f"METEOR 1.5 failed ({said}): try `{' '.join(command)}`") from None
    rows = np.concatenate(parts)
    # A text matched whole and in order is no fragment: so the program counts it too when it adds up a set.
    rows[(rows[:, 21:23] == rows[:, 0:2]).all(1) & (rows[:, 20] == 1), 20] = 0
    return rows


def score(sums: np.ndarray) -> np.ndarray:
    """Summed counts (..., 23) -> METEOR (...), 0 of no match.

    Columns: words written and true, function words among them; for each kind of match (exact, stem, synonym,
    paraphrase) content words matched in the written and the true text, then function words; chunks; all
    matched words of the written and of the true text. A content word weighs delta, a function word 1 - delta.
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
