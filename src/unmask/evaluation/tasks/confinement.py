"""The process that model-written code runs in: it locks itself down, runs a program and says what became of it.

A script of its own that needs nothing but the standard library, started by `execution` in an empty folder. Standard
input holds one line of JSON, `Limits` of `execution` as an object, and then the program. Standard output gets one JSON
object. What is not stopped is listed in `docs/evaluation.md`.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable

_MESSAGE_CHARACTERS = 300

# prctl, Landlock and seccomp: include/uapi/linux/{prctl,landlock,seccomp,audit}.h
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _ABI_VERSION = 1, 1
_READ = 1 << 2 | 1 << 3  # files, folders
_READ_WRITE_FILE = 1 << 1 | 1 << 2
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000
_PERMISSION_DENIED, _NO_SUCH_CALL = 1, 38
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_REFUSED_CALLS: dict[str, tuple[int | None, int | None]] = {
    # the network, and what could open a socket behind the filter's back
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    # processes and threads
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    # other processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    # its own limits, and what only the superuser may do
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_by_handle_at": (304, 265),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
"""Linux system calls that are refused, with their numbers on x86-64 and on 64-bit Arm."""

_CLONE3 = 435  # "no such call" makes the C library fall back on clone, which is refused

_REFUSED_EVENTS = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.kill",
    "os.chmod",
    "os.chown",
    "os.setxattr",
    "os.removexattr",
    "signal.pthread_kill",
    "syslog.",
    "pty.",
    "resource.setrlimit",
    "resource.prlimit",
)
"""Beginnings of the audit events that a program may not raise."""

_PATH_EVENTS = {
    "os.chdir": 1,
    "os.link": 2,
    "os.listdir": 1,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.scandir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
}
"""Audit events whose first arguments, so many of them, are paths."""


def limit_resources(*, cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Limit processor time, address space, file size and open files; no core dumps."""
    for kind, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue  # not every platform takes every limit


def readable_folders() -> list[str]:
    """Return where Python and the libraries it loads lie."""
    return [
        path
        for path in {os.path.realpath(sys.base_prefix), "/usr", "/lib", "/lib64", "/dev/urandom"}
        if os.path.exists(path)
    ]


def restrict_files(folder: str) -> bool:
    """Let Landlock refuse every file but those of `folder` and, for reading, Python's own; say whether it could."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(_CREATE_RULESET, None, ctypes.c_size_t(0), _ABI_VERSION)
    if version < 1:
        return False
    # 13 rights from the first version on; then linking across folders, truncating, device control.
    handled = (1 << 13 + (version >= 2) + (version >= 3)) - 1 | (version >= 5) << 15
    ruleset = call(_CREATE_RULESET, struct.pack("Q", handled), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    rules = [(folder, handled), ("/dev/null", _READ_WRITE_FILE)]
    for path, rights in rules + [(path, _READ) for path in readable_folders()]:
        place = os.open(path, os.O_PATH)
        if not os.path.isdir(path):
            rights &= _READ_WRITE_FILE
        done = call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
        os.close(place)
        if done:
            return False
    restricted: bool = call(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return restricted


def refuse_calls() -> bool:
    """Let seccomp refuse the calls of `_REFUSED_CALLS`; say whether it could."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    column, architecture = machine
    numbers = [pair[column] for pair in _REFUSED_CALLS.values()]
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | _PERMISSION_DENIED),
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | _NO_SUCH_CALL),
    ]
    for number in numbers:
        if number is not None:
            program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _PERMISSION_DENIED)]
    program.append((_RETURN, 0, 0, _ALLOW))
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HP", len(program), ctypes.addressof(packed))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return bool(prctl(_SET_SECCOMP, _SECCOMP_FILTER, header, 0, 0) == 0)


def refuse_events(folder: str) -> None:
    """Let Python's audit events refuse the same, and everything that happens to files outside `folder`."""
    readable = (folder, *readable_folders(), os.devnull)

    def inside(path: object, folders: tuple[str, ...]) -> bool:
        if isinstance(path, int):
            return True  # a descriptor: opening it was audited
        real = os.path.realpath(os.fsdecode(path) if isinstance(path, (str, bytes)) else "")
        return any(real == place or real.startswith(place.rstrip("/") + "/") for place in folders)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_REFUSED_EVENTS):
            raise PermissionError(f"{event} is refused")
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            )
            if path is not None and not inside(path, (folder, os.devnull) if writes else readable):
                raise PermissionError(f"opening {path!r} is refused")
        elif event in _PATH_EVENTS:
            allowed = readable if event in ("os.listdir", "os.scandir") else (folder,)
            paths = [path for path in arguments[: _PATH_EVENTS[event]] if path is not None]
            if not all(inside(path, allowed) for path in paths):
                raise PermissionError(f"{event} outside the program's folder is refused")

    sys.addaudithook(audit)


def confine(folder: str) -> list[str]:
    """Apply every layer that this platform has; return their names. It cannot be undone."""
    layers = []
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
        tried: tuple[tuple[str, Callable[[], bool]], ...] = (
            ("landlock", lambda: restrict_files(folder)),
            ("seccomp", refuse_calls),
        )
        layers = [name for name, apply in tried if apply()]
    refuse_events(folder)
    return ["limits", *layers, "audit"]


def main() -> None:
    """Be the confined process."""
    limits = json.loads(sys.stdin.buffer.readline())
    source = sys.stdin.buffer.read()
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    folder = os.path.realpath(os.getcwd())
    limit_resources(**limits)
    layers = confine(folder)
    passed, reason = False, ""
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
        passed = True
    except BaseException as error:  # whatever a program may raise, SystemExit among it
        reason = f"{type(error).__name__}: {error}".rstrip(": ")[:_MESSAGE_CHARACTERS]
    os.write(report, json.dumps({"passed": passed, "reason": reason, "layers": layers}).encode())


if __name__ == "__main__":
    main()
