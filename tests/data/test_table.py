"""A user's own data in a CSV file."""

import gzip

import pytest

from llamaxr.data.table import load_studies, read_rows
from llamaxr.errors import UserError

HEAD = "id,frontal,lateral,report,split\n"


@pytest.fixture
def table(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(b"not opened here")

    def write(text, encoding="utf-8"):
        path = tmp_path / "mine.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def load(path, on_missing="refuse", warn=pytest.fail):
    return load_studies(path, on_missing, warn)


def test_rows_become_studies_with_images_beside_the_file(table, tmp_path):
    a, b = load(
        table(HEAD + 'x,images/a.png,images/b.png,"Big\n heart, clear.",train\ny,,images/b.png,Fine.,test\n')
    )
    assert (a.id, a.report, a.split) == ("x", "Big heart, clear.", "train")
    assert a.frontal == tmp_path / "images/a.png" and a.lateral == tmp_path / "images/b.png"
    assert b.frontal is None and [view for view, _ in b.views] == [1]


def test_excels_byte_order_mark_another_column_order_and_more_columns_are_accepted(table):
    text = "\ufeffsplit,report,lateral,frontal,id,age\nval,Fine.,,images/a.png,x,70\n"
    (study,) = load(table(text))
    assert (study.id, study.split, study.lateral) == ("x", "val", None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,text\na.png,Fine.\n", "no column id, frontal, lateral, report, split"),
        ("", "has no column"),
        (HEAD.replace("frontal", "split"), "has no column frontal, split"),
        (HEAD.strip() + ",split\n", "has two columns split"),
        (HEAD + "x,images/a.png,,Fine.\n", "line 2: not as many cells"),
        (HEAD + "x,images/a.png,,Fine.,train,more\n", "line 2: not as many cells"),
        (HEAD + "x,images/a.png,,Fine.,dev\n", "line 2: a study needs"),
        (HEAD + ",images/a.png,,Fine.,train\n", "line 2: a study needs"),
        (HEAD + "x,,,Fine.,train\n", "line 2: a study needs"),
        (HEAD + "x,../a.png,,Fine.,train\n", "line 2 names '../a.png', which is outside of"),
        (HEAD + "x,/etc/hostname,,Fine.,train\n", "outside of"),
        (HEAD + "x,images\\a.png,,Fine.,train\n", "write its path with / and relative to"),
        (HEAD + 'x,images/a.png,,"Fine.,train\n', "cannot be read as CSV"),
        (HEAD + f"x,images/a.png,,{'a' * 200_000},train\n", "cannot be read as CSV"),
        (HEAD, "has no study"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_says_where(table, text, message):
    with pytest.raises(UserError) as error:
        load(table(text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_another_encoding_is_refused(table):
    with pytest.raises(UserError, match="UTF-8"):
        load(table(HEAD + "x,images/a.png,,Größe,train\n", "latin-1"))


def test_a_missing_file_is_refused_with_the_columns_it_needs(tmp_path):
    for path in (None, tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(UserError, match="id,frontal,lateral,report,split"):
            load(path)


def test_incomplete_studies_are_refused_or_counted(table):
    rows = "x,images/a.png,images/no.png,Fine.,train\nx,images/a.png,,Fine.,train\ny,images/a.png,, ,val\n"
    path, warnings = table(HEAD + rows), []
    with pytest.raises(UserError, match=r"missing images: 1 .*without text: 1 .*duplicate study ids: 1"):
        load(path)
    (study,) = load(path, "skip", warnings.append)
    assert study.id == "x" and study.lateral is None and "the other 1 studies" in warnings[0]


def test_a_truncated_gzip_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 5000))
    assert len(list(read_rows(path, ("a", "b")))) == 5000
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(path, ("a", "b")))
