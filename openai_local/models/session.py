"""What one request has of the models: each is held from its first use until the request's end."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from openai_local.config import Use
from openai_local.models.loads import LoadedModel
from openai_local.models.registry import Registry


class Session:
    """To be left when nothing is done any more with what it gave::

    with Session(registry) as models:
        model = await models.get("small")
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._held = ExitStack()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hold nothing any more. Safe to repeat, from any thread."""
        self._held.close()

    @property
    def default_id(self) -> str:
        """As the registry's."""
        return self._registry.default_id

    @property
    def embedding_id(self) -> str:
        """As the registry's."""
        return self._registry.embedding_id

    def now(self, name: str, use: Use | None = None) -> LoadedModel | None:
        """As :meth:`get`, where nothing is to be waited for; else None."""
        lease = self._registry.acquire_now(name, use)
        return None if lease is None else self._held.enter_context(lease)

    async def get(self, name: str, use: Use | None = None) -> LoadedModel:
        """The model, loaded if need be, for ``use`` if that is given.

        Raises what Registry.acquire raises.
        """
        loaded = self.now(name, use)
        if loaded is None:
            loaded = self._held.enter_context(await self._registry.acquire(name, use))
        return loaded
