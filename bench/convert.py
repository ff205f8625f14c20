"""Trained qkv models converted to other variants, zero-shot and after further training, beside
models trained from scratch for as many steps in all.

    python -m bench.convert         # about eight minutes on two cores

Results go to bench/results/convert/convert.json after each task and seed. The same command
continues, and at the end prints one table as Markdown. In a row, `zero_shot` is the score at once,
`after` the score after `further` more steps. The method "trained" is the model that is converted;
"from scratch" is trained for all steps.
"""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed

from minqkv.analysis.convert import methods
from minqkv.analysis.converted import Original, bytes_per_token, convert_run
from minqkv.render.study import with_interval
from minqkv.runs import configure, train_run
from minqkv.study.stats import estimate

from . import common

PATH = common.RESULTS / "convert" / "convert.json"
SEEDS = range(5)
SMALL = {"n_layer": 2, "n_embd": 64, "n_test": 500}
TASKS = {  # settings, and how many steps follow
    "reverse": ({}, 40),
    "sort": ({"steps": 300}, 75),
    "mqar": ({"steps": 1500, "watch": 0}, 300),
    "text": ({"steps": 400, "watch": 0, **SMALL}, 100),
}
TARGETS = {  # variants that qkv is converted to
    "reverse": ("q-k=v", "gqa-2", "mqa"),
    "sort": ("q-k=v", "gqa-2", "mqa"),
    "mqar": ("q-k=v", "slim"),  # it has one head
    "text": ("q-k=v", "gqa-2", "mqa", "slim"),
}


def measure(name, seed):
    """The rows of one task and seed."""
    common.use_threads(1)
    given, further = TASKS[name]
    config = configure(name, seed=seed, **given)
    steps, metric = config.recipe.steps, config.task.metric
    about = {"task": name, "seed": seed, "metric": metric, "steps": steps, "further": further}

    def row(model, variant, method, zero_shot, after):
        size = {"variant": variant, "method": method, "bytes_per_token": bytes_per_token(model)}
        return about | size | {"zero_shot": zero_shot, "after": after}

    model, result = train_run(config)
    rows, original = [], Original(config, [], result, model)
    rows.append(row(model, "qkv", "trained", result[metric], None))
    for to in TARGETS[name]:
        for method in methods(model, to):
            made = convert_run(original, to, method, 0 if to == "slim" else further)
            scores = [score[metric] for score in made.scores]
            rows.append(row(made.model, to, method, scores[0], None if to == "slim" else scores[1]))
        if to == "slim":
            continue
        other = config.change(variant=to, steps=steps + further)
        scratch, result = train_run(other)
        rows.append(row(scratch, to, "from scratch", None, result[metric]))
        if to == "q-k=v":
            made = convert_run(Original(other, [], result, scratch), "qkv", "copy")
            score = made.scores[0][metric]
            rows.append(row(made.model, "qkv", "copy of q-k=v", None, score))
    return rows


def stored():
    """The rows so far."""
    return json.loads(PATH.read_text("utf-8"))["rows"] if PATH.exists() else []


def show(rows):
    """One table as Markdown: means with 95 % intervals over seeds, at once → after more steps."""
    steps = {row["task"]: f"{row['steps']} + {row['further']} steps" for row in rows}
    print("| | method |", " | ".join(f"{name}, {steps[name]}" for name in steps), "| B/token |")
    print("|---|---|" + "---|" * (len(steps) + 1))
    for variant, method in dict.fromkeys((row["variant"], row["method"]) for row in rows):
        arm = [row for row in rows if (row["variant"], row["method"]) == (variant, method)]
        cells = [_cell([row for row in arm if row["task"] == name]) for name in steps]
        size = f"{arm[0]['bytes_per_token']:,}"
        print("|", " | ".join([f"`{variant}`", method, *cells, size]), "|")


def _cell(arm):
    """What an arm scored on one task; nothing where it was not tried."""
    found = [[row[what] for row in arm if row[what] is not None] for what in ("zero_shot", "after")]
    before, after = (with_interval(estimate(each)) if each else "" for each in found)
    return f"{before} → {after}".strip() if after else before


def main():
    rows = stored()
    done = {(row["task"], row["seed"]) for row in rows}
    todo = [(name, seed) for seed in SEEDS for name in TASKS if (name, seed) not in done]
    with ProcessPoolExecutor(min(2, common.cores())) as pool:
        for found in as_completed(pool.submit(measure, *one) for one in todo):
            rows += found.result()
            order = list(TASKS)
            rows.sort(key=lambda row: (order.index(row["task"]), row["seed"]))  # stable
            head = {"part": "convert", "command": "python -m bench.convert", "threads": 1}
            common.write_result(PATH, head | {"machine": common.machine()}, rows)
            common.progress(f"{rows[-1]['task']}: {len(rows)} rows")
    show(rows)


if __name__ == "__main__":
    main()
