"""For tests of hosts: a model that says what it is told to, without weights and without llama.cpp.

All but the decoding is real, so that requests are checked, batched, bounded, streamed and counted
as with a model: ``script.py`` is what it says, ``draw.py`` how that becomes tokens that a request's
constraint allows, ``model.py`` the model in an application. ``backend.py`` and ``vocabulary.py``
are what it runs on, and our own tests, too. The fixtures are in ``openai_local.pytest_plugin``.
"""

from openai_local.testing.model import FakeModel
from openai_local.testing.script import FakeRequest, Reply

__all__ = ["FakeModel", "FakeRequest", "Reply"]
