"""What each route takes and sends, for the OpenAPI document. A row here for each in ROUTES."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from openai_local.api import chat_completions, completions, embeddings, rerank, tokens
from openai_local.api.bodies import Refused
from openai_local.api.types import answers
from openai_local.api.types.apply_template import TemplateRequest
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.api.types.completions import CompletionRequest
from openai_local.api.types.embeddings import EmbeddingRequest
from openai_local.api.types.infill import InfillRequest
from openai_local.api.types.rerank import RerankRequest
from openai_local.api.types.tokens import DetokenizeRequest, TokenizeRequest
from openai_local.routes import infill

Types = tuple[type[BaseModel], ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """``path`` as in OpenAPI; ``optional`` are fields of the body that the path makes needless.

    ``refused`` may be given with the values that ask for nothing. ``events`` are the data of a
    stream, which ends with ``[DONE]`` where ``done`` says so.
    """

    method: str
    path: str
    id: str
    summary: str
    answers: Types = ()
    body: type[BaseModel] | None = None
    refused: Refused = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    events: Types = ()
    done: bool = True
    html: bool = False
    needs_key: bool = True


_CHAT = (ChatCompletionRequest, chat_completions.REFUSED)
_TEXT = (CompletionRequest, completions.REFUSED)
_VECTORS = (EmbeddingRequest, embeddings.REFUSED)
_RANK = (RerankRequest, rerank.REFUSED)

OPERATIONS = (
    Operation(
        "GET", "/health", "getHealth", "Whether requests would be served now",
        (answers.Health,), needs_key=False,
    ),
    Operation("GET", "/models", "listModels", "The models that there are", (answers.Models,)),
    Operation("GET", "/models/{id}", "retrieveModel", "One model", (answers.Model,)),
    Operation(
        "POST", "/chat/completions", "createChatCompletion", "Go on with a conversation",
        (answers.ChatCompletion,), *_CHAT, events=(answers.ChatCompletionChunk,),
    ),
    Operation(
        "POST", "/completions", "createCompletion", "Go on with a text",
        (answers.Completion,), *_TEXT, events=(answers.CompletionChunk,),
    ),
    Operation(
        "POST", "/embeddings", "createEmbedding", "Vectors of texts",
        (answers.Embeddings,), *_VECTORS,
    ),
    Operation(
        "POST", "/tokenize", "tokenize", "The tokens of a text",
        (answers.Tokens,), TokenizeRequest, tokens.REFUSED,
    ),
    Operation(
        "POST", "/detokenize", "detokenize", "The text of tokens",
        (answers.Text,), DetokenizeRequest, tokens.REFUSED,
    ),
    Operation(
        "POST", "/apply-template", "applyTemplate", "The prompt that a conversation would have",
        (answers.RenderedTemplate,), TemplateRequest, chat_completions.REFUSED,
    ),
    Operation(
        "POST", "/infill", "infill", "What goes between two texts",
        (answers.Infill, answers.ChosenFields), InfillRequest, infill.REFUSED,
        events=(answers.InfillPiece, answers.Infill, answers.ChosenFields), done=False,
    ),
    Operation(
        "POST", "/rerank", "rerank", "Documents by how well they answer a query",
        (answers.Ranking,), *_RANK,
    ),
    Operation(
        "POST", "/reranking", "reranking", "As /rerank", (answers.Ranking,), *_RANK,
    ),
    Operation(
        "POST", "/engines/{engine}/completions", "createCompletionOfEngine",
        "As /completions, in its form before 2022; any engine is served by the default model",
        (answers.Completion,), *_TEXT, ("model",), (answers.CompletionChunk,),
    ),
    Operation(
        "POST", "/engines/{engine}/embeddings", "createEmbeddingOfEngine",
        "As /embeddings, in its form before 2022; any engine is served by the default model",
        (answers.Embeddings,), *_VECTORS, ("model",),
    ),
    Operation(
        "GET", "/openapi.json", "getOpenAPI", "This document",
        (answers.OpenAPIDocument,), needs_key=False,
    ),
    Operation(
        "GET", "/docs", "getDocs", "This document as a page", html=True, needs_key=False,
    ),
)  # fmt: skip
