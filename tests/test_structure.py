"""The rule that holds the project together, its line budgets, and what no library file does.

Read from the source with ast; nothing is imported.
"""

import ast
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
PACKAGE = HOME / "llamaxr"
SCRIPTS = ("train.py", "generate.py", "eval.py")
# wing -> what it may import besides the core and itself: other wings, or single files of them
MAY_IMPORT = {
    "files": set(),
    "fast": {"files"},
    "metrics": {"files", "data/study.py"},
    "data": {"files", "metrics/findings.py"},
    "runs": {"files", "fast", "data", "metrics"},
    "report_page": {"files", "data", "metrics", "runs"},
    "tools": {"files", "fast", "data", "metrics", "runs", "report_page"},
}
BUDGETS = {
    "llamaxr/llama.py": 235,
    "llamaxr/lora.py": 50,
    "llamaxr/nf4.py": 80,
    "train.py": 180,
    "generate.py": 110,
    "eval.py": 160,
}
FORBIDDEN_NAMES = {"print", "input", "argparse"}
FORBIDDEN_ATTRIBUTES = {"os.environ", "os.environb", "os.getenv", "os.putenv", "sys.argv"}
FORBIDDEN_IMPORTS = {"ArgumentParser", "environ", "getenv", "argv"}


def n_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def files_of(wing: str) -> list[Path]:
    return sorted((PACKAGE / wing).glob("*.py"))


def imports(path: Path) -> set[str]:
    """The files of the package that a file imports, relative to llamaxr/: "llama.py", "data/study.py"."""
    found = set()
    package = path.parent.relative_to(HOME).parts  # ("llamaxr", "data")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = [*parents, *(node.module.split(".") if node.module else [])]
            names = [module, *([*module, alias.name] for alias in node.names)]
        else:
            continue
        for name in names:
            target = HOME.joinpath(*name)
            for file in (target.with_suffix(".py"), target / "__init__.py"):
                if file.is_file() and file.is_relative_to(PACKAGE):
                    found.add(file.relative_to(PACKAGE).as_posix())
    return found - {"__init__.py"}  # the package itself, which every relative import names


def outside(files: list[Path], allowed: set[str]) -> list[str]:
    """ "a.py -> b/c.py" for each import of a file that is neither in the core nor in `allowed`."""
    return [
        f"{path.relative_to(PACKAGE)} -> {file}"
        for path in files
        for file in sorted(imports(path))
        if "/" in file and file not in allowed and file.split("/")[0] not in allowed
    ]


def test_the_core_imports_no_wing_but_files():
    assert outside(files_of("."), {"files"}) == []


def test_files_imports_nothing_but_errors_and_itself():
    for path in files_of("files"):
        assert {file for file in imports(path) if not file.startswith("files/")} <= {"errors.py"}, path


@pytest.mark.parametrize("wing", MAY_IMPORT)
def test_dependencies_point_one_way(wing):
    assert outside(files_of(wing), MAY_IMPORT[wing] | {wing}) == []


def test_every_folder_of_the_package_is_a_known_wing():
    assert {path.parent.name for path in PACKAGE.glob("*/*.py")} - {"assets"} == set(MAY_IMPORT)


def test_imports_are_found_however_they_are_written():
    assert {"errors.py", "runs/checkpoint.py"} <= imports(HOME / "eval.py")  # from llamaxr.runs... import
    assert "vision.py" in imports(PACKAGE / "runs" / "features.py")  # from ..vision import


@pytest.mark.parametrize("file", BUDGETS)
def test_a_file_keeps_its_budget_of_lines(file):
    assert n_lines(HOME / file) <= BUDGETS[file]


def test_the_core_and_the_scripts_keep_their_budget_of_lines():
    core = sum(map(n_lines, files_of(".")))
    assert core <= 1500
    assert core + sum(n_lines(HOME / script) for script in SCRIPTS) <= 1950


def test_the_library_parses_no_arguments_prints_nothing_and_reads_no_environment():
    found = []
    for path in (path for wing in (".", "fast", "files", "data", "metrics") for path in files_of(wing)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
                found.append((path.name, node.id))
            if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_ATTRIBUTES:
                found.append((path.name, ast.unparse(node)))
            if isinstance(node, ast.ImportFrom) and node.module in ("argparse", "os", "sys"):
                found += [(path.name, a.name) for a in node.names if a.name in FORBIDDEN_IMPORTS]
    assert found == []
