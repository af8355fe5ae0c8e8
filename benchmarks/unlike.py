"""How often does a run say that an image is unlike those that it learned from? (llamaxr/runs/unlike.py)

    python benchmarks/unlike.py [--run RUN] [--n 200] [--images DIR]

Each kind of image is given to the run as generate.py would get it: drawn studies that training has not seen,
the same films turned, inverted and mirrored, noise, and drawn everyday photographs. Each film is judged by
itself, as the view that it is; noise and photographs as frontal films. DIR holds real radiographs: each is
judged as a frontal and as a lateral film. The results go to benchmarks/results/unlike.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from measure import HOME, write_results
from PIL import Image, ImageDraw, ImageFilter

from llamaxr.data.phantom import phantom
from llamaxr.data.study import Study
from llamaxr.runs import unlike
from llamaxr.runs.features import study_features
from llamaxr.runs.run import DEMO, open_run

SEED, SIZE = 3003, 224  # drawn studies that neither the sample (seed 0) nor the assets (1071, 1002) have
CHANGES = {
    "held-out phantoms": lambda film: film,
    "turned by 90 degrees": lambda film: np.rot90(film, 1),
    "turned by 270 degrees": lambda film: np.rot90(film, 3),
    "mirrored top to bottom": lambda film: film[::-1],
    "mirrored left to right": lambda film: film[:, ::-1],
    "inverted": lambda film: 255 - film,
}


def noise(i: int) -> np.ndarray:
    """Noise of five grains; uint8 (224, 224)."""
    rng, grain = np.random.default_rng((SEED, 1, i)), (1, 2, 4, 16, 56)[i % 5]
    coarse = rng.standard_normal((SIZE // grain, SIZE // grain), dtype=np.float32)
    values = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.clip(128 + 60 * values, 0, 255).astype(np.uint8)


def photograph(i: int) -> np.ndarray:
    """An everyday scene in grey, drawn: hills, a house, a face, clutter, a page; uint8 (224, 224)."""
    rng = np.random.default_rng((SEED, 2, i))
    grey = lambda low=0, high=255: int(rng.integers(low, high))
    image = Image.new("L", (SIZE, SIZE), grey(60))
    pen = ImageDraw.Draw(image)
    if i % 5 == 0:
        sky = np.linspace(grey(150), grey(80, 200), SIZE)[:, None].repeat(SIZE, 1)
        image = Image.fromarray(sky.astype(np.uint8))
        pen, ridge = ImageDraw.Draw(image), grey(90, 160) + rng.normal(0, 18, 12)
        hills = zip(np.linspace(0, SIZE, 12).tolist(), ridge.tolist(), strict=True)
        pen.polygon([(0, SIZE), *hills, (SIZE, SIZE)], fill=grey(20, 120))
        pen.ellipse([30, 20, 70, 60], fill=255)
    elif i % 5 == 1:
        pen.rectangle([0, 150, SIZE, SIZE], fill=grey())
        pen.rectangle([50, 90, 170, 190], fill=grey())
        pen.polygon([(40, 90), (110, 40), (180, 90)], fill=grey())
        pen.rectangle([70, 110, 95, 140], fill=grey())
        pen.rectangle([120, 120, 150, 190], fill=grey())
    elif i % 5 == 2:
        pen.ellipse([50, 20, 175, 210], fill=grey(120, 230))
        for x in (85, 140):
            pen.ellipse([x - 14, 85, x + 14, 105], fill=250)
            pen.ellipse([x - 6, 88, x + 6, 102], fill=20)
        pen.arc([80, 130, 145, 175], 10, 170, fill=40, width=6)
        pen.pieslice([45, 10, 180, 130], 180, 360, fill=grey(10, 80))
    elif i % 5 == 3:
        for _ in range(40):
            (x, y), (width, height) = rng.integers(0, SIZE, 2).tolist(), rng.integers(8, 70, 2).tolist()
            shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
            shape([x, y, x + width, y + height], fill=grey())
    else:
        pen.rectangle([0, 0, SIZE, SIZE], fill=245)
        for y in range(20, 210, 9):
            x = 15
            while x < 200:
                width = grey(5, 28)
                pen.rectangle([x, y, x + width, y + 4], fill=40)
                x += width + 5
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2)))))


def distances(known: unlike.Known, vision, device, films: list[tuple[int, np.ndarray]]) -> list[float]:
    """The distance of each (view, film) by itself, by way of a PNG file."""
    with tempfile.TemporaryDirectory() as folder:
        studies = []
        for i, (view, film) in enumerate(films):
            path = Path(folder, f"{i}.png")
            Image.fromarray(np.ascontiguousarray(film)).save(path, compress_level=1)
            studies.append(Study(str(i), *((path, None) if view == 0 else (None, path)), "", "test"))
        return unlike.distances(known, study_features(vision, studies, device))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=DEMO, help="run to ask (default: the embedded demo)")
    parser.add_argument("--n", type=int, default=200, help="drawn studies, and images of each other kind")
    parser.add_argument("--images", type=Path, help="folder of real radiographs")
    args = parser.parse_args()
    trained, vision, model, checkpoint = open_run(args.run, "cpu")
    device = model.projector.place.device
    if (known := checkpoint.known) is None:
        sys.exit(f"error: {checkpoint.folder} is older than {unlike.FILE}; train again")

    films = [(view, film) for i in range(args.n) for view, film in enumerate(phantom(SEED, i)[1])]
    kinds = {name: [(view, change(film)) for view, film in films] for name, change in CHANGES.items()}
    kinds |= {"noise": [(0, noise(i)) for i in range(args.n)]}
    kinds |= {"photographs": [(0, photograph(i)) for i in range(args.n)]}
    shares = {}
    for kind, images in kinds.items():
        found = np.array(distances(known, vision, device, images))
        by_view = {
            name: found[[v == view for v, _ in images]] for view, name in enumerate(("frontal", "lateral"))
        }
        shares[kind] = {"images": len(found), "warned": float((found > 1).mean())} | {
            f"warned_{name}": float((d > 1).mean()) for name, d in by_view.items() if len(d)
        }
        shares[kind]["median_distance"] = float(np.median(found))
        print(f"{kind:24s} {shares[kind]}", flush=True)

    real = {}
    for path in sorted(args.images.glob("*.png")) if args.images else ():
        studies = [Study("0", path, None, "", "test"), Study("1", None, path, "", "test")]
        found = unlike.distances(known, study_features(vision, studies, device))
        real[path.name] = dict(zip(("as_frontal", "as_lateral"), found, strict=True))
        print(f"{path.name:24s} {real[path.name]}", flush=True)

    features = study_features(
        vision, [Study("0", HOME / "llamaxr/assets/example.png", None, "", "test")], device
    )
    seconds = []
    for _ in range(21):
        start = time.perf_counter()
        unlike.distances(known, features)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    command = [sys.executable, "generate.py", "llamaxr/assets/example.png", "--run", args.run]
    subprocess.run(command, cwd=HOME, check=True, capture_output=True)
    cost = {"seconds": median(seconds), "generate_seconds": time.perf_counter() - start}
    cost["share"] = cost["seconds"] / cost["generate_seconds"]
    print(cost)
    configuration = {"run": args.run.name, "checkpoint": checkpoint.folder.name, "data": trained.data,
                     "vision": trained.vision, "directions": unlike.DIRECTIONS,
                     "quantile": unlike.QUANTILE}  # fmt: skip
    write_results("unlike", {"seed": SEED, "configuration": configuration, "shares": shares,
                             "real_radiographs": real, "cost": cost})  # fmt: skip


if __name__ == "__main__":
    main()
