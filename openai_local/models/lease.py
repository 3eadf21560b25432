"""The right to a loaded model, which stays while anybody has one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from openai_local.models.loads import LoadedModel


class Lease:
    """While it is held, the model stays loaded. To be released from any thread, or dropped."""

    def __init__(self, model: LoadedModel, release: Callable[[], None]) -> None:
        self.model = model
        self._release: Callable[[], None] | None = release

    def __enter__(self) -> LoadedModel:
        return self.model

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def __del__(self) -> None:
        self.release()


def release_at_once(lease: Future[Lease]) -> None:
    if lease.exception() is None:
        lease.result().release()
