"""Writes tiny models with random weights, one for each kind of memory that llama.cpp has.

Knows the file formats only; llama.cpp is not called here. A token is a byte; what they generate is
printable, without end, and depends on all that the architecture can look back to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

N_EMBD, N_HEAD, N_FF, N_CTX_TRAIN = 64, 2, 96, 4096
WINDOW = 32
FIRST_BYTE = 3  # the token of byte 0, after <unk>, <s> and </s>
N_VOCAB = FIRST_BYTE + 256
N_INNER, N_STATE, DT_RANK, N_CONV = 2 * N_EMBD, 16, 4, 4
N_EXPERT = 4


class Writer:
    """A GGUF file of an architecture whose tensors are drawn from ``seed``."""

    def __init__(self, path: Path, arch: str, n_layer: int, seed: int = 0) -> None:
        self.gguf = gguf.GGUFWriter(path, arch)
        self.n_layer = n_layer
        self._random = np.random.default_rng(seed)
        self.gguf.add_type(gguf.GGUFType.MODEL)
        self.gguf.add_block_count(n_layer)
        self.gguf.add_embedding_length(N_EMBD)
        self.gguf.add_layer_norm_rms_eps(1e-6)

    def tensor(self, name: str, *shape: int, scale: float = 1.0) -> None:
        """A matrix that keeps the length of what it is applied to, times ``scale``."""
        values = self._random.standard_normal(shape) * scale / np.sqrt(shape[-1])
        self.put(name, values)

    def put(self, name: str, values: NDArray[Any]) -> None:
        self.gguf.add_tensor(name, values.astype(np.float32))

    def ones(self, name: str, n: int, value: float = 1.0) -> None:
        self.put(name, np.full(n, value))

    def vocabulary(self) -> None:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        kind = gguf.TokenType
        self.gguf.add_tokenizer_model("llama")
        self.gguf.add_token_list(tokens)
        self.gguf.add_token_scores([0.0] * len(tokens))
        self.gguf.add_token_types([kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256)
        self.gguf.add_bos_token_id(1)
        self.gguf.add_eos_token_id(2)
        self.gguf.add_unk_token_id(0)
        self.gguf.add_add_bos_token(True)
        self.gguf.add_add_space_prefix(False)

    def ends(self, output_norm: str = "output_norm") -> None:
        self.vocabulary()
        self.tensor("token_embd.weight", N_VOCAB, N_EMBD, scale=np.sqrt(N_EMBD))
        self.ones(f"{output_norm}.weight", N_EMBD)
        output = self._random.standard_normal((N_VOCAB, N_EMBD))
        output[: FIRST_BYTE + ord(" ")] = 0
        output[FIRST_BYTE + ord("~") + 1 :] = 0
        self.put("output.weight", output)

    def attention(self, i: int, n_kv: int = N_HEAD, *, head: int = N_EMBD // N_HEAD) -> None:
        # Long enough that a token attends to some, and not to the mean of all.
        self.tensor(f"blk.{i}.attn_q.weight", N_HEAD * head, N_EMBD, scale=2)
        self.tensor(f"blk.{i}.attn_k.weight", n_kv * head, N_EMBD, scale=2)
        self.tensor(f"blk.{i}.attn_v.weight", n_kv * head, N_EMBD)
        self.tensor(f"blk.{i}.attn_output.weight", N_EMBD, N_HEAD * head, scale=3)

    def heads_norm(self, i: int) -> None:
        for name in ("attn_q_norm", "attn_k_norm"):
            self.ones(f"blk.{i}.{name}.weight", N_EMBD // N_HEAD, 1.5)

    def feed_forward(self, i: int) -> None:
        self.ones(f"blk.{i}.ffn_norm.weight", N_EMBD)
        self.tensor(f"blk.{i}.ffn_gate.weight", N_FF, N_EMBD)
        self.tensor(f"blk.{i}.ffn_up.weight", N_FF, N_EMBD)
        self.tensor(f"blk.{i}.ffn_down.weight", N_EMBD, N_FF)

    def experts(self, i: int) -> None:
        self.ones(f"blk.{i}.ffn_norm.weight", N_EMBD)
        self.tensor(f"blk.{i}.ffn_gate_inp.weight", N_EXPERT, N_EMBD)
        self.tensor(f"blk.{i}.ffn_gate_exps.weight", N_EXPERT, N_FF, N_EMBD)
        self.tensor(f"blk.{i}.ffn_up_exps.weight", N_EXPERT, N_FF, N_EMBD)
        self.tensor(f"blk.{i}.ffn_down_exps.weight", N_EXPERT, N_EMBD, N_FF)

    def state_space(self, i: int, *, norms: bool = False) -> None:
        self.tensor(f"blk.{i}.ssm_in.weight", 2 * N_INNER, N_EMBD)
        self.tensor(f"blk.{i}.ssm_conv1d.weight", N_INNER, N_CONV)
        self.ones(f"blk.{i}.ssm_conv1d.bias", N_INNER, 0)
        self.tensor(f"blk.{i}.ssm_x.weight", DT_RANK + 2 * N_STATE, N_INNER)
        self.tensor(f"blk.{i}.ssm_dt.weight", N_INNER, DT_RANK)
        self.ones(f"blk.{i}.ssm_dt.bias", N_INNER, -1)
        # From hardly to quickly forgetting.
        rates = -np.exp(np.linspace(-6, 0, N_STATE))
        self.put(f"blk.{i}.ssm_a", np.tile(rates, (N_INNER, 1)))
        self.ones(f"blk.{i}.ssm_d", N_INNER, 0.1)
        self.tensor(f"blk.{i}.ssm_out.weight", N_EMBD, N_INNER, scale=3)
        for name, n in (("dt", DT_RANK), ("b", N_STATE), ("c", N_STATE)) if norms else ():
            self.ones(f"blk.{i}.ssm_{name}_norm.weight", n)

    def state_space_sizes(self) -> None:
        self.gguf.add_ssm_conv_kernel(N_CONV)
        self.gguf.add_ssm_inner_size(N_INNER)
        self.gguf.add_ssm_state_size(N_STATE)
        self.gguf.add_ssm_time_step_rank(DT_RANK)

    def sizes(self, n_kv: int | list[int], *, n_ctx_train: int = N_CTX_TRAIN) -> None:
        self.gguf.add_context_length(n_ctx_train)
        self.gguf.add_feed_forward_length(N_FF)
        self.gguf.add_head_count(N_HEAD)
        self.gguf.add_head_count_kv(n_kv)

    def norm(self, name: str) -> None:
        self.ones(f"{name}.weight", N_EMBD)
        self.ones(f"{name}.bias", N_EMBD, 0)

    def close(self) -> None:
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()


def llama(
    path: Path,
    *,
    arch: str = "llama",
    moe: bool = False,
    n_ctx_train: int = N_CTX_TRAIN,
    edit: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> None:
    """Attention alone, every token in every layer; ``edit`` may add metadata."""
    w = Writer(path, arch, 2)
    w.sizes(N_HEAD, n_ctx_train=n_ctx_train)
    edit(w.gguf)
    w.gguf.add_rope_dimension_count(N_EMBD // N_HEAD)
    if moe:
        w.gguf.add_expert_count(N_EXPERT)
        w.gguf.add_expert_used_count(N_EXPERT)
    w.ends()
    for i in range(w.n_layer):
        w.ones(f"blk.{i}.attn_norm.weight", N_EMBD)
        w.attention(i)
        if moe:
            w.experts(i)
        else:
            w.feed_forward(i)
    w.close()


def qwen2vl(path: Path) -> None:
    """Positions of several dimensions, which llama.cpp cannot shift."""
    llama(path, arch="qwen2vl", edit=lambda w: w.add_rope_dimension_sections([4, 6, 6, 0]))


def gpt2(path: Path, *, n_ctx_train: int = 256) -> None:
    """Learned positions, no rotation."""
    w = Writer(path, "gpt2", 2)
    w.sizes(N_HEAD, n_ctx_train=n_ctx_train)
    w.gguf.add_layer_norm_eps(1e-6)
    w.ends()
    w.ones("output_norm.bias", N_EMBD, 0)
    w.tensor("position_embd.weight", n_ctx_train, N_EMBD, scale=np.sqrt(N_EMBD))
    for i in range(w.n_layer):
        for name in ("attn_norm", "ffn_norm"):
            w.ones(f"blk.{i}.{name}.weight", N_EMBD)
            w.ones(f"blk.{i}.{name}.bias", N_EMBD, 0)
        shapes = {"attn_qkv": (3 * N_EMBD, N_EMBD), "attn_output": (N_EMBD, N_EMBD)}
        shapes |= {"ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
        for name, shape in shapes.items():
            w.tensor(f"blk.{i}.{name}.weight", *shape, scale=2)
            w.ones(f"blk.{i}.{name}.bias", shape[0], 0)
    w.close()


def gemma3(path: Path, *, arch: str = "gemma3") -> None:
    """Three layers in four have a window of WINDOW tokens."""
    w = Writer(path, arch, 4)
    w.sizes(1)
    w.gguf.add_key_length(N_EMBD // N_HEAD)
    w.gguf.add_value_length(N_EMBD // N_HEAD)
    w.gguf.add_sliding_window(WINDOW)
    w.gguf.add_sliding_window_pattern([True, True, True, False])
    w.ends()
    for i in range(w.n_layer):
        for name in ("attn_norm", "post_attention_norm", "post_ffw_norm"):
            w.ones(f"blk.{i}.{name}.weight", N_EMBD)
        w.attention(i, n_kv=1)
        w.heads_norm(i)
        w.feed_forward(i)
    w.close()


def mamba(path: Path) -> None:
    """Nothing but a recurrent state."""
    w = Writer(path, "mamba", 2)
    w.gguf.add_context_length(N_CTX_TRAIN)
    w.gguf.add_feed_forward_length(0)
    w.gguf.add_head_count(0)
    w.state_space_sizes()
    w.ends()
    for i in range(w.n_layer):
        w.ones(f"blk.{i}.attn_norm.weight", N_EMBD)
        w.state_space(i)
    w.close()


def jamba(path: Path) -> None:
    """Recurrent layers and one of attention, with experts."""
    w = Writer(path, "jamba", 3)
    n_kv = [0, 1, 0]
    w.sizes(n_kv)
    w.state_space_sizes()
    w.gguf.add_expert_count(N_EXPERT)
    w.gguf.add_expert_used_count(N_EXPERT)
    w.ends()
    for i in range(w.n_layer):
        w.ones(f"blk.{i}.attn_norm.weight", N_EMBD)
        if n_kv[i]:
            w.attention(i, n_kv[i])
        else:
            w.state_space(i, norms=True)
        if i == 2:
            w.experts(i)
        else:
            w.feed_forward(i)
    w.close()


def lfm2(path: Path) -> None:
    """Convolutions with a state, and attention with a window of WINDOW tokens."""
    w = Writer(path, "lfm2", 4)
    n_kv = [0, 2, 0, 2]
    w.sizes(n_kv)
    w.gguf.add_shortconv_l_cache(3)
    w.gguf.add_sliding_window(WINDOW)
    w.ends("token_embd_norm")
    for i in range(w.n_layer):
        w.ones(f"blk.{i}.attn_norm.weight", N_EMBD)
        if n_kv[i]:
            w.attention(i, n_kv[i])
            w.heads_norm(i)
        else:
            w.tensor(f"blk.{i}.shortconv.conv.weight", N_EMBD, 3)
            w.tensor(f"blk.{i}.shortconv.in_proj.weight", 3 * N_EMBD, N_EMBD)
            w.tensor(f"blk.{i}.shortconv.out_proj.weight", N_EMBD, N_EMBD)
        w.feed_forward(i)
    w.close()


def bert_reranker(path: Path, *, n_labels: int = 1, n_ctx_train: int = 256) -> None:
    """Looks ahead, and scores what it reads by a head on the first token."""
    w = Writer(path, "bert", 2)
    w.sizes(N_HEAD, n_ctx_train=n_ctx_train)
    w.gguf.add_layer_norm_eps(1e-6)
    w.gguf.add_causal_attention(False)
    w.gguf.add_token_type_count(2)
    w.gguf.add_pooling_type(gguf.PoolingType.RANK)
    if n_labels > 1:
        w.gguf.add_classifier_output_labels([f"label{i}" for i in range(n_labels)])
    w.vocabulary()
    w.gguf.add_sep_token_id(2)
    w.gguf.add_add_eos_token(True)
    w.gguf.add_add_sep_token(True)
    w.tensor("token_embd.weight", N_VOCAB, N_EMBD, scale=np.sqrt(N_EMBD))
    w.tensor("token_types.weight", 2, N_EMBD)
    w.tensor("position_embd.weight", n_ctx_train, N_EMBD, scale=np.sqrt(N_EMBD))
    w.norm("token_embd_norm")
    w.tensor("cls.weight", N_EMBD, N_EMBD)
    w.ones("cls.bias", N_EMBD, 0.1)
    w.tensor("cls.output.weight", n_labels, N_EMBD, scale=4)
    w.ones("cls.output.bias", n_labels, 0.5)
    for i in range(w.n_layer):
        w.attention(i)
        w.norm(f"blk.{i}.attn_output_norm")
        w.tensor(f"blk.{i}.ffn_up.weight", N_FF, N_EMBD)
        w.tensor(f"blk.{i}.ffn_down.weight", N_EMBD, N_FF)
        w.norm(f"blk.{i}.layer_output_norm")
    w.close()


def qwen3_reranker(path: Path) -> None:
    """Looks back only, scores by a head on the last token, and has a template of its own."""
    w = Writer(path, "qwen3", 2)
    w.sizes(N_HEAD)
    w.gguf.add_key_length(N_EMBD // N_HEAD)
    w.gguf.add_value_length(N_EMBD // N_HEAD)
    w.gguf.add_pooling_type(gguf.PoolingType.RANK)
    w.gguf.add_classifier_output_labels(["yes", "no"])
    w.gguf.add_chat_template([{"name": "rerank", "template": "</s>Q: {query} D: {document}</s>"}])
    w.ends()
    w.tensor("cls.output.weight", 2, N_EMBD)
    for i in range(w.n_layer):
        w.ones(f"blk.{i}.attn_norm.weight", N_EMBD)
        w.attention(i)
        w.heads_norm(i)
        w.feed_forward(i)
    w.close()


TINY_MODELS: dict[str, Callable[[Path], None]] = {
    "llama": llama,
    "moe": lambda path: llama(path, moe=True),
    "qwen2vl": qwen2vl,
    "gpt2": gpt2,
    "gemma3": gemma3,
    "mamba": mamba,
    "jamba": jamba,
    "lfm2": lfm2,
}
