"""Model-written programs: what they may do, what ends them, and each layer that locks them in by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from unmask.evaluation.tasks import confinement
from unmask.evaluation.tasks.execution import KERNEL_LAYERS, Limits, confinement_layers, run_program

QUICK = Limits(seconds=20, cpu_seconds=1, memory_bytes=2**28, file_bytes=2**20)

needs_kernel_layers = pytest.mark.skipif(
    not set(KERNEL_LAYERS) <= set(confinement_layers()),
    reason="the kernel has no Landlock or no seccomp",
)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "assert sum([1, 2]) == 3\r\nprint('x' * 10_000_000)",
        "import collections, decimal, heapq, itertools, json, math, random, re, sqlite3, typing",
        "open('file', 'w').write('a')\nassert open('file').read() == 'a'",
        "import tempfile\nwith tempfile.TemporaryFile() as file: file.write(b'a')",
        "import os\nos.mkdir('d')\nos.rename('d', 'e')\nassert os.listdir('.') == ['e']\nos.rmdir('e')",
        "assert __name__ == '__main__'\ndef f(): return g()\ndef g(): return 1\nassert f() == 1",
        "assert 'ü\\ud800'",
    ],
)
def test_programs_that_pass(source: str) -> None:
    outcome = run_program(source, QUICK)
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("assert 1 == 2, 'unequal'", "AssertionError: unequal"),
        ("def f(:", "SyntaxError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended before its end"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import numpy", "ModuleNotFoundError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
        ("import unmask", "ModuleNotFoundError"),
    ],
)
def test_programs_that_fail(source: str, reason: str) -> None:
    outcome = run_program(source, QUICK)
    assert not outcome.passed
    assert outcome.reason.startswith(reason)
    assert len(outcome.reason) < 400


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("while True: pass", "killed by SIG"),
        ("'a' * 2**40", "MemoryError"),
        ("kept = []\nwhile True: kept.append('a' * 10**6)", "MemoryError"),
        ("open('f', 'w').write('a' * 10**8)", "OSError: [Errno 27]"),
    ],
)
def test_what_is_used_up(source: str, reason: str) -> None:
    assert run_program(source, QUICK).reason.startswith(reason)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.execv('/bin/true', ['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.kill(os.getppid(), 0)",
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')",
        "open('/etc/passwd')",
        "import os\nos.listdir('/')",
        "import os\nos.open('..', os.O_RDONLY)",
        "open('../file', 'w')",
        "import os\nos.remove('/etc')",
        "import os\nos.chmod('/etc', 0o755)",
        "import os\nos.symlink('/etc', 'etc')",
        "import os\nos.rmdir('/etc')",
        "import ctypes\nctypes.CDLL(None)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ],
)
def test_what_is_refused(source: str) -> None:
    assert "refused" in run_program(source, QUICK).reason


def test_the_environment_is_empty() -> None:
    source = "import os\nassert set(os.environ) <= {'HOME', 'TMPDIR', 'LC_ALL', 'LC_CTYPE'}, set(os.environ)"
    assert run_program(source, QUICK).passed


def test_a_program_that_sleeps_is_ended_by_the_clock() -> None:
    outcome = run_program("import time\ntime.sleep(60)", Limits(seconds=0.5))
    assert (outcome.passed, outcome.reason) == (False, "not done after 0.5 s")


def test_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for ending in ("", "import time\ntime.sleep(60)"):
        run_program(f"open('file', 'w').write('a')\n{ending}", Limits(seconds=0.5))
    assert list(tmp_path.iterdir()) == []


def errors_in(layer: str, sources: list[str], folder: Path) -> list[str]:
    """Return what each line of code raises in a process with one of the kernel's layers and without Python's own."""
    code = (
        f"import sys\nsys.path.insert(0, {str(Path(confinement.__file__).parent)!r})\n"
        "import ctypes, confinement, os, resource, socket, subprocess, threading\n"
        f"ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\nassert confinement.{layer}\n"
        f"for source in {sources!r}:\n"
        "    try: exec(source)\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "    else: print('nothing')\n"
    )
    command = [sys.executable, "-I", "-S", "-B", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()


@needs_kernel_layers
def test_seccomp_alone(tmp_path: Path) -> None:
    errors = {
        "open('file', 'w')": "nothing",
        "socket.socket()": "PermissionError",
        "os.fork()": "PermissionError",
        "subprocess.run(['true'])": "PermissionError",
        "threading.Thread(target=print).start()": "RuntimeError",
        "os.kill(os.getppid(), 0)": "PermissionError",
        "os.execv('/bin/true', ['true'])": "PermissionError",
        "resource.setrlimit(resource.RLIMIT_AS, (2**40, -1))": "ValueError",
    }
    assert errors_in("refuse_calls()", list(errors), tmp_path) == list(errors.values())


@needs_kernel_layers
def test_landlock_alone(tmp_path: Path) -> None:
    errors = {
        "open('file', 'w').write('a')": "nothing",
        "import json.tool; os.mkdir('d'); os.urandom(1)": "nothing",
        "open('/etc/passwd')": "PermissionError",
        "os.listdir('/')": "PermissionError",
        "open('../file', 'w')": "PermissionError",
        "os.mkdir('../d')": "PermissionError",
    }
    assert errors_in("restrict_files(os.getcwd())", list(errors), tmp_path) == list(errors.values())


def test_every_platform_has_limits_and_the_audit_hook() -> None:
    assert {"limits", "audit"} <= set(confinement_layers())
