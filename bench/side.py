"""One side of `--against`, in a separate process: `python -m bench.side FOLDER TASK`.

It computes with the minqkv of FOLDER, whichever version that is; the models and the clock are those
of this checkout. It says in a line of JSON which version it is and what each of its candidates
computes. Then, for each [candidate, calls] on stdin, it answers with the seconds a call took.
"""

import json
import sys


def main():
    folder, task = sys.argv[1], json.loads(sys.argv[2])
    sys.path.insert(0, folder)
    import minqkv as mq

    mq.tame_allocator()
    mq.set_threads(task["threads"])
    from .common import seconds
    from .sizes import Size

    candidates = CANDIDATES[task["engine"]](
        task["kind"], Size(*task["size"]), task["variant"], task["threads"]
    )
    results = {name: first_results(task["kind"], step) for name, step in candidates.items()}
    print(json.dumps({"version": mq.__version__, "results": results}), flush=True)
    for line in sys.stdin:
        name, calls = json.loads(line)
        print(json.dumps(seconds(candidates[name], calls)), flush=True)


def ours(kind, size, variant, threads):
    """{"minqkv": a step of training, or a decoded token}."""
    import minqkv as mq

    from .caches import decoding, filled

    if kind == "step":
        return {"minqkv": size.step(variant)}
    model = mq.GPT(size.config(variant)).eval()
    return {"minqkv": decoding(model, filled(model, size), size)}


def pytorch(kind, size, variant, threads):
    """The same by PyTorch, in every configuration."""
    import torch

    import minqkv as mq

    from . import torch_gpt

    torch.set_num_threads(threads)
    source = mq.GPT(size.config(variant)).eval()
    if kind == "step":
        return torch_gpt.all_training(source, *size.batch())
    return torch_gpt.all_decoding(source, size)


CANDIDATES = {"minqkv": ours, "torch": pytorch}


def first_results(kind, step, steps=10):
    """Numbers that all sides must agree on: the losses of the first steps, or a token's logits."""
    if kind == "step":
        return [step() for _ in range(steps)]
    return step()[1].reshape(-1).tolist()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the other end of the pipe has it, too
        sys.exit(130)
