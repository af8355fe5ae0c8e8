"""Bases by hub id: from huggingface_hub's cache, by download, or one line that says what to do."""

import os
import shutil
from types import SimpleNamespace

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from llamaxr.errors import UserError
from llamaxr.files import hub
from llamaxr.files.hub import find_base
from llamaxr.weights import load_llama

ID, COMMIT = "someone/Tiny-Llama.1", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network: as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture()
def snapshot(base, cache):
    """The tests' base as huggingface_hub keeps it: blobs, links to them, and a ref to the commit."""
    repository = cache / "models--someone--Tiny-Llama.1"
    folder = repository / "snapshots" / COMMIT
    for place in (repository / "blobs", repository / "refs", folder):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(base.iterdir()):
        shutil.copy(file, repository / "blobs" / str(number))
        os.symlink(f"../../blobs/{number}", folder / file.name)
    return folder


def answer(monkeypatch, network):
    """Replace downloads by `network`; huggingface_hub still looks up the cache. Gives the ids requested. The
    repository has no weights as large files, which `download` would fetch."""
    real, requests = huggingface_hub.snapshot_download, []
    no_weights = SimpleNamespace(id=ID, siblings=[])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: no_weights)

    def snapshot_download(repo_id, local_files_only=False, **how):
        if local_files_only:
            return real(repo_id, local_files_only=True, **how)
        requests.append(repo_id)
        return network(repo_id, **how)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requests


def refusal(base_id=ID):
    with pytest.raises(UserError) as caught:
        find_base(base_id)
    message = str(caught.value)
    assert "\n" not in message and base_id in message
    return message


def http_error(kind, status):
    response = httpx2.Response(status, request=httpx2.Request("GET", f"https://huggingface.co/api/{ID}"))
    return kind("a message\nof two lines", response=response)


def test_what_is_in_the_cache_loads_without_a_network(snapshot, monkeypatch):
    requests = answer(monkeypatch, lambda *_, **__: pytest.fail("a download of what is there"))
    model, _ = load_llama(ID)
    assert find_base(ID) == snapshot and model.config.n_layers == 2 and not requests


def test_a_base_is_written_with_its_commit_which_then_loads_whatever_is_newest(snapshot):
    pinned = hub.with_commit(ID, find_base(ID))
    assert pinned == f"{ID}@{COMMIT}" == hub.with_commit(pinned, find_base(pinned))
    (snapshot.parents[1] / "refs" / "main").write_text("f" * 40)  # another commit was pushed, and fetched
    assert find_base(pinned) == snapshot and refusal(ID)  # the newest is not in this cache
    assert hub.split_commit(pinned) == (ID, COMMIT) and hub.split_commit(ID) == (ID, None)
    for base in ("tiny", str(snapshot), "/a/b@c/d", f"{ID}@main"):
        assert hub.split_commit(base) == (None, None) and hub.with_commit(base, snapshot) == base


def test_a_commit_that_is_not_in_the_cache_is_downloaded_and_no_other(snapshot, monkeypatch):
    other, asked = "e" * 40, []

    def network(repo_id, revision=None, **_):
        asked.append(revision)
        if snapshot.is_dir():
            snapshot.rename(snapshot.with_name(other))
        return str(snapshot.with_name(other))

    answer(monkeypatch, network)
    assert find_base(f"{ID}@{other}").name == other and asked == [other, other]


def test_a_folder_of_that_name_comes_before_the_hub(snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ID).mkdir(parents=True)
    assert str(find_base(ID)) == ID


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_incomplete_snapshot_is_completed_by_download(snapshot, base, monkeypatch, lost):
    (snapshot / lost).resolve().unlink()  # the link is there, its blob is not

    def network(repo_id, allow_patterns, ignore_patterns, revision=None):
        assert not {"*.bin", "*.pth", "*.py", "*"} & set(allow_patterns)  # no pickle, no code
        if "*.safetensors" not in ignore_patterns:
            shutil.copy(base / lost, (snapshot / lost).parent / os.readlink(snapshot / lost))
        return str(snapshot)

    requests = answer(monkeypatch, network)
    assert find_base(ID) == snapshot and requests == [ID, ID]  # the small files, then all


def test_weights_are_downloaded_into_the_cache_where_the_hub_has_them(snapshot, cache, base, monkeypatch):
    """By `download`, which continues after an interruption, and with the user's token."""
    (snapshot / "model.safetensors").unlink()
    blob, fetched = cache / "models--someone--Tiny-Llama.1" / "blobs" / ("f" * 64), []

    def network(repo_id, allow_patterns, ignore_patterns, revision=None):
        if "*.safetensors" not in ignore_patterns:
            os.symlink(f"../../blobs/{blob.name}", snapshot / "model.safetensors")  # the blob is there by now
        return str(snapshot)

    def download(url, target, progress, sha256, headers):
        assert sha256 == target.name
        fetched.append((url, target, headers["authorization"]))
        progress(target.name, 10, 10)
        shutil.copy(base / "model.safetensors", target)

    requests = answer(monkeypatch, network)
    names = {"model.safetensors": "f", "pytorch_model.bin": "e", "old/model.safetensors": "d"}
    siblings = [
        SimpleNamespace(rfilename=name, lfs=SimpleNamespace(sha256=64 * digit, size=10))
        for name, digit in names.items()
    ]
    siblings.append(SimpleNamespace(rfilename="config.json", lfs=None))
    info = SimpleNamespace(id="someone/New-Name", siblings=siblings)  # the repository was renamed
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert find_base(ID) == snapshot and requests == [ID, ID]
    url = f"https://huggingface.co/someone/New-Name/resolve/{COMMIT}/model.safetensors"
    assert fetched == [(url, blob, "Bearer hf_secret")]


def test_a_hash_that_is_a_path_is_refused(snapshot, monkeypatch):
    (snapshot / "model.safetensors").unlink()
    answer(monkeypatch, lambda *_, **__: str(snapshot))
    lfs = SimpleNamespace(sha256="../../../../outside", size=10)
    info = SimpleNamespace(id=ID, siblings=[SimpleNamespace(rfilename="model.safetensors", lfs=lfs)])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("it was downloaded"))
    assert "no SHA-256 of model.safetensors" in refusal()


def test_a_shard_that_is_missing_makes_a_snapshot_incomplete(snapshot, monkeypatch):
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "absent.safetensors"}}')
    assert "absent.safetensors" in refusal() and f"hf download {ID}" in refusal()


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer.json"])
def test_offline_an_incomplete_snapshot_is_reported_with_its_remedy(snapshot, lost):
    (snapshot / lost).resolve().unlink()
    assert f"hf download {ID}" in refusal()


def test_offline_a_base_outside_of_the_cache_is_reported_with_its_remedy():
    assert f"where there is a network, run: hf download {ID}" in refusal()


@pytest.mark.parametrize("error", [
    errors.LocalEntryNotFoundError("a message\nof two lines"), errors.OfflineModeIsEnabled("offline"),
    errors.IncompleteSnapshotError("two\nlines", "/x"), httpx2.ConnectError("no route\nto host"),
    httpx2.ReadTimeout("too long"), httpx2.ProxyError("no proxy"), ConnectionResetError("cut off"),
    errors.XetDownloadError("cut off"), http_error(errors.HfHubHTTPError, 503),
    http_error(errors.DisabledRepoError, 403), http_error(errors.RevisionNotFoundError, 404),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_without_a_network_the_line_names_the_command(monkeypatch, error):
    def network(*_, **__):
        raise error

    answer(monkeypatch, network)
    assert f"{type(error).__name__}; where there is a network, run: hf download {ID}" in refusal()


@pytest.mark.parametrize("kind, status, named", [
    (errors.GatedRepoError, 403, f"accept its licence at https://huggingface.co/{ID}, then set HF_TOKEN"),
    (errors.RepositoryNotFoundError, 401, "or it is private: check the name, or set HF_TOKEN"),
])  # fmt: skip
def test_a_gated_and_an_unknown_repository_are_reported_with_their_remedy(monkeypatch, kind, status, named):
    def network(*_, **__):
        raise http_error(kind, status)

    answer(monkeypatch, network)
    assert named in refusal()


def test_a_repository_with_pickles_only_is_refused(snapshot, monkeypatch):
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    answer(monkeypatch, lambda *_, **__: str(snapshot))
    assert "pickled weights (.bin, .pth) are not opened" in refusal()


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", "a/b.git", "a/b-", "x" * 100 + "/" + "y" * 100, "ä/b"])
def test_an_id_that_the_hub_does_not_allow_is_refused(name):
    assert "no hub id either" in refusal(name)


@pytest.mark.parametrize(
    "name", ["nowhere", "a/b/c", "../b", "/a", "a/../b", "a b/c", "https://x.y/a", "x" * 5000]
)
def test_a_name_that_is_neither_a_folder_nor_an_id_is_refused(name):
    assert "neither a folder nor a hub id" in refusal(name)


def test_a_full_disk_stays_an_oserror(monkeypatch):
    """terminal.one_line_errors has the line for it, which names the place."""

    def network(*_, **__):
        raise OSError(28, "No space left on device", "/cache")

    answer(monkeypatch, network)
    with pytest.raises(OSError, match="No space left"):
        find_base(ID)
