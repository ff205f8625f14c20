"""bench.gpu, parts "step" and "decode": whole models beside PyTorch's on the same card."""

from functools import partial

import numpy as np

import minqkv as mq
from minqkv import backend
from minqkv.models.recorded import recorded

from .caches import decoding, filled
from .common import interleaved, median, quickest, ratio

STEPS = 5
# Losses, relative: sums by atomics differ from run to run. Logits, relative to the largest.
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}


def step_cases(card, left):
    """Name of a size -> a function that measures a training step of it."""
    return {name: partial(step, card, size) for name, size in card.sizes.steps.items()}


def step(card, size):
    """`mq.train_step` beside PyTorch's, each in all of its configurations."""
    candidates = {"minqkv": size.step()}
    if card.torch:
        from . import torch_gpt

        source = mq.GPT(size.config())
        candidates |= torch_gpt.all_training(source, *size.batch(), card.torch_device)
    losses = {name: [one() for _ in range(STEPS)] for name, one in candidates.items()}
    row = {"V T d L H B": size}
    if card.torch:
        row |= agreement(losses, TOLERANCE[backend.precision])
    row |= beside_torch(interleaved(candidates, **card.timing()))
    seconds = row["median_ms"]["minqkv"] / 1e3
    row["tokens_per_second"] = round(size.B * size.T / seconds)
    return row | {"tflops": size.flops() / seconds / 1e12}


def decode_cases(card, left):
    """Variant and context -> a function that measures a decoded token."""
    return {
        f"{variant} {context}": partial(decode, card, variant, context)
        for variant in card.sizes.variants
        for context in card.sizes.contexts
    }


def decode(card, variant, context):
    """One token onto a filled cache; ours brings the id to the host, where the next one starts."""
    size = card.sizes.decode._replace(T=context)
    model = mq.GPT(size.config(variant)).eval()
    cache = filled(model, size)
    graph = recorded(model, cache)  # as mq.generate does
    candidates = {"minqkv": decoding(model, cache, size, graph)}
    row = {"V T d L H B": size, "variant": variant, "cache_bytes": cache.capacity_nbytes}
    if card.torch:
        from . import torch_gpt

        candidates |= torch_gpt.all_decoding(model, size, card.torch_device)
        ours = backend.to_host(candidates["minqkv"]()[1])
        theirs = {
            name: one()[1].cpu().numpy() for name, one in candidates.items() if name != "minqkv"
        }
        row |= agreement({"minqkv": ours, **theirs}, TOLERANCE[backend.precision])
    row |= beside_torch(interleaved(candidates, **card.timing()))
    parameters = sum(p.data.nbytes for n, p in model.named_parameters() if n != "wpe.weight")
    seconds = row["median_ms"]["minqkv"] / 1e3
    row["tokens_per_second"] = round(size.B / seconds)
    return row | {"GB_per_second": (parameters + cache.nbytes) / seconds / 1e9}


def agreement(results, tolerance):
    """{"differ_by": the largest relative difference to ours, "agrees": whether it is small}."""
    ours = np.array(results["minqkv"])
    apart = {
        name: float(np.abs(np.array(numbers) - ours).max() / np.abs(ours).max())
        for name, numbers in results.items()
        if name != "minqkv"
    }
    return {"differ_by": apart, "agrees": all(a < tolerance for a in apart.values())}


def beside_torch(samples):
    """Medians in ms, PyTorch's best and our ratio to it where it is there, the samples."""
    row = {"median_ms": {name: round(1e3 * median(samples, name), 4) for name in samples}}
    theirs = [name for name in samples if name != "minqkv"]
    if theirs:
        row["best_torch"] = quickest(samples, theirs)
        row["ratio"] = ratio(samples, "minqkv", row["best_torch"])
    return row | {"samples": samples}
