"""A new user's first session, rehearsed: train on IU X-ray, generate a report, evaluate.

    python benchmarks/rehearsal.py            a tiny base: about a minute
    python benchmarks/rehearsal.py --full     8B's shapes, Llama 3.1's tokenizer: 13 GB of disk, half an hour
    python benchmarks/rehearsal.py --full --folder DIR    the same, kept in DIR: when repeated, it resumes

A local server stands in for all that `python train.py --data iu_xray` downloads: Open-i's two archives, the
base's files on the Hugging Face hub, torchxrayvision's weights. The scripts run in a copy of the repository,
with empty caches. They do not know of it: their libraries read from the environment where the hub is
(HF_ENDPOINT), which proxy to use (https_proxy) and whom to trust (SSL_CERT_FILE). The proxy is the same
server. It answers in the name of openi.nlm.nih.gov and github.com, with a certificate that openssl makes.

Each large file is cut off twice and then refused, so the command fails, in one line. Repeated, it must
continue where it stopped. The commands, addresses, redirects, file formats and the hub's interface are real.
Images are drawn, weights are random, and the hub sends files by plain HTTP, never by Xet. The
results go to benchmarks/results/rehearsal.json, which keeps those of the other size.
"""

import argparse
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from measure import HOME, RESULTS, machine, write_results

BASE, COMMIT = "unsloth/Meta-Llama-3.1-8B-bnb-4bit", "0123456789abcdef0123456789abcdef01234567"
OPENI = "https://openi.nlm.nih.gov/imgs/collections"
GITHUB = "https://github.com/mlmed/torchxrayvision/releases/download/v1"
ASSETS = "https://release-assets.githubusercontent.com"  # where GitHub redirects to
VISION = "mimic_ch-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
REPORTS, IMAGES, WEIGHTS = "NLMCXR_reports.tgz", "NLMCXR_png.tgz", "model.safetensors"
CUTS = 0.25, 0.5  # where the first two connections for a large file end; the third is refused
N_STUDIES = {"train": 8, "val": 2, "test": 5}  # one batch; and what eval.py needs

# The archives lack most of R2Gen's studies, and two steps are enough.
TRAIN = "train.py --data iu_xray --on-missing skip --steps 2"
SMALL_TRAIN = f"{TRAIN} --max-report-tokens 60"
FULL_TRAIN = f"{TRAIN} --batch 1 --val-studies 1 --n-samples 0"
GENERATE, EVAL = "generate.py image.png --max-tokens 16", "eval.py --limit 5 --max-tokens 16"
IN_4_BITS = " --plain"  # merged, 8B takes 16 GB, which a machine that others use may not have


class Stage(NamedTuple):
    name: str
    command: str
    exit: int
    says: str  # what the last line of its output must contain


def stages(full: bool) -> list[Stage]:
    """What the user types, and what must come of it."""
    train, form = (FULL_TRAIN, IN_4_BITS) if full else (SMALL_TRAIN, "")
    return [
        Stage("Open-i's images cut off", train, 2, f"{OPENI}/{IMAGES}"),
        Stage("the base cut off", train, 2, f"hf download {BASE}"),
        Stage("vision weights cut off", train, 2, f"{GITHUB}/{VISION}"),
        Stage("train", train, 0, "next: python generate.py IMAGE"),
        Stage("generate", GENERATE + form, 0, ""),
        Stage("evaluate", EVAL + form, 0, "results.json"),
    ]


def rehearse(folder: Path, full: bool = False) -> dict:
    """Run all stages in an empty folder, or those that an earlier call in this folder did not finish. Returns
    each stage's figures, and how each download went. Exits with the output of the first stage that does not
    do what it must."""
    served, home, done = folder / "served", folder / "llamaxr", folder / "done.json"
    if not done.is_file():
        if not served.is_dir():
            command = [sys.executable, __file__, "--prepare", served, *["--full"] * full]
            subprocess.run(command, cwd=HOME, check=True)
        without_cache = shutil.ignore_patterns("__pycache__")
        shutil.copytree(HOME / "llamaxr", home / "llamaxr", ignore=without_cache, dirs_exist_ok=True)
        for script in ("train.py", "generate.py", "eval.py"):
            shutil.copy(HOME / script, home)
        # The code's commit, each stage's figures, and what the server has sent.
        done.write_text(json.dumps([{name: machine()[name] for name in ("commit", "date")}, {}, {}]))
    when, figures, sent = json.loads(done.read_text())
    with serve(served) as server:
        server.sent |= sent
        environment = own_environment(folder, server)
        for stage in stages(full):
            if stage.name in figures:
                continue
            if stage.name == "generate":
                shutil.copy(min(home.glob("cache/iu_xray/NLMCXR_png/*.png")), home / "image.png")
            figure, out, err = run(stage.command, home, environment)
            print(f"{stage.name}: {json.dumps(figure)}", flush=True)
            last = ["", *(err if stage.exit else out).split("\n")][-1]
            as_it_must = stage.says in last and ("error: " in last) == (stage.exit != 0)
            if figure["exit"] != stage.exit or not as_it_must or "Traceback" in err:
                sys.exit(f"error: stage {stage.name!r} did not end as it must:\n{out}\n{err}")
            figures[stage.name] = figure
            done.write_text(json.dumps([when, figures, server.sent]))
        downloads = {name: [list(request) for request in log] for name, log in server.sent.items()}
    for name, requests in downloads.items():
        arrived = 0  # bytes
        for start, end in requests:
            if start != arrived:
                sys.exit(f"error: {name} began at byte {start}, but {arrived} had arrived: {requests}")
            arrived = end
    return {**when, "stages": figures, "bytes_per_connection": downloads}


def run(command: str, home: Path, environment: dict[str, str]) -> tuple[dict, str, str]:
    """`python COMMAND` in its own process: its figures, stdout and stderr, without white space at the ends.
    The peak of resident memory counts the pages of memory-mapped files."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        command = f"python {command}"
        process = subprocess.Popen(
            [sys.executable, *command.split()[1:]], cwd=home, env=environment, stdout=out, stderr=err
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = round(time.perf_counter() - start, 1)
        figures = {"command": command, "seconds": seconds, "peak_GiB": round(usage.ru_maxrss / 2**20, 2)}
        texts = [(file.seek(0), file.read().strip())[1] for file in (out, err)]
    return {**figures, "exit": process.returncode}, *texts


def own_environment(folder: Path, server: ThreadingHTTPServer) -> dict[str, str]:
    """This process's environment with empty caches, and with the libraries' own variables for addresses."""
    own = ("HF_", "HUGGINGFACE_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    port = server.server_address[1]
    return kept | {
        "HF_HOME": str(folder / "huggingface"), "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "https_proxy": f"http://127.0.0.1:{port}", "no_proxy": "127.0.0.1,localhost",
        "SSL_CERT_FILE": str(folder / "served" / "certificate.pem"),
    }  # fmt: skip


# The servers


@contextmanager
def serve(folder: Path):
    """A server of the prepared files, for all hosts. Its `sent` has, per large file, what each answer
    sent: (first byte, byte after the last)."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    hub = f"http://127.0.0.1:{httpd.server_address[1]}"
    store = f"http://localhost:{httpd.server_address[1]}/store"  # another host, as the hub's file store is
    httpd.files = {f"{OPENI}/{name}": folder / name for name in (REPORTS, IMAGES)}
    httpd.files |= {f"{ASSETS}/{VISION}": folder / VISION, f"{store}/{WEIGHTS}": folder / "base" / WEIGHTS}
    httpd.redirects = {f"{GITHUB}/{VISION}": (f"{ASSETS}/{VISION}", {})}
    httpd.json, tree, siblings = {}, [], []
    for path in sorted((folder / "base").iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size, url = path.stat().st_size, f"{hub}/{BASE}/resolve/{COMMIT}/{path.name}"
        about = {"oid": digest[:40], "size": size, "path": path.name, "type": "file"}
        sibling = {"rfilename": path.name, "size": size, "blobId": digest[:40]}
        if path.name == WEIGHTS:
            about["lfs"] = {"oid": digest, "size": size, "pointerSize": 135}
            sibling["lfs"] = {"sha256": digest, "size": size, "pointerSize": 135}
            linked = {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
            httpd.redirects[url] = f"{store}/{WEIGHTS}", linked
        else:
            httpd.files[url] = path
        tree.append(about)
        siblings.append(sibling)
    for place in (BASE, f"{BASE}/revision/main", f"{BASE}/revision/{COMMIT}"):
        httpd.json[f"{hub}/api/models/{place}"] = {"id": BASE, "sha": COMMIT, "siblings": siblings}
    httpd.json[f"{hub}/api/models/{BASE}/tree/{COMMIT}"] = tree
    httpd.sent = {name: [] for name in (IMAGES, WEIGHTS, VISION)}
    httpd.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    httpd.tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin = None

    def do_CONNECT(self):
        """As the proxy: be the host that is asked for, https included."""
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.origin, self.close_connection = f"https://{self.path.removesuffix(':443')}", False

    def do_GET(self):
        url = (self.origin or f"http://{self.headers['Host']}") + self.path.partition("?")[0]
        if url in self.server.files:
            self.send_file(self.server.files[url])
        elif url in self.server.redirects:
            target, headers = self.server.redirects[url]
            self.answer(302, {"Location": target, **headers})
        elif url in self.server.json:
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(self.server.json[url]).encode())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, path: Path) -> None:
        """The file from the byte that is asked for; of a large one, no further than CUTS says."""
        size, log = path.stat().st_size, self.server.sent.get(path.name)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        n_asked = len(log) if log is not None else len(CUTS) + 1
        end = int(size * CUTS[n_asked]) if n_asked < len(CUTS) else size
        if n_asked == len(CUTS):
            log.append((start, start))
            return self.send_error(403)  # as where a signed address has expired
        headers = {"Content-Length": str(size - start), "X-Repo-Commit": COMMIT}
        headers["ETag"] = f'"{path.name}-{size}"'
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.answer(206 if start else 200, headers)
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(start)
            while (left := end - file.tell()) > 0:
                self.wfile.write(file.read(min(left, 2**20)))
        if log is not None:
            log.append((start, max(start, end)))
        self.close_connection = True

    def finish(self):
        super().finish()
        self.connection.close()

    def log_message(self, *_):
        pass


# The files, made in a process of their own: the memory of this one would count as that of its children.


def prepare(served: Path, full: bool) -> None:
    folder = served.with_suffix(".part")
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was interrupted
    folder.mkdir(parents=True)
    make_certificate(folder)
    write_openi(folder)
    write_vision(folder / VISION)
    write_base(folder / "base", full)
    folder.rename(served)


def make_certificate(folder: Path) -> None:
    hosts = ",".join(f"DNS:{url.split('/')[2]}" for url in (OPENI, GITHUB, ASSETS))
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    command = f"openssl req -x509 {key} -days 2 -subj /CN=local -addext subjectAltName={hosts}".split()
    command += ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    subprocess.run(command, check=True, capture_output=True)


XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><meta type="rr"/><uId id="{uid}"/><docSource>CXR</docSource><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Drawn.</AbstractText>
<AbstractText Label="FINDINGS">{report}</AbstractText><AbstractText Label="IMPRESSION">Drawn.</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>normal</major></MeSH>
<parentImage id="{id}-1001"/><parentImage id="{id}-2001"/></eCitation>"""


def write_openi(folder: Path) -> None:
    """Open-i's two archives, with drawn studies under the numbers of R2Gen's split."""
    import io
    import tarfile

    from PIL import Image

    from llamaxr.data.iu_xray import R2GEN_SPLIT
    from llamaxr.data.phantom import phantom

    def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    split = json.loads(R2GEN_SPLIT.read_text())
    ids = [id for name, n in N_STUDIES.items() for id in split[name][:n]]
    with tarfile.open(folder / REPORTS, "w:gz") as reports, tarfile.open(folder / IMAGES, "w:gz") as images:
        for i, id in enumerate(ids):
            _, films, report = phantom(0, i, size=512)
            uid = id.split("_")[0]
            text = XML.format(uid=uid, id=id, report=report)
            add(reports, f"ecgen-radiology/{uid.removeprefix('CXR')}.xml", text.encode())
            for view, film in ((1001, films[0]), (2001, films[-1])):  # all studies of R2Gen's have two images
                png = io.BytesIO()
                Image.fromarray(film).save(png, "png")
                add(images, f"{id}-{view}.png", png.getvalue())


def write_vision(path: Path) -> None:
    """torchxrayvision's DenseNet-121 with random weights, saved as its published files are: a whole network,
    pickled, in the format from before PyTorch 1.6."""
    import torch
    from torchxrayvision.models import DenseNet

    torch.manual_seed(0)
    net = DenseNet(num_classes=18)
    net.features.norm0.running_var.fill_(1e6)  # pixels reach 1024
    torch.save(net, path, _use_new_zipfile_serialization=False)


def write_base(folder: Path, full: bool) -> None:
    """A Llama with random weights in the form of unsloth's repository: NF4 by bitsandbytes in one file.
    Weights of one shape are the same in all layers."""
    import torch
    from bitsandbytes.functional import quantize_4bit
    from load_8b import CONFIG

    from llamaxr.llama import Llama
    from llamaxr.runs.run import TINY_BASE
    from llamaxr.weights import read_config

    folder.mkdir()
    if full:
        write_llama3_tokenizer(folder)
        config = CONFIG | {"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004}
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY_BASE / name, folder)
        config = json.loads((TINY_BASE / "config.json").read_text()) | {"tie_word_embeddings": False}
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
                 "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
                 "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
                 "bnb_4bit_quant_storage": "uint8", "llm_int8_enable_fp32_cpu_offload": False,
                 "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": None,
                 "llm_int8_threshold": 6.0}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    (folder / "generation_config.json").write_text('{"_from_model_config": true}')
    (folder / "README.md").write_text("A drawn model.")

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return (torch.randn(shape) * 0.02).bfloat16()

    torch.manual_seed(0)
    with torch.device("meta"):
        model = Llama(read_config(folder / "config.json"))
    tensors, nf4 = {}, {}
    for name, parameter in model.named_parameters():
        name, shape = f"model.{name}".replace("model.lm_head", "lm_head"), tuple(parameter.shape)
        if len(shape) == 1:
            tensors[name] = torch.ones(shape).bfloat16()
        elif "_proj" in name:
            if shape not in nf4:
                codes, state = quantize_4bit(normal(shape), quant_type="nf4", compress_statistics=True)
                statistics = state.as_dict(packed=True)
                nf4[shape] = {"": codes} | {f".{key}": part for key, part in statistics.items()}
            tensors |= {name + key: part for key, part in nf4[shape].items()}
        else:
            tensors[name] = normal(shape)
    save_safetensors(folder / WEIGHTS, tensors)


def save_safetensors(path: Path, tensors: dict) -> None:
    """As safetensors' save_file, which refuses tensors that share memory."""
    import torch

    dtypes, header, end = {torch.bfloat16: "BF16", torch.float32: "F32", torch.uint8: "U8"}, {}, 0
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": dtypes[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [begin, end]}  # fmt: skip
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].contiguous().flatten().view(torch.uint8).numpy())


def write_llama3_tokenizer(folder: Path) -> None:
    """Llama 3.1's tokenizer.json, out of the tokenizer.model in the package llama-models."""
    import importlib.util

    from tokenizers import processors
    from transformers.convert_slow_tokenizer import TikTokenConverter

    model = Path(importlib.util.find_spec("llama_models").origin).parent / "llama3" / "tokenizer.model"
    bos = "<|begin_of_text|>"
    special = [bos, "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
    tokenizer = TikTokenConverter(str(model), extra_special_tokens=special).converted()
    template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 128000)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": bos, "eos_token": special[1], "pad_token": special[4]}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    names["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="8B's shapes and Llama 3.1's tokenizer")
    parser.add_argument("--folder", type=Path, help="work here, and keep it (default: a temporary one)")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        return prepare(args.prepare, args.full)
    with tempfile.TemporaryDirectory() as temporary:
        figures = rehearse((args.folder or Path(temporary)).resolve(), args.full)
    path, size = RESULTS / "rehearsal.json", "full" if args.full else "small"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    kept = {name: earlier[name] for name in ("small", "full") if name in earlier}
    base = {"small": "the tiny base's shapes", "full": "Llama 3.1 8B's shapes"}
    configuration = {"base": base, "weights": "random, in NF4", "studies": N_STUDIES}
    write_results("rehearsal", {"configuration": configuration, **kept, size: figures})


if __name__ == "__main__":
    main()
