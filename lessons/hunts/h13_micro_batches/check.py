"""Hunt 13: `step_loss` of a batch in parts, against the mean over the whole batch."""

# /// script
# [tool.minqkv.hunt]
# title = "A batch in small parts"
# question = """
# To save memory, a batch is computed in parts, and their losses are averaged. On texts of one \
# length it is exact; on a mixture, results depend on how the batch was cut.\
# """
# exercise = "step_loss"
# reports = [
#   "https://github.com/huggingface/transformers/issues/24725",
#   "https://github.com/meta-pytorch/torchtune/pull/1875",
# ]
# source = [["minqkv.train.loss_and_gradients", "share = weight"]]
# ///

import numpy as np

TOLERANCE = 1e-9

LAW = "However a batch is cut into parts, its loss is the mean over all tokens that count."

HINTS = (
    "Take two parts: one with a single token that counts, and one with nine. How much should the "
    "single token weigh, and how much does it weigh?",
    "The mean of means is the mean only if all parts have the same number of tokens that count.",
    "Add up the losses and the numbers of tokens over all parts, and divide once, at the end.",
)

EXPLANATION = """
Each part divided by its own number of tokens, and the parts were then weighted alike. So a token
weighs more the fewer tokens share its part. Gradients are wrong in the same way, so accumulating
them is no longer the same as a large batch.

It was reported for one library a year before many noticed, in several at once. The torchtune pull
request states it as two fractions whose sum is not the fraction of the sums. In this package the
loss of a task is a pair, a mean and its weight, and parts, threads and processes are combined by
weight.
"""


def cases(rng):
    """losses (N, T), which of them count (N, T), and the rows of a part."""
    N, T = int(rng.integers(2, 6)), int(rng.integers(2, 4))
    kept = np.arange(T) < rng.integers(1, T + 1, N)[:, None]  # (N, T), at least one in each row
    return rng.random((N, T)), kept, int(rng.integers(1, 4))


def reference(losses, kept, size):
    """The mean over all that count."""
    return float(losses[kept].mean())
