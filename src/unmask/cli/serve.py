"""``unmask serve``: OpenAI's API over one model."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.arguments import (
    DEFAULT_MODEL,
    AdapterOption,
    CacheMibOption,
    DebugFlag,
    DeviceOption,
    DtypeOption,
    MaxRequestsOption,
    OfflineFlag,
    OptionalModel,
    QuantizeOption,
    TokenBudgetOption,
)
from unmask.cli.output import print_note
from unmask.cli.session import calibrate, count_pages, open_engine, open_model, settle_threads
from unmask.errors import FailureError, UsageError
from unmask.registry import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from unmask.decoding.language_model import LanguageModel
    from unmask.decoding.mode import Mode
    from unmask.engine.engine import Engine
    from unmask.serving.settings import Settings

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: OptionalModel = DEFAULT_MODEL,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", metavar="N")] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="What clients call the model (default: as it is called here).", metavar="NAME"),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="Mode of requests that give none: ar, diffusion, speculative (the text of ar), or auto: ar or "
            "speculative, whatever is faster with all that runs."
        ),
    ] = "ar",
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that clients must send; may be repeated. The environment does not show in a list of processes.",
            envvar="UNMASK_API_KEY",
            metavar="KEY",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of an answer (default: what context and cache hold).", metavar="N"),
    ] = None,
    max_requests: MaxRequestsOption = 32,
    replicas: Annotated[
        int,
        typer.Option(
            help="Processes with an engine each, run by Ray Serve; 1: an engine in this process.",
            metavar="N",
            min=1,
        ),
    ] = 1,
    tensor_parallel: Annotated[
        int,
        typer.Option(
            help="Processes that run each forward together, on CPUs: each some heads and inner units of every layer.",
            metavar="N",
            min=1,
        ),
    ] = 1,
    max_queue: Annotated[
        int, typer.Option(help="Most answers that wait; clients beyond get status 429.", metavar="N")
    ] = 256,
    token_budget: TokenBudgetOption = 512,
    cache_mib: CacheMibOption = 1024,
    timeout: Annotated[float, typer.Option(help="Most seconds of a request.", metavar="S")] = 600.0,
    drain: Annotated[
        float, typer.Option(help="Seconds that open requests have when the server is stopped.", metavar="S")
    ] = 30.0,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Web page that may call the server from a browser; may be repeated.", metavar="URL"
        ),
    ] = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    device: DeviceOption = "cpu",
    offline: OfflineFlag = False,
    json: Annotated[bool, typer.Option("--json", help="Write the log as JSON objects, one a line.")] = False,
    debug: DebugFlag = False,
) -> None:
    """Serve a model through OpenAI's API, until Ctrl-C or SIGTERM.

    The log goes to standard error.
    """
    try:
        from unmask.serving.app import create_app
        from unmask.serving.server import bind, log_to_stderr
        from unmask.serving.server import serve as serve_app
    except ModuleNotFoundError as error:
        raise FailureError(f"serving needs {error.name}", "pip install 'unmask[serve]'") from error
    from unmask.serving.settings import Settings

    settings = Settings(
        name or model,
        mode=_mode(mode),
        max_tokens=max_tokens,
        max_queue=max_queue,
        timeout_s=timeout,
        drain_s=drain,
        api_keys=tuple(api_key or ()),
        origins=tuple(origin or ()),
    )
    if replicas > 1 and tensor_parallel > 1:
        raise UsageError(
            f"--replicas {replicas} with --tensor-parallel {tensor_parallel}: a replica is one process",
            "give one of them",
        )
    if replicas > 1:
        _require_ray()
    listener = bind(host, port)
    open_served = partial(
        open_model,
        model,
        adapter=adapter,
        dtype=dtype,
        device=device,
        offline=offline,
        quantize=quantize,
        tensor_parallel=tensor_parallel,
    )
    language_model = open_served()
    open_its_engine = partial(
        _open_engine,
        cache_mib=cache_mib,
        token_budget=token_budget,
        max_requests=max_requests,
        is_planned=settings.mode == "auto",
    )
    if host not in _LOOPBACK and not settings.api_keys:
        print_note("anyone who reaches this address can use the server: it has no --api-key")
    log_to_stderr(as_json=json)
    if replicas == 1:
        app = create_app(language_model, open_its_engine(language_model), settings)
    else:
        app = _replicated_app(
            language_model,
            settings,
            lambda: open_its_engine(open_served()),
            num_replicas=replicas,
            max_requests=max_requests,
            num_pages=count_pages(language_model, cache_mib),
        )
    serve_app(app, listener)


def _open_engine(
    model: "LanguageModel", *, cache_mib: int, token_budget: int, max_requests: int, is_planned: bool
) -> "Engine":
    settle_threads(model.denoiser.transformer.device.type)
    engine = open_engine(model, cache_mib, token_budget=token_budget, max_requests=max_requests)
    if is_planned:
        calibrate(engine, model)
    return engine


def _require_ray() -> None:
    try:
        import unmask.serving.ray_replicas  # noqa: F401
    except ModuleNotFoundError as error:
        raise FailureError(f"--replicas needs {error.name}", "pip install 'unmask[ray]'") from error


def _replicated_app(
    model: "LanguageModel",
    settings: "Settings",
    open_replica: "Callable[[], Engine]",
    *,
    num_replicas: int,
    max_requests: int,
    num_pages: int,
) -> "FastAPI":
    from unmask.engine.engine import DEFAULT_PAGE_SIZE
    from unmask.serving.app import app_over
    from unmask.serving.metrics import Metrics
    from unmask.serving.ray_replicas import RayReplicas
    from unmask.serving.replicas import ReplicatedService

    metrics = Metrics()
    service = ReplicatedService(
        RayReplicas(
            open_replica,
            num_replicas=num_replicas,
            max_requests=max_requests,
            on_gpu=model.denoiser.transformer.device.type == "cuda",
        ),
        model.denoiser,
        metrics,
        max_answers=num_replicas * max_requests + settings.max_queue,
        max_queue=settings.max_queue,
    )
    return app_over(service, model, settings, metrics, capacity=num_pages * DEFAULT_PAGE_SIZE)


def _mode(text: str) -> "Mode":
    from unmask.decoding.mode import ENGINE_MODES

    known = next((mode for mode in ENGINE_MODES if mode == text), None)
    if known is None:
        raise unknown_name("mode", text, ENGINE_MODES)
    return known
