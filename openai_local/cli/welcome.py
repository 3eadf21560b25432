"""What ``serve`` says once it serves: the facts, and lines to try it with."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from openai_local.application import Application
from openai_local.cli.screen import harmless, size
from openai_local.engine import ModelInfo
from openai_local.models.errors import UnknownModel
from openai_local.models.files import NoModel

NO_MODEL = "no model yet"
SAMPLE = """
curl {url}/v1/chat/completions{curl_key} -H 'Content-Type: application/json' -d '{{"model": "{model}", "temperature": 0, "messages": [{{"role": "system", "content": "You are a helpful assistant."}}, {{"role": "user", "content": "What is the capital of France?"}}]}}'

from openai import OpenAI  # pip install openai
client = OpenAI(base_url="{url}/v1", api_key={api_key})
messages = [{{"role": "system", "content": "You are a helpful assistant."}}, {{"role": "user", "content": "What is the capital of France?"}}]
answer = client.chat.completions.create(model="{model}", messages=messages, temperature=0)
print(answer.choices[0].message.content)
"""  # noqa: E501


def welcome(application: Application, url: str, console: Console) -> None:
    """A panel where a terminal shows it, else its lines; then the sample, to be pasted as it is."""
    model, facts = _default_model(application)
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        for name, value in {"URL": url, "model": model or NO_MODEL, **facts}.items():
            table.add_row(f"[dim]{name}[/dim]", escape(harmless(value)))
        console.print(Panel(table, title="openai_local", expand=False))
    else:
        console.out(f"\nServing {model or NO_MODEL} on {url}")
        for name, value in facts.items():
            console.out(f"{name}: {value}")
    if model is not None and url.startswith("http"):
        # Not wrapped, and without markup: it is copied.
        console.out(sample(model, url, application.settings.api_key is not None), end="")
    console.file.flush()


def _default_model(application: Application) -> tuple[str | None, dict[str, str]]:
    """Its name, and what is known of it; a directory of models may be empty still."""
    try:
        model = application.registry.default_id
    except (NoModel, UnknownModel):
        return None, {}
    loaded = application.registry.loaded(model)
    return model, _facts(loaded.info) if loaded else {}


def sample(model: str, url: str, needs_key: bool) -> str:
    """A line for a shell, and a program."""
    return SAMPLE.format(
        model=model,
        url=url,
        curl_key=' -H "Authorization: Bearer $OPENAI_LOCAL_API_KEY"' if needs_key else "",
        api_key='"the value of OPENAI_LOCAL_API_KEY"' if needs_key else '"none"',
    )


def _facts(info: ModelInfo) -> dict[str, str]:
    return {
        "file": f"{info.path}, {info.description}",
        "memory": f"{size(info.n_bytes_weights)} weights, {size(info.n_bytes_kv)} keys and values",
        "context": f"{info.n_parallel} sequences of up to {info.n_ctx} tokens",
        "runs on": _place(info),
    }


def _place(info: ModelInfo) -> str:
    if not info.n_gpu_layers:
        return "the CPU"
    rest = ", the others on the CPU" if info.n_gpu_layers < info.n_layers else ""
    gpus = " and ".join(info.gpus)
    return f"{gpus}: {info.n_gpu_layers} of {info.n_layers} layers{rest}"
