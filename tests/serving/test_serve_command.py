"""`unmask serve` from the command line: what it refuses, and a server of its own that stops when it is told to."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from command_line import Command


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--mode", "magic"], 2, "unknown mode 'magic'"),
        (["--timeout", "0"], 2, "timeout_s=0.0 must be positive"),
        (["--max-queue", "-1"], 2, "max_queue=-1 must not be negative"),
        (["--api-key", ""], 2, "an API key is empty"),
        (["--replicas", "2", "--tensor-parallel", "2"], 2, "a replica is one process"),
        (["--port", "70000"], 1, "cannot listen on 127.0.0.1:70000"),
        (["--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1:8000"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_model_is_loaded(
    unmask_command: Command, arguments: list[str], status: int, message: str
) -> None:
    done = unmask_command("serve", "no-such-model", *arguments)
    assert done.status == status
    assert message in done.err


def test_replicas_without_ray_are_refused_before_the_model_is_loaded(
    unmask_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "unmask.serving.ray_replicas", raising=False)
    done = unmask_command("serve", "no-such-model", "--replicas", "2")
    assert done.status == 1
    assert "--replicas needs ray (pip install 'unmask[ray]')" in done.err


def test_a_taken_port_is_named(unmask_command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = unmask_command("serve", "no-such-model", "--port", str(port), "--json")
    assert done.status == 1
    assert f"127.0.0.1:{port}" in json.loads(done.out)["error"]["message"]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_says_where_it_is_and_stops_when_it_is_told_to(tiny_model: Path, processes: int) -> None:
    command = [sys.executable, "-m", "unmask", "serve", str(tiny_model), "--port", "0", "--json"]
    command += ["--tensor-parallel", str(processes)]
    with subprocess.Popen([*command, "--name", "tiny"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = (json.loads(line) for line in server.stderr if line.startswith("{"))
        url = next(line["message"] for line in lines if " on http://" in line["message"]).split()[-1]
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=60)
        assert answer.json()["model"] == "tiny"
        server.send_signal(signal.SIGTERM)
        messages = [line["message"] for line in lines]
    assert server.returncode == -signal.SIGTERM
    assert messages == ["request", "stopping; 0 answers are open and have 30 s"]
