"""Writes golden.npz: logits, loss, every gradient and ten AdamW losses of a few small models,
computed by PyTorch alone.

    python tests/support/make_golden.py

The parameters come from a formula, so nothing random is stored and no generator has to stay the
same. test_golden.py imports CASES, `start`, `IDS` and `TARGETS` from here and needs no PyTorch.
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "data" / "golden.npz"
IDS = np.array([[1, 5, 0, 2, 2, 6], [3, 3, 6, 0, 4, 1]])
TARGETS = np.array([[2, -100, 0, 6, 2, 5], [1, 4, 3, 3, -100, -100]])
LR, DECAY, CLIP, STEPS = 1e-2, 0.1, 1.0, 10
SHAPE = {"vocab_size": 7, "block_size": 6, "n_head": 4, "n_embd": 8, "dtype": "float64"}

# name -> (kind, arguments of the config beyond SHAPE)
CASES = {
    "gpt qkv": ("GPT", {"n_layer": 1, "d_ff": 16, "variant": "qkv"}),
    "gpt q-k=v, two layers": ("GPT", {"n_layer": 2, "d_ff": 12, "variant": "q-k=v"}),
    "gpt q=k=v+, sinusoidal": (
        "GPT",
        {"n_layer": 1, "d_ff": 12, "variant": "q=k=v+", "position": "sinusoidal"},
    ),
    "gpt gqa-2, rope": ("GPT", {"n_layer": 1, "d_ff": 12, "variant": "gqa-2", "position": "rope"}),
    "gpt q-mqa, rope, unrotate": (
        "GPT",
        {
            "n_layer": 1,
            "d_ff": 12,
            "variant": "q-mqa",
            "position": "rope",
            "rope_value": "unrotate",
        },
    ),
    "tagger 2026 q=k-v": ("Tagger", {"n_layer": 1, "variant": "q=k-v", "protocol": "2026"}),
    "tagger 2023 q=k-v+": ("Tagger", {"n_layer": 1, "variant": "q=k-v+", "protocol": "2023"}),
}


def start(state):
    """A state dict of the same names and shapes as `state`, filled by a formula that depends on the
    names.
    """
    filled = {}
    for name, array in state.items():
        phase = sum(i * ord(letter) for i, letter in enumerate(name, 1)) % 1000
        wave = np.sin(phase + 1.7 * np.arange(array.size)).reshape(array.shape)
        filled[name] = (
            1 + 0.2 * wave
            if name.split(".")[-2].startswith("ln") and name.endswith("weight")
            else 0.5 * wave
        )
    return filled


def build(kind, arguments):
    """The package's model of a case, at its start."""
    import minqkv as mq

    make, config = {"GPT": (mq.GPT, mq.GPTConfig), "Tagger": (mq.Tagger, mq.TaggerConfig)}[kind]
    model = make(config(**SHAPE, **arguments)).eval()
    model.load_state_dict(start(model.state_dict()))
    return without_dropout(model)


def without_dropout(module):
    """The module with every dropout rate at 0: masks cannot agree between libraries."""
    if hasattr(module, "rate"):
        module.rate = 0.0
    for _, child in module.children():
        without_dropout(child)
    return module


def main():
    import torch
    import torch_twin as twin

    def forward(p, ids):
        if kind == "GPT":
            return twin.gpt(
                p,
                ids,
                variant,
                4,
                arguments.get("position", "learned"),
                arguments.get("rope_value", "raw"),
            )
        return twin.tagger(p, ids, variant, 4, arguments["protocol"])

    arrays = {}
    for case, (kind, arguments) in CASES.items():
        variant = arguments["variant"]
        p = twin.parameters(
            build(kind, arguments).state_dict()
        )  # from the package: names and shapes only
        logits = forward(p, torch.tensor(IDS))
        loss = twin.loss(logits, torch.tensor(TARGETS))
        loss.backward()
        arrays |= {f"{case}/logits": logits.detach().numpy(), f"{case}/loss": loss.detach().numpy()}
        arrays[f"{case}/gradients"] = np.concatenate(
            [p[name].grad.numpy().reshape(-1) for name in sorted(p)]
        )
        optimizer = lambda ps: twin.adamw(ps, LR, DECAY)  # noqa: E731
        arrays[f"{case}/losses"] = np.array(
            twin.train(p, forward, [(IDS, TARGETS)] * STEPS, optimizer, CLIP)
        )
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
