"""How long the text scores and their intervals take on R2Gen's test split, and what 200,000 reports need.

    python benchmarks/scores.py ANNOTATION [--studies 20000 200000] [--only split many]

ANNOTATION: R2Gen's annotation.json of IU X-ray. The system under test writes for each test study a training
report drawn at random. `split` times the parts of eval.py's table for it in a process of its own; `many` runs
`eval.py --score` on files of reports of three to eight sentences each, drawn from all reports, and watches
its anonymous memory. WordNet is looked for as eval.py does, METEOR left out without one; METEOR 1.5 (Java) is
left out always. Figures: benchmarks/results/scores.json.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import RESULTS, Peak, in_a_process, machine, write_results

STEPS = ("split", "many")


def read_splits(path: Path) -> list[list[str]]:
    """The reports of train, val and test: in this order, the last under a blank name in R2Gen's file."""
    return [[study["report"] for study in studies] for studies in json.loads(path.read_text()).values()]


def time_split(annotation: Path) -> dict:
    """Seconds of each part, 590 studies."""
    seconds = {}

    @contextlib.contextmanager
    def timed(name: str):
        began = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - began, 2)

    with timed("imports"):
        from llamaxr.metrics import table, wordnet
        from llamaxr.metrics.findings import FINDINGS
        from llamaxr.runs.run import CACHE
    train, val, test = read_splits(annotation)
    drawn = np.random.default_rng(0).choice(len(train), len(test), replace=False)
    with timed("opening WordNet"):
        reader = wordnet.find(CACHE / "wordnet")
    with timed("findings of the references"):
        truths = [table.truth_of(text) for text in test]
    judged = table.Judged(test, [train[i] for i in drawn], truths, FINDINGS, train)
    scorer = table.Scorer(judged, reader)
    with timed("text scores"):
        measured = scorer.measure(judged.generated)
    with timed("bootstrap, all groups"):
        for rows in table.groups(judged).values():
            scorer.scores(measured, rows)
    with timed("writing the floors"):
        written = table.writers(judged, val, None, seed=0)
    with timed("the whole table"):
        table.judge(judged, written, scorer)
    return {"studies": len(test), "meteor": reader is not None, "seconds": seconds}


def write_many(annotation: Path, n: int, folder: Path) -> None:
    """reports.jsonl of n studies, and train.jsonl, in eval.py --score's form."""
    splits, rng = read_splits(annotation), np.random.default_rng(0)
    sentences = [s for reports in splits for report in reports for s in report.split(". ")]

    def draw() -> str:
        return ". ".join(sentences[i] for i in rng.integers(len(sentences), size=rng.integers(3, 9)))

    with (folder / "reports.jsonl").open("w") as file:
        for i in range(n):
            file.write(json.dumps({"id": str(i), "reference": draw(), "generated": draw()}) + "\n")
    (folder / "train.jsonl").write_text("".join(json.dumps(report) + "\n" for report in splits[0]))


def score_many(folder: Path) -> dict:
    import eval as script  # eval.py

    began, cpu = time.perf_counter(), time.process_time()
    with Peak() as peak, contextlib.redirect_stdout(io.StringIO()):
        script.main(["--score", f"{folder}/reports.jsonl", "--train-reports", f"{folder}/train.jsonl"])
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    return {**peak.figures(), "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotation", type=Path, help="R2Gen's annotation.json of IU X-ray")
    parser.add_argument("--studies", type=int, nargs="+", default=[20_000, 200_000], help="sizes for `many`")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="these measurements")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # within the process that is measured
    options = parser.parse_args()
    if options.step:
        step = time_split if options.step == "split" else score_many
        print(json.dumps(step(options.annotation)))
        return
    kept = RESULTS / "scores.json"  # what is not measured now stays as it was
    results = json.loads(kept.read_text()) if kept.is_file() else {}
    results.pop("machine", None)
    stamp = {"commit": machine()["commit"]}
    if "split" in options.only:
        results["split"] = stamp | in_a_process(__file__, options.annotation, "--step", "split")
        print(json.dumps(results["split"]))
    for n in options.studies if "many" in options.only else ():
        with tempfile.TemporaryDirectory() as folder:
            write_many(options.annotation, n, Path(folder))
            results[f"{n} studies"] = stamp | in_a_process(__file__, folder, "--step", "many")
        print(n, "studies:", json.dumps(results[f"{n} studies"]), flush=True)
    write_results("scores", results)


if __name__ == "__main__":
    main()
