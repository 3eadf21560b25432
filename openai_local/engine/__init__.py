"""Tokens in, events out: llama.cpp with continuous batching on a thread of its own.

The life of the thread: it opens the backend, then takes steps (``core.py``). A step drains the
inbox (``intake.py``), gives free slots to waiting sequences (``admission.py``), with what the slots
or the RAM have of their prompts (``cache/``), decodes one token for every running sequence
(``computing.py``), samples (``results.py``), bound to what was asked for (``constraints/``),
delivers (``deliveries.py``), then computes prompt chunks or embeddings within a budget, and
delivers again; where a GPU computes, while the next decode runs. With nothing to do it sleeps on
its inbox. When it is told to stop it answers everybody and frees the model. States of prompts are
written to disk, and read for those that wait for it, by a thread beside it.

Knows no HTTP, no OpenAI types and no pydantic. Only ``llama/`` imports llama_cpp; only
``bridge.py`` knows an event loop's machinery.
"""

from openai_local.engine.bridge import Generation
from openai_local.engine.config import EngineConfig
from openai_local.engine.engine import Engine
from openai_local.engine.errors import (
    ConstraintUnsupported,
    DeadlineExceeded,
    EmptyPrompt,
    EngineError,
    EngineStopped,
    InvalidConstraint,
    InvalidRequest,
    InvalidSampling,
    InvalidToken,
    ModelLoadFailed,
    PromptTooLong,
    QueueFull,
    StepFailed,
    Unsupported,
)
from openai_local.engine.messages import (
    CompiledConstraint,
    Constraint,
    Failed,
    Finished,
    GenerationRequest,
    ModelInfo,
    Output,
    PromptLogprobs,
    PromptProgress,
    SamplingParams,
    TextDelta,
    ThoughtLimit,
    Timings,
    TokenLogprob,
    UnstoppedText,
    Usage,
)
from openai_local.engine.metrics import EngineMetrics

__all__ = [
    "CompiledConstraint",
    "Constraint",
    "ConstraintUnsupported",
    "DeadlineExceeded",
    "EmptyPrompt",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineMetrics",
    "EngineStopped",
    "Failed",
    "Finished",
    "Generation",
    "GenerationRequest",
    "InvalidConstraint",
    "InvalidRequest",
    "InvalidSampling",
    "InvalidToken",
    "ModelInfo",
    "ModelLoadFailed",
    "Output",
    "PromptLogprobs",
    "PromptProgress",
    "PromptTooLong",
    "QueueFull",
    "SamplingParams",
    "StepFailed",
    "TextDelta",
    "ThoughtLimit",
    "Timings",
    "TokenLogprob",
    "UnstoppedText",
    "Unsupported",
    "Usage",
]
