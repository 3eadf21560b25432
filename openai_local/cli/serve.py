"""``serve``: a server of its own, with all settings as options."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from openai_local.application import Application
from openai_local.cli import server
from openai_local.cli.completion import complete_models
from openai_local.cli.options import all_fields, takes_settings
from openai_local.cli.screen import out
from openai_local.cli.service import named_model
from openai_local.cli.welcome import welcome
from openai_local.config import load_settings

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


class LogLevel(str, Enum):
    """uvicorn's."""

    critical = "critical"
    error = "error"
    warning = "warning"
    info = "info"
    debug = "debug"
    trace = "trace"


@cli.command()
@takes_settings(all_fields())
def serve(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="As --model.",
            autocompletion=complete_models,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is all.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            help="Port to listen on; 0 picks a free one.", metavar="NUMBER", min=0, max=65535
        ),
    ] = 8000,
    uds: Annotated[
        str | None,
        typer.Option(help="Unix socket to listen on in place of a port.", metavar="PATH"),
    ] = None,
    ssl_certfile: Annotated[
        str | None, typer.Option(help="Certificate; serves https.", metavar="FILE")
    ] = None,
    ssl_keyfile: Annotated[str | None, typer.Option(help="Its key.", metavar="FILE")] = None,
    root_path: Annotated[
        str,
        typer.Option(help="The prefix that a proxy takes off.", metavar="PATH"),
    ] = "",
    proxy_headers: Annotated[
        bool,
        typer.Option(
            "--proxy-headers/--no-proxy-headers",
            help="Believe X-Forwarded-* of --forwarded-allow-ips. [default: on]",
            show_default=False,
        ),
    ] = True,
    forwarded_allow_ips: Annotated[
        str | None,
        typer.Option(
            help="Addresses of proxies, with commas; 127.0.0.1 if not given.",
            metavar="HOSTS",
        ),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged.")] = LogLevel.info,
    access_log: Annotated[
        bool,
        typer.Option(
            "--access-log/--no-access-log",
            help="A line for every request. [default: on]",
            show_default=False,
        ),
    ] = True,
    **settings: Any,
) -> None:
    """Serve a model over HTTP, with OpenAI's API.

    One process, whose engine batches all requests: more of them would each load the model, and
    take each other's cores.
    """
    application = Application(load_settings(**named_model(name, settings)))
    status = server.run(
        application,
        lambda url: welcome(application, url, out()),
        host=host.strip("[]"),  # as it is in a URL, if it is one of IPv6
        port=port,
        uds=uds,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        root_path=root_path,
        proxy_headers=proxy_headers,
        forwarded_allow_ips=forwarded_allow_ips,
        log_level=log_level.value,
        access_log=access_log,
    )
    raise typer.Exit(status)
