"""One small good file of every format that the program reads, mutated some hundred times: what comes out is a
result or a clear error, in a bounded time and memory. Then the bombs that no mutation finds.

Each format is read in a process of its own, whose memory is limited: what would take more ends in an error
there. `python -m tests.test_hostile [N [SEED]]` runs N mutations of each.
"""

import atexit
import csv
import functools
import gzip
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401 (imported once here, not in each process)
import transformers  # noqa: F401
from safetensors.torch import load_file, save_file

from llamaxr.data import iu_xray, mimic_cxr, phantom, table
from llamaxr.data.iu_layouts import parse_plain_xml
from llamaxr.errors import UserError
from llamaxr.files.archive import read_members
from llamaxr.files.pickled import read_pickled
from llamaxr.files.tensors import read_tensors
from llamaxr.files.text import read_json, read_json_lines
from llamaxr.radiograph import load_radiograph
from llamaxr.runs import checkpoint, log, other_systems, unlike
from llamaxr.runs import run as runs
from llamaxr.runs.features import _read_cache
from llamaxr.runs.vision_zoo import load_vision
from llamaxr.tokenizer import load_tokenizer
from llamaxr.vision import StudyFeatures, Vision
from llamaxr.weights import load_llama
from tests.conftest import sentencepiece_model, write_base
from tests.files.test_images import chest, compressed, save, write_dicom, write_png
from tests.files.test_nf4_stored import quantise

N = 100  # mutations of each format; 5,000 were run by hand
SECONDS, GIB = 10, 2**30  # of this process's own time, and bytes: the most that one file may take
TEXT = "The heart is normal in size. 12 mm nodule, don't   exclude.\n" * 3
PIECES = (b"\0", b"\xff", b"-1", b"NaN", b"1e999", b"9" * 400, b"[" * 2000, b"{", b"}", b'"', b"\\ud800",
          b"\xef\xbb\xbf", b"../../x", b"\n", b"\r", b",", b"<!DOCTYPE a>", b"&a;", b"\x1b[2J", b"null",
          b"\x7f\xff\xff\xff", b"\xff" * 8, b"0", b"true", b"[]", b"{}", b"4294967296")  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data cut, with flipped bits, other bytes or numbers, or with a part doubled, moved or replaced."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        n = max(1, len(data))
        at = rng.randrange(n if rng.random() < 0.5 else min(n, 400))  # headers are where damage matters
        end = min(n, at + rng.choice((1, 2, 4, 8, 64, 1000)))
        match rng.randrange(9):
            case 0:
                data = data[:at]
            case 1 | 2 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 3 if data:
                data[at] = rng.choice((0, 1, 127, 128, 255))
            case 4:
                data[at:end] = rng.choice(PIECES)
            case 5:
                data[at:at] = rng.choice(PIECES)
            case 6:
                data[at:at] = data[at:end] * rng.choice((1, 2, 100))
            case 7:
                del data[at:end]
            case 8:  # a number of a text, a size of a binary header
                digits = [i for i in range(at, min(len(data), at + 200)) if chr(data[i]).isdigit()]
                for i in digits[:3]:
                    data[i] = rng.choice(b"0123456789-")
    return bytes(data)


# Each format: make(folder) -> the file to mutate; read(folder, file) reads it as the program does.


def image(make):
    return make, lambda folder, file: load_radiograph(file)


@functools.cache
def template() -> Path:
    """A tiny base, with both kinds of tokenizer."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_base(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return folder


def base(name):
    def make(folder):
        shutil.copytree(template(), folder, dirs_exist_ok=True)
        if name == "tokenizer.model":
            (folder / "tokenizer.json").unlink()
            return folder / name
        (folder / "tokenizer.model").unlink()
        if name == "model.safetensors.index.json":
            os.rename(folder / "model.safetensors", folder / "model-1.safetensors")
            with_index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
            (folder / name).write_text(json.dumps(with_index))
        return folder / name

    def read(folder, file):
        load_llama(folder)[1].encode(TEXT)

    def read_tokenizer(folder, file):
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode(TEXT))

    return make, read_tokenizer if "tokenizer" in name else read


def png16(folder):
    """RGB with 16 bits, which PIL does not write."""
    pixels = np.repeat(chest(64, 80, 4095)[..., None], 3, 2)
    return write_png(folder / "a.png", pixels, depth=16, colour=2)


def dicom(folder):
    tags = dict(WindowCenter=[2000, 9], WindowWidth=[1001, 9], RescaleSlope=2, RescaleIntercept=-5,
                PixelPaddingValue=7, ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge=2,
                ShutterRightVerticalEdge=70, ShutterUpperHorizontalEdge=2,
                ShutterLowerHorizontalEdge=60)  # fmt: skip
    return write_dicom(folder / "a.dcm", chest(64, 80, 4095), **tags)


def dicom_jpeg(folder):
    from pydicom.uid import JPEGBaseline8Bit

    pixels = chest(64, 80)
    return write_dicom(folder / "a.dcm", pixels, JPEGBaseline8Bit, compressed(pixels, "JPEG"), 8)


def annotation(folder):
    study = {"id": "CXR1_IM-1", "split": "train", "report": "The lungs are clear.", "image_path": ["1/0.png"]}
    (folder / "images" / "1").mkdir(parents=True)
    save(folder / "images" / "1" / "0.png", chest(64, 64))
    (folder / "annotation.json").write_text(json.dumps({"train": [study], "val": [], "test": []}))
    return folder / "annotation.json"


def read_iu_xray(folder, file):
    for layout in ({"split_by": "patient"}, {"split_by": "r2gen"}):
        studies = iu_xray.load_studies(folder, lambda line: None, on_missing="skip", **layout)
        assert all(isinstance(s.report, str) and s.report for s in studies)


XML = b"""<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR1"/>
<AbstractText Label="FINDINGS">Lungs clear.</AbstractText><MeSH><major>normal</major></MeSH>
<parentImage id="i1"/></eCitation>"""


def openi(folder):
    (folder / "ecgen-radiology").mkdir()
    (folder / "NLMCXR_png").mkdir()
    save(folder / "NLMCXR_png" / "i1.png", chest(64, 64))
    (folder / "ecgen-radiology" / "1.xml").write_bytes(XML)
    return folder / "ecgen-radiology" / "1.xml"


def tgz(folder):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("ecgen-radiology/1.xml", "ecgen-radiology/" + "n" * 150 + ".xml"):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(XML), {"comment": "long " * 30}
            tar.addfile(member, io.BytesIO(XML))
    (folder / "NLMCXR_reports.tgz").write_bytes(plain.getvalue())  # plain: damage reaches the tar itself
    return folder / "NLMCXR_reports.tgz"


def read_archive(folder, file):
    packed = folder / "packed.tgz"
    packed.write_bytes(gzip.compress(file.read_bytes(), 1))
    for path in (file, packed):
        assert all(len(content) < GIB for _, content, _ in read_members(path, ".xml"))


def gzipped(path):
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    return packed


def read_table(folder, file):
    table.load_studies(file, "skip", lambda line: None)


def kaggle(name):
    def make(folder):
        images = folder / "images" / "images_normalized"
        images.mkdir(parents=True)
        save(images / "1.dcm.png", chest(64, 64))
        reports = "uid,MeSH,findings,impression\n1,normal;Scoliosis,The lungs are clear.,Normal.\n"
        (folder / "indiana_reports.csv").write_text(reports)
        (folder / "indiana_projections.csv").write_text("uid,filename,projection\n1,1.dcm.png,Frontal\n")
        return folder / name

    return make, lambda folder, file: iu_xray.load_studies(
        folder, lambda line: None, split_by="patient", on_missing="skip"
    )


def csv_table(folder):
    save(folder / "a.png", chest(64, 64))
    rows = [["id", "frontal", "lateral", "report", "split"]]
    rows += [[f"s{i}", "a.png", "", "The heart, normal.", split] for i, split in enumerate(("train", "test"))]
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "data.csv"


def mimic(folder):
    study = folder / "files" / "p10" / "p10000032"
    (study / "s50414267").mkdir(parents=True)
    save(study / "s50414267" / "d1.jpg", chest(64, 64))
    (study / "s50414267.txt").write_text(" FINAL REPORT\n FINDINGS: Clear.\n IMPRESSION: Normal.\n")
    split = "dicom_id,study_id,subject_id,split\nd1,50414267,10000032,train\n"
    (folder / "mimic-cxr-2.0.0-split.csv").write_text(split)
    (folder / "mimic-cxr-2.0.0-metadata.csv").write_text("dicom_id,study_id,ViewPosition\nd1,50414267,PA\n")
    return folder / "mimic-cxr-2.0.0-split.csv"


def sample(folder):
    phantom.make_studies(folder, 2, 1, 1, size=64, workers=1)
    rows = read_json(folder / "studies.json")["studies"]
    phantom._make_study, phantom.process_pool = lambda job: rows[job[2]], ThreadPoolExecutor  # drawn once
    return folder / "studies.json"


def read_sample(folder, file):
    assert len(phantom.make_studies(folder, 2, 1, 1, size=64, workers=1)) == 4


def tensors(folder):
    save_file({"a": torch.randn(3, 4), "b": torch.arange(5)}, folder / "a.safetensors", {"k": "v"})
    return folder / "a.safetensors"


def densenet(folder):
    small = {"growth_rate": 2, "block_config": [1, 1], "num_init_features": 4}
    named = dict(Vision(small).net.state_dict())
    save_file(named, folder / "a.safetensors", {"densenet": json.dumps(small)})
    return folder / "a.safetensors"


def features(folder):
    metadata = {"images": json.dumps(["a" * 64, "b" * 64])}
    grids = {"grids": torch.zeros(2, 3, 7, 7).half(), "scores": torch.zeros(2, 18)}
    save_file(grids, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


def nf4(folder):
    base("model.safetensors")[0](folder)
    stored = quantise(load_file(folder / "model.safetensors"))
    save_file(stored, folder / "model.safetensors")
    return folder / "model.safetensors"


@functools.cache
def demo_parts():
    return runs.build(runs.read_options(runs.DEMO), torch.device("cpu"))


def of_checkpoint(name):
    """A file of the demo's checkpoint."""

    def make(folder):
        shutil.copytree(runs.DEMO, folder, dirs_exist_ok=True)
        return next(folder.glob(f"step-*/{name}"))

    def read(folder, file):
        vision, model = demo_parts()
        views = torch.zeros(2, vision.n_channels, 7, 7), torch.zeros(2, 18)
        unlike.distances(checkpoint.load_last(folder, model).known, [StudyFeatures([0, 1], *views)])

    return make, read


def pickled(new_format):
    def make(folder):
        weights = {"features.conv0.weight": torch.randn(4, 1, 7, 7), "classifier.bias": torch.zeros(18)}
        torch.save(weights, folder / "a.pt", _use_new_zipfile_serialization=new_format)
        return folder / "a.pt"

    return make, lambda folder, file: read_pickled(file)


def state(folder):
    (folder / "step-000001").mkdir()
    (folder / "step-000001" / "state.json").write_text('{"version": 2, "step": 1, "val_loss": 0.5}')
    return folder / "step-000001" / "state.json"


def adapter_config(folder):
    from llamaxr.lora import TARGETS

    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "lora_dropout": 0.0,
              "target_modules": list(TARGETS), "init_lora_weights": True, "rank_pattern": {}}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_config.json"


def text_file(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


LINES = b"""{"id": "1", "reference": "The heart.", "generated": "The lungs."}
"a report"
{"step": 1, "loss": 2.5}
"""
FORMATS = {
    "grey PNG": image(lambda folder: save(folder / "a.png", chest(64, 80))),
    "16-bit PNG": image(lambda folder: save(folder / "a.png", chest(64, 80, 4095))),
    "16-bit RGB PNG": image(png16),
    "palette PNG": image(lambda folder: save(folder / "a.png", chest(64, 80), "P")),
    "JPEG": image(lambda folder: save(folder / "a.jpg", chest(64, 80), "RGB", progressive=True)),
    "DICOM": image(dicom),
    "DICOM in JPEG": image(dicom_jpeg),
    "config.json": base("config.json"),
    "generation_config.json": base("generation_config.json"),
    "index": base("model.safetensors.index.json"),
    "base weights": base("model.safetensors"),
    "base weights in NF4": (nf4, base("model.safetensors")[1]),
    "tokenizer.json": base("tokenizer.json"),
    "tokenizer.model": base("tokenizer.model"),
    "Llama 3's tokenizer.model": (
        text_file("tokenizer.model", b"IQ== 0\nIg== 1\n"), lambda folder, file: load_tokenizer(folder)),
    "annotation.json": (annotation, read_iu_xray),
    "Open-i XML": (openi, read_iu_xray),
    "tar": (tgz, read_archive),
    "packed tar": (lambda folder: gzipped(tgz(folder)), lambda folder, file: [*read_members(file, ".xml")]),
    "CSV": (csv_table, read_table),
    "packed CSV": (lambda folder: gzipped(csv_table(folder)), read_table),
    "Kaggle's reports": kaggle("indiana_reports.csv"),
    "Kaggle's projections": kaggle("indiana_projections.csv"),
    "MIMIC table": (mimic, lambda folder, file: mimic_cxr.load_studies(folder, lambda line: None,
                                                                       on_missing="skip")),
    "sample's index": (sample, read_sample),
    "safetensors": (tensors, lambda folder, file: read_tensors(file)),
    "DenseNet": (densenet, lambda folder, file: load_vision(file)),
    "cached features": (features, lambda folder, file: _read_cache(folder)),
    "pickle in zip": pickled(True),
    "pickle": pickled(False),
    "state.json": (state, lambda folder, file: checkpoint.last(folder)),
    "run's config.json": (text_file("config.json", b'{"data": "sample", "lr": 0.001, "epochs": 3}'),
                          lambda folder, file: checkpoint.read_config(folder)),
    "run's adapter": of_checkpoint("adapter_model.safetensors"),
    "run's projector": of_checkpoint("projector.safetensors"),
    "run's training features": of_checkpoint("training_features.safetensors"),
    "metrics.jsonl": (text_file("metrics.jsonl", LINES.splitlines()[-1] + b"\n"),
                      lambda folder, file: log.read_log(file)),
    "labels": (text_file("a.csv", b"report,Edema,No Finding\nThe heart.,1,0\nNo.,,1\n"),
               lambda folder, file: other_systems.read_labels(file)),
    "reports": (text_file("a.jsonl", LINES.splitlines()[0] + b"\n"),
                lambda folder, file: other_systems.read_reports(file)),
    "adapter_config.json": (adapter_config, lambda folder, file: checkpoint.check_adapter(folder, 8, 16)),
    "JSON": (text_file("a.json", b'{"a": [1, 2.5, {"b": null}], "c": "d", "e": [[[[]]]]}'),
             lambda folder, file: read_json(file)),
    "JSONL": (text_file("a.jsonl", LINES), lambda folder, file: list(read_json_lines(file))),
}  # fmt: skip


def limit_memory() -> None:
    """No more than GIB above what this process has."""
    with open("/proc/self/statm") as statm:
        own = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + GIB, -1))


def faults_of(kind: str, folder: Path, n: int, seed: int) -> list[str]:
    """What went wrong in n mutations of a format."""
    make, read = FORMATS[kind]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder.mkdir(parents=True)
    file = make(folder)
    valid, rng, faults, refused = file.read_bytes(), random.Random(f"{kind} {seed}"), [], 0
    if "Llama 3" not in kind:  # whose smallest good file has 128,000 lines
        read(folder, file)
    limit_memory()
    for i in range(n):
        data = mutate(valid, rng)
        file.write_bytes(data)
        start = time.process_time()
        try:
            read(folder, file)
        except UserError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 1000 or not str(error).strip():
                faults.append(f"{kind} {i}: message {str(error)[:200]!r}")
        except BaseException as error:  # noqa: BLE001 (a panic of a library in Rust is no Exception)
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} {str(error)[:100]!r}"
            faults.append(f"{kind} {i}: {what} at {where.filename}:{where.lineno}")
            (folder.parent / f"{folder.name}-{i}").write_bytes(data)
        if (seconds := time.process_time() - start) > SECONDS:
            faults.append(f"{kind} {i}: {seconds:.0f} s")
    if not refused and kind not in ("cached features", "sample's index"):
        faults.append(f"{kind}: no mutation was refused")
    return faults


def in_a_process(function, *arguments):
    """The function's result, out of a forked process that a limit on memory cannot take along."""
    template()  # before the fork
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_mutated_file_gives_a_result_or_a_clear_error(tmp_path, kind):
    assert in_a_process(faults_of, kind, tmp_path / "a", N, 0) == []


# Bombs: small files, each of which asked for minutes or gigabytes


def refused(function, *arguments) -> str:
    """The line with which a bomb is refused, in time. In a process of its own its memory is limited too."""
    if multiprocessing.parent_process():
        limit_memory()
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert time.process_time() - start < SECONDS and "\n" not in str(caught.value)
    return str(caught.value)


def lying_header(path: Path, n_tensors: int) -> Path:
    header = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(n_tensors)}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    return path


def test_a_header_of_many_tensors_is_refused_unread(tmp_path):
    path = lying_header(tmp_path / "a.safetensors", 20_000)
    for read in (read_tensors, load_vision):
        assert "header of" in in_a_process(refused, read, path)


@pytest.mark.parametrize("architecture", [
    {"growth_rate": 200, "block_config": [200], "num_init_features": 200},
    {"growth_rate": 32, "block_config": [6, 12, 24, 16], "num_init_features": 10**9},
    {"growth_rate": 1, "block_config": [1] * 10**5, "num_init_features": 64},
    {"growth_rate": -1, "block_config": [-1], "num_init_features": -64},
    {"growth_rate": 1, "block_config": "abc", "num_init_features": 64}, {}, [], 5, "x",
])  # fmt: skip
def test_a_network_is_held_to_the_tensors_that_are_there(tmp_path, architecture):
    weights = {"features.conv0.weight": torch.zeros(64, 1, 7, 7)}
    save_file(weights, tmp_path / "a.safetensors", {"densenet": json.dumps(architecture)})
    assert "no known network" in in_a_process(refused, load_vision, tmp_path / "a.safetensors")


def test_a_convolution_of_one_dimension_is_no_network(tmp_path):
    save_file({"features.conv0.weight": torch.zeros(64)}, tmp_path / "a.safetensors")
    assert "no known network" in in_a_process(refused, load_vision, tmp_path / "a.safetensors")


@pytest.mark.parametrize("value, dtype", [
    (float("nan"), torch.bfloat16), (float("inf"), torch.float16), (float("-inf"), torch.float32),
])  # fmt: skip
def test_a_base_that_holds_no_number_is_refused_by_the_tensors_name(tmp_path, value, dtype):
    shutil.copytree(template(), tmp_path, dirs_exist_ok=True)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights, metadata = read_tensors(path)
    weights = {key: weight.to(dtype) for key, weight in weights.items()}
    weights[name][5, 7] = value
    save_file(weights, path, metadata)
    message = refused(load_llama, tmp_path)
    assert f"{path}: {name} holds NaN or an infinite number" in message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_entities_are_refused_in_every_encoding(encoding):
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "x"}">' for i in range(10))
    declared = "utf-16" if "16" in encoding else encoding
    for inside in (entities, '<!ENTITY a9 SYSTEM "file:///etc/passwd">', '<!ENTITY % a9 SYSTEM "x">', ""):
        text = f"<?xml version='1.0' encoding='{declared}'?><!DOCTYPE e [{inside}]><e>&a9;</e>"
        with pytest.raises(ValueError, match="document type"):
            parse_plain_xml(text.encode(encoding))
    assert (
        parse_plain_xml(f"<?xml version='1.0' encoding='{declared}'?><e>é</e>".encode(encoding)).text == "é"
    )


@pytest.mark.parametrize("encoding", ["hex", "zip", "idna", "nowhere", "utf-7"])
def test_an_unknown_encoding_is_a_damaged_report(tmp_path, encoding):
    file = openi(tmp_path)
    (file.parent / "2.xml").write_bytes(
        XML.replace(b'"utf-8"', f'"{encoding}"'.encode()).replace(b"CXR1", b"CXR2")
    )
    with pytest.raises(UserError, match=r"damaged reports: 1 \(first ecgen-radiology/2.xml\)"):
        iu_xray.load_studies(tmp_path, pytest.fail, split_by="patient")


def test_a_table_of_a_line_or_of_rows_without_end_is_given_up(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "a.csv.gz", "wb", 1) as file:
        file.write(b"id,frontal,lateral,report,split\n")
        file.writelines([b"a" * 2**20] * 100)
    read = lambda: table.load_studies(tmp_path / "a.csv.gz", "skip", lambda line: None)
    assert "too long" in refused(read)
    with gzip.open(tmp_path / "a.csv.gz", "wb", 1) as file:
        file.write(b"id,frontal,lateral,report,split\n" + (b"1,a,," + b"b" * 500 + b",train\n") * 10**4)
    assert "too long" in refused(read)
    monkeypatch.setattr(table, "MAX_ROWS", 1000)
    (tmp_path / "a.csv").write_text("id,frontal,lateral,report,split\n" + "1,a,,b,train\n" * 1001)
    assert "over 1,000 rows" in refused(table.load_studies, tmp_path / "a.csv", "skip", pytest.fail)


def test_what_a_data_file_names_may_be_a_link_but_not_lead_out(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "data" / "images").mkdir(parents=True)
    save(tmp_path / "store" / "x.png", chest(64, 64))
    (tmp_path / "data" / "images" / "a.png").symlink_to(tmp_path / "store" / "x.png")  # as DVC and others do
    header = "id,frontal,lateral,report,split\n"
    (tmp_path / "data" / "a.csv").write_text(f"{header}1,images/a.png,,Clear.,train\n")
    (study,) = table.load_studies(tmp_path / "data" / "a.csv", "refuse", pytest.fail)
    assert load_radiograph(study.frontal).shape == (1, 224, 224)
    for name in ("../store/x.png", f"{tmp_path}/store/x.png", "images/../../store/x.png", "a\0.png"):
        (tmp_path / "data" / "a.csv").write_text(f"{header}1,{name},,Clear.,train\n")
        with pytest.raises(UserError, match="outside of|cannot be read"):
            table.load_studies(tmp_path / "data" / "a.csv", "refuse", pytest.fail)


def growth_while_read(paths: list[Path]) -> int:
    """The most bytes that this process holds, above what it has now, while 8 threads read the images."""
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = peak()  # a forked process begins to count anew
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        assert all(r.shape == (1, 224, 224) for r in pool.map(load_radiograph, paths))
    return peak() - before


@pytest.mark.parametrize("kind", ["RGBA PNG", "DICOM"])
def test_large_images_read_by_many_threads_take_less_than_a_gibibyte(tmp_path, kind):
    pixels = np.zeros((5400, 5400), np.uint16)
    pixels[:2700] = 255
    if kind == "DICOM":
        path = write_dicom(tmp_path / "a.dcm", pixels, PixelPaddingValue=5, WindowCenter=[9], WindowWidth=[9])
    else:
        path = save(tmp_path / "a.png", pixels.astype(np.uint8), "RGBA", compress_level=1)
    assert in_a_process(growth_while_read, [path] * 8) < GIB


def test_macos_own_files_are_no_reports(tmp_path):
    file = openi(tmp_path)
    (file.parent / "._1.xml").write_bytes(b"\0\5\x16\7attributes")
    assert len(iu_xray.load_studies(tmp_path, pytest.fail, split_by="patient")) == 1


if __name__ == "__main__":
    n, seed = (int(sys.argv[i]) if len(sys.argv) > i else d for i, d in ((1, 1000), (2, 0)))
    only = sys.argv[3:]
    for number, kind in enumerate(only or FORMATS):
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        start = time.perf_counter()
        found = in_a_process(faults_of, kind, folder / str(number), n, seed)
        print(f"{kind}: {len(found)} faults in {n}, {time.perf_counter() - start:.0f} s", flush=True)
        print(*found[:12], sep="\n", flush=True)
        if not found:
            shutil.rmtree(folder)
