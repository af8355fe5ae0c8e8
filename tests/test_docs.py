"""README and docs say what is true: their figures are those of benchmarks/results, their line counts those of
the files, and every path, link and command in them exists.
"""

import json
import re
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
RESULTS = sorted((HOME / "benchmarks" / "results").glob("*.json"))
README, RESULTS_DOC = HOME / "README.md", HOME / "docs" / "results.md"
DOCS = [README, *sorted((HOME / "docs").glob("*.md"))]
FACTS = ("command", "commit", "date", "machine", "seed", "configuration")

# A row's label -> results file and system. The GPU's tables come in this order, for each group of studies.
GPU_ROWS = {
    "`tokens`": ("iu_tokens", "system"),
    "`tokens`, its outlines alone": ("iu_tokens", "outline"),
    "`tokens`, its outlines in training sentences": ("iu_tokens", "template"),
    "`tokens`, swapped": ("iu_tokens", "swapped"),
    "`both`": ("iu_both", "system"),
    "`both`, its outlines alone": ("iu_both", "outline"),
    "`both`, swapped": ("iu_both", "swapped"),
    "`paper` at 2e-4": ("iu_paper_2e-4", "system"),
    "`paper` at 2e-4, swapped": ("iu_paper_2e-4", "swapped"),
    "`paper` at 2e-6": ("iu_paper_2e-6", "system"),
    "`paper` at 2e-6, swapped": ("iu_paper_2e-6", "swapped"),
    "`tokens`, films of another style": ("iu_tokens_other_style", "system"),
    "`tokens`, films of another style, its outlines alone": ("iu_tokens_other_style", "outline"),
    "`both`, films of another style": ("iu_both_other_style", "system"),
    "`both`, films of another style, its outlines alone": ("iu_both_other_style", "outline"),
    "nearest training image's report": ("iu_nearest", "standardised"),
    "nearest training image's report, not standardised": ("iu_tokens", "nearest"),
    "nearest training image's report, films of another style": (
        "iu_nearest",
        "standardised, films of another style",
    ),
    "nearest training image's report, not standardised, films of another style": (
        "iu_tokens_other_style",
        "nearest",
    ),
    "random training report": ("iu_tokens", "random"),
    "best constant report": ("iu_tokens", "constant"),
}
# The rows of "Real reports, simulated images". NEAREST is of each run's own features.
MAIN, STYLE, FIFTH = (
    "iu_tokens_half_outlines",
    "iu_tokens_half_outlines_other_style",
    "iu_tokens_better_vision",
)
NEAREST, ON_STYLE = "nearest training image's report", ", films of another style"
OF_FIFTH = "`tokens`, a fifth of the steps on outlines"
MAIN_ROWS = {
    "`tokens`": (MAIN, "system"),
    "`tokens`, its outlines alone": (MAIN, "outline"),
    "`tokens`, its outlines in training sentences": (MAIN, "template"),
    "`tokens`, swapped": (MAIN, "swapped"),
    NEAREST: (MAIN, "nearest"),
    "the same findings for everybody": (MAIN, "frequent"),
    "random training report": (MAIN, "random"),
    "best constant report": (MAIN, "constant"),
    f"`tokens`{ON_STYLE}": (STYLE, "system"),
    f"`tokens`{ON_STYLE}, its outlines alone": (STYLE, "outline"),
    f"{NEAREST}{ON_STYLE}": (STYLE, "nearest"),
    OF_FIFTH: (FIFTH, "system"),
    f"{OF_FIFTH}, its outlines alone": (FIFTH, "outline"),
    f"{OF_FIFTH}, swapped": (FIFTH, "swapped"),
    f"{NEAREST}, for a fifth of the steps on outlines": (FIFTH, "nearest"),
}
# README's row -> as above.
README_IU_ROWS = {
    "recipe `ours`, settings for 135M": "system",
    "its outlines in training sentences": "template",
    "nearest training image's report": "nearest",
    "random training report": "random",
    "best constant report": "constant",
}
IU_TABLES = [(group, block) for group in ("all", "abnormal") for block in ("findings", "llama_xr", "coco")]
IU_COLUMNS = {
    "findings": {
        "precision": "findings.micro_precision",
        "recall": "findings.micro_recall",
        "F1": "findings.micro_f1",
        "macro F1": "findings.macro_f1",
        "sides right": "findings.sides_right",
        "of": "findings.sides_named",
        "distinct reports": "reports.distinct",
    },
    "llama_xr": {"ROUGE-L": "llama_xr.rouge_l", "METEOR": "llama_xr.meteor"},
    "coco": {"ROUGE-L": "coco.rouge_l", "CIDEr": "coco.cider"},
}
DEMO_ROWS = {
    "the embedded demo": "system",
    "its reports, swapped between studies": "swapped",
    "nearest training image's report": "nearest",
    "random training report": "random",
    "best constant report": "constant",
}
# A row's label -> results file, and where in it our figure, the peer's and their ratio are; None: not stored.
PEER_ROWS = {
    "training, studies per second": (
        "train_peer", "studies_per_s/ours", "studies_per_s/peer", "speed_ratio"),
    "training, peak GiB": (
        "train_peer", "peak_anonymous_GiB/ours", "peak_anonymous_GiB/peer", "memory_ratio"),
    "one report, tokens per second": (
        "decode_one", "tokens_per_second/ours", "tokens_per_second/peer", "ratio/peer"),
    "one report, peak GiB": (
        "decode_one", "peak_anonymous_GiB/ours", "peak_anonymous_GiB/peer", None),
    "64 reports at once, reports per second": (
        "decode_batch", "reports_per_second/ours", "reports_per_second/peer", "ratio/peer"),
    "64 reports at once, peak GiB": (
        "decode_batch", "peak_anonymous_GiB/ours", "peak_anonymous_GiB/peer", None),
    "loading as NF4, seconds": (
        "load_peer", "seconds/ours", "seconds/peer", "seconds/ratio"),
    "loading as NF4, peak MiB, libraries included": (
        "load_peer", "peak_anonymous_MiB/ours", "peak_anonymous_MiB/peer", "peak_anonymous_MiB/ratio"),
    "loading as NF4, peak MiB, libraries left out": (
        "load_peer", "added_MiB/ours", "added_MiB/peer", "added_MiB/ratio"),
    "start of `generate.py` to the first token, seconds": (
        "first_token", "first_token_s/ours", "first_token_s/peer", "first_token_s/ratio"),
    "8B shapes: loading as NF4, seconds": ("load_8b", "ours/load/seconds", "peer/load/seconds", None),
    "8B shapes: loading as NF4, peak GiB": (
        "load_8b", "ours/load/peak_anonymous_GiB", "peer/load/peak_anonymous_GiB", None),
    "8B shapes: a training step, seconds": ("load_8b", "ours/step/seconds", "peer/step/seconds", None),
    "8B shapes: a training step, peak GiB": (
        "load_8b", "ours/step/peak_anonymous_GiB", "peer/step/peak_anonymous_GiB", None),
    "8B shapes: 16 tokens, seconds": (
        "load_8b", "ours/generate_16/seconds", "peer/generate_16/seconds", None),
    "8B shapes: 16 tokens, peak GiB": (
        "load_8b", "ours/generate_16/peak_anonymous_GiB", "peer/generate_16/peak_anonymous_GiB", None),
}  # fmt: skip


def result(name: str, path: str = ""):
    value = json.loads((HOME / "benchmarks" / "results" / f"{name}.json").read_text())
    for key in filter(None, path.split("/")):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value["median"] if isinstance(value, dict) and "median" in value else value


def tables(path: Path, heading: str) -> list[list[dict[str, str]]]:
    """The tables below a heading, each a list of rows: {column's title: cell}. The first column's is ""."""
    section = re.split(rf"^## {re.escape(heading)}$", path.read_text(), flags=re.MULTILINE)[1]
    found = []
    for block in section.split("\n## ")[0].split("\n\n"):
        if block.lstrip().startswith("|"):
            titles, _, *rows = [
                [cell.strip() for cell in line[1:-1].split("|")] for line in block.strip().splitlines()
            ]
            found.append([dict(zip(titles, row, strict=True)) for row in rows])
    return found


def agrees(cell: str, values: list[float]) -> bool:
    """Whether the numbers in a cell are these values, each rounded to as many digits as the cell has."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", cell)
    return len(numbers) == len(values) and all(
        abs(float(number) - value) <= 0.5001 * 10.0 ** -len(number.partition(".")[2])
        for number, value in zip(numbers, values, strict=True)
    )


def test_the_iu_x_ray_tables_are_the_results():
    for heading, rows_of, blocks in (
        ("Real reports, simulated images", MAIN_ROWS, IU_TABLES[:3]),
        ("On a GPU, with other features", GPU_ROWS, IU_TABLES),
    ):
        of_rows, *found, of_seeds = tables(RESULTS_DOC, heading)
        check_tables(rows_of, blocks, found, of_seeds)
        for row in of_rows:
            configuration = result(row["file"].strip("`").removesuffix(".json"), "configuration")
            assert row["seeds"] == ", ".join(map(str, configuration["seeds"]))
    (rows,) = tables(RESULTS_DOC, "Where findings are lost")
    for row in rows:
        scores = result("iu_lost", f"findings/{row['']}")
        assert agrees(row["micro F1"], scores["micro_f1"]) and agrees(row["macro F1"], scores["macro_f1"])
        assert agrees(row["behind the row above, paired"], scores.get("behind", []))


def check_tables(rows_of: dict, blocks: list, found: list, of_seeds: list) -> None:
    """Tables of one group of studies and one kind of score each, and the one of each seed."""
    for (group, block), rows in zip(blocks, found, strict=True):
        for row in rows:
            name, system = rows_of[row.pop("")]
            scores = result(name, f"scores/{group}/{system}")
            for title, cell in row.items():
                if title == "BLEU-1 to -4":
                    assert agrees(cell, scores[f"{block}.bleu_1_to_4"])
                elif cell:
                    value = scores[IU_COLUMNS[block][title]]
                    value = value[:1] if title in ("of", "distinct reports") else value
                    assert agrees(cell, value), (group, name, system, title)
    for row in of_seeds:
        name, _ = rows_of[row[""]]
        seeds = result(name, "configuration/seeds")
        run = result(name, f"seeds/{seeds.index(int(row['seed']))}")
        scores, outlines, ahead = run["scores"], run["outline"], run["ahead of nearest"]
        kept = scores["findings.micro_f1"][0] / outlines["findings.micro_f1"][0]
        for cell, values in (
            ("F1", scores["findings.micro_f1"]), ("outlines' F1", outlines["findings.micro_f1"]),
            ("kept", [kept]), ("macro F1", scores["findings.macro_f1"]),
            ("sides right", scores["findings.sides_right"]),
            ("critical", [run["critical"]["found"], run["critical"]["invented"]]),
            ("F1 ahead of nearest", ahead["findings.micro_f1"]),
            ("macro F1 ahead of nearest", ahead["findings.macro_f1"]),
        ):  # fmt: skip
            assert agrees(row[cell], values), (row[""], row["seed"], cell)


def test_the_readmes_iu_x_ray_table_is_the_results():
    (rows,) = tables(README, "Does it look at the image?")
    assert [row[""] for row in rows] == list(README_IU_ROWS)
    for row in rows:
        system, scores = README_IU_ROWS[row[""]], result(MAIN, "scores/all")
        assert agrees(row["findings F1"], scores[system]["findings.micro_f1"])
        assert agrees(row["ROUGE-L"], scores[system]["llama_xr.rouge_l"])
        if system == "system":
            assert agrees(row["swapped"], scores["swapped"]["findings.micro_f1"][:1])
        if row["sides right"]:
            (share, *_), (named, *_) = (scores[system][f"findings.sides_{x}"] for x in ("right", "named"))
            assert agrees(row["sides right"], [share * named, named])


def test_what_was_chosen_on_val_is_the_result():
    (rows,) = tables(RESULTS_DOC, "Chosen on val")
    columns = {"seeds": "seeds", "F1": "reports_f1", "outlines' F1": "outlines_f1", "macro F1": "macro_f1",
               "critical F1": "critical_f1", "sides right": "sides_right",
               "F1 at the lowest loss": "reports_f1_at_the_lowest_loss"}  # fmt: skip
    settings = result("iu_choices", "settings")
    assert [row[""] for row in rows] == list(settings)
    for row in rows:
        assert all(agrees(row[title], [settings[row[""]][key]]) for title, key in columns.items()), row[""]


def test_the_demo_table_is_the_result():
    (rows,) = tables(RESULTS_DOC, "The drawn sample")
    assert [DEMO_ROWS[row[""]] for row in rows] == list(DEMO_ROWS.values())
    for row in rows:
        scores = result("sample_demo", f"scores/all/{DEMO_ROWS[row['']]}")
        assert agrees(row["ROUGE-L"], scores["llama_xr.rouge_l"])
        assert agrees(row["findings F1"], scores["findings.micro_f1"])


def macro_f1_of_true_classes(name, writer):
    """From a file's counts: the mean F1 over the findings that are true of some study."""
    counts = result(name, "classes")
    of_writer = [
        counts["columns"].index(f"{writer} {key}") for key in ("right", "wrong_side", "missed", "invented")
    ]
    f1 = []
    for finding in counts.keys() - {"columns", "no finding"}:
        right, wrong_side, missed, invented = (counts[finding][i] for i in of_writer)
        found = right + wrong_side
        f1 += [2 * found / (2 * found + missed + invented)] if found + missed else []
    return sum(f1) / len(f1)


def test_what_the_text_says_of_them_is_the_result():
    readme, doc = (" ".join(path.read_text().split()) for path in (README, RESULTS_DOC))
    scores = result("sample_demo", "scores/all/system")
    (share, *_), (named, *_) = scores["findings.sides_right"], scores["findings.sides_named"]
    assert f"{share * named:.0f} of {named:.0f} sides right" in readme
    interval = lambda values: "{:.3f} [{:.3f}, {:.3f}]".format(*values)
    assert f"an F1 of {interval(scores['findings.micro_f1'])}" in readme
    assert f"{result('sample_demo', 'reports that err')} of 300 err" in readme
    f1 = lambda name, system: result(name, f"scores/all/{system}/findings.micro_f1/0")
    span = lambda values: f"{min(values):.3f} to {max(values):.3f}"
    # The main runs
    cost = result(MAIN, "differences/swapped/findings.micro_f1")
    assert f"costs {interval(cost)} of its findings F1" in doc and f"costs {cost[0]:.3f}" in readme
    seeds = result(MAIN, "seeds")
    outlines, reports = ([row["findings.micro_f1"][0] for row in rows] for rows in (
        [seed["outline"] for seed in seeds], [seed["scores"] for seed in seeds]))  # fmt: skip
    words = f"({span(outlines)}) are ahead of the nearest report with two, the reports ({span(reports)})"
    assert f"three seeds {words} with none, and behind with one" in readme and len(seeds) == 3
    leads = [result("iu_nearest", f"outlines ahead of nearest/{MAIN}, seed {i}") for i in range(3)]
    assert sum(lead["findings.micro_f1"][1] > 0 for lead in leads) == 2
    for lead in [*leads, result("iu_nearest", f"outlines ahead of nearest/{FIFTH}, seed 0")]:
        assert lead["findings.macro_f1"][1] > 0
        assert f"{interval(lead['findings.micro_f1'])} and {interval(lead['findings.macro_f1'])}" in doc
    assert sum(seed["ahead of nearest"]["findings.micro_f1"][2] < 0 for seed in seeds) == 1
    for seed in seeds + result(FIFTH, "seeds"):  # an end of 0.001 is as good as zero, says results.md
        lead = seed["ahead of nearest"]["findings.micro_f1"]
        assert interval(lead) in doc and lead[1] < 0.001
    found = result(MAIN, "critical")
    for system, words in ("outline", "outlines name {} ({})"), ("nearest", "the nearest reports {} ({})."):
        assert words.format(found[system]["found"], found[system]["invented"]) in doc
    for seed in seeds:
        assert f"{seed['critical']['found']} ({seed['critical']['invented']}" in doc
    of_style = [seed["scores"]["findings.micro_f1"][0] for seed in result(STYLE, "seeds")]
    falls, lost = "falls to {:.3f} and {:.3f}".format(*of_style), result(STYLE, "differences/swapped")
    assert falls in doc and falls in readme
    assert f"swapping costs {interval(lost['findings.micro_f1'])} of it" in doc
    assert f"same findings for everybody have {f1(MAIN, 'frequent'):.3f}" in readme
    # Those from a GPU
    tokens, other = "iu_tokens", "iu_tokens_other_style"
    cost, ahead = (result(tokens, f"differences/{x}/findings.micro_f1") for x in ("swapped", "nearest"))
    assert f"costs {interval(cost)} of its findings F1" in doc
    assert f"that nearest report by {interval(ahead)}" in doc
    assert (
        f"has {interval(result('iu_nearest', 'scores/all/standardised/findings.micro_f1'))} on vision" in doc
    )
    on_gpu = [f1(name, "system") for name in ("iu_tokens", "iu_both", "iu_paper_2e-6")]
    assert "`ours` had {:.3f}, `--bridge both` {:.3f}, recipe `paper` {:.3f}".format(*on_gpu) in readme
    assert f"falls to {f1(other, 'system'):.3f}" in doc
    found = result(tokens, "critical")
    found["nearest"] = result("iu_nearest", "critical/standardised")
    for system, words in (("outline", "the outlines name {} (and {}"), ("system", "the reports {} ({})"),
                          ("nearest", "the nearest reports {:.0f} ({:.0f}).")):  # fmt: skip
        assert words.format(found[system]["found"], found[system]["invented"]) in doc
    macro = [macro_f1_of_true_classes(name, "system") for name in ("iu_tokens", "iu_both")]
    macro.append(result("iu_nearest", "scores/all/standardised/findings.macro_f1")[0])
    words = "macro F1 is {:.3f} for `tokens`, {:.3f} for `both` and {:.3f} for the nearest report"
    assert words.format(*macro) in doc
    sample, iu_xray = (result("torchrun", f"{data}/efficiency") for data in ("sample", "iu_xray"))
    assert f"an efficiency of {sample:.2f} on the sample and {iu_xray:.2f} on SmolLM2" in doc
    constant, nearest = (
        result("sample_demo", f"differences/{x}") for x in ("constant/rouge_l", "nearest/micro_f1")
    )
    assert f"ahead of one constant report by {interval(constant)}" in doc and constant[1] > 0
    assert f"of the nearest report by {interval(nearest)}" in doc
    unlike = result("unlike", "shares/held-out phantoms")
    assert f"({unlike['warned']:.1%})" in doc and unlike["warned"] < 0.01


def test_the_training_table_is_the_result():
    (table,) = tables(README, "Train it")
    rows = {row["base"]: row["without a GPU"] for row in table}
    (on_gpu,) = (row for row in table if row["base"] == "Llama 3.1 8B, NF4")
    measured = result("gpu", "mended/training/fast")
    assert agrees(on_gpu["GPU memory"], [measured["peak_GiB"]])
    assert agrees(on_gpu["GPU time"].removesuffix(" (H200)"), [measured["studies_per_s"]])
    train = next(step for step in result("spine", "steps") if step["step"] == "train")
    assert agrees(rows["tiny (embedded)"], [train["seconds"], train["peak_MiB"] / 1024])
    peer = "train_peer"
    measured = [result(peer, "studies_per_s/ours"), result(peer, "peak_anonymous_GiB/ours")]
    assert agrees(rows["SmolLM2-135M, NF4"], measured)
    (on_gpu,) = (row for row in table if row["base"] == "SmolLM2-135M, NF4")
    seconds = result("iu_tokens", "configuration/seconds_of_training")
    assert on_gpu["GPU time"] == f"{seconds.split(',')[0]} s (H200, 14 at once)"
    step = result("load_8b", "ours/step")
    assert agrees(rows["Llama 3.1 8B, NF4"], [step["seconds"], step["peak_anonymous_GiB"]])


def test_the_peer_table_is_the_results():
    rows = tables(RESULTS_DOC, "Beside transformers + PEFT + bitsandbytes")[0]
    assert {row[""] for row in rows} == set(PEER_ROWS)
    for row in rows:
        name, ours, peer, ratio = PEER_ROWS[row[""]]
        ours, peer = result(name, ours), result(name, peer)
        assert row["results file"] == f"`{name}.json`"
        assert agrees(row["ours"], [ours]) and agrees(row["peer"], [peer]), row
        expected = list(result(name, ratio).values()) if ratio else [ours / peer]
        assert agrees(row["ours / peer"], expected if "[" in row["ours / peer"] else expected[:1]), row


def test_the_gpu_table_is_the_result():
    (rows,) = tables(RESULTS_DOC, "On a GPU")
    training = {"plain": "training/plain", "fast": "training/fast", "peer": "peer/training"}
    for row in rows:
        what, _, figure = row.pop("").rpartition(", ")
        figure = {"positions per second": "positions_per_s", "tokens per second": "tokens_per_s",
                  "peak GiB": "peak_GiB"}[figure]  # fmt: skip
        n = {"one report": "1", "64 reports": "64"}.get(what)
        for column, cell in row.items():
            if n:
                where = {"plain": f"decoding/plain_{n}", "fast": f"decoding/graph_{n}",
                         "peer": f"peer/decoding_{n}"}.get(column, f"mended/decoding/graph_{n}")  # fmt: skip
            else:
                mended = "fast" if "8" in what else "fast_of_32"
                where = training.get(column, f"mended/training/{mended}")
            assert not cell or agrees(cell, [result("gpu", f"{where}/{figure}")]), (what, column)


def test_the_other_tables_are_the_results():
    (rows,) = tables(RESULTS_DOC, "Rates and soft tokens")
    assert {row["setting"] for row in rows} == set(result("sweep", "settings"))
    assert all(agrees(row["findings F1"], result("sweep", "settings")[row["setting"]]) for row in rows)
    (rows,) = tables(RESULTS_DOC, "The findings labeller against Open-i's indexers")
    for row in rows:
        both, alone = result("findings", f"scores/{row['split']}").values()
        assert agrees(row["studies"], [both["studies"]])
        for score in ("micro", "macro"):
            assert agrees(row[f"{score} F1"], both[f"{score}_f1"])
            assert agrees(row[f"FINDINGS alone: {score} F1"], alone[f"{score}_f1"])
    rows = {row["what"]: row for row in tables(RESULTS_DOC, "The whole way through")[0]}
    steps = result("spine", "steps")
    for what, name in (
        ("training on the sample, drawing included", "train"),
        ("evaluation of its 300 test studies", "eval"),
        ("`generate.py` on one radiograph, the slowest of seven", "generate"),
    ):
        slowest = max((step for step in steps if step["step"] == name), key=lambda step: step["seconds"])
        assert agrees(rows[what]["seconds"], [slowest["seconds"]])
        assert agrees(rows[what]["peak GiB"], [slowest["peak_MiB"] / 1024])
    seconds = result("scores", "split/cpu_seconds")
    for what, name in (
        ("text scores of 590 studies with METEOR, of CPU", "text scores"),
        ("searching its floors, of CPU", "searching the floors"),
        ("the complete table of 590 studies, floors already found, of CPU", "the complete table"),
    ):
        assert agrees(rows[what]["seconds"], [seconds[name]])
    for n in (20_000, 200_000):
        row, measured = rows[f"the complete table of {n:,} studies"], result("scores", f"{n} studies")
        assert agrees(row["seconds"], [measured["seconds"]])
        assert agrees(row["peak GiB"], [measured["peak_anonymous_GiB"]])


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_is_one_small_table_with_where_it_came_from(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300 and max(map(len, lines)) <= 200
    value = json.loads(path.read_text())
    assert [fact for fact in FACTS if value.get(fact) in (None, "")] == []
    assert f"`{path.name}`" in RESULTS_DOC.read_text()


def test_all_results_together_are_small():
    assert sum(len(path.read_text().splitlines()) for path in RESULTS) <= 5000


def test_readme_is_short_and_says_what_it_must():
    lines = README.read_text().splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 110
    words = re.findall(r"\b[0-9a-f]{7,40}\b", README.read_text())
    assert [word for word in words if not word.isdigit() and not word.isalpha()] == []  # no commit
    assert "pip install -r requirements.txt && python train.py --data sample" in lines
    assert "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest" in lines
    assert "No output of this program is for clinical use." in README.read_text()


def test_readme_counts_the_lines_of_the_core_and_the_scripts():
    rows = {row["file"].strip("`"): int(row["lines"]) for row in tables(README, "Read it")[0]}
    files = {path.relative_to(HOME).as_posix() for path in (HOME / "llamaxr").glob("*.py")}
    assert set(rows) == files - {"llamaxr/__init__.py"} | {"train.py", "generate.py", "eval.py"}
    assert rows == {file: len((HOME / file).read_text().splitlines()) for file in rows}
    core = sum(n for file, n in rows.items() if file.startswith("llamaxr/"))
    assert f"these {core:,} lines" in README.read_text()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_path_link_and_script_exists(path):
    text = path.read_text()
    named = set(re.findall(r"(?<![\w/.])(?:llamaxr|docs|benchmarks|tests)/[\w/.-]*\w", text))
    named |= {f"{name}.py" for name in re.findall(r"python ([\w/]+)\.py", text)}
    modules = re.findall(r"python -m (llamaxr[\w.]*\w)", text)
    named |= {module.replace(".", "/") + ".py" for module in modules}
    assert [name for name in sorted(named) if not (HOME / name).exists()] == []
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_result_that_the_results_page_names_exists():
    named = set(re.findall(r"`([\w-]+\.json)`", RESULTS_DOC.read_text()))
    assert named == {path.name for path in RESULTS}
