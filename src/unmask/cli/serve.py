"""``unmask serve``: OpenAI's API over one model."""

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
from unmask.cli.session import calibrate, open_engine, open_model, settle_threads
from unmask.errors import FailureError
from unmask.registry import unknown_name

if TYPE_CHECKING:
    from unmask.serving.fields import ServingMode

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
    listener = bind(host, port)
    language_model = open_model(
        model, adapter=adapter, dtype=dtype, device=device, offline=offline, quantize=quantize
    )
    settle_threads(device)
    engine = open_engine(language_model, cache_mib, token_budget=token_budget, max_requests=max_requests)
    if settings.mode == "auto":
        calibrate(engine, language_model)
    if host not in _LOOPBACK and not settings.api_keys:
        print_note("anyone who reaches this address can use the server: it has no --api-key")
    log_to_stderr(as_json=json)
    serve_app(create_app(language_model, engine, settings), listener)


def _mode(text: str) -> "ServingMode":
    from unmask.serving.fields import SERVING_MODES

    known = next((mode for mode in SERVING_MODES if mode == text), None)
    if known is None:
        raise unknown_name("mode", text, SERVING_MODES)
    return known
