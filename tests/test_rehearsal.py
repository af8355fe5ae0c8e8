"""The whole way of a new user against local servers (benchmarks/rehearsal.py), in its small size."""

import importlib.util
import shutil

import pytest

from tests.test_structure import HOME


def test_the_whole_way_from_empty_caches_through_cut_downloads(tmp_path, monkeypatch):
    """Training, generation and evaluation end as they must; no byte of a large file is fetched twice."""
    pytest.importorskip("torchxrayvision")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl, which makes the servers' certificate")
    monkeypatch.syspath_prepend(HOME / "benchmarks")
    spec = importlib.util.spec_from_file_location("rehearsal", HOME / "benchmarks" / "rehearsal.py")
    rehearsal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rehearsal)
    rehearsal.prepare(tmp_path / "served", full=False)  # here, where torch is imported already
    figures = rehearsal.rehearse(tmp_path)
    assert [stage["exit"] for stage in figures["stages"].values()] == [2, 2, 2, 0, 0, 0]
    for name, connections in figures["bytes_per_connection"].items():
        assert len(connections) == 4, name  # cut off, cut off, refused, complete
