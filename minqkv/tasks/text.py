"""Text: a decoder learns to predict the next token, and is scored by perplexity.

Perplexity is exp of the mean loss over the tokens that count. Padding never counts: a model trained
on it predicts it easily, so a mean that includes it looks too good (`padded_score` shows by how
much). Tokenizers split a text into different numbers of tokens, so compare them by bits per byte.
"""

import codecs
import math
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from ..functional import BLOCK
from ..generation import generate
from ..models import GPTConfig
from ..runtime.errors import UsageError
from ..runtime.rng import stream
from ..train import IGNORE, evaluate
from . import corpus
from .base import Recipe, Task, check_split
from .downloads import cache_root
from .rules import SPLITS

LARGEST = 1 << 21  # numbers of an array in a forward pass that scores: 8 MiB of float32


@dataclass(frozen=True)
class Text(Task):
    """Examples are `seq_len` tokens of a text; with `padded`, each is one document, or the start of
    one. With a `window`, a token sees itself, the window - 1 tokens before it, and the first
    `sinks` tokens.

    `text` and `tokenizer` are the arguments of `corpus.prepare`. A task made from them alone
    prepares the text. From then on, `digest` identifies it.
    """

    text: str = ""
    tokenizer: str = "chars"
    digest: str | None = None
    vocab_size: int | None = None
    seq_len: int = 64
    padded: bool = False
    dropout: float = 0.0
    n_validation: int = 400
    window: int | None = None
    sinks: int = 0
    recompute: bool = False
    _: KW_ONLY
    n_layer: int = 3
    n_embd: int = 128
    n_test: int = 2000

    metric = "perplexity"
    better = "lower"
    solved = None
    learned = None
    limits = (1.0, math.inf)
    answers = False
    relative = True
    one_each = ("text", "tokenizer")
    language = True

    def __post_init__(self):
        super().__post_init__()
        if self.digest is None:
            for name, value in _identity(corpus.prepare(self.text, self.tokenizer)).items():
                if name != "vocab_size" or self.vocab_size is None:
                    object.__setattr__(self, name, value)
        if self.seq_len < 1 or self.n_validation < 1:
            sizes = f"seq_len {self.seq_len} and n_validation {self.n_validation}"
            raise UsageError(f"{sizes} must be at least 1")

    @classmethod
    def prepared(cls, given, progress=None):
        """If `text` or `tokenizer` is given: prepare that corpus, and add its fields of a task."""
        source, tokenizer = given.get("text"), given.get("tokenizer")
        for name, value in (("text", source), ("tokenizer", tokenizer)):
            if not isinstance(value, str | None):  # --set text=7
                raise UsageError(f"{name} must be str, not {value!r}", f"--{name} {value}")
        if not (source or tokenizer) or corpus.is_prepared(given.get("digest"), source):
            return given
        found = _identity(corpus.prepare(source or "", tokenizer or "chars", progress))
        return {"vocab_size": found.pop("vocab_size")} | given | found

    @property
    def corpus(self) -> corpus.Corpus:
        """The prepared text. Raises EnvironmentFault if it is no longer there, UsageError if its
        tokens do not fit into the vocabulary.
        """
        found = _found(self.digest, cache_root())
        if not found.folder.exists():
            found = corpus.find(self.digest)  # it was removed: this raises
        if found.tokenizer.vocab_size > self.vocab_size:
            what = f"{found.tokenizer.name} has {found.tokenizer.vocab_size:,} tokens"
            raise UsageError(f"{what}, more than a vocabulary of {self.vocab_size:,}")
        return found

    @property
    def chance(self):
        """The perplexity of a model that knows nothing: all tokens are equally likely."""
        return float(self.vocab_size)

    def config(self, variant):
        """A GPT of these sizes."""
        names = ("vocab_size", "n_layer", "n_head", "n_embd", "head_dim", "position", "rope_value")
        names += ("dropout", "window", "sinks", "recompute")
        size = {name: getattr(self, name) for name in names}
        return GPTConfig(**size, block_size=self.seq_len, variant=variant)

    def recipe(self, steps=None):
        """AdamW as in the paper (section 5), at a rate for small models."""
        steps = steps or 2500
        twentieth, tenth = max(1, steps // 20), max(1, steps // 10)
        return Recipe(
            steps, batch=12, lr=4e-3, warmup=twentieth, clip=1.0, watch=tenth, floor=0.1,
            weight_decay=0.1, beta2=0.95,
        )  # fmt: skip

    def examples(self, rng, n):
        """n random windows, or documents, of the training split."""
        starts = self._starts("train")
        return self._rows("train", starts[rng.integers(0, len(starts), n)])[:2]

    def batch(self, seed, step, size):
        """The examples of a training step. Windows may begin at any token."""
        rng = stream(seed, "data", "train", self.name, step)
        if self.padded:
            return self.examples(rng, size)
        limit = len(self.corpus.tokens("train")) - self.seq_len
        return self._rows("train", rng.integers(0, limit, size))[:2]

    def check_data(self):
        """Each split has a window, and its tokens fit into the vocabulary."""
        for split in SPLITS:
            self._starts(split)

    def n_scored(self, split):
        """How many examples are scored: fewer of the validation split, which is scored often."""
        return self.n_validation if split == "validation" else self.n_test

    def draw(self, seed, split, n=None):
        """The windows, or documents, of a split in order; n of them at equal distances if there are
        more.

        They do not depend on the seed: all models are scored on the same tokens.
        """
        return self._evaluated(split, n)[:2]

    def _evaluated(self, split, n):
        starts = self._starts(check_split(split))
        count = min(n or self.n_scored(split), len(starts))
        return self._rows(split, starts[np.arange(count) * len(starts) // count])

    def _starts(self, split):
        """Where the examples of a split begin: indices of tokens or, if padded, of documents."""
        if self.padded:
            return np.arange(len(self.corpus.documents(split)) - 1)
        n = len(self.corpus.tokens(split))
        if n <= self.seq_len:
            what = f"the {split} split of {self.text} has {n} tokens"
            why = f"{what}, too few for a window of {self.seq_len} and the token after it"
            raise UsageError(why, "choose a smaller --seq-len or a longer text")
        return np.arange(0, n - self.seq_len, self.seq_len)

    def _rows(self, split, starts):
        """Inputs, targets, and targets that include the padding: (n, T) each."""
        tokens, T = self.corpus.tokens(split), self.seq_len
        if not self.padded:
            rows = tokens.windows(starts, T + 1)  # (n, T + 1)
            return rows[:, :-1], rows[:, 1:], rows[:, 1:]
        ends = self.corpus.documents(split)
        rows = np.full((len(starts), T + 1), self.corpus.tokenizer.end)  # (n, T + 1)
        lengths = np.minimum(ends[starts + 1] - ends[starts], T + 1)  # (n,)
        for row, start, length in zip(rows, ends[starts], lengths, strict=True):
            row[:length] = tokens[start : start + length]
        padding = np.arange(1, T + 1) >= lengths[:, None]  # (n, T)
        return rows[:, :-1], np.where(padding, IGNORE, rows[:, 1:]), rows[:, 1:]

    def predict(self, model, x, y):
        """Perplexity, bits per byte, accuracy and loss, over the targets that count."""
        found = evaluate(model, x, y, self.at_once)
        counted = y[y != IGNORE]
        bits = found["loss"] * len(counted) / math.log(2)
        found["perplexity"] = math.exp(min(found["loss"], 700.0))
        found["bits_per_byte"] = bits / max(1, int(self._byte_counts[counted].sum()))
        return found

    @property
    def at_once(self):
        """Rows whose largest array has no more than LARGEST numbers: logits, (n, T, V), what is
        inside an MLP, (n, T, 4·n_embd), or the scores of a block of queries.
        """
        widest = max(self.vocab_size, 4 * self.n_embd, self.n_head * min(self.seq_len, BLOCK))
        return max(1, min(500, LARGEST // (self.seq_len * widest)))

    def padded_score(self, model, split):
        """Perplexity with and without the padding, with one document per row (paper, section 5)."""
        task = self if self.padded else replace(self, padded=True)
        x, y, all_targets = task._evaluated(split, None)
        masked, padded = (evaluate(model, x, t, self.at_once)["loss"] for t in (y, all_targets))
        return {"masked": math.exp(masked), "padded": math.exp(padded),
                "padding": float((y == IGNORE).mean())}  # fmt: skip

    @cached_property
    def _byte_counts(self):
        """(V,): how many bytes of text each token stands for."""
        pieces = self.corpus.tokenizer.pieces
        return np.array([len(piece) for piece in pieces])

    def sample(self, model, seed):
        """How the model continues the start of the validation split, up to 80 characters."""
        limit = min(80, self.seq_len + 1)  # tokens: the model reads seq_len, and writes one more
        start = self.corpus.tokens("validation")[: max(1, min(16, limit // 4))][None]  # (1, t)
        ids = generate(model, start, limit - start.shape[1], temperature=0.8, seed=seed)
        return self.decode(ids[0])[:80]

    def prompt(self, text):
        """A text as ids. An empty one is the end token: after it, a new document begins."""
        try:
            data = text.encode(errors="surrogateescape")  # bytes that the shell passed on
        except UnicodeEncodeError as error:
            raise UsageError("the prompt is not text: it has half of a surrogate pair") from error
        try:
            return self.corpus.tokenizer.encode(data).tolist() or [self.end]
        except UsageError as error:  # its advice is for a text to be trained on
            hint = "leave it out, or train on a text with --tokenizer bytes, which accepts any text"
            raise UsageError(str(error), hint) from error

    def decode(self, ids):
        """Ids as text; bytes that are not UTF-8 become U+FFFD. The end token has no text."""
        return self._bytes(ids).decode(errors="replace")

    def pieces(self, ids):
        """Ids as pieces of text. A character of several tokens comes whole, with the last one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            yield decoder.decode(self._bytes([i]))
        yield decoder.decode(b"", final=True)

    def _bytes(self, ids):
        """The bytes of tokens; for an id without a token, a byte that never occurs in UTF-8."""
        pieces = self.corpus.tokenizer.pieces
        return b"".join(pieces[i] if i < len(pieces) else b"\xff" for i in ids)

    def example(self):
        """The beginning of the validation split."""
        return self.decode(self.corpus.tokens("validation")[:16])

    @property
    def n_answer(self):
        """None: a text continues to the end of its document."""
        return None

    @property
    def end(self):
        """The end of a document."""
        return self.corpus.tokenizer.end


@lru_cache(8)
def _found(digest, root):
    """The corpus under this folder for data, looked up once."""
    return corpus.find(digest)


def _identity(found):
    """The fields of a task that identify a corpus."""
    names = {"text": found.label, "tokenizer": found.tokenizer.name, "digest": found.digest}
    return names | {"vocab_size": found.tokenizer.vocab_size}
