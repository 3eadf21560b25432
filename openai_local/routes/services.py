"""What every endpoint is given. Nothing here is global: each application has its own."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from openai_local.config import Settings
from openai_local.models.registry import LoadedModel, Registry
from openai_local.routes.host import unless_left


@dataclass(frozen=True, slots=True)
class Services:
    """The application's models and settings."""

    registry: Registry
    settings: Settings

    async def model(self, request: Request, name: str) -> LoadedModel:
        """The model, loaded if need be while the client waits for it.

        Raises what Registry.get raises, and ClientLeft.
        """
        loaded = self.registry.loaded(name)
        if loaded is not None:
            return loaded
        return await unless_left(request.receive, lambda: self.registry.get(name))
