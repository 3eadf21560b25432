"""What every endpoint is given. Nothing here is global: each application has its own."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.requests import Request

from openai_local.config import Settings, Use
from openai_local.models.registry import LoadedModel, Registry
from openai_local.routes.host import unless_left


@dataclass(frozen=True, slots=True)
class Services:
    """The application's models and settings. ``held`` is of one request: what it has of them until
    its response has ended."""

    registry: Registry
    settings: Settings
    held: ExitStack = field(default_factory=ExitStack)

    def for_request(self) -> Services:
        return Services(self.registry, self.settings)

    def named_in_path(self, request: Request, use: Use) -> str:
        """The model of a path before 2022, which named it: the default where it is none of ours."""
        name = request.path_params["engine"]
        registry = self.registry
        fallback = registry.embedding_id if use == "embedding" else registry.default_id
        return name if registry.knows(name) else fallback

    async def model(self, request: Request, name: str, use: Use | None = "chat") -> LoadedModel:
        """The model, loaded if need be while the client waits for it, and held.

        Raises what Registry.acquire raises, and ClientLeft.
        """
        lease = self.registry.acquire_now(name, use)
        if lease is None:
            acquire = self.registry.acquire
            lease = await unless_left(request.receive, lambda: acquire(name, use))
        return self.held.enter_context(lease)
