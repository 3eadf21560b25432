"""Frozen settings: from arguments, then the environment (``OPENAI_LOCAL_*``), then a TOML file,
then defaults."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from openai_local.config_file import read_toml
from openai_local.engine.config import CacheType, EngineConfig
from openai_local.models.sources import HubSource, InvalidSource, WebSource, parse_source

ENV_PREFIX = "OPENAI_LOCAL_"

# llama.cpp counts in 32 bits; a batch has buffers of its size.
MAX_SIZE = 1 << 31
MAX_BATCH = 1 << 20

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")
Use = Literal["chat", "embedding", "both"]


class ConfigError(Exception):
    """A setting is unknown or ill-typed; the message names it."""


class ModelOptions(BaseModel):
    """What may differ from model to model. Sizes are in tokens; None leaves the choice to the
    machine or the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    chat_template: Path | None = Field(None, description="Jinja file used for the model's own")
    n_ctx: int | None = Field(
        None,
        ge=8,
        lt=MAX_SIZE,
        description="The longest sequence in tokens; else as in the model's training, if it fits",
    )
    n_parallel: int | None = Field(
        None, ge=1, lt=MAX_SIZE, description="Sequences that run at once"
    )
    n_threads: int | None = Field(
        None, ge=1, le=512, description="Threads for single tokens; else the physical cores"
    )
    n_threads_batch: int | None = Field(
        None, ge=1, le=512, description="Threads for prompts; else as n_threads"
    )
    n_gpu_layers: int = Field(-1, ge=-1, lt=MAX_SIZE, description="Layers on the GPU; -1 is all")
    n_batch: int = Field(2048, ge=1, le=MAX_BATCH, description="Most tokens of a decode")
    n_ubatch: int = Field(512, ge=1, le=MAX_BATCH, description="Most tokens computed at once")
    flash_attn: bool | None = Field(None, description="Flash attention; llama.cpp decides if unset")
    kv_memory: ByteSize | None = Field(
        None,
        ge=1,
        description="Most memory for keys and values; else a quarter of the free RAM, or half"
        " of what is free on a GPU",
    )
    cache_type_k: CacheType = Field("f16", description="Format of the keys in memory")
    cache_type_v: CacheType = Field("f16", description="Format of the values in memory")
    kv_unified: bool | None = Field(
        None, description="Sequences share one pool of cells; if unset, where they need to"
    )
    cache_ram: ByteSize | None = Field(
        None,
        ge=0,
        description="Most memory for states of earlier prompts; else a sixteenth of what is free",
    )
    cache_dir: Path | None = Field(
        None, description="Directory in which states of earlier prompts outlive a restart"
    )
    cache_disk: ByteSize = Field(
        ByteSize(4 << 30), ge=1, description="Most that cache_dir may hold"
    )
    use_mmap: bool = Field(True, description="Map the file instead of reading it")
    target_itl_ms: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="Bound on the time between tokens while prompts are computed",
    )
    max_waiting: int = Field(
        2048, ge=0, lt=MAX_SIZE, description="Generations that may wait; more get 429"
    )
    request_timeout_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="A generation that takes longer fails"
    )
    idle_unload_s: float | None = Field(
        None,
        ge=0,
        le=1e8,
        allow_inf_nan=False,
        description="A model that nobody used for so long is unloaded; never, if not given",
    )


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


# Without control characters: names go into logs and answers.
Name = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]


def _source(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        try:
            return parse_source(value)
        except InvalidSource as error:
            raise PydanticCustomError("source", error.reason) from None
    if isinstance(value, (HubSource, WebSource)) or value is None:
        return value
    raise PydanticCustomError("source", "a path, hf:owner/repo or an https URL is needed")


_Location = BeforeValidator(_source)


class ModelTable(ModelOptions):
    """One of ``models``. An option that it does not set is that of the settings."""

    path: Annotated[Path | HubSource | WebSource, _Location] = Field(
        description="GGUF file, hf:owner/repo[:quantisation], or an https URL"
    )
    alias: Annotated[tuple[Name, ...], BeforeValidator(_one_or_many)] = Field(
        (), description="Other names by which requests may ask for it"
    )
    use: Use = Field("both", description="What it serves: chat, embedding, or both if it can")
    pinned: bool = Field(False, description="Loaded at the start, and never unloaded")

    @model_validator(mode="after")
    def _agrees(self) -> ModelTable:
        if self.use == "embedding" and "chat_template" in self.model_fields_set:
            raise PydanticCustomError("use", "a model for embeddings has no chat_template")
        return self


class Settings(ModelOptions):
    """All settings. Sizes are in tokens; None leaves the choice to the machine or the model."""

    config: Path | None = Field(None, description="TOML file with settings")
    model: Annotated[Path | HubSource | WebSource | None, _Location] = Field(
        None,
        description="GGUF file, hf:owner/repo[:quantisation], or an https URL;"
        " the packaged SmolLM2 if not given",
    )
    model_id: str | None = Field(None, description="Its name in the API; from the file's name")
    embedding_model: Annotated[Path | HubSource | WebSource | None, _Location] = Field(
        None, description="A model of its own for embeddings or reranking, named as the other"
    )
    embedding_model_id: str | None = Field(None, description="Its name in the API")
    models: dict[Name, ModelTable] = Field(
        {}, description="More models by name, each a path or a table of options"
    )
    models_dir: Path | None = Field(None, description="Directory whose GGUF files are models, too")
    default_model: str | None = Field(
        None, description="The model for requests that name none; the first, if not given"
    )
    serve_unknown_models: bool = Field(
        False, description="Serve names that are not known with the default model"
    )
    models_memory: ByteSize | None = Field(
        None, ge=1, description="Most memory of all loaded models together"
    )
    models_wait_s: float = Field(
        60.0,
        ge=0,
        le=1e8,
        allow_inf_nan=False,
        description="How long a request waits for memory that busy models hold",
    )
    offline: bool = Field(
        False, description="Download nothing: models of the hub and of URLs come from the cache"
    )
    requantize: bool = Field(True, description="Use the packaged SmolLM2 as Q8_0")
    api_key: str | None = Field(None, description="Bearer token that requests must carry")
    cors_origins: tuple[str, ...] | None = Field(
        None, description="Origins whose pages may call it from a browser; '*' is all"
    )
    docs: bool = Field(True, description="Serve /openapi.json and /docs, without a key")
    max_body_bytes: int = Field(32 << 20, ge=1, description="Longer request bodies get 413")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, origins: Any) -> Any:
        """A string has them with commas between, or is a JSON array, as in the environment."""
        if not isinstance(origins, str):
            return origins
        with suppress(ValueError):
            return json.loads(origins)
        return origins.replace(",", " ").split()

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for origin in origins or ():
            # A browser sends no path, so that one with a path would never match.
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise PydanticCustomError("origin", "an origin is like https://example.org")
        return origins

    @model_validator(mode="after")
    def _check_tiers(self) -> Settings:
        for id, table in ((None, None), *self.models.items()):
            if self.option("cache_dir", table) and self.option("cache_ram", table) == 0:
                text = "cache_dir needs cache_ram: it is read into RAM"
                raise PydanticCustomError("tiers", text if id is None else f"models.{id}: {text}")
        return self

    def option(self, name: str, table: ModelTable | None) -> Any:
        """One of ModelOptions as it holds for a model: its own, else the settings'."""
        return getattr(self if table is None or name not in table.model_fields_set else table, name)

    def engine(self, model: Path, table: ModelTable | None = None) -> EngineConfig:
        """The engine's part of the settings, for one file."""
        names = {field.name for field in dataclasses.fields(EngineConfig)}
        options = {n: self.option(n, table) for n in ModelOptions.model_fields if n in names}
        if table is not None and table.use == "embedding" and options["n_parallel"] is None:
            options["n_parallel"] = 1  # the memory for generations is of no use
        return EngineConfig(model, **options)


# Where relative paths of a file are those of its folder.
_PATHS = frozenset(
    name
    for fields in (Settings.model_fields, ModelTable.model_fields)
    for name, field in fields.items()
    if "Path" in str(field.annotation)
)


def load_settings(**options: Any) -> Settings:
    """Settings from ``options``, the environment and the file. Raises ConfigError naming what is
    wrong."""
    return _load(_sources(options))


def setting_origins(**options: Any) -> dict[str, str]:
    """Where each setting that :func:`load_settings` would take comes from, by its dotted name:
    ``argument``, a variable of the environment, or the path of the file.

    Those that are not here have their defaults. Raises ConfigError.
    """
    sources = _sources(options)
    _load(sources)
    origins: dict[str, str] = {}
    for source in reversed(sources):
        origins.update((name, source.name or "argument") for name in _dotted(source.values))
    return origins


@dataclass(frozen=True, slots=True)
class _Source:
    """Settings that came together; ``name`` is "" for arguments."""

    name: str
    given: InitVar[Mapping[str, Any]]
    values: dict[str, Any] = field(init=False)

    def __post_init__(self, given: Mapping[str, Any]) -> None:
        object.__setattr__(self, "values", _spelt_out(given))

    def has(self, path: Sequence[str | int]) -> bool:
        value: Any = self.values
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                return False
            value = value[key]
        return True


def _spelt_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``models``, a path stands for a table of nothing else."""
    values = dict(given)
    models = values.get("models")
    if isinstance(models, Mapping):
        values["models"] = {
            id: {"path": table} if isinstance(table, (str, Path)) else table
            for id, table in models.items()
        }
    return values


def _sources(options: Mapping[str, Any]) -> list[_Source]:
    """The first that has a setting is right. Raises ConfigError for names that are no settings."""
    sources = [_Source("", options)]
    for variable, value in os.environ.items():
        if variable.upper().startswith(ENV_PREFIX):
            name = variable[len(ENV_PREFIX) :].lower()
            if name not in Settings.model_fields:
                raise ConfigError(_unknown(variable, name))
            sources.append(_Source(variable, {name: _decoded(variable, name, value)}))
    for source in sources:
        path = source.values.get("config")
        if isinstance(path, (str, Path)):
            sources.append(_Source(str(path), _read_file(path)))
            break
    return sources


def _decoded(variable: str, name: str, value: str) -> Any:
    if name != "models":
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ConfigError(f"{variable}: it must be a JSON object: {error}") from None


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        values = read_toml(Path(path), _PATHS, _spelt_out)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"config: cannot read {path}: {reason}") from None
    if "config" in values:
        raise ConfigError(f"{path}: a settings file cannot name another in 'config'")
    return values


def _load(sources: Sequence[_Source]) -> Settings:
    values: dict[str, Any] = {}
    for source in reversed(sources):
        values = _merged(values, source.values)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [_problem(problem, sources) for problem in error.errors()]
        raise ConfigError("; ".join(problems)) from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables key by key, so that one option of one model can be set over the file's."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _merged(under, value)
        merged[key] = value
    return merged


def _dotted(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name == "models" and isinstance(value, Mapping):
            for id, table in value.items():
                yield from (f"models.{id}.{key}" for key in table)
        else:
            yield name


def _problem(problem: ErrorDetails, sources: Sequence[_Source]) -> str:
    """One line that names the setting, and where it was set."""
    loc = problem["loc"]
    if not loc:  # of several settings together
        return problem["msg"]
    path = loc[:-1] if problem["type"] == "missing" else loc
    while path and not any(source.has(path) for source in sources):
        path = path[:-1]  # within a value that is no table
    name = ".".join(map(str, loc))
    for source in sources:
        if source.has(path) and source.name:
            in_file = not source.name.upper().startswith(ENV_PREFIX)
            rest = "".join(f".{part}" for part in loc[1:])
            name = f"{source.name}: {name}" if in_file else source.name + rest
        if source.has(path):
            break
    if problem["type"] == "extra_forbidden":
        return _unknown(name, str(loc[-1]), ModelTable if len(loc) > 1 else Settings)
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {problem['msg']}, not {problem['input']!r}"


def _unknown(shown: str, name: str, table: type[BaseModel] = Settings) -> str:
    near = difflib.get_close_matches(name, table.model_fields, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown setting {shown!r}{hint}"
