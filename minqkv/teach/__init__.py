'''Lessons: what a lesson calls, and what plays and checks them. How to write one:

Five files of the same name, and one of key numbers, make a lesson. Order comes from the number in the name.

    lessons/NN_name.py              the lesson
    lessons/exercises/NN_name.py    the stub: signature, docstring (task, shapes, what is returned), raise NotImplementedError
    lessons/solutions/NN_name.py    the same names, right
    lessons/near_misses/NN_name.py  the same names, wrong in known ways
    lessons/checks/NN_name.py       cases, reference, tolerance, hints, explanation
    tests/lesson_golden/NN_name.json  key numbers, written by `python tests/lesson_golden.py NN`

Copy lesson 06 and replace its contents. Then, until nothing is left to say:

    minqkv lesson dev check NN
    python -m pytest tests/test_lessons.py -k NN_name
    minqkv lesson play NN                              # at 80 and at 60 columns, with NO_COLOR=1, with TERM=dumb
    minqkv lesson dev readme > lessons/README.md

**The lesson.** A metadata block, all eight fields of it required:

    # /// script
    # requires-python = ">=3.11"
    # dependencies = ["minqkv"]
    #
    # [tool.minqkv.lesson]
    # title = "Attention by hand"
    # question = "..."             one question worth asking, of at most 72 characters
    # needs = ["softmax"]          topics, each in the `teaches` of an earlier lesson, spelled alike
    # teaches = ["query", "qkv"]   topics; who teaches a variant lists its name as minqkv.variants.NAMES spells it
    # minutes = 15                 10 to 20
    # budget_s = 4                 seconds as plain Python on a slow machine
    # exercise = "attend"          the name the learner defines (a function or class), or a list of several
    # uses = ["minqkv.trace"]      the package's public names that appear, with their module
    # ///

Topics are spelled alike everywhere. Those that others build on, by the lesson that teaches them: 01 "gradient",
"accumulation", "backward order"; 02 "broadcasting", "unbroadcast", "Tensor"; 03 "matmul", "softmax", "cross-entropy",
"vector-Jacobian product", "gradient check"; 04 "loss", "training step", "Adam", "seed"; 05 "positions", "reverse task",
"weighted average"; 06 "query", "key", "value", "scores", "scale", "causal mask", "pattern", "attention", "qkv";
07 "heads", "block", "parameters"; 08 "tied gradient", "reversibility", "temperature", "q=k-v", "q-k=v", "q=k=v", "q=k-v+",
"q=k=v+"; 09 "KV heads", "cache bytes", "gqa-N", "mqa", "q-gqa-N", "q-mqa"; 10 "cache", "prefill", "decode"; 11 "rope",
"one buffer"; 12 "paired seeds", "interval", "perplexity".

Then cells: `# %% [markdown]` (comment lines; paragraphs, `- ` lists, `code`, **strong**, formulas indented by four) and
`# %% Title` (code). Prose and the code cell after it are one step, and a step has one idea: 8 to 12 of them. In the
terminal a step shows its prose, then its code without the calls of event functions (top level of the cell), then runs it
and shows the events as they come. So: the code cell computes, then speaks. Shown code stays below 79 columns and 25 lines,
with a shape comment wherever a shape changes. Only numpy and minqkv are imported. Everything random is seeded and no time
is shown, so that two runs give the same events. Arrays come from the package (`mq.trace`, `.grad`, `cache.nbytes`)
wherever it computes them; where a lesson computes something itself, `compare` holds it against the package.
Lessons also run on the `strict` backend, which stands in for a GPU: `from minqkv import backend`, then
`backend.upload(mask)` for a plain array that goes into the package, `.numpy()` or `trace` for what comes out.

**Events**, from minqkv.teach (events.py; every number in them is computed, none is typed):

    say(text)                                            a sentence: say(f"the cache holds {cache.nbytes:,} bytes")
    show(name, array, rows=None, columns=None, mask=None, digits=3)
                          an array or Tensor of any rank; labels for the last two axes; mask is True where an entry may be
                          seen, the rest print as "."; digits=0 for whole numbers; labels of at most 8 characters
    heat(name, array, rows=None, columns=None, mask=None, digits=3)    the same for weights in 0..1, with shading
    table(title, columns, rows)      a list of short headers, rows of strings and numbers; the first column names the row
    curve(title, series, x="step", log=False)            series: {name: values}; for losses and the like
    predict(question, answer, options=None, tolerance=1e-2)
                          asks before showing: `answer` is computed in the cell; a number, a bool, a word, or one of `options`
                          (a list of strings, the right one computed, too). At least two a lesson, better four to six
    compare(left, a, right, b, tolerance=1e-9, same=True)  names and arrays; prints the largest difference. Fails the lesson
                          when the claim is false; same=False for a difference that is meant. 1e-6 for float32
    memory(k=k, v=v)                 which arrays are one: `v: same memory as k (0 extra bytes)`
    cache_step(cache, config, new=1) the line of a decode step, from nbytes, held against the closed form: after each step
    source(thing, at=None)           file and line of a function or class, or of its line that contains `at`. Ends the lesson
    gradients(function, inputs, cotangent)               for checks: (output, [gradients]) of a function on Tensors

**The check.** One mechanism for all twelve: the learner's code is called with fresh copies of a case, and what comes
back is compared part by part with what the reference gives for the same arguments.

    def cases(rng): return x, wq, wk, wv        one case from a NumPy generator: a tuple of arrays (float64), numbers, strings,
                                                nested tuples or dicts. Dimensions all different, and other ones each time
    def reference(x, wq, wk, wv): ...           the right result, by functions of minqkv; its parameter names are printed
    TOLERANCE = 1e-9                            relative and absolute
    HINTS = ("...", "...", "...")               three, each more explicit than the one before
    EXPLANATION = """..."""                     prose shown after a pass: what the package does differently, and why
    def use(learner, *args): ...                optional: how the learner's names are put to work. Left out, it is
                                                learner.<exercise>(*args)

Results are arrays (type, shape, dtype and value are compared), numbers, strings, bools, None, and tuples, lists or dicts
of them. `use` serves whatever is not one call of one function, and returns the same structure as `reference`:

    several functions      return learner.split(x, h), learner.merge(learner.split(x, h))
    a backward             return learner.softmax_vjp(y, g)            reference: backward of the package's softmax
    a function on Tensors  return gradients(learner.attend, (q, k, v), g)      values and gradients, in float64
    an optimiser's steps   state = {}; return [learner.adam(p, g, state) for g in gs]        or a class with a method
    a cached decode        cache = []; return [learner.step(row, cache) for row in x]        the state is made in `use`
    statistics             return learner.paired(a, b)                 a tuple of numbers

A case's arguments must come back unchanged: state that is meant to change is made inside `use`. In those lines the
names of functions and arguments are yours to choose; a class is used like a function. A stub's methods raise
NotImplementedError, too: whatever `use` calls first must.

**Near misses.** Functions (or classes) called `<exercise name>__<mistake>`, whose docstring is one line: the diagnosis,
told to the learner in the second person ("You divide the scores by d, not by its square root."). Each takes the place
of that one name in the solution. At least three; each must return a result (no exception) on every case, fail, and
differ from every other one on some case. Helpers start with an underscore. A diagnosis is named only where the
learner's results equal those of exactly one near miss on all cases.

**Style.** Open with the question; predict before showing; small numbers that a pencil can check; end at the real code.
Plain, warm, exact: no filler, no exclamation mark, no emoji, British spelling. No measured number in prose (`dev check`
looks for digits; shapes such as (3, 4), years, "lesson 08", names such as x1 and the digits 0, 1, 2 are fine): a number
that was computed is said by an event. In prose, code stands between `ticks`, names of arrays too.
'''

from .events import cache_step, compare, curve, gradients, heat, memory, predict, say, show, source, table

__all__ = ["cache_step", "compare", "curve", "gradients", "heat", "memory", "predict", "say", "show", "source", "table"]
