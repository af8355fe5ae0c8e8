"""Where WordNet is found. The tests' own WordNet has one synset, in which lung and air are synonyms."""

import zipfile
from pathlib import Path

import nltk
import pytest

from llamaxr.metrics import wordnet
from llamaxr.metrics.overlap import score


def write_wordnet(folder, version="3.0"):
    """The files of Debian's package, almost empty."""
    folder.mkdir(parents=True)
    licence = f"  1 WordNet {version} Copyright 2006 by the tests.\n"
    for pos in ("noun", "verb", "adj", "adv"):
        noun = pos == "noun"
        synset = f"{len(licence):08d} 06 n 02 lung 0 air 0 000 | what is breathed\n" if noun else ""
        index = "".join(f"{word} n 1 0 1 0 {len(licence):08d}\n" for word in ("air", "lung")) if noun else ""
        (folder / f"data.{pos}").write_text(licence + synset)
        (folder / f"index.{pos}").write_text(licence + index)
        (folder / f"{pos}.exc").write_text("")
    return folder


@pytest.fixture
def no_wordnet(monkeypatch, tmp_path):
    """No WordNet in NLTK's folders and no network. Returns an empty cache and a path for Debian's files."""
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: False)
    return tmp_path / "cache", tmp_path / "debian"


def test_without_a_wordnet_meteor_is_left_out_with_one_line(no_wordnet, capfd):
    cache, debian = no_wordnet
    assert wordnet.find(cache, debian=debian) is None
    assert list(cache.iterdir()) == [cache / "nltk_data"]  # no half-made folder is left
    assert "\n" not in wordnet.MISSING and "apt-get install wordnet-base" in wordnet.MISSING
    assert capfd.readouterr() == ("", "")


def test_without_a_network_it_is_assembled_from_debians_files_and_found_again(no_wordnet):
    cache, debian = no_wordnet
    write_wordnet(debian)
    reader = wordnet.find(cache, debian=debian)
    assert reader.get_version() == wordnet.VERSION
    # lung and air match as synonyms: all three words, in one chunk
    assert score(["clear air today"], ["clear lung today"], reader)["meteor"] == pytest.approx(1 - 0.5 / 27)
    assert wordnet.find(cache, debian=debian / "gone") is not None
    assert [path.name for path in cache.iterdir() if path.name.startswith("wordnet-")] == ["wordnet-3.0"]


def test_nltks_downloader_is_tried_before_debians_files(no_wordnet, monkeypatch):
    cache, debian = no_wordnet
    write_wordnet(debian)
    assert wordnet.find(cache / "other", debian=debian)  # files with lexnames, as NLTK's archive has them

    def download(name, download_dir, **kwargs):
        (corpora := Path(download_dir, "corpora")).mkdir()
        with zipfile.ZipFile(corpora / f"{name}.zip", "w") as archive:
            for file in (cache / "other" / "wordnet-3.0").iterdir():
                archive.write(file, f"{name}/{file.name}")

    monkeypatch.setattr(nltk, "download", download)
    assert wordnet.find(cache, debian=debian / "gone").get_version() == "3.0"
    assert wordnet.find(cache, download=False, debian=debian / "gone") is not None  # now in the cache


def test_download_false_never_uses_the_network(no_wordnet, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("downloaded")

    monkeypatch.setattr(nltk, "download", fail)
    assert wordnet.find(no_wordnet[0], download=False, debian=no_wordnet[1]) is None


def test_another_version_is_refused(no_wordnet):
    cache, debian = no_wordnet
    write_wordnet(debian, version="3.1")
    assert wordnet.find(cache, debian=debian) is None


def test_another_version_of_debians_does_not_hide_nltks(no_wordnet, monkeypatch):
    cache, debian = no_wordnet
    assert wordnet.find(cache, debian=write_wordnet(debian))
    (cache.parent / "nltk" / "corpora").mkdir(parents=True)
    (cache / "wordnet-3.0").rename(cache.parent / "nltk" / "corpora" / "wordnet")
    debian = write_wordnet(cache.parent / "newer", version="3.1")
    monkeypatch.setattr(nltk.data, "path", [])
    assert wordnet.find(cache, debian=debian) is None and not (cache / "wordnet-3.0").exists()
    write_wordnet(cache / "wordnet-3.0", version="3.1")  # as an earlier version of this program left it
    monkeypatch.setattr(nltk.data, "path", [str(cache.parent / "nltk")])
    assert wordnet.find(cache, debian=debian).get_version() == "3.0"


def test_a_damaged_one_is_replaced(no_wordnet):
    cache, debian = no_wordnet
    write_wordnet(debian)
    assert wordnet.find(cache, debian=debian)
    (cache / "wordnet-3.0" / "data.adj").write_text("")
    (cache / "wordnet-3.0" / "lexnames").unlink()
    assert wordnet.find(cache, debian=debian).get_version() == "3.0"


def test_incomplete_debian_files_leave_nothing_behind(no_wordnet):
    cache, debian = no_wordnet
    write_wordnet(debian)
    (debian / "adv.exc").unlink()
    assert wordnet.find(cache, debian=debian) is None
    assert not any(path.name.startswith("wordnet-") for path in cache.iterdir())
