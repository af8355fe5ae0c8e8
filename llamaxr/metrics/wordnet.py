"""WordNet 3.0 for METEOR's synonyms: found, fetched or put together, or said to be missing.

In: a folder to keep it in. Out: a reader that NLTK's METEOR takes, or None. NLTK has WordNet downloaded while
a program runs, which fails without a network. So it is looked for where NLTK looks, then in the folder, then
fetched by NLTK's downloader, then made from the files of Debian's package wordnet-base. Those lack two files
that NLTK asks for: `lexnames`, 45 fixed lines that are written here (from the man page lexnames(5WN)), and
`index.sense`, which only translation between WordNets reads; English METEOR never does.

The version is pinned: another one has other synonyms and gives other numbers. The project's own came from
Debian's wordnet-base 1:3.0-37.
"""

import contextlib
import io
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

VERSION = "3.0"
DEBIAN = Path("/usr/share/wordnet")
MISSING = (
    "METEOR is left out: no WordNet 3.0 here; get it by `python -m nltk.downloader wordnet` or, on Debian, "
    "`apt-get install wordnet-base`"
)

_POS = ("noun", "verb", "adj", "adv")
_FILES = [f"{kind}.{pos}" for kind in ("index", "data") for pos in _POS] + [f"{pos}.exc" for pos in _POS]
_LEXNAMES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body "
    "noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location "
    "noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process "
    "noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body verb.change "
    "verb.cognition verb.communication verb.competition verb.consumption verb.contact verb.creation "
    "verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather "
    "adj.ppl "
).split()


def find(cache: Path, download: bool = True, debian: Path = DEBIAN):
    """NLTK's reader of WordNet 3.0, or None where there is none to be had (MISSING says how to get it).

    cache: where a fetched or put-together WordNet is kept, so that the next run finds it. Nobody else may be
    able to write there: NLTK refuses such folders. download: whether the network may be asked (10 s at most
    for each answer). Nothing is printed, and nothing is raised for a WordNet that is absent, damaged, of
    another version, or where NLTK will not read.
    """
    import nltk

    cache = cache.absolute()
    for place in (_known, _fetch if download else None, _assemble):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever is wrong with one place, the next may do
            if place and (found := _open(place(nltk, cache, debian))):
                return found
    return None


def _known(nltk, cache: Path, debian: Path):
    if (cache / "wordnet-3.0").is_dir():
        return _allow(nltk, cache / "wordnet-3.0")
    _allow(nltk, cache / "nltk_data")
    return nltk.data.find("corpora/wordnet/")  # a folder, or else inside of corpora/wordnet.zip


def _fetch(nltk, cache: Path, debian: Path):
    folder = cache / "nltk_data"
    folder.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        nltk.download("wordnet", download_dir=str(folder), quiet=True, print_error_to=io.StringIO())
    finally:
        socket.setdefaulttimeout(patience)
    return _known(nltk, cache, debian)


def _assemble(nltk, cache: Path, debian: Path) -> str:
    kept = cache / "wordnet-3.0"
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache, prefix="wordnet-"))
    try:
        for name in _FILES:
            shutil.copyfile(debian / name, made / name)
        parts = [1 + _POS.index(name.split(".")[0]) for name in _LEXNAMES]
        lines = (f"{i:02d}\t{name}\t{parts[i]}\n" for i, name in enumerate(_LEXNAMES))
        (made / "lexnames").write_text("".join(lines))
        shutil.rmtree(kept, ignore_errors=True)  # damaged, or it would have been read
        with contextlib.suppress(OSError):  # another process was first
            os.replace(made, kept)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return _allow(nltk, kept)


def _allow(nltk, folder: Path) -> str:
    if str(folder) not in nltk.data.path:  # NLTK reads from nowhere else
        nltk.data.path.append(str(folder))
    return str(folder)


def _open(root):
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class English(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):
            return None  # other languages' numbers of synsets: needs index.sense, which METEOR does not

    reader = English(root, None)
    # reports use the same words over and over
    reader.synsets = lru_cache(maxsize=20_000)(partial(_as_one, reader.synsets))
    return reader if reader.get_version() == VERSION else None


def _as_one(synsets: Callable[[str], list], word: str) -> list:
    """A word's synsets as one that holds each synonym once and no phrase: METEOR reads nothing else of them,
    and of "be" and "normal" it would read the same lemmas dozens of times."""
    lemmas = {lemma.name(): lemma for synset in synsets(word) for lemma in synset.lemmas()}
    single = [lemma for name, lemma in lemmas.items() if "_" not in name]
    return [SimpleNamespace(lemmas=lambda: single)]
