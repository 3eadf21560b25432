"""What every endpoint is given. Nothing here is global: each application has its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from openai_local.config import Settings, Use
from openai_local.models.registry import Registry
from openai_local.models.session import Session


@dataclass(frozen=True, slots=True)
class Services:
    """The application's models and settings, and what this request holds of the models."""

    registry: Registry
    settings: Settings
    models: Session = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", Session(self.registry))

    def for_request(self) -> Services:
        return Services(self.registry, self.settings)

    def named_in_path(self, request: Request, use: Use) -> str:
        """The model of a path before 2022, which named it: the default where it is none of ours."""
        name: str = request.path_params["engine"]
        if self.registry.knows(name):
            return name
        return self.models.embedding_id if use == "embedding" else self.models.default_id
