"""Where a base checkpoint is: a folder, or a repository of the Hugging Face hub in huggingface_hub's cache.

In: a path, or a hub id, alone or with a commit (ID@COMMIT). Out: a folder that holds config.json, a tokenizer
and all weight files. What the cache lacks is downloaded, and continues where it was interrupted. Weights are
safetensors; pickles are neither downloaded nor opened.
"""

import contextlib
import os
import re
from pathlib import Path

from ..errors import UserError
from .download import download
from .text import read_json, short

HUB_FILES = ("*.json", "*.safetensors", "tokenizer.model")  # never a pickle
MAX_INDEX = 2**23  # bytes of an index; LLaMA 3.1 405B's has about 2**17
HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([0-9a-f]{40}))?")  # its second group: the commit


def find_base(base: str | Path) -> Path:
    """The folder of a checkpoint: `base` itself, or a snapshot of that hub id in the cache.

    What the cache lacks is downloaded, with a progress bar; huggingface_hub reads HF_TOKEN for gated models.
    Raises UserError for what is neither a folder nor a hub id, and where the download fails.
    """
    if os.path.isdir(base):  # Path.is_dir raises where the name is too long for a file
        return Path(base)
    name, commit = split_commit(base)
    if name is None:
        raise UserError(f"the base {base} is neither a folder nor a hub id such as meta-llama/Llama-3.1-8B")
    from httpx2 import HTTPError  # huggingface_hub's HTTP client; its errors come through
    from huggingface_hub import errors, snapshot_download

    wanted = {"allow_patterns": HUB_FILES, "ignore_patterns": "*/*", "revision": commit}
    try:
        return complete_snapshot(Path(snapshot_download(name, local_files_only=True, **wanted)))
    except errors.HFValidationError as error:
        raise UserError(f"the base {base} is no folder, and no hub id either: {error}") from None
    except (errors.LocalEntryNotFoundError, UserError):
        pass  # not in the cache, or an incomplete download
    try:
        with contextlib.suppress(errors.OfflineModeIsEnabled):
            wanted["revision"] = _fetch_weights(name, commit)  # one commit, whatever is pushed meanwhile
        return complete_snapshot(Path(snapshot_download(name, **wanted)))  # offline: whatever is in the cache
    except errors.GatedRepoError:
        remedy = f"accept its licence at https://huggingface.co/{name}, then set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        remedy = "there is no such repository, or it is private: check the name, or set HF_TOKEN"
    except (errors.LocalEntryNotFoundError, errors.XetDownloadError, HTTPError, ConnectionError) as error:
        remedy = (
            f"{type(error.__cause__ or error).__name__}; where there is a network, run: hf download {name}"
        )
    except UserError as error:
        remedy = f"{error}; to complete the download, run where there is a network: hf download {name}"
    raise UserError(f"{base} is not in the Hugging Face cache and could not be downloaded: {remedy}")


def split_commit(base: str | Path) -> tuple[str | None, str | None]:
    """(id, commit) of a hub id; the commit is None where none is named, the id too where it is no hub id."""
    match = HUB_ID.fullmatch(str(base))
    return (match[1], match[2]) if match else (None, None)


def with_commit(base: str, folder: Path) -> str:
    """A hub id with the commit of its snapshot, which is the folder's name; any other base as it is."""
    name, _ = split_commit(base)
    return base if os.path.isdir(base) or name is None else f"{name}@{folder.name}"


def _fetch_weights(base: str, commit: str | None) -> str:
    """Download the weight files of a hub id to where huggingface_hub's cache has them. commit: None for the
    newest. Returns the commit.

    huggingface_hub itself loses what an interrupted run has fetched of a file (2.4: each run has temporary
    files of its own). For weights that is gigabytes, so `download` fetches them. Raises
    huggingface_hub's errors, and UserError.
    """
    from huggingface_hub import HfApi, hf_hub_url, snapshot_download
    from huggingface_hub.utils import WeakFileLock, build_hf_headers, tqdm

    # The small files come first: huggingface_hub says whether the repository exists and is accessible.
    without = ["*/*", "*.safetensors"]
    small = snapshot_download(base, revision=commit, allow_patterns=HUB_FILES, ignore_patterns=without)
    repository, commit = Path(small).parents[1], Path(small).name
    model = HfApi().model_info(base, revision=commit, files_metadata=True)
    for file in model.siblings:
        if file.lfs is None or "/" in file.rfilename or not file.rfilename.endswith(".safetensors"):
            continue
        if not re.fullmatch("[0-9a-f]{64}", file.lfs.sha256):  # it becomes the name of a file
            raise UserError(f"the hub states no SHA-256 of {file.rfilename[:100]}")
        # model.id, not base: a repository that was renamed would redirect, and a redirect gets no token.
        blob = repository / "blobs" / file.lfs.sha256
        if blob.is_file():
            continue
        url = hf_hub_url(model.id, file.rfilename, revision=commit)
        lock = repository.parent / ".locks" / repository.name / f"{blob.name}.lock"  # huggingface_hub's own
        lock.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(desc=file.rfilename, total=file.lfs.size, unit="B", unit_scale=True)
        progress = lambda _, done, __, bar=bar: bar.update(done - bar.n)
        with WeakFileLock(lock), bar:
            download(url, blob, progress, sha256=file.lfs.sha256, headers=build_hf_headers())
    return commit


def complete_snapshot(folder: Path) -> Path:
    """The folder itself. Raises UserError if it lacks files, as after an interrupted download."""
    has_tokenizer = any(path.is_file() for path in folder.glob("tokenizer.*"))  # False for a dangling link
    if not (folder / "config.json").is_file() or not has_tokenizer:
        raise UserError(f"{folder} lacks config.json or the tokenizer")
    shard_files(folder)
    return folder


def shard_files(folder: Path) -> list[Path]:
    """The weight files. All are in the folder itself, whatever paths the index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise UserError(f"{folder} has no model.safetensors; pickled weights (.bin, .pth) are not opened")
    names = read_json(index, MAX_INDEX, "download it again").get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f"{index} has no weight_map of tensors to files; download it again")
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    names = sorted(set(names.values()))
    for name in names:
        if name not in files:
            raise UserError(f"{index} names {short(name)!r}, no file of that folder; download it again")
    return [files[name] for name in names]
