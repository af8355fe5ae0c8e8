"""What a user sees when something goes wrong: one line, whatever the streams can take, and an exit code."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
HEAD = """import os, signal, sys, time, warnings
from llamaxr.errors import UserError
from llamaxr.runs.terminal import one_line_errors
from tqdm import tqdm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
"""


def start(body: str, **how) -> subprocess.Popen:
    """A program that runs `body` inside one_line_errors."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    env = {**os.environ, "PYTHONPATH": str(HOME), **how.pop("env", {})}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen(
        [sys.executable, "-c", f"{HEAD}with one_line_errors():\n{lines}\n"], env=env, **how
    )


def run(body: str, **how) -> tuple[int, str, str]:
    process = start(body, **how)
    out, err = process.communicate(timeout=60)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("raise UserError('no file\\nat x: check it')", 2, "error: no file at x: check it\n"),
        ("raise UserError('a\\x1b[2J\\udcff.png')", 2, "error: a\\x1b[2J\\udcff.png\n"),
        ("open('/none/x')", 2, "error: /none/x: No such file or directory; check the path"),
        ("open('a' * 300)", 2, "File name too long; give a shorter name\n"),
        ("open(os.fsencode('/none/') + b'\\xff')", 2, "error: /none/\\udcff: No such file"),
        ("raise OSError(28, 'No space left on device', 'x')", 2,
         "error: x: No space left on device; free some space"),
        ("raise OSError(27, 'File too large', b'x')", 2, "error: x: File too large; raise the limit"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130, "interrupted\n"),
        ("sys.exit(3)", 3, ""),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_is_one_line_and_a_code(body, code, says):
    returned, out, err = run(body)
    assert returned == code and out == "" and says in err and err.count("\n") == bool(says)


def test_a_bug_keeps_its_traceback():
    code, _, err = run("[][0]")
    assert code == 1 and "IndexError" in err and "Traceback" in err


def test_a_reader_that_leaves_ends_the_program_quietly():
    process = start("for i in range(10 ** 5): print('a report', i)")
    assert process.stdout.readline() == b"a report 0\n"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_stdout_without_room_is_told_in_one_line():
    with open("/dev/full", "wb") as full:
        code, _, err = run("print('a report')", stdout=full)
    assert code == 2 and err.startswith("error: a file or stdout: No space left") and err.count("\n") == 1


def test_a_closed_stdout_and_stderr_lose_nothing_else(tmp_path):
    body = f"print('x'); tqdm.write('y'); list(tqdm([1])); open({str(tmp_path / 'done')!r}, 'w').write('z')"
    code, _, _ = run(body, stdout=None, stderr=None, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert code == 0 and (tmp_path / "done").read_text() == "z"


def test_a_letter_that_stdout_cannot_encode_is_escaped_and_the_next_report_is_printed():
    code, out, _ = run("print('caf\\u00e9'); print('next')", env={"PYTHONIOENCODING": "ascii"})
    assert code == 0 and out == "caf\\xe9\nnext\n"


def test_an_error_and_a_warning_never_stand_in_a_progress_bars_line():
    loop = "bar = tqdm(range(9), 'train', mininterval=0)\nfor i in bar:\n    "
    body = loop + "warnings.warn('odd\\nthing')\n    {}"
    for end in ("raise UserError('broken')", "raise KeyboardInterrupt", "open('/none')"):
        _, _, err = run(body.format(end), env={"PYTHONIOENCODING": "utf-8"})
        parts = [part for part in re.split(r"[\r\n]", err) if part.strip()]
        assert "warning: odd thing" in parts and parts[-1].startswith(("error: ", "interrupted"))


def test_ctrl_c_while_torch_is_imported_ends_in_one_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(HOME)!r})\nimport llamaxr.runs.interrupt as i, signal, time\n"
        "signal.signal(signal.SIGINT, i.end_at_once)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"interrupted\n" and process.returncode == 130


@pytest.mark.parametrize("script", ["train.py", "generate.py", "eval.py"])
def test_the_scripts_catch_ctrl_c_before_they_import_anything_slow(script):
    imports = [
        line for line in (HOME / script).read_text().splitlines() if line.startswith(("import", "from"))
    ]
    assert imports[0].startswith("import llamaxr.runs.interrupt")
