"""The model by itself, on http://127.0.0.1:8000/v1, with its settings in the program.

python examples/standalone.py [PORT]
"""

import sys

import uvicorn

import openai_local

if __name__ == "__main__":
    app = openai_local.app(n_ctx=2048, n_parallel=8)
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
