"""Clients that leave, crowds, failures, the end of the server: nothing lost, nothing kept, nothing told too much."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from served import Served, serving, wait_until

from unmask.decoding.language_model import LanguageModel
from unmask.errors import ProcessLostError
from unmask.serving.log_lines import JsonLines, PlainLines
from unmask.serving.settings import Settings

LONG: dict[str, Any] = {"prompt": "abc", "max_tokens": 3000, "seed": 1, "stop_token_ids": []}
SHORT: dict[str, Any] = {"prompt": "abc", "max_tokens": 3, "seed": 1}


def stream(served: Served, **body: Any) -> Any:
    return httpx.stream("POST", f"{served.url}/v1/completions", json={**body, "stream": True}, timeout=60)


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])


@pytest.mark.parametrize("mode", ["ar", "diffusion", "speculative"])
def test_pages_return_when_a_stream_is_left(served: Served, mode: str) -> None:
    with stream(served, **LONG, mode=mode, n=2) as response:
        following = events(response)
        next(following)
        assert not served.is_idle
    wait_until(lambda: served.is_idle)


def test_pages_return_when_a_client_does_not_wait(served: Served) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/completions", json=LONG, timeout=0.5)
    wait_until(lambda: served.is_idle)
    assert 'outcome="disconnected"' in httpx.get(f"{served.url}/metrics").text


def test_a_crowd_is_told_to_come_again(model: LanguageModel) -> None:
    with serving(model, Settings("tiny", max_queue=1), max_requests=1) as served:
        with stream(served, **LONG) as first, stream(served, **LONG) as second:
            following = events(first)
            next(following)
            refused = served.post("/v1/completions", **SHORT)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
            assert second.status_code == 200
        wait_until(lambda: served.is_idle)
        assert served.post("/v1/completions", **SHORT).status_code == 200


def test_a_request_that_takes_too_long_gets_an_error(model: LanguageModel) -> None:
    with serving(model, Settings("tiny", timeout_s=0.4)) as served:
        late = served.post("/v1/completions", **LONG)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        with stream(served, **LONG) as response:
            *_, last, done = events(response)
        assert last["error"]["code"] == "timeout"
        assert done == "[DONE]"
        wait_until(lambda: served.is_idle)
        endless: dict[str, Any] = {"prompt": "abc", "max_tokens": 3000, "extra_body": {"stop_token_ids": []}}
        with pytest.raises(openai.APIError, match="longer than"):
            list(served.client.completions.create(model="tiny", **endless, stream=True))


def test_keys_are_asked_for(model: LanguageModel) -> None:
    with serving(model, Settings("tiny", api_keys=("one", "two"))) as served:
        for key, status in ((None, 401), ("three", 401), ("one", 200), ("two", 200)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{served.url}/v1/models", headers=headers).status_code == status
        with pytest.raises(openai.AuthenticationError, match="wants an API key"):
            served.client.models.list()
        assert httpx.post(f"{served.url}/v1/completions", content=b"{").status_code == 401
        assert httpx.get(f"{served.url}/ready").status_code == 200


def test_bodies_have_a_limit(model: LanguageModel) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b" " * 1000 for _ in range(5))

    with serving(model, Settings("tiny", max_body_bytes=2000)) as served:
        for body in (b" " * 5000, pieces()):
            refused = httpx.post(f"{served.url}/v1/completions", content=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        assert served.post("/v1/completions", **SHORT).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"prompt": "\\ud800"}', b"[" * 20_000, b"\xff"])
def test_what_is_no_request_is_refused(served: Served, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused = httpx.post(f"{served.url}/v1/completions", content=body, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"


def test_a_failed_forward_costs_only_its_requests(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("secret")

    with serving(model, Settings("tiny")) as served:
        with monkeypatch.context() as patch:
            patch.setattr(served.engine._runner, "run", fail)
            failed = served.post("/v1/completions", **SHORT)
        assert failed.status_code == 500
        assert "secret" not in failed.text
        assert "secret" in caplog.text
        assert served.post("/v1/completions", **SHORT).status_code == 200
        wait_until(lambda: served.is_idle)
        assert httpx.get(f"{served.url}/health").status_code == 200


def test_an_engine_that_cannot_recover_says_so(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("pages do not add up")

    with serving(model, Settings("tiny")) as served, monkeypatch.context() as patch:
        patch.setattr(served.engine, "step", fail)
        patch.setattr(served.engine, "check", fail)
        assert served.post("/v1/completions", **SHORT).status_code == 500
        assert httpx.get(f"{served.url}/health").status_code == 503
        assert served.post("/v1/completions", **SHORT).json()["error"]["code"] == "broken"


def test_a_lost_part_of_the_model_says_so(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ProcessLostError("a process has ended")

    with serving(model, Settings("tiny")) as served, monkeypatch.context() as patch:
        patch.setattr(served.engine._runner, "run", fail)
        assert served.post("/v1/completions", **SHORT).status_code == 500
        assert httpx.get(f"{served.url}/health").status_code == 503
        assert served.post("/v1/completions", **SHORT).json()["error"]["code"] == "broken"


def test_what_is_open_finishes_when_the_server_stops(model: LanguageModel) -> None:
    answers: list[httpx.Response] = []
    body = SHORT | {"max_tokens": 40, "stop_token_ids": []}
    with serving(model, Settings("tiny", drain_s=60), max_requests=2) as served:
        threads = [
            threading.Thread(target=lambda: answers.append(served.post("/v1/completions", **body)))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: served.desk.service.num_open == 5)
        served.server.should_exit = True
        wait_until(lambda: not served.desk.service.is_ready)
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200] * 5
    assert {answer.json()["choices"][0]["finish_reason"] for answer in answers} == {"length"}


def test_what_cannot_finish_in_time_gets_a_clean_error(model: LanguageModel) -> None:
    with serving(model, Settings("tiny", drain_s=0.2)) as served, stream(served, **LONG) as response:
        following = events(response)
        next(following)
        served.server.should_exit = True
        *_, last, done = following
        assert last["error"]["code"] == "stopping"
        assert done == "[DONE]"


HOLE: dict[str, Any] = {
    "prompt": "abc",
    "suffix": "xyz",
    "seed": 1,
    "mode": "diffusion",
    "rule": "top-k:1",
    "stream_canvas": True,
}


@pytest.mark.parametrize(("length", "drain_s", "code"), [(60, 60.0, None), (2000, 0.2, "stopping")])
def test_a_hole_has_its_time_when_the_server_stops(
    model: LanguageModel, length: int, drain_s: float, code: str | None
) -> None:
    settings = Settings("tiny", drain_s=drain_s)
    with serving(model, settings) as served, stream(served, **HOLE, max_tokens=length) as response:
        following = events(response)
        next(following)
        served.server.should_exit = True
        wait_until(lambda: not served.desk.service.is_ready)
        *_, last, done = following
    assert done == "[DONE]"
    assert last.get("error", {}).get("code") == code
    assert code is not None or last["choices"][0]["finish_reason"] == "length"


def test_requests_are_logged_with_their_ids(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="unmask.serving"):
        answer = httpx.post(
            f"{served.url}/v1/completions", json=SHORT | {"user": "me"}, headers={"X-Request-Id": "r-1"}
        )
        strange = httpx.get(f"{served.url}/health", headers={"X-Request-Id": "a b"})
        wait_until(lambda: len(caplog.records) == 2)
    assert answer.headers["x-request-id"] == "r-1"
    assert answer.json()["id"] == "cmpl-r-1"
    assert strange.headers["x-request-id"] != "a b"
    line = json.loads(JsonLines().format(caplog.records[0]))
    assert (line["request_id"], line["user"], line["completion_tokens"]) == ("r-1", "me", 3)
    assert "request_id=r-1" in PlainLines().format(caplog.records[0])


def test_metrics_tell_what_happened(model: LanguageModel) -> None:
    with serving(model, Settings("tiny")) as served:
        assert served.post("/v1/completions", **SHORT, mode="auto").status_code == 200
        assert served.post("/v1/completions", prompt="a", beam=1).status_code == 400
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    route = "/v1/completions"
    assert float(values[f'unmask_requests_total{{outcome="ok",route="{route}"}}']) == 1
    assert float(values[f'unmask_requests_total{{outcome="refused",route="{route}"}}']) == 1
    assert float(values['unmask_generated_tokens_total{mode="auto"}']) == 3
    assert float(values['unmask_time_to_first_token_seconds_count{mode="auto"}']) == 1
    assert float(values["unmask_pages_available"]) == float(values["unmask_pages"]) == 256
    labels = {"block_length", "tree_size", "num_predrafts"}
    chosen = [name for name in values if name.startswith("unmask_planner_choices_total")]
    assert chosen
    assert all(label in name for name in chosen for label in labels)


def test_only_named_pages_may_call_from_a_browser(served: Served, model: LanguageModel) -> None:
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{served.url}/v1/models", headers=ask).headers
    settings = Settings("tiny", origins=("https://page.example",), api_keys=("one",))
    with serving(model, settings) as open_to_page:
        allowed = httpx.options(f"{open_to_page.url}/v1/models", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"


def test_a_page_at_the_root_needs_no_key(model: LanguageModel) -> None:
    with serving(model, Settings("tiny", api_keys=("one",))) as served:
        assert "<title>unmask playground</title>" in httpx.get(served.url).text
        assert httpx.get(f"{served.url}/assets/page.js").status_code == 200
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        assert httpx.get(f"{served.url}/assets/other.js").status_code == 401
