"""The walls of the house, seen in the imports of every module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import openai_local

ROOT = Path(openai_local.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
LOOPS = {"asyncio", "anyio", "trio", "sniffio", "curio"}
GUIDANCE = {f"openai_local.engine.constraints.{name}" for name in ("compiler", "grammars", "guide")}
WEB = {"starlette", "pydantic", "pydantic_core", "fastapi", "uvicorn", "typer"}


def imports(module: str) -> Iterator[str]:
    """Every module that ``module`` imports, at any depth, those for type checking included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def tops(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)}


def importers(prefix: str, within: str = "openai_local") -> set[str]:
    return {
        module
        for module in MODULES
        if (module + ".").startswith(within + ".")
        if any((name + ".").startswith(prefix + ".") for name in imports(module))
    }


def test_one_package_of_the_engine_imports_llama_cpp_and_none_imports_it_at_once() -> None:
    wall = "openai_local.engine.llama."
    assert all(module.startswith(wall) for module in importers("llama_cpp"))
    assert importers("openai_local.engine.llama") - {
        module for module in MODULES if (module + ".").startswith(wall)
    } == {"openai_local.engine.engine", "openai_local.models.files"}


def test_inside_the_engine_one_module_knows_event_loops() -> None:
    knowing = set().union(*(importers(loop, "openai_local.engine") for loop in LOOPS))
    assert knowing == {"openai_local.engine.bridge"}


def test_the_engine_is_made_of_the_standard_library_and_numpy() -> None:
    allowed = {"numpy", "openai_local"} | set(sys.stdlib_module_names)
    for module in MODULES:
        if module.startswith("openai_local.engine"):
            extra = {"anyio", "trio"} if module.endswith(".bridge") else set()
            extra |= {"llama_cpp"} if ".engine.llama." in module else set()
            extra |= {"llguidance"} if module in GUIDANCE else set()
            assert tops(module) <= allowed | extra, module


def test_imports_go_in_one_direction() -> None:
    above = {"openai_local.application", "openai_local.cli", "openai_local.asgi"}
    assert importers("openai_local.routes", "openai_local.engine") == set()
    for name in above:
        assert importers(name, "openai_local.routes") == set()
        assert importers(name, "openai_local.engine") == set()
    outside_engine = {
        name
        for module in MODULES
        if module.startswith("openai_local.engine")
        for name in imports(module)
        if name.startswith("openai_local.") and not name.startswith("openai_local.engine")
    }
    assert outside_engine == set()


def test_what_a_chat_is_to_a_model_knows_neither_http_nor_llama_cpp() -> None:
    room = "openai_local.chat"
    for module in MODULES:
        if module.startswith(room + ".") or module == room:
            assert tops(module).isdisjoint(WEB | LOOPS | {"llama_cpp"})
            for name in imports(module):
                if name.startswith("openai_local."):
                    assert name.startswith((room, "openai_local.engine")), (module, name)


def test_requests_are_planned_without_http() -> None:
    room = "openai_local.api"
    assert importers("openai_local.routes", room) == set()
    for module in MODULES:
        if module.startswith(room + ".") or module == room:
            assert tops(module).isdisjoint((WEB | LOOPS) - {"anyio", "pydantic", "pydantic_core"})
    assert importers(room, "openai_local.engine") == importers(room, "openai_local.models") == set()


def test_python_goes_past_the_routes() -> None:
    room = "openai_local.inprocess"
    assert importers("openai_local.routes", room) == set()
    assert importers("openai") == {
        "openai_local", "openai_local.pytest_plugin", f"{room}.clients"
    }  # fmt: skip
    assert importers(room) - importers(room, room) == {
        "openai_local", "openai_local.application", "openai_local.cli.service"
    }  # fmt: skip


def test_the_kit_for_tests_is_used_by_nothing_else() -> None:
    room = "openai_local.testing"
    assert importers(room) - importers(room, room) == {"openai_local.pytest_plugin"}
    assert importers("pytest") == {"openai_local.pytest_plugin"}


def test_the_chat_language_knows_neither_http_nor_tokens() -> None:
    assert tops("openai_local.chat.template").isdisjoint(WEB | LOOPS)
    assert importers("openai_local.engine") & {"openai_local.chat.template"} == set()


def test_the_models_know_no_http() -> None:
    room = "openai_local.models"
    assert importers("openai_local.routes", room) == set()
    for module in MODULES:
        if module.startswith(room):
            assert tops(module).isdisjoint(WEB), module


def test_the_command_line_alone_knows_a_server_and_a_terminal() -> None:
    room = "openai_local.cli."
    for library in ("uvicorn", "typer", "rich", "httpx"):
        assert all((name + ".").startswith(room) for name in importers(library)), library
    assert importers("uvicorn") == {"openai_local.cli.server"}
    assert importers("typer", "openai_local.cli.diagnosis") == set()
    assert importers("rich", "openai_local.cli.diagnosis") == set()


def test_one_module_knows_django() -> None:
    assert importers("django") | importers("asgiref") == {"openai_local.django"}
    assert importers("openai_local.django") == set()
