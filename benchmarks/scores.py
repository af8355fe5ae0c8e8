"""CPU time of the text scores and their intervals on R2Gen's test split; time and memory of 200,000 reports.

    python benchmarks/scores.py ANNOTATION [--studies 20000 200000] [--only split many]

ANNOTATION: R2Gen's annotation.json of IU X-ray. The system under test writes a random training report for
each test study. `split` times the parts of eval.py's table for it, in a process of its own. `many` runs
`eval.py --score` on reports of three to eight random sentences and measures its anonymous memory. WordNet is
found as in eval.py, and METEOR is left out without one; METEOR 1.5 (Java) is always left out. The results are
in benchmarks/results/scores.json.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import RESULTS, Peak, machine, run_script, write_results

STEPS = ("split", "many")


def read_splits(path: Path) -> list[list[str]]:
    """The reports of train, val and test, in this order; in R2Gen's file the key of test is blank."""
    return [[study["report"] for study in studies] for studies in json.loads(path.read_text()).values()]


def time_split(annotation: Path) -> dict:
    """CPU seconds of each part, 590 studies: other work on the machine changes them little."""
    seconds = {}

    @contextlib.contextmanager
    def timed(name: str):
        began = time.process_time()
        yield
        seconds[name] = round(time.process_time() - began, 2)

    with timed("imports"):
        from llamaxr.metrics import table, wordnet
        from llamaxr.metrics.findings import FINDINGS
        from llamaxr.runs.run import CACHE
    train, val, test = read_splits(annotation)
    drawn = np.random.default_rng(0).choice(len(train), len(test), replace=False)
    with timed("opening WordNet"):
        reader = wordnet.find(CACHE / "wordnet")
    with timed("findings of the references"):
        findings = [table.true_findings(text) for text in test]
    evaluation = table.Evaluation(test, [train[i] for i in drawn], findings, FINDINGS, train)
    scorer = table.Scorer(evaluation, reader)
    with timed("text scores"):
        measured = scorer.measure(evaluation.predictions)
    with timed("bootstrap, all groups"):
        for rows in table.groups(evaluation).values():
            scorer.scores(measured, rows)
    with timed("searching the floors"):
        systems = table.all_systems(evaluation, val, None, seed=0)
    with timed("the complete table"):
        table.evaluate(evaluation, systems, scorer)
    return {"studies": len(test), "meteor": reader is not None, "cpu_seconds": seconds}


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
    parser.add_argument("--step", help=argparse.SUPPRESS)  # in the measured process
    options = parser.parse_args()
    if options.step:
        step = time_split if options.step == "split" else score_many
        print(json.dumps(step(options.annotation)))
        return
    path = RESULTS / "scores.json"  # what is not measured now stays in it
    results = json.loads(path.read_text()) if path.is_file() else {}
    results = {part: value for part, value in results.items() if part == "split" or part.endswith("studies")}
    stamp = {"commit": machine()["commit"]}
    if "split" in options.only:
        results["split"] = stamp | run_script(__file__, options.annotation, "--step", "split")
        print(json.dumps(results["split"]))
    for n in options.studies if "many" in options.only else ():
        with tempfile.TemporaryDirectory() as folder:
            write_many(options.annotation, n, Path(folder))
            results[f"{n} studies"] = stamp | run_script(__file__, folder, "--step", "many")
        print(n, "studies:", json.dumps(results[f"{n} studies"]), flush=True)
    source = {
        "command": "python benchmarks/scores.py ANNOTATION",
        "commit": "each part's own",
        "configuration": {"system": "random training reports"},
    }
    write_results("scores", {**source, **results})


if __name__ == "__main__":
    main()
