"""Text, JSON and names out of files from anywhere: read as they are meant, or refused in one line."""

import os
import time
from pathlib import Path

import pytest

from llamaxr.errors import UserError
from llamaxr.files.text import MAX_LINES, complete_or_absent, printable, read_json, read_json_lines


def refused(path: Path) -> str:
    """The line with which a file that is no JSON is refused, in no time."""
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert time.perf_counter() - start < 10 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text, said", [
    ("[" * 10**5, "too deep"), ('{"a":' * 10**5, "too deep"), ('{"a":' * 500 + "1" + "}" * 500, "too deep"),
    ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"), ('{"a": NaN}', "NaN"), ('{"a": 1e999}', "1e999"),
    ('{"a": ' + "9" * 5000 + "}", "5000 digits"), ('{"a": 9223372036854775808}', "no number"),
    ("[1]", "no JSON object"), ("", "Expecting"), ('{"\x1b[2J": 1, "\x1b[2J": 2}', "control"),
])  # fmt: skip
def test_json_that_is_ambiguous_or_absurd_is_refused(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    message = refused(tmp_path / "a.json")
    assert said in message and "a.json" in message and message.isprintable()


def test_json_with_a_byte_order_mark_or_half_a_letter_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"\\ud800": 1, "\\ufffd": 2}')  # one name, once it is mended
    with pytest.raises(UserError, match="twice"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud800 \\ud83d\\ude00"}')
    assert read_json(tmp_path / "a.json") == {"a": "\ufffd \U0001f600"}
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n"b"\n')
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [(1, {"a": 1}), (3, "b")]


def test_a_file_of_millions_of_lines_is_refused_before_one_is_parsed(tmp_path):
    (tmp_path / "a.jsonl").write_text("[]\n" * (MAX_LINES + 1))
    with pytest.raises(UserError, match="over 1,048,576 lines; fix the file"):
        next(read_json_lines(tmp_path / "a.jsonl"))


def test_a_small_file_takes_little_memory_however_large_it_might_be(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", 2**50) == {"a": 1}


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "none", tmp_path / ("n" * 300)):
        refused(path)


@pytest.mark.parametrize(
    "text, shown",
    [("Grüße, 日本 – 5 µm\n\tx", "Grüße, 日本 – 5 µm\n\tx"), ("\x1b]0;x\x07\r", "\\x1b]0;x\\x07\\r"),
     ("a\x85b\x9b2J", "a\\x85b\\x9b2J"), ("\u202eevil", "\\u202eevil"), ("nb\xa0sp", "nb\xa0sp")],
)  # fmt: skip
def test_printable_text_moves_no_cursor(text, shown):
    assert printable(text) == shown


def test_a_file_under_its_own_name_is_complete(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), complete_or_absent(path) as temporary:
        temporary.write_text("ha")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError) as full, complete_or_absent(path):
        raise OSError(28, "No space left on device")
    assert full.value.filename == str(path)
    with complete_or_absent(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
