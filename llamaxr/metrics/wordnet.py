"""WordNet 3.0 for METEOR's synonyms: found, downloaded or assembled, or reported missing.

In: a folder for it. Out: a reader that NLTK's METEOR takes, or None. NLTK downloads WordNet while a program
runs, which fails without a network. So the search is: the given folder, NLTK's own folders, NLTK's
downloader, then the files of Debian's package wordnet-base. Those lack two files that NLTK opens: `lexnames`,
45 fixed lines that are written here (from the man page lexnames(5WN)), and `index.sense`, which only
translation between WordNets reads and English METEOR never does.

The version is pinned: another has other synonyms and gives other numbers. The project's own numbers came from
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
    """NLTK's reader of WordNet 3.0, or None if there is none (MISSING says how to get it).

    cache: keeps a downloaded or assembled WordNet for the next run. Nobody else may have write access: NLTK
    refuses such folders. download: whether to try the network (at most 10 s per answer). Prints nothing and
    raises nothing for a WordNet that is absent, damaged, of another version, or in a folder that NLTK
    refuses.
    """
    import nltk

    cache = cache.absolute()
    for source in (_kept, _installed, _download if download else None, _assemble):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever is wrong with one source, the next may work
            if source and (reader := _open(source(nltk, cache, debian))):
                return reader
    return None


def _kept(nltk, cache: Path, debian: Path) -> str:
    return _allow(nltk, cache / "wordnet-3.0")


def _installed(nltk, cache: Path, debian: Path):
    _allow(nltk, cache / "nltk_data")
    return nltk.data.find("corpora/wordnet/")  # a folder, or in corpora/wordnet.zip


def _download(nltk, cache: Path, debian: Path):
    folder = cache / "nltk_data"
    folder.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        nltk.download("wordnet", download_dir=str(folder), quiet=True, print_error_to=io.StringIO())
    finally:
        socket.setdefaulttimeout(timeout)
    return _installed(nltk, cache, debian)


def _assemble(nltk, cache: Path, debian: Path) -> str:
    final = cache / "wordnet-3.0"
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache, prefix="wordnet-"))
    try:
        for name in _FILES:
            shutil.copyfile(debian / name, folder / name)
        parts = [1 + _POS.index(name.split(".")[0]) for name in _LEXNAMES]
        lines = (f"{i:02d}\t{name}\t{parts[i]}\n" for i, name in enumerate(_LEXNAMES))
        (folder / "lexnames").write_text("".join(lines))
        if _open(_allow(nltk, folder)) is None:
            raise ValueError(f"{debian} has no WordNet {VERSION}")
        shutil.rmtree(final, ignore_errors=True)  # it is damaged: otherwise `find` would have opened it
        with contextlib.suppress(OSError):  # another process was first
            os.replace(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _allow(nltk, final)


def _allow(nltk, folder: Path) -> str:
    if str(folder) not in nltk.data.path:  # NLTK reads only from these
        nltk.data.path.append(str(folder))
    return str(folder)


def _open(root):
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class English(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):
            return None  # only for other languages, and needs index.sense

    reader = English(root, None)
    # reports repeat their words
    reader.synsets = lru_cache(maxsize=20_000)(partial(_merged_synset, reader.synsets))
    return reader if reader.get_version() == VERSION else None


def _merged_synset(synsets: Callable[[str], list], word: str) -> list:
    """A word's synsets as one with each synonym once and no phrases: METEOR uses nothing else of them, and
    for "be" and "normal" it would read the same lemmas dozens of times."""
    lemmas = {lemma.name(): lemma for synset in synsets(word) for lemma in synset.lemmas()}
    single = [lemma for name, lemma in lemmas.items() if "_" not in name]
    return [SimpleNamespace(lemmas=lambda: single)]
