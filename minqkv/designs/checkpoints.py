"""The attention of one layer from a checkpoint: `load_layer`, and a reader of safetensors files.

A checkpoint has weights as (out, in), and its own order of channels. Rotary pairs are two
neighbours in DeepSeek's, and channels i and i + d_h/2 in Gemma's, of which only the first turn.
Here weights are (in, out), and pairs are the two halves of the last `d_rope` channels: so matrices
and gains are put in another order, which changes no score.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np

from ..attention import Attention
from ..nn import Init
from ..runtime.errors import EnvironmentFault, UsageError, unknown
from ..runtime.fields import plain
from ..runtime.files import printable
from ..variants import SHIPPED, VariantSpec
from .layers import shipped_layer

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
HEADER = 100_000_000  # bytes of a header at the most, as in the format's own reader
LAYER = r"(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.{}\.self_attn\."


def read_header(path: str | Path) -> tuple[dict[str, tuple], int]:
    """{name: (dtype, shape, first byte, last byte + 1)} of the tensors in a safetensors file, and
    where their bytes start. Raises EnvironmentFault if it is another file, or damaged.
    """
    try:
        if not os.path.isfile(path):
            raise ValueError("there is no such file")
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER):
                raise ValueError("it has no header")
            header = json.loads(file.read(length))
        found = {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (first, end) = about["dtype"], about["shape"], about["data_offsets"]
            numbers = [*shape, first, end]
            whole = all(type(n) is int and 0 <= n <= size for n in numbers) and len(shape) <= 8
            if not whole or not first <= end <= size - 8 - length:
                raise ValueError(f"{name!r} is not inside the file")
            wide = int(DTYPES.get(dtype, "<u0")[2:])
            if wide and math.prod(shape) * wide != end - first:
                raise ValueError(f"{name!r} is not as long as its shape says")
            found[name] = dtype, tuple(shape), first, end
        return found, 8 + length
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EnvironmentFault(
            f"{path} is not a safetensors file: {printable(str(error))}"
        ) from error


def read_tensor(path: str | Path, about: tuple, start: int) -> np.ndarray:
    """One tensor of a file, in float32 or float64. Raises EnvironmentFault for other numbers."""
    dtype, shape, first, end = about
    if dtype not in DTYPES:
        raise EnvironmentFault(f"{path} holds {dtype}, not {', '.join(DTYPES)}")
    with open(path, "rb") as file:
        file.seek(start + first)
        found = np.frombuffer(file.read(end - first), DTYPES[dtype]).reshape(shape)
    if dtype == "BF16":  # the first half of a float32
        return (found.astype("<u4") << 16).view("<f4")
    return found.astype("f4") if dtype == "F16" else found.copy()


def load_layer(
    path: str | Path,
    kind: str,
    layer: int,
    *,
    block_size: int = 4096,
    dtype: str = "float32",
    scale: float | None = None,
    **options,
) -> Attention:
    """The attention of one layer of a checkpoint, a safetensors file, as a layer of `kind`, a name
    of variants.SHIPPED. It computes what the model's own does, from rows x (B, T, d).

    Sizes are read off the tensors. What they do not show is the model's published choice unless
    given: `scale` of the scores, and `options` of Attention such as d_rope, rope_base and window.
    YaRN, which stretches the positions of some checkpoints, is left out.
    Raises EnvironmentFault if the file is damaged, or the layer is missing or of another kind.
    """
    if dtype not in ("float32", "float64"):
        raise unknown("dtype", dtype, ("float32", "float64"))
    if type(layer := plain(layer)) is not int or layer < 0:
        raise UsageError(f"layers are numbered from 0; {layer!r} is not one of them")
    kind = str(kind).lower().replace("_", "-")
    if kind not in SHIPPED:
        raise unknown("layer", kind, SHIPPED)
    tensors = _tensors(path, kind, layer)
    try:
        sizes, state = KINDS[kind](tensors, options.pop("d_rope", None), scale)
        init = Init(0, dtype)
        found = shipped_layer(kind, block_size=block_size, init=init, **sizes | options)
        found.load_state_dict({name: np.asarray(a, dtype) for name, a in state.items()})
    except (ValueError, ArithmeticError, LookupError, TypeError) as error:  # also UsageError
        why = f"the tensors of layer {layer} in {path} do not fit together as {kind}: {error}"
        raise EnvironmentFault(why) from error
    return found.eval()


def _tensors(path, kind, layer):
    """{name without "weight": array} of one layer. Raises EnvironmentFault if some are missing, or
    if there are others.
    """
    header, start = read_header(path)
    own = {}
    for name in header:
        if found := re.fullmatch(LAYER.format(layer) + r"(.+?)(?:\.weight)?", name):
            own[found[1]] = name
    if not own:
        why = f"{path} has no attention of layer {layer}"
        raise EnvironmentFault(why, "a large checkpoint is spread over several files")
    wanted = [set(names.split()) for names in TENSORS[kind]]
    closest = min(wanted, key=lambda names: len(names ^ own.keys()))
    faults = [f"{name} is missing" for name in sorted(closest - own.keys())]
    faults += [f"it has {name}" for name in sorted(own.keys() - closest)]
    if faults:
        what = printable(", ".join(faults))
        raise EnvironmentFault(f"layer {layer} of {path} is not {kind}: {what}")
    return {short: read_tensor(path, header[name], start) for short, name in own.items()}


def _heads(weight, order):
    """(heads · d_h, n) as (n, heads · d_h), the channels of each head in this order."""
    return weight.T.reshape(weight.shape[1], -1, len(order))[..., order].reshape(len(weight.T), -1)


def _neighbours(width, d_rope):
    """The order in which pairs of neighbours among the last channels are two halves."""
    still = width - d_rope
    return np.r_[:still, still:width:2, still + 1 : width : 2]


def _factor(scale, width):
    """What makes scores that are divided by √width have this scale."""
    return 1.0 if scale is None else scale * math.sqrt(width)


def _normed(kind):
    """Qwen 3, Gemma 3 and the global layers of Gemma 4: norms on queries and keys."""

    def convert(w, d_rope, scale):
        d_h = len(w["q_norm"])
        order, gain = np.arange(d_h), 1.0 * (kind == "gemma3")  # Gemma 3 stores a gain less 1
        if kind == "gemma4-global":
            d_rope, scale = d_rope or d_h // 4, scale or 1.0
            m, half = d_rope // 2, d_h // 2  # pairs reach over the whole head; the first m turn
            order = np.r_[m:half, half + m : d_h, :m, half : half + m]
        sizes = {"n_embd": w["q_proj"].shape[1], "n_head": w["q_proj"].shape[0] // d_h,
                 "kv_heads": w["k_proj"].shape[0] // d_h, "head_dim": d_h,
                 "d_rope": d_rope}  # fmt: skip
        state = {f"w{name}.weight": _heads(w[f"{name}_proj"], order) for name in "qkv"
                 if f"{name}_proj" in w}  # fmt: skip
        state["wo.weight"] = _heads(w["o_proj"].T, order).T
        state["q_gain"] = (w["q_norm"].reshape(d_h) + gain)[order] * _factor(scale, d_h)
        state["k_gain"] = (w["k_norm"].reshape(d_h) + gain)[order]
        return sizes, state

    return convert


def _deepseek_v3(w, d_rope, scale):
    """One latent row, and a small one that turns. The gain of the row goes into both matrices."""
    gain, row, up = w["kv_a_layernorm"], w["kv_a_proj_with_mqa"], w["kv_b_proj"]
    q, (d, n), d_c = w.get("q_b_proj", w.get("q_proj")), w["o_proj"].shape, len(gain)
    d_rope = len(row) - d_c
    H = (len(q) - len(up) + n) // d_rope  # of widths d_n + d_rope, d_n + d_v and d_v
    d_h = n // H
    into, out_of = np.split(up.reshape(H, 2 * d_h, d_c) * gain, 2, axis=1)  # (H, d_h, d_c) each
    q = _heads(q, _neighbours(d_h + d_rope, d_rope)) * _factor(scale, d_h + d_rope)
    sizes = {"n_embd": d, "n_head": H, "head_dim": d_h, "d_rope": d_rope,
             "spec": VariantSpec(True, 1, 1, apart=True, latent=d_c // d_h)}  # fmt: skip
    state = {"wk.weight": row[:d_c].T, "wr.weight": row[d_c:][_neighbours(d_rope, d_rope)].T,
             "into": into, "out_of": out_of.swapaxes(1, 2), "wo.weight": w["o_proj"].T}  # fmt: skip
    if "q_proj" in w:
        return sizes, state | {"wq.weight": q}
    state |= {"wq.down.weight": w["q_a_proj"].T, "wq.gain": w["q_a_layernorm"], "wq.up.weight": q}
    return sizes | {"query_rank": len(w["q_a_proj"])}, state


def _deepseek_v4(w, d_rope, scale):
    """One row that is key and value, turned; a sink; queries and the output in two steps."""
    d_h, H = len(w["kv_norm"]), len(w["sinks"])
    d_rope = d_rope or SHIPPED["deepseek-v4"]["d_rope"]
    order, (rank, n) = _neighbours(d_h, d_rope), w["o_a_proj"].shape
    groups = H * d_h // n  # each of n numbers, and of rank / groups after the first step
    sizes = {"n_embd": w["kv_proj"].shape[1], "n_head": H, "head_dim": d_h, "d_rope": d_rope,
             "query_rank": len(w["q_a_proj"]), "groups": groups,
             "out_rank": rank // groups}  # fmt: skip
    out = w["o_a_proj"].reshape(groups, rank // groups, n)
    factor = _factor(scale, d_h)
    state = {"wq.down.weight": w["q_a_proj"].T, "wq.gain": w["q_a_norm"],
             "wq.up.weight": _heads(w["q_b_proj"], order), "q_gain": np.full(d_h, factor),
             "wk.weight": _heads(w["kv_proj"], order), "k_gain": w["kv_norm"][order],
             "sink": w["sinks"].reshape(H, 1, 1), "wo.up.weight": w["o_b_proj"].T,
             "wo.weight": np.stack([_heads(part.T, order).T for part in out])}  # fmt: skip
    return sizes, state


_QKV = "q_proj k_proj v_proj o_proj q_norm k_norm"
_MLA = "kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj"
TENSORS = {  # kind -> the tensors of its attention, or a choice of them
    "qwen3": (_QKV,),
    "gemma3": (_QKV,),
    "gemma4-global": ("q_proj k_proj o_proj q_norm k_norm",),
    "deepseek-v3": (f"{_MLA} q_a_proj q_a_layernorm q_b_proj", f"{_MLA} q_proj"),
    "deepseek-v4": ("sinks q_a_proj q_a_norm q_b_proj kv_proj kv_norm o_a_proj o_b_proj",),
}
KINDS = {"deepseek-v3": _deepseek_v3, "deepseek-v4": _deepseek_v4} | {
    kind: _normed(kind) for kind in ("qwen3", "gemma3", "gemma4-global")
}
