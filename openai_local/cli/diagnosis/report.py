"""All findings, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai_local.cli.diagnosis.build import look_at_build
from openai_local.cli.diagnosis.cores import look_at_cores
from openai_local.cli.diagnosis.files import look_at_files
from openai_local.cli.diagnosis.finding import Finding
from openai_local.cli.diagnosis.memory import look_at_memory
from openai_local.cli.diagnosis.packages import look_at_packages
from openai_local.config import ConfigError, Settings, load_settings


@dataclass(frozen=True, slots=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def is_broken(self) -> bool:
        return any(finding.level == "broken" for finding in self.findings)


def examine(options: Mapping[str, Any]) -> Report:
    """With the settings that a server started so would have. Takes about a second."""
    findings = [*look_at_packages()]
    try:
        settings = load_settings(**options)
        findings.append(Finding("settings", "ok", "all are known and in range"))
    except ConfigError as error:
        findings.append(Finding("settings", "broken", str(error), "correct it"))
        settings = Settings.model_validate({})
    build, found = look_at_build(settings)
    gpu_memory = build.gpu_memory(settings) if build is not None else None
    findings += [
        *found,
        *look_at_cores(settings, has_gpu=gpu_memory is not None),
        *look_at_memory(),
        *look_at_files(settings, gpu_memory),
    ]
    return Report(tuple(findings))
