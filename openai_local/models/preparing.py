"""What must be known before a model is loaded: where its file is, its options, what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from openai_local.config import Settings
from openai_local.engine import EngineConfig, ModelLoadFailed
from openai_local.models.catalog import ModelSpec
from openai_local.models.footprint import Measure
from openai_local.models.residency import Need


def prepare(
    spec: ModelSpec,
    settings: Settings,
    measure: Measure,
    budget: float,
    given_up: Callable[[], bool],
) -> tuple[EngineConfig, Need]:
    """Blocks while the file is fetched, until ``given_up()``.

    ``budget`` is of bytes, of all models together; infinity: nothing is measured. Raises
    ModelLoadFailed, and what ``spec.find`` and the settings raise.
    """
    try:
        config = settings.engine(spec.find(given_up), spec.table)
        n_bytes = 0
        if budget < math.inf:
            config, n_bytes = measure(config, int(budget))
    except OSError as error:
        raise ModelLoadFailed(Path(spec.id), str(error)) from error
    idle_unload_s = settings.option("idle_unload_s", spec.table)
    return config, Need(n_bytes, spec.pinned, idle_unload_s)
