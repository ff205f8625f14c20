"""Exercise 19: queries that look for values. Check it with `minqkv lesson check 19`."""

import numpy as np  # noqa: F401


def refit(x, wq, wk, wv):
    """Change the queries of one head so that they find values instead of keys.

    x (n, C + 1) is what the head reads, for n tokens of examples. Its last column is 1, and the
    last row of wq, wk and wv (C + 1, d) is the bias. So queries, keys and values are x @ wq, x @ wk
    and x @ wv.

    Compute the keys of the examples from their values, as well as a matrix and a constant can:

        k  ≈  v M + c

    Then wk is dropped, and the values serve as keys. Return the new wq, an array (C + 1, d), such
    that every score is what v M would have given, up to a constant for each query. Leave all
    arguments as they are.

    (In a case, x holds a few sequences of digits, one after another, and the head writes each of
    them backwards. The check compares the scores of the first sequence, each minus the mean of its
    row, and the share of digits that are right. For that it needs `wo`, which makes a number for
    each digit from a value, and the right `digits`.)
    """
    raise NotImplementedError
