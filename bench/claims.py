"""Mechanistic claims about attention with shared projections, each tested on trained models.

    python -m bench.claims          # about twenty minutes on two cores

docs/claims-plan.md says what is trained, what is measured, and when a claim holds; it was committed
before the runs. Results go to bench/results/claims/claims.json after each run, and the same command
continues. At the end it prints the claims as Markdown. Some claims are about studies that were
committed earlier, `language-models` and `study-plus-12-seeds`.
"""

import json
import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from minqkv.study.stats import estimate, holm, sign_flip

from . import common
from .claims_measured import ARMS, NEVER, measure

PATH = common.RESULTS / "claims" / "claims.json"
SEEDS = range(8)
ZERO, SOME = 1e-3, 0.01  # of a number that is rounding, and of one that is not


# ---- what is claimed


@dataclass(frozen=True)
class Check:
    """One number for each seed, and what a claim says of it: that it is "above" `bound` on average,
    that its mean lies "within" ± `bound`, or that it is "at most" `bound` in each run.
    """

    what: str
    values: list[float]
    kind: str
    bound: float = 0.0

    @property
    def p(self):
        """Of the sign-flip test, where there is one."""
        return sign_flip([v - self.bound for v in self.values]) if self.kind == "above" else None

    def outcome(self, p):
        """ "holds", "fails" or "cannot be told", with p after Holm's correction."""
        if self.kind == "at most":
            return "holds" if max(self.values) <= self.bound else "fails"
        found = estimate(self.values)
        low, high = found.mean - found.half, found.mean + found.half
        if self.kind == "within":
            inside = max(-low, high) < self.bound
            outside = low > self.bound or high < -self.bound
            return "holds" if inside else "fails" if outside else "cannot be told"
        above = low > self.bound and p <= 0.05
        return "holds" if above else "fails" if high < self.bound else "cannot be told"


@dataclass(frozen=True)
class Claim:
    """What is said, where, and the checks that must all hold."""

    text: str
    source: str
    scale: str
    checks: list[Check]

    def judged(self):
        """(outcome of each check, outcome of all)."""
        tested = [c for c in self.checks if c.p is not None]
        ps = dict(zip(map(id, tested), holm([c.p for c in tested]), strict=True))
        found = [c.outcome(ps.get(id(c))) for c in self.checks]
        worst = next((o for o in ("fails", "cannot be told") if o in found), "holds")
        return found, worst


class Runs:
    """The rows of the runs that learned their task, seed by seed."""

    def __init__(self, rows):
        self.rows = {}
        for row in rows:
            if learned(row):
                self.rows.setdefault(row["arm"], {})[row["seed"]] = row

    def of(self, arm, number, other=None):
        """A number of each run of an arm; with `other`, the runs of its seed in that arm count."""
        seeds = self.rows.get(arm, {}).keys() & self.rows.get(other or arm, {}).keys()
        return [number(self.rows[arm][seed]) for seed in sorted(seeds)]

    def minus(self, number, arm, other):
        """The difference of two arms, paired by seed."""
        pairs = zip(self.of(arm, number, other), self.of(other, number, arm), strict=True)
        return [a - b for a, b in pairs]


def learned(row):
    """Whether a run counts as trained. Those called slow are about who learns, and all count."""
    task = row["arm"].split()[0]
    limits = {"text": row["score"] < 12, "reverse": row["score"] > 0.95, "sort": row["score"] > 0.6}
    return limits.get(task, True)


def score(row):
    """Higher is better: accuracy, or minus the loss."""
    return row["score"] if row["metric"] == "accuracy" else -math.log(row["score"])


def named(name):
    """row -> row[name]"""
    return lambda row: row[name]


def all_claims(rows):
    """Every claim with its numbers."""
    runs = Runs(rows)
    return [*about_symmetry(runs), *about_plus(runs), *about_rows(runs), *about_cost(runs),
            *about_conversion(runs), *about_storing(runs)]  # fmt: skip


def about_symmetry(runs):
    """Who attends to whom with Q = K."""
    shared = ("text q=k-v", "reverse q=k-v", "reverse q=k=v", "sort q=k-v")
    yield Claim(
        "With Q = K the scores are symmetric", "paper, section 3", "text, reverse, sort",
        [Check(f"asymmetry, {arm}", runs.of(arm, named("asymmetry")), "at most", ZERO)
         for arm in shared]
        + [Check(f"asymmetry, {arm}", runs.of(arm, named("least asymmetry")), "above", SOME)
           for arm in ("text qkv", "reverse qkv")],
    )  # fmt: skip
    yield Claim(
        "So is the map after the softmax", "a reading of the paper's figure", "reverse",
        [Check(f"largest in A - Aᵀ, {arm}", runs.of(arm, named("map asymmetry")), "at most", ZERO)
         for arm in shared[1:3]],
    )  # fmt: skip
    yield Claim(
        "What is left is that Q = K has no direction: its curl is zero", "†", "text, reverse, sort",
        [Check(f"curl, {arm}", runs.of(arm, named("curl")), "at most", ZERO) for arm in shared]
        + [Check(f"curl, {arm}", runs.of(arm, named("least curl")), "above", SOME)
           for arm in ("text qkv", "reverse qkv", "sort qkv")],
    )  # fmt: skip
    yield Claim(
        "The “+” gives Q = K a direction", "paper, section 3.3", "reverse, sort",
        [Check(f"curl, {arm}", runs.of(arm, named("curl")), "above", SOME)
         for arm in ("reverse q=k=v+", "sort q=k-v+")],
    )  # fmt: skip
    yield Claim(
        "Learned signed distances do; rotary positions do not", "†", "reverse, text",
        [Check("curl, signed", runs.of("reverse q=k-v signed", named("curl")), "above", SOME),
         Check("curl, rope", runs.of("text q=k-v rope", named("curl")), "at most", ZERO)],
    )  # fmt: skip


def about_plus(runs):
    """What the "+" is."""
    twelve = _study("study-plus-12-seeds", task="sort")

    def change(variant, kind, than):
        a, b = twelve[variant + kind], twelve[variant + than]
        return [a[seed] - b[seed] for seed in a]

    parts = (
        ("+", "+temperature", "within"),
        ("+temperature", "", "above"),
        ("+bias", "", "within"),
    )
    pairs = [(v, *part) for v in ("q=k-v", "q=k=v") for part in parts]
    yield Claim(
        "The “+” is a temperature: alone it gives the whole gain, the bias nothing", "†",
        "sort, 12 seeds, study-plus-12-seeds",
        [Check(f"{v}{kind} minus {v}{than}", change(v, kind, than), how, 0.02 * (how == "within"))
         for v, kind, than, how in pairs],
    )  # fmt: skip
    yield Claim(
        "What cancels in the softmax can be left out of the “+”", "†", "reverse, sort",
        [Check(f"literal minus reduced, {arm}", runs.of(arm, named("literal")), "at most", ZERO)
         for arm in ("reverse q=k=v+", "sort q=k-v+")],
    )  # fmt: skip
    plain = "slow q=k=v"
    yield Claim(
        "It helps because a token no longer attends to itself", "†", "reverse at rate .001",
        [Check("own key, plain minus +", runs.minus(named("own"), plain, f"{plain}+"), "above"),
         Check("accuracy, diagonal hidden minus plain",
               runs.minus(score, f"{plain} diagonal hidden", plain), "above"),
         Check("accuracy, from s₀ = −1 minus plain",
               runs.minus(score, f"{plain} from -1", plain), "above")],
    )  # fmt: skip


def about_rows(runs):
    """What W_K and W_V of trained qkv models are."""

    def since_start(name):
        return lambda row: row[name] - row[f"{name} at start"]

    def below(name):
        return lambda row: 0.83 - row[f"rank {name}"] / row[f"rank {name} at start"]

    for task in ("text", "sort"):
        arm = f"{task} qkv"
        yield Claim(
            "W_K and W_V are of low rank: .83 of a random matrix's, as in the paper, or less",
            "paper, section 5", task,
            [Check(f".83 minus rank of W_{n.upper()} / at start", runs.of(arm, below(n)), "above")
             for n in "kv"],
        )  # fmt: skip
        yield Claim(
            "The cosine of W_K and W_V is high: .5 or more (.73 in the paper)",
            "paper, section 5", task,
            [Check("cosine", runs.of(arm, named("cos kv")), "above", 0.5)],
        )  # fmt: skip
        yield Claim(
            "That cosine can be moved at will, to either side of zero", "†", task,
            [Check("largest cosine", runs.of(arm, named("cos largest")), "above", 0.3),
             Check("minus smallest cosine", [-x for x in runs.of(arm, named("cos smallest"))],
                   "above", 0.3)],
        )  # fmt: skip
        yield Claim(
            "Training brings K and V together", "paper, section 5", task,
            [Check(f"{what} minus at start", runs.of(arm, since_start(n)), "above")
             for n, what in (("overlap", "overlap"), ("cka", "CKA"), ("v_from_k", "R² of V by K"))],
        )  # fmt: skip


def about_cost(runs):
    """What sharing costs and saves in language models."""
    eight = _study("language-models", task="text")
    loss = {arm: {seed: math.log(p) for seed, p in seeds.items()} for arm, seeds in eight.items()}

    def over(arm, than="qkv"):
        return [loss[arm][seed] - loss[than][seed] for seed in loss[arm]]

    def both(arm, than):
        return [a - b for a, b in zip(over(arm, than), over("q-k=v"), strict=True)]

    sizes = _bytes("language-models")
    yield Claim(
        "Keys can serve as values, while queries cannot serve as keys", "paper, section 5",
        "text, 8 seeds, language-models; text",
        [Check("loss, q=k-v minus q-k=v", over("q=k-v", "q-k=v"), "above"),
         Check("R² of V by K minus R² of K by Q",
               runs.of("text qkv", lambda row: row["v_from_k"] - row["k_from_q"]), "above")],
    )  # fmt: skip
    yield Claim(
        "K = V halves the cache at a small cost: 5 % of perplexity or less", "paper, section 5",
        "text, 8 seeds, language-models",
        [Check("bytes, over half of qkv's, minus 1", [2 * sizes["q-k=v"] / sizes["qkv"] - 1],
               "at most"),
         Check(".05 minus loss, q-k=v minus qkv", [0.05 - x for x in over("q-k=v")], "above")],
    )  # fmt: skip
    yield Claim(
        "Sharing multiplies with fewer heads: half of a quarter, at the sum of the costs",
        "paper, section 5", "text, 8 seeds, language-models",
        [Check("bytes, over an eighth of qkv's, minus 1", [8 * sizes["q-mqa"] / sizes["qkv"] - 1],
               "at most"),
         Check("loss, what q-mqa costs beyond mqa and q-k=v", both("q-mqa", "mqa"), "within",
               0.02)],
    )  # fmt: skip


def about_conversion(runs):
    """In which order conversions lose less."""
    for arm, task in (("reverse qkv", "reverse"), ("sort qkv", "sort"), ("text qkv", "text")):

        def gain(better, *worse, text=task == "text"):
            def number(row):
                found = {m: -math.log(v) if text else v for m, v in row["zero_shot"].items()}
                return found[better] - max(found[m] for m in worse)

            return number

        yield Claim(
            "From qkv to q-k=v at once: refit-q > Procrustes > mean > keeping one", "†", task,
            [Check("mean minus the better of keep_k, keep_v",
                   runs.of(arm, gain("avg", "keep_k", "keep_v")), "above"),
             Check("Procrustes minus mean", runs.of(arm, gain("procrustes", "avg")), "above"),
             Check("refit-q minus Procrustes", runs.of(arm, gain("refit-q", "procrustes")),
                   "above")],
        )  # fmt: skip


def about_storing(runs):
    """How the one row of K = V is turned and rounded."""
    raw, back, never = (f"text q-k=v {how}" for how in ("raw", "unrotate", NEVER))
    yield Claim(
        "Rotary K = V needs “raw” or “unrotate”: else positions are no longer relative", "†",
        "text, rope",
        [Check(f"shift of the logits, {how}", runs.of(arm, named("shift")), "at most", ZERO)
         for how, arm in (("raw", raw), ("unrotate", back))]
        + [Check(f"shift of the logits, {NEVER}", runs.of(never, named("shift")), "above", SOME),
           Check(f"loss, {NEVER} minus unrotate",
                 runs.minus(lambda row: -score(row), never, back), "above")],
    )  # fmt: skip
    yield Claim(
        "Rounding a shared row costs more through values than through scores", "†",
        "text, int8 rows",
        [Check(f"ln of the changes of logits, values over keys, {arm}",
               runs.of(arm, lambda row: math.log(row["rounded values"] / row["rounded keys"])),
               "above") for arm in ("text q-k=v", raw)],
    )  # fmt: skip


def _rows(folder, task):
    results = json.loads((common.RESULTS / folder / "results.json").read_text("utf-8"))
    return [row for cell in results["cells"] if cell["task"] == task for row in cell["rows"]]


def _study(folder, task):
    """Arm -> seed -> score, of a committed study."""
    return {row["arm"]: row["by_seed"] for row in _rows(folder, task)}


def _bytes(folder):
    """Arm -> bytes per token, as measured of a filled cache."""
    return {row["arm"]: row["cache_measured"] for row in _rows(folder, "text")}


# ---- the command


def stored():
    """The rows so far."""
    return json.loads(PATH.read_text("utf-8"))["rows"] if PATH.exists() else []


def number(check):
    """Mean and interval, or the largest."""
    if check.kind == "at most":
        return f"≤ {max(check.values):.2g}"
    found = estimate(check.values)
    return f"{found.mean:+.3f} ± {found.half:.3f}"


def show(rows):
    """The claims and their checks, as Markdown."""
    print("| claim | source | trained on | verdict |\n|---|---|---|---|")
    claims = all_claims(rows)
    for i, claim in enumerate(claims, 1):
        print(f"| {i}. {claim.text} | {claim.source} | {claim.scale} | **{claim.judged()[1]}** |")
    print("\n| claim | number | n | found | must be | so it |\n|---|---|---|---|---|---|")
    for i, claim in enumerate(claims, 1):
        for check, outcome in zip(claim.checks, claim.judged()[0], strict=True):
            must = f"{check.kind} {'± ' * (check.kind == 'within')}{check.bound:g}"
            cells = [i, check.what, len(check.values), number(check), must, outcome]
            print("|", " | ".join(map(str, cells)), "|")


def main():
    rows = stored()
    done = {(row["arm"], row["seed"]) for row in rows}
    todo = [(arm, seed) for seed in SEEDS for arm in ARMS if (arm, seed) not in done]
    with ProcessPoolExecutor(min(2, common.cores())) as pool:
        for found in as_completed(pool.submit(measure, *one) for one in todo):
            rows.append(found.result())
            rows.sort(key=lambda row: ([*ARMS].index(row["arm"]), row["seed"]))
            head = {"part": "claims", "command": "python -m bench.claims", "threads": 1}
            common.write_result(PATH, head | {"machine": common.machine()}, rows)
            common.progress(f"{len(rows)} of {len(ARMS) * len(SEEDS)} runs")
    show(rows)


if __name__ == "__main__":
    main()
