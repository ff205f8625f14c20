"""Which runs a study is made of: variants × tasks × seeds × sizes, at equal bytes if asked for."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields

from ..attention import check_positions
from ..runs import RunConfig, configure
from ..runtime.errors import UsageError, unknown
from ..tasks.base import SHORT, Recipe
from ..tasks.registry import field_names, task_class
from ..variants import PLUS, VARIANTS, VariantSpec, cache_bytes_per_token, layer_specs
from .presets import PRESETS, TEN

ITEMSIZE = 4  # bytes of a cached number: float32
NEAR = 0.02  # how far from --equal-params the nearest width may be
LARGEST_HEAD = 1024


def blocks(preset: str, given: dict, own: dict[str, type] | None = None) -> list[dict]:
    """The blocks of a preset, with lists replaced by those in `given` wherever a block's tasks have
    such a field. Tasks in none of its blocks get one of their own, at their default sizes.
    """
    wanted, rest = given.get("tasks"), {n: v for n, v in given.items() if n != "tasks"}
    chosen = [dict(block) for block in PRESETS[preset]]
    equal = [name for name in ("equal_bytes", "equal_params") if name in given]
    if len(equal) > 1:
        raise UsageError("choose --equal-bytes or --equal-params, not both")
    for block in chosen if equal else ():
        block.pop("equal_bytes", None)
    if wanted:
        known = {task for block in chosen for task in block["tasks"]}
        for block in chosen:
            block["tasks"] = tuple(task for task in wanted if task in block["tasks"])
        chosen = [block for block in chosen if block["tasks"]]
        for task in wanted:
            if task not in known:
                chosen.append({"tasks": (task,), "variants": TEN, "seeds": (0, 1, 2)})
    for block in chosen:
        known = _fields(block["tasks"], own)
        block |= {name: values for name, values in rest.items() if name in known}
        if "variants" not in given:
            block["variants"] = _fitting(block["variants"], block, own)
    used = set().union(*(_fields(block["tasks"], own) for block in chosen))
    for name in rest:
        if name not in used:
            raise unknown("setting of these tasks", name, sorted(used))
    return chosen


def _fields(tasks, own):
    common = {"variants", "seeds", "equal_bytes", "equal_params", "selection_seeds"}
    common |= {field.name for field in fields(Recipe)}
    return common.union(*(field_names(task_class(task, (own or {}).get(task))) for task in tasks))


def _fitting(variants, block, own):
    """Those of `variants` whose KV heads divide every head count of these tasks."""
    classes = {task: task_class(task, (own or {}).get(task)) for task in block["tasks"]}
    heads = block.get("n_head") or [cls.n_head for cls in classes.values()]

    def fits(name):
        groups = [VariantSpec.parse(part).kv_heads or 1 for part in name.split("/")]
        return all(n % g == 0 for n in heads for g in groups)

    return tuple(name for name in variants if fits(name))


def short_hash(given: dict) -> str:
    """A hash of the given lists, for the name of a folder: other lists get another folder."""
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:6]


def grid(
    tasks: Iterable[str],
    variants: Iterable[str],
    seeds: Iterable[int],
    *,
    equal_bytes: Iterable[int] = (None,),
    equal_params: Iterable[int] = (None,),
    own: dict[str, type] | None = None,
    impossible: list | None = None,
    **lists,
) -> list[RunConfig]:
    """Every RunConfig of the product, cell by cell, each once (with H heads, gqa-H is qkv).

    `lists` gives each further field its values, or one value. `equal_bytes`: bytes of a token in
    the cache of a layer, on average over the layers; `equal_params`: numbers in the model. For each
    of them the head width is chosen. A variant that no width fits is left out, and the reason
    appended to `impossible`. Raises UsageError.
    """
    configs, left_out = {}, [] if impossible is None else impossible
    names = list(lists)
    values = [as_list(value) for value in lists.values()]
    cells = itertools.product(equal_bytes, equal_params, *values, tasks, variants)
    for per_token, n_params, *cell, task, variant in cells:
        given, cls = dict(zip(names, cell, strict=True)), (own or {}).get(task)
        if not _one_row(variant):  # then both values are the same model
            given.pop("rope_value", None)
        equal = per_token is not None or n_params is not None
        if equal and "head_dim" in given:
            why = "equal bytes and equal parameters already choose the head width"
            raise UsageError(why, "leave --head-dim out")
        try:
            if per_token is not None:
                given["head_dim"] = _width_for_bytes(task, variant, per_token, cls, given)
            elif n_params is not None:
                given["head_dim"] = _width_for_params(task, variant, n_params, cls, given)
        except NoWidth as error:
            left_out.append(str(error))
            continue
        for seed in seeds:
            configs[configure(task, variant, cls, **given, seed=seed)] = None
    if not configs and impossible is None:
        raise UsageError("nothing to run" + (f": {left_out[0]}" if left_out else ""))
    return list(configs)


def as_list(value):
    """The values of a field as a list: a list stays as it is, one value becomes a list of one."""
    return value if isinstance(value, (tuple, list, range)) else (value,)


def _one_row(variant):
    """Whether some layer stores a row that is key and value, and turns as a whole."""
    specs = map(VariantSpec.parse, variant.split("/"))
    return any(spec.streams == 1 and not spec.apart for spec in specs)


class NoWidth(UsageError):
    """No head width gives what was asked for."""


def _models(task, variant, own, given) -> Iterator:
    """(head_dim, configuration of the model) for growing widths that can be built. Raises
    UsageError where the task is wrong, NoWidth where the variant fits no model of it.
    """
    narrow = {**given, "head_dim": 2} | ({"d_rope": None} if "d_rope" in given else {})
    base = configure(task, "qkv", own, **narrow).task
    for name in variant.split("/"):
        VariantSpec.parse(name)
    try:
        specs = layer_specs(variant, base.n_layer, base.n_head)
        check_positions(specs, 2, base.position, base.rope_value)
    except UsageError as error:
        raise NoWidth(f"{task} {variant}: {error}") from error
    built, why = False, None
    for width in range(1, LARGEST_HEAD):
        try:
            config = configure(task, variant, own, **given, head_dim=width)
        except UsageError as error:  # this width does not fit, such as an odd one to be rotated
            why = error
            continue
        built = True
        yield width, config.task.config(config.variant)
    if not built:
        raise NoWidth(f"{task} {variant}: {why}")


def _is_qkv(cfg):
    """Whether thin keys are as wide as the values."""
    return any(spec.key_width == cfg.head_dim for spec in cfg.specs)


def _width_for_bytes(task, variant, per_token, own, given):
    why, n = f"no head width gives {per_token} B per token", given.get("n_head")
    for width, cfg in _models(task, variant, own, given):
        found = cache_bytes_per_token(cfg, ITEMSIZE)
        if found == per_token * cfg.n_layer and not _is_qkv(cfg):
            return width
        if found == per_token * cfg.n_layer:
            why = f"at {per_token} B per token its thin keys would be as wide as its values"
        if found > per_token * cfg.n_layer:
            break
    heads = f" with {n} head{'s' if n > 1 else ''}" if n else ""
    raise NoWidth(f"{task} {variant}{heads}: {why}")


def _width_for_params(task, variant, n_params, own, given):
    def built(width):
        return configure(task, variant, own, **given, head_dim=width).build().n_params

    models = [width for width, cfg in _models(task, variant, own, given) if not _is_qkv(cfg)]
    if models:  # parameters grow linearly with the width
        first, second = built(models[0]), built(models[1])
        i = round((n_params - first) * (models[1] - models[0]) / (second - first))
        width = min(models, key=lambda width: abs(width - models[0] - i))
        if abs(built(width) - n_params) <= NEAR * n_params:
            return width
    raise NoWidth(f"{task} {variant}: no head width gives about {n_params:,} parameters")


def ablation(
    tasks: Iterable[str], seeds: Iterable[int], variants: None = None, **lists
) -> list[RunConfig]:
    """What in "+" helps: each Q = K variant without it, with it, with either half, with it starting
    at temperature -1, and without it but with the diagonal masked."""
    bases = [name for name in VARIANTS if f"{name}+" in VARIANTS]
    configs = grid(tasks, [base + half for base in bases for half in PLUS], seeds, **lists)
    started = [c.change(plus_start=-1.0) for c in configs if c.variant.endswith("+")]
    return configs + started + [c.change(hide_self=True) for c in configs if "+" not in c.variant]


# ---- what a row of a table is, and what a table is

ONLY_K = "only K stored"  # how an arm ends whose V is found from K
OF_AN_ARM = ("n_head", "head_dim", "position", "rope_value")


def of_an_arm(equal: bool, width: bool) -> tuple[str, ...]:
    """The fields of a task by which arms of a table may differ."""
    return (*OF_AN_ARM, "d_rope") if equal else ("head_dim",) if width else ()


def mixing_widths(configs: Iterable[RunConfig]) -> set[str]:
    """The tasks in which some runs have heads of the usual width, d / H, and others do not. In
    their tables, a head width is part of the name of an arm.
    """
    found = {}
    for config in configs:
        found.setdefault(config.task.name, set()).add(config.task.head_dim is None)
    return {name for name, usual in found.items() if len(usual) == 2}


def arm(config: RunConfig, equal: bool = False, width: bool = False) -> str:
    """What a row of a table is named after: the variant, and what was changed about it. At equal
    bytes or parameters, also heads, their width, and positions; with `width`, also a head width
    that is not the usual one.
    """
    task, changed = config.task, []
    if equal:
        changed += [f"H {task.n_head} d {config.task.config(config.variant).head_dim}"]
        d_rope = getattr(task, "d_rope", None)
        changed += [f"d_r {d_rope}"] if d_rope is not None else []
        changed += [task.position] if task.position != "learned" else []
        turned = task.position == "rope" and _one_row(config.variant)
        changed += [task.rope_value] if turned else []
    if width and not equal and task.head_dim is not None:
        changed += [f"d_h {task.head_dim}"]
    changed += ["diagonal masked"] if getattr(task, "hide_self", False) else []
    start = getattr(task, "plus_start", None)
    changed += [f"s₀ = {start:g}"] if start is not None else []
    return config.variant + (f" ({', '.join(changed)})" if changed else "")


def cell(config: RunConfig, equal: bool = False, width: bool = False) -> dict:
    """What the rows of a table have in common: the task, its size, and the recipe except for the
    rate; at equal bytes, or with `width`, without what distinguishes arms.
    """
    values = {name: value for name, value in asdict(config.task).items() if value is not None}
    for name in ("plus_start", "hide_self", *of_an_arm(equal, width)):
        values.pop(name, None)
    recipe = asdict(config.recipe)
    recipe.pop("lr")
    return values | recipe


def apart(size: dict, others: list[dict]) -> list[str]:
    """What one size, as of `cell`, does not share with all others: parts of a name."""
    return [
        f"{SHORT.get(name, name)} {value}"
        for name, value in size.items()
        if name != "digest" and any(other.get(name) != value for other in others)
    ]
