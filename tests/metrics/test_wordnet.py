"""Where WordNet is looked for. The tests' own WordNet has one synset, in which lung and air are synonyms."""

import zipfile
from pathlib import Path

import nltk
import pytest

from llamaxr.metrics import wordnet
from llamaxr.metrics.overlap import score


def write_wordnet(folder, version="3.0"):
    """The files of Debian's package, with next to nothing in them."""
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
def nowhere(monkeypatch, tmp_path):
    """Neither NLTK's folders nor the network hold a WordNet; gives an empty cache and a Debian folder."""
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *args, **kwargs: False)
    return tmp_path / "cache", tmp_path / "debian"


def test_where_there_is_none_meteor_is_left_out_in_one_line(nowhere, capfd):
    cache, debian = nowhere
    assert wordnet.find(cache, debian=debian) is None
    assert list(cache.iterdir()) == [cache / "nltk_data"]  # nothing half made is left
    assert "\n" not in wordnet.MISSING and "apt-get install wordnet-base" in wordnet.MISSING
    assert capfd.readouterr() == ("", "")


def test_without_a_network_it_is_made_from_debians_files_and_found_again(nowhere):
    cache, debian = nowhere
    write_wordnet(debian)
    reader = wordnet.find(cache, debian=debian)
    assert reader.get_version() == wordnet.VERSION
    # lung and air match as synonyms: all three words, in one chunk
    assert score(["clear air today"], ["clear lung today"], reader)["meteor"] == pytest.approx(1 - 0.5 / 27)
    assert wordnet.find(cache, debian=debian / "gone") is not None
    assert [path.name for path in cache.iterdir() if path.name.startswith("wordnet-")] == ["wordnet-3.0"]


def test_nltks_downloader_is_asked_before_debian(nowhere, monkeypatch):
    cache, debian = nowhere
    write_wordnet(debian)
    assert wordnet.find(cache / "other", debian=debian)  # files with lexnames, as NLTK's archive has them

    def download(name, download_dir, **kwargs):
        (corpora := Path(download_dir, "corpora")).mkdir()
        with zipfile.ZipFile(corpora / f"{name}.zip", "w") as archive:
            for file in (cache / "other" / "wordnet-3.0").iterdir():
                archive.write(file, f"{name}/{file.name}")

    monkeypatch.setattr(nltk, "download", download)
    assert wordnet.find(cache, debian=debian / "gone").get_version() == "3.0"
    assert wordnet.find(cache, download=False, debian=debian / "gone") is not None  # kept


def test_the_network_is_not_asked_where_that_is_not_wanted(nowhere, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("asked")

    monkeypatch.setattr(nltk, "download", fail)
    assert wordnet.find(nowhere[0], download=False, debian=nowhere[1]) is None


def test_another_version_is_as_good_as_none(nowhere):
    cache, debian = nowhere
    write_wordnet(debian, version="3.1")
    assert wordnet.find(cache, debian=debian) is None


def test_a_damaged_one_is_made_anew(nowhere):
    cache, debian = nowhere
    write_wordnet(debian)
    assert wordnet.find(cache, debian=debian)
    (cache / "wordnet-3.0" / "data.adj").write_text("")
    (cache / "wordnet-3.0" / "lexnames").unlink()
    assert wordnet.find(cache, debian=debian).get_version() == "3.0"


def test_debians_files_that_are_not_all_there_leave_nothing_behind(nowhere):
    cache, debian = nowhere
    write_wordnet(debian)
    (debian / "adv.exc").unlink()
    assert wordnet.find(cache, debian=debian) is None
    assert not any(path.name.startswith("wordnet-") for path in cache.iterdir())
