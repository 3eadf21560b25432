"""Frozen settings, from arguments, then the environment (``OPENAI_LOCAL_*``), then defaults."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from openai_local.engine.config import CacheType, EngineConfig

ENV_PREFIX = "OPENAI_LOCAL_"

# llama.cpp counts in 32 bits; a batch has buffers of its size.
MAX_SIZE = 1 << 31
MAX_BATCH = 1 << 20

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")


class ConfigError(Exception):
    """A setting is unknown or ill-typed; the message names it."""


class Settings(BaseSettings):
    """All settings. Sizes are in tokens; None leaves the choice to the machine or the model."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, protected_namespaces=()
    )

    model: Path | None = Field(None, description="GGUF file; the packaged SmolLM2 if not given")
    model_id: str | None = Field(None, description="Its name in the API; from the file's name")
    embedding_model: Path | None = Field(
        None, description="GGUF file that serves embeddings or reranks"
    )
    embedding_model_id: str | None = Field(None, description="Its name in the API")
    chat_template: Path | None = Field(None, description="Jinja file used for the model's own")
    requantize: bool = Field(True, description="Use the packaged SmolLM2 as Q8_0")
    api_key: str | None = Field(None, description="Bearer token that requests must carry")
    cors_origins: tuple[str, ...] | None = Field(
        None, description="Origins whose pages may call it from a browser; '*' is all"
    )
    docs: bool = Field(True, description="Serve /openapi.json and /docs, without a key")
    max_body_bytes: int = Field(32 << 20, ge=1, description="Longer request bodies get 413")
    n_ctx: int | None = Field(None, ge=8, lt=MAX_SIZE, description="The longest sequence")
    n_parallel: int | None = Field(
        None, ge=1, lt=MAX_SIZE, description="Sequences that run at once"
    )
    n_threads: int | None = Field(None, ge=1, le=512, description="Threads for single tokens")
    n_threads_batch: int | None = Field(None, ge=1, le=512, description="Threads for prompts")
    n_gpu_layers: int = Field(-1, ge=-1, lt=MAX_SIZE, description="Layers on the GPU; -1 is all")
    n_batch: int = Field(2048, ge=1, le=MAX_BATCH, description="Most tokens of a decode")
    n_ubatch: int = Field(512, ge=1, le=MAX_BATCH, description="Most tokens computed at once")
    flash_attn: bool | None = Field(None, description="Flash attention; llama.cpp decides if unset")
    kv_memory: ByteSize | None = Field(
        None,
        ge=1,
        description="Most memory for keys and values; else about a quarter of what is free",
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

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, origins: Any) -> Any:
        """A string has them with commas between, as an environment variable does."""
        return origins.replace(",", " ").split() if isinstance(origins, str) else origins

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
        if self.cache_dir is not None and self.cache_ram == 0:
            raise PydanticCustomError("tiers", "cache_dir needs cache_ram: it is read into RAM")
        return self

    def engine(self, model: Path) -> EngineConfig:
        """The engine's part of the settings, for one file."""
        return EngineConfig(
            model=model,
            n_ctx=self.n_ctx,
            n_parallel=self.n_parallel,
            n_threads=self.n_threads,
            n_threads_batch=self.n_threads_batch,
            n_gpu_layers=self.n_gpu_layers,
            n_batch=self.n_batch,
            n_ubatch=self.n_ubatch,
            flash_attn=self.flash_attn,
            kv_memory=self.kv_memory,
            cache_type_k=self.cache_type_k,
            cache_type_v=self.cache_type_v,
            kv_unified=self.kv_unified,
            cache_ram=self.cache_ram,
            cache_dir=self.cache_dir,
            cache_disk=self.cache_disk,
            use_mmap=self.use_mmap,
            target_itl_ms=self.target_itl_ms,
            max_waiting=self.max_waiting,
            request_timeout_s=self.request_timeout_s,
        )


def load_settings(**options: Any) -> Settings:
    """Settings from ``options`` and the environment. Raises ConfigError naming what is wrong."""
    for name in options:
        _check_known(name, name)
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX):
            _check_known(variable[len(ENV_PREFIX) :].lower(), variable)
    try:
        return Settings(**options)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"]))
            if not field:  # of several settings together
                problems.append(problem["msg"])
                continue
            from_environment = field not in options
            name = ENV_PREFIX + field.upper() if from_environment else field
            problems.append(f"{name}: {problem['msg']}, not {problem['input']!r}")
        raise ConfigError("; ".join(problems)) from None


def _check_known(field: str, shown: str) -> None:
    if field in Settings.model_fields:
        return
    near = difflib.get_close_matches(field, Settings.model_fields, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown setting {shown!r}{hint}")
