"""The command line. Here the process is ours, so here alone we print and set up logging."""

from __future__ import annotations

import copy
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
import uvicorn.config

import openai_local
from openai_local.application import Application
from openai_local.config import ConfigError

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

WELCOME = """
Serving {model} on {url}

curl {url}/v1/chat/completions{curl_key} -H 'Content-Type: application/json' -d '{{"model": "{model}", "temperature": 0, "messages": [{{"role": "system", "content": "You are a helpful assistant."}}, {{"role": "user", "content": "What is the capital of France?"}}]}}'

from openai import OpenAI  # pip install openai
client = OpenAI(base_url="{url}/v1", api_key={api_key})
messages = [{{"role": "system", "content": "You are a helpful assistant."}}, {{"role": "user", "content": "What is the capital of France?"}}]
answer = client.chat.completions.create(model="{model}", messages=messages, temperature=0)
print(answer.choices[0].message.content)
"""  # noqa: E501


@cli.callback()
def _group() -> None:
    """A local LLM behind the OpenAI API."""


@cli.command()
def serve(
    model: Annotated[
        Path | None, typer.Argument(help="GGUF file; else OPENAI_LOCAL_MODEL, else SmolLM2.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
) -> None:
    """Serve a model over HTTP. All settings are OPENAI_LOCAL_* variables."""
    try:
        application = openai_local.app(model)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    server = _Server(application, host, port)
    server.run()
    if not server.started:
        raise typer.Exit(1)


class _Server(uvicorn.Server):
    """Says how to reach it once it is reachable."""

    def __init__(self, application: Application, host: str, port: int) -> None:
        super().__init__(uvicorn.Config(application, host=host, port=port, log_config=_logging()))
        self._application = application

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            typer.echo(self._welcome())

    def _welcome(self) -> str:
        host = self.config.host
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        elif ":" in host:
            host = f"[{host}]"
        port = self.servers[0].sockets[0].getsockname()[1]
        needs_key = self._application.settings.api_key is not None
        return WELCOME.format(
            model=self._application.registry.default_id,
            url=f"http://{host}:{port}",
            curl_key=' -H "Authorization: Bearer $OPENAI_LOCAL_API_KEY"' if needs_key else "",
            api_key='"the value of OPENAI_LOCAL_API_KEY"' if needs_key else '"none"',
        )


def _logging() -> dict[str, Any]:
    """uvicorn's own logging, with our loggers in it."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["openai_local"] = {
        "handlers": ["default"],
        "level": "INFO",
        "propagate": False,
    }
    config["loggers"]["openai_local.llama_cpp"] = {"level": "WARNING"}
    return config


def main() -> None:
    """The entry point of ``openai-local``."""
    sys.exit(cli())
