"""What a model needs to be trained, in bytes: weights, gradients, moments and activations.

Activations are the arrays that backward needs, as they are held when the forward pass has ended:
found by walking the graph and, for a GPT, by a formula that says what each layer keeps.
"""

from __future__ import annotations

from types import FunctionType

import numpy as np

from .. import functional as F
from ..models import GPTConfig
from ..nn import Module
from ..optim import Adam
from ..runtime.backend import use_backend
from ..tensor import Node, Tensor
from ..train import counted_targets, token_loss
from ..variants import POSITIONS, VariantSpec


@use_backend("numpy")
def training_memory(
    model: Module, x: np.ndarray, y: np.ndarray, sparse: bool = False
) -> dict[str, int | None]:
    """Bytes that one training step with Adam holds, for inputs and targets in one shard. `sparse`:
    logits only where a target counts (train.token_loss).

    `model`, a GPT or a Tagger, is not changed: a fresh model of the same configuration makes the
    step, on NumPy. "weights". "gradients": one for each parameter, and the flat copy that the
    optimiser gathers, so twice the weights. "moments": both of Adam's, twice the weights again.
    "activations": the most that the graph of the loss holds, either after the forward pass or while
    a block is computed again. With ids, targets and masks, but without the model's own
    parameters and tables. "activations_formula":
    `activation_bytes`, or None for a Tagger and where some targets of a dense loss do not count.
    Temporaries come on top. Raises UsageError for a length that the model does not take.
    """
    fresh = type(model)(model.config)
    optimizer = Adam(fresh.parameters())
    loss, n = token_loss(fresh, x, y, sparse), counted_targets(y)
    activations = _held_in_backward(fresh, loss)
    gradients = [optimizer.gradient, *(p.grad for p in optimizer.parameters)]
    formula = None
    if isinstance(model.config, GPTConfig) and (sparse or n == y.size):
        asked = n if sparse else None
        formula = activation_bytes(model.config, *y.shape, asked, x.size // y.size)
    return {
        "weights": optimizer.data.nbytes,
        "gradients": sum(gradient.nbytes for gradient in gradients),
        "moments": optimizer.m.nbytes + optimizer.v.nbytes,
        "activations": activations,
        "activations_formula": formula,
    }


def _held_in_backward(model, loss):
    """Run backward; returns the most bytes that the graph holds meanwhile."""
    own, nodes = arrays(model), [loss.node]
    for node in nodes:
        nodes += {parent for parent in node.parents if parent not in (None, *nodes)}

    def held(*block):
        found = arrays([*nodes, *block])
        return sum(array.nbytes for i, array in found.items() if i not in own)

    def watched(forward):
        def again(*args):
            result = forward(*args)
            seen.append(held(result.node))
            return result

        return again

    seen = [held()]
    for block in model.blocks:
        block.forward = watched(block.forward)
    loss.backward()
    return max(seen)


def arrays(root: Node | Module | list) -> dict[int, np.ndarray]:
    """id -> array: every NumPy array that a module holds, or that the vjps of a graph have
    captured.

    For a view, the array behind it.
    """
    found, seen, stack = {}, set(), [root]
    while stack:
        thing = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            while thing.base is not None:
                thing = thing.base
            found[id(thing)] = thing
        elif isinstance(thing, Node):
            stack += [thing.vjp, *thing.parents]
        elif isinstance(thing, Tensor):
            stack += [thing.data, thing.node]
        elif isinstance(thing, FunctionType):
            stack += [cell.cell_contents for cell in thing.__closure__ or ()]
        elif isinstance(thing, (tuple, list)):
            stack += thing
        elif hasattr(thing, "__dict__") and not isinstance(thing, type):
            stack += vars(thing).values()
    return found


def activation_bytes(
    cfg: GPTConfig, batch: int, length: int, asked: int | None = None, channels: int = 1
) -> int:
    """The most bytes of activations of a GPT, by formula, for `batch` sequences of `length`
    tokens.

    The loss is taken at every position, or only at `asked` positions; logits are computed only
    there. A token has one id for each of its `channels`.
    """
    tokens, d = batch * length, cfg.n_embd
    answers = tokens if asked is None else asked
    itemsize, rows = np.dtype(cfg.dtype).itemsize, tokens * d
    masks = (2 if cfg.d_ff else 1) * rows if cfg.dropout else 0  # booleans, of each sublayer
    if POSITIONS[cfg.position].distance == "learned":
        masks += 8 * length**2  # where a distance is looked up
    layers = [itemsize * layer_numbers(cfg, s, batch, length) + masks for s in cfg.specs]
    head = itemsize * answers * (_norm(d) + cfg.vocab_size)  # the last norm; the probabilities
    head += 8 * (3 * answers + (asked or 0))  # targets, two lists of places; which are asked
    shared = length**2 + 8 * tokens * channels  # booleans: the causal mask; ids
    if not cfg.recompute:
        return shared + sum(layers) + head
    # Of each block its input. The head needs its arrays first, then the last block, then the one
    # before it, whose successor's input is no longer needed.
    blocks = [itemsize * n * rows + layer for n, layer in enumerate(layers, 1)]
    return shared + max(itemsize * cfg.n_layer * rows + head, *blocks)


def scoring_bytes(cfg: GPTConfig, batch: int, length: int) -> int:
    """Bytes that a forward pass without a graph takes at the most, its loss included, for `batch`
    sequences of `length` tokens: in an attention, in an MLP, or at the head. By formula, and a
    little more than what is measured.
    """
    rows = [spec.widths(cfg.head_dim)[1] for spec in cfg.specs]  # latent rows are wider than heads
    d, wide = cfg.n_embd, cfg.n_head * max(cfg.head_dim, *rows)
    attention = 2 * d + 7 * wide + cfg.n_head * min(length, 2 * F.BLOCK)  # scores: of two blocks
    bias = (cfg.n_head + 5) * length**2 if POSITIONS[cfg.position].distance else 0
    mlp = 4 * d + 2 * cfg.d_ff
    head = 3 * d + 2 * cfg.vocab_size  # logits and probabilities
    return (batch * length * max(attention, mlp, head) + bias) * np.dtype(cfg.dtype).itemsize


def layer_numbers(cfg: GPTConfig, spec: VariantSpec, batch: int, length: int) -> int:
    """How many numbers a layer of this variant keeps for backward.

    With K = V there are no rows of values beside the keys. But under rotary positions one of two
    things takes their place: turned keys beside the stored rows ("raw"), or the answer before and
    after it is turned back ("unrotate"). Where what turns stands apart, there are keys of their
    own, too; of latent rows, also queries and answers as the heads have them.
    """
    d, (H, d_h, d_rope), norm = cfg.n_embd, spec.sizes(cfg), cfg.norm
    (query, row), h, one_row = spec.widths(d_h, d_rope), spec.stored_heads(H), spec.streams == 1
    d_k = row + d_rope if spec.latent else row
    d_v = row if one_row else d_h
    late = one_row and not spec.apart and cfg.rope_value == "raw" and bool(d_rope or norm)
    turn_back = one_row and not spec.apart and cfg.rope_value == "unrotate" and d_rope > 0

    rows = h * (row + d_h * (not one_row) + d_k * (late or (spec.apart and d_rope > 0)))
    if norm or spec.latent:  # the factor that made a row's mean square 1, and that row
        rows += h * (1 + row * (not late and not spec.latent))
    # The scaled queries. A temperature needs them unscaled, too: with Q = K those are the keys,
    # unless they are turned separately.
    queries = H * d_k * (2 if late and spec.plus in ("full", "temperature") else 1)
    queries += H * (query + 1) * (norm and spec.own_query) + H * query * bool(spec.latent)
    answers = H * d_v * (2 if turn_back else 1) + H * d_h * bool(spec.latent)
    attention = length * (_norm(d) + rows + queries + answers) + H * _pattern(length)
    # In the MLP, if there is one: the slope of GELU, and its output.
    mlp = length * (_norm(d) + 2 * cfg.d_ff) if cfg.d_ff else 0
    # What the sequences of a batch share: a bias, and the sines of the way back.
    shared = length * (spec.plus in ("full", "bias")) + turn_back * length * d_rope // 2
    shared = H * length**2 if POSITIONS[cfg.position].distance else shared
    return batch * (attention + mlp) + shared


def _norm(d):
    """Numbers that a layer norm keeps per token: the normalised row, 1/σ, and the output."""
    return 2 * d + 1


def _pattern(length):
    """Numbers kept of a head's pattern: weights, in blocks of queries up to the last key that any
    of them may see, and a factor for each query. For a long sequence none are kept: backward
    computes them again.
    """
    if length**2 > F.KEEP:
        return 0
    blocks = [(start, min(start + F.BLOCK, length)) for start in range(0, length, F.BLOCK)]
    return sum((end - start) * (end + 1) for start, end in blocks)
