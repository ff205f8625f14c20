"""Random damage to every file that is kept: it is refused, with a message of its own, or what is
read from it equals what was read before. Nothing else happens.

`python tests/test_damage.py` prints how many mutations ended in which way.
"""

import io
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from minqkv import caches, runs
from minqkv.models import GPT, GPTConfig
from minqkv.runs import configure, load_run, train_run
from minqkv.runtime import files
from minqkv.runtime.errors import MinqkvError
from minqkv.study.execute import Records, run_study
from minqkv.study.measured import in_folder
from minqkv.study.plan import Part, Plan
from minqkv.study.stored import read_study, write_plan
from minqkv.study.summary import as_results, write_results
from minqkv.tasks import corpus, tokenizers
from minqkv.teach.progress import Progress

EACH = 58  # mutations of each kind to each file
TINY = {"pairs": 2, "keys": 4, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_test": 4, "batch": 4}
OTHERS = (
    None, True, -1, 0, 7.1, 10**30, 1e300, float("nan"), "", "x", "\x1b[31m", "\ud800", [], [1],
    {}, {"a": 1}, [[[]]],
)  # fmt: skip


# ---- what is damaged: a folder, its files, those of another one, and what is read from it


class Kept:
    """A folder of files. `read()` gives what is read from it, as a value that can be compared;
    `others` are the same files of another run. A file that is `alone` may be exchanged for another
    whole one: nothing beside it says which was there.
    """

    def __init__(self, folder, names, others, read, alone=False):
        self.folder, self.read, self.foreign = folder, read, None
        self.whole = {name: (folder / name).read_bytes() for name in names}
        self.others = {name: (others / name).read_bytes() for name in names}
        self.expected = read()
        if alone:
            ((name, content),) = self.others.items()
            (folder / name).write_bytes(content)
            self.foreign = read()
            self.restore()

    def restore(self):
        """What a run was resumed from may have changed as well."""
        for name, content in self.whole.items():
            if (self.folder / name).read_bytes() != content:
                (self.folder / name).write_bytes(content)


def weights(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def a_run(place):
    """A finished run, and how all of it is read, as by report, eval and --resume."""
    config = configure("pairs", "q-k=v", steps=6, watch=2, **TINY)
    for name, seed in (("run", 0), ("other", 1)):
        train_run(config.change(seed=seed), place / name)
    assert json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])

    def read():
        found, metrics, result, model = runs.read_run(place / "run")
        best = weights(load_run(place / "run", best=True)[0])
        return asdict(found), metrics, result, weights(model), best

    names = ("config.json", "metrics.jsonl", "checkpoint.npz", "best.npz", "result.json")
    return Kept(place / "run", names, place / "other", read)


class Stopped(BaseException):
    """What a crash does to the code it hits."""


def a_begun_run(place):
    """A run that was killed, and how it is resumed."""
    config = configure("pairs", "q-k=v", steps=6, watch=2, **TINY)

    def stop(step):
        if step.done == 4:
            raise Stopped

    for name, seed in (("begun", 0), ("begun-other", 1)):
        with pytest.raises(Stopped):
            train_run(config.change(seed=seed), place / name, progress=stop)

    def read():
        model = config.build()
        optimizer = config.optimizer(model)
        folder = runs.RunFolder(place / "begun", config, resume=True)
        done = folder.restore(model, optimizer)
        moments = [optimizer.m.tobytes(), optimizer.v.tobytes(), optimizer.steps]
        return done, folder.curve, folder.check, weights(model), moments

    names = ("config.json", "metrics.jsonl", "checkpoint.npz")
    return Kept(place / "begun", names, place / "begun-other", read)


def a_study(place):
    """Folders of an unfinished study and of a finished one."""
    config = configure("pairs", "q-k=v", steps=2, **TINY)
    for name, seed in (("study", 0), ("study-other", 7), ("begun-study", 5)):
        configs = [config.change(seed=seed, variant=variant) for variant in ("q-k=v", "qkv")]
        records = run_study(configs, place / name)
        if name == "begun-study":
            configs.append(config.change(seed=3))
        else:
            write_results(place / name, as_results(records, "minqkv study", 1.0))
        write_plan(place / name, Plan([Part(configs)]), "minqkv study")

    def finished():
        return replace(read_study(place / "study"), path=None), in_folder(place / "study", "s")

    def begun():
        return replace(read_study(place / "begun-study"), path=None)

    names = ("results.json", "plan.json")
    yield Kept(place / "study", names, place / "study-other", finished)
    yield Kept(place / "begun-study", names[1:], place / "study-other", begun, alone=True)


def records_of_a_study(place):
    """The first record of a study; when it is refused, its run is missing and will be repeated."""
    folder, other = place / "begun-study" / "runs", place / "study-other" / "runs"
    first, foreign = (min(where.iterdir()) for where in (folder, other))
    shutil.copy(foreign, other / first.name)

    def read():
        found = Records(folder.parent).found
        if mine and not mine & found.keys():
            raise Again(f"{folder}: the run of this record is missing")
        return found

    mine = set()
    kept = Kept(folder, (first.name,), other, read)
    config = json.loads(first.read_text())["config"]
    mine |= {key for key, record in kept.expected.items() if record["config"] == config}
    return kept


class Again(MinqkvError):
    """A run whose record is refused counts as missing."""


def a_prompt_cache(place):
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=1, n_embd=4))
    for name, ids in (("cache", [[3, 1, 4]]), ("cache-other", [[1, 5, 9]])):
        cache = model.new_cache(1)
        model(ids, cache=cache)
        (place / name).mkdir()
        caches.save(cache, place / name / "prompt.npz", model)

    def read():
        cache = caches.load(place / "cache" / "prompt.npz", model)
        rows = [row.tobytes() for layer in cache.layers for row in layer.rows]
        return len(cache), cache.capacity, cache.dtype, rows

    return Kept(place / "cache", ("prompt.npz",), place / "cache-other", read, alone=True)


TEXTS = b"To be, or not to be: that is the question.\n" * 9, b"All the world's a stage.\n" * 16


def a_tokenizer(place):
    for name, text in zip(("tokenizer", "tokenizer-other"), TEXTS, strict=True):
        (place / name).mkdir()
        made = tokenizers.make("bpe-270", text)
        files.write_json(place / name / "bpe.json", files.sealed(made.as_json()))

    def read():
        found = tokenizers.make(str(place / "tokenizer" / "bpe.json"), b"")
        return found.as_json(), found.encode(TEXTS[0]).tolist()

    return Kept(place / "tokenizer", ("bpe.json",), place / "tokenizer-other", read, alone=True)


def a_corpus(place):
    """A prepared text: its shard, where its documents begin, and what is said of them."""
    folders = []
    for name, text in zip("ab", TEXTS, strict=True):
        (place / f"{name}.txt").write_bytes(text)
        folders.append(corpus.prepare(str(place / f"{name}.txt"), "bytes").folder)

    def read():
        found = corpus.Corpus(folders[0])
        about = corpus.about(folders[0])
        about = [about[name] for name in (*corpus.ABOUT, "key")]
        parts = [
            (split, found.tokens(split)[:].tolist(), found.documents(split).tolist())
            for split in found.splits
        ]
        return about, found.splits, found.tokenizer.as_json(), parts

    names = ("corpus.json", "tokenizer.json", "train-00000.tokens", "train.documents")
    return Kept(folders[0], names, folders[1], read)


def a_learner(place):
    for name, step in (("work", 3), ("work-other", 5)):
        progress = Progress(place / name)
        progress.lessons = {"01_a": {"step": step, "hints": 1}, "02_b": {"passed": "4678412bec76"}}
        progress._write()
    folder = place / "work" / ".minqkv"

    def read():
        said = []
        progress = Progress(place / "work", said.append)
        if said:
            (text,) = said
            (aside,) = folder.glob("progress.unreadable-*")
            assert progress.lessons == {}
            aside.rename(progress.path)  # nothing is lost
            raise Again(text)
        return progress.lessons

    other = place / "work-other" / ".minqkv"
    return Kept(folder, ("progress.json",), other, read, alone=True)


# ---- kinds of damage: each gives a file's new content


def bit(rng, whole, other, strangers):
    at = rng.randrange(len(whole))
    return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]


def truncation(rng, whole, other, strangers):
    return whole[: rng.choice((rng.randrange(len(whole)), len(whole) - 1 - rng.randrange(9)))]


def overwriting(rng, whole, other, strangers):
    """Some bytes are zeros, as after a power failure, or random, or there twice, or gone."""
    at, n = rng.randrange(len(whole)), rng.choice((1, 2, 7, 64, 512))
    new = rng.choice((bytes(n), rng.randbytes(n), whole[at : at + n] * 2, b""))
    return whole[:at] + new + whole[at + n :]


def splice(rng, whole, other, strangers):
    """The file of another run, the end of it, or a piece of it; where there are lines, by lines."""
    cut = rng.randrange(len(whole))
    if rng.random() < 0.3 and b"\n" in whole[:-1]:
        mine, theirs = whole.splitlines(True), other.splitlines(True)
        at = rng.randrange(len(mine))
        mine[at : at + rng.randrange(3)] = theirs[at : at + rng.randrange(4)]
        return b"".join(mine)
    end = min(len(other), cut + rng.choice((1, 16, 256)))
    other_cut = rng.choice((cut, rng.randrange(len(other))))
    return rng.choice(
        (
            other,
            whole[:cut] + other[other_cut:],
            whole[:cut] + other[cut:end] + whole[end:],
            rng.choice(strangers),
        )
    )


def places(value, path=()):
    """The path of every value within a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(rng, value):
    """A JSON value in which one is another, of any kind, or missing."""
    path, new = rng.choice(list(places(value))), rng.choice(OTHERS)
    if not path:
        return new
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    if rng.random() < 0.2:
        del inside[path[-1]]
    else:
        inside[path[-1]] = new
    return copy


def other_json(rng, whole, other, strangers):
    """Another JSON value: in the file, in a line of it, or in what an archive says of itself."""
    if whole.startswith(b"PK"):
        with np.load(io.BytesIO(whole)) as archive:
            arrays = dict(archive)
        label = json.dumps(changed(rng, json.loads(arrays["__meta__"].tobytes())))
        arrays["__meta__"] = np.frombuffer(label.encode(), np.uint8)
        packed = io.BytesIO()
        np.savez(packed, **arrays)
        return packed.getvalue()
    if not whole.startswith(b"{"):
        return json.dumps(rng.choice(OTHERS)).encode()
    try:
        return json.dumps(changed(rng, json.loads(whole)), indent=1).encode()
    except ValueError:  # lines
        lines = whole.splitlines(True)
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(changed(rng, json.loads(lines[at]))).encode() + b"\n"
        return b"".join(lines)


KINDS = {
    "bit": bit, "truncation": truncation, "overwriting": overwriting, "splice": splice,
    "other JSON": other_json,
}  # fmt: skip


# ---- the outcomes

ELSE, EXCHANGED = "something else was read", "another whole file was read"


def outcome(kept, name, content):
    """ "same", "refused" or "repeated"; or what is wrong."""
    (kept.folder / name).write_bytes(content)
    try:
        found = kept.read()
    except MinqkvError as error:
        said, hint = str(error), error.hint or ""
        if "\n" in said + hint or len(said) > 500:
            return f"an unclear message: {said!r}"
        if str(kept.folder) not in said or re.search("delete|remove|unexpected [A-Z]|None", said):
            return f"a wrong message: {said!r}, {hint!r}"
        return "repeated" if isinstance(error, Again) else "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "same" if found == kept.expected else EXCHANGED if found == kept.foreign else ELSE


def all_kept(place):
    yield a_run(place)
    yield a_begun_run(place)
    yield from a_study(place)
    yield records_of_a_study(place)
    for make in (a_prompt_cache, a_tokenizer, a_corpus, a_learner):
        yield make(place)


def damage(place, each=EACH):
    """(file, kind of damage, outcome) -> how often; and examples of what went wrong."""
    rng, found, faults = random.Random(0), Counter(), {}
    everything = list(all_kept(place))
    strangers = [content for kept in everything for content in kept.whole.values()]
    strangers += [content for kept in everything for content in kept.others.values()]
    for kept in everything:
        for name, whole in kept.whole.items():
            label = re.sub("[0-9a-f]{12,}", "…", f"{kept.folder.name}/{name}")
            for kind, change in KINDS.items():
                for _ in range(each):
                    content = change(rng, whole, kept.others[name], strangers)
                    if content == whole:
                        continue
                    how = outcome(kept, name, content)
                    if kept.foreign and content in strangers and how == ELSE:
                        how = EXCHANGED
                    if how == EXCHANGED:
                        continue
                    if how not in ("same", "refused", "repeated"):
                        faults.setdefault((label, kind, how), content)
                        how = "WRONG"
                    found[label, kind, how] += 1
                    kept.restore()
    return found, faults


def table(found):
    """The counts as text, a line for each file."""
    rows = {}
    for (label, kind, how), n in found.items():
        rows.setdefault(label, {}).setdefault(kind, {})[how] = n
    yield f"{sum(found.values()):,} mutations"
    for label, kinds in rows.items():
        counts = (f"{kind}: " + ", ".join(f"{n} {how}" for how, n in sorted(of.items()))
                  for kind, of in kinds.items())  # fmt: skip
        yield f"{label}  " + "; ".join(counts)


def test_random_damage_is_refused_or_changes_nothing(tmp_path):
    found, faults = damage(tmp_path)
    print(*table(found), sep="\n")
    assert not faults, "\n".join(map(str, list(faults)[:20]))
    assert sum(found.values()) >= 5000


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = damage(Path(folder), *map(int, sys.argv[1:]))
    print(*table(counts), *map(str, wrong), sep="\n")
