"""Near misses 12: perplexities and intervals that are almost right, each with what it does
wrong.
"""

import numpy as np

from minqkv.study.stats import t_quantile


def perplexity__padded(losses, counted):
    """Your perplexity counts the padding: take the mean over losses[counted] only."""
    return np.exp(losses.mean())


def perplexity__padding_as_zero(losses, counted):
    """You set the loss of padding to 0, but still divide by all targets. Divide by the number of
    those that count.
    """
    return np.exp((losses * counted).mean())


def perplexity__only_padding(losses, counted):
    """You keep the padding and drop the rest: `counted` is True where a target is real."""
    return np.exp(losses[~counted].mean())


def perplexity__mean_of_documents(losses, counted):
    """You average within each document first: then a target in a short document counts more than
    one in a long one.
    """
    return np.exp(np.mean([row[keep].mean() for row, keep in zip(losses, counted, strict=True)]))


def perplexity__perplexity_of_documents(losses, counted):
    """You average the perplexities of documents. Average the losses of all targets, and take the
    exponential last.
    """
    return np.mean([np.exp(row[keep].mean()) for row, keep in zip(losses, counted, strict=True)])


def perplexity__exp_first(losses, counted):
    """You take the exponential of each loss and then the mean. The mean comes first."""
    return np.exp(losses[counted]).mean()


def perplexity__no_exp(losses, counted):
    """That is the mean loss; a perplexity is its exponential."""
    return losses[counted].mean()


def perplexity__sum(losses, counted):
    """You take the exponential of the sum of the losses: it should be their mean."""
    return np.exp(losses[counted].sum())


def perplexity__per_document(losses, counted):
    """You divide by the number of documents. Divide by the number of targets that count: a
    perplexity is per target.
    """
    return np.exp((losses * counted).sum() / len(losses))


def perplexity__base_two(losses, counted):
    """You raise 2 to the mean loss. These losses are natural logarithms, so it is np.exp."""
    return 2 ** losses[counted].mean()


def perplexity__inverse(losses, counted):
    """You return the exponential of minus the mean loss, which is a probability. The perplexity is
    one over it.
    """
    return np.exp(-losses[counted].mean())


def _interval(d, half=None, freedom=0, factor=None, below=None, ddof=1):
    n = len(d)
    factor = t_quantile(n - 1 + freedom) if factor is None else factor
    return d.mean(), factor * d.std(ddof=ddof) / np.sqrt(n if below is None else below)


def paired__sd_for_sem(a, b):
    """Your half width uses the spread of single differences. The spread of a mean of n is smaller:
    divide by √n.
    """
    return _interval(a - b, below=1)


def paired__divided_by_n(a, b):
    """You divide the spread by n; the spread of a mean falls with √n only."""
    return _interval(a - b, below=len(a) ** 2)


def paired__n_for_n_minus_1(a, b):
    """Your spread divides by n (np.std does, unless told ddof=1). With n − 1 it makes up for a mean
    from the same data.
    """
    return _interval(a - b, ddof=0)


def paired__n_minus_1_twice(a, b):
    """You divide s by √(n − 1): n − 1 belongs inside s, and the mean is over n differences (√n)."""
    return _interval(a - b, below=len(a) - 1)


def paired__variance(a, b):
    """You use the variance. s is its square root."""
    d = a - b
    return d.mean(), t_quantile(len(d) - 1) * d.var(ddof=1) / np.sqrt(len(d))


def paired__unpaired(a, b):
    """You treat a and b as independent samples (both spreads added). They are paired: subtract
    first, then take one spread.
    """
    n = len(a)
    return (a - b).mean(), t_quantile(2 * n - 2) * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)


def paired__unpaired_spread(a, b):
    """You add the spreads of a and b as squares. They are paired: subtract first, then take the
    spread of the differences.
    """
    n = len(a)
    return (a - b).mean(), t_quantile(n - 1) * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)


def paired__difference_of_spreads(a, b):
    """You subtract the spread of b from that of a. Subtract the results, seed by seed, and take the
    spread of that.
    """
    n = len(a)
    return (a - b).mean(), t_quantile(n - 1) * abs(a.std(ddof=1) - b.std(ddof=1)) / np.sqrt(n)


def paired__half_widths_added(a, b):
    """You add the half widths of a and of b. Subtract first, seed by seed; there is only one
    interval, of the difference.
    """
    n = len(a)
    return (a - b).mean(), t_quantile(n - 1) * (a.std(ddof=1) + b.std(ddof=1)) / np.sqrt(n)


def paired__spread_of_a(a, b):
    """Your half width uses the spread of a alone: take the spread of the differences."""
    return (a - b).mean(), _interval(a)[1]


def paired__normal(a, b):
    """You use 1.96, the factor of a normal distribution. The spread is itself estimated from n
    values: t_quantile(n - 1).
    """
    return _interval(a - b, factor=1.96)


def paired__two(a, b):
    """You use 2 for the factor, which is right for some sixty seeds. For few it is larger:
    t_quantile(n - 1).
    """
    return _interval(a - b, factor=2)


def paired__no_factor(a, b):
    """Your half width is s / √n, one standard error. For 95 percent it is t_quantile(n - 1) times
    that.
    """
    return _interval(a - b, factor=1)


def paired__freedom_n(a, b):
    """You ask for t with n degrees of freedom. The mean has used up one: n - 1."""
    return _interval(a - b, freedom=1)


def paired__freedom_of_two_samples(a, b):
    """You ask for t with 2n - 2 degrees of freedom, as for two independent samples. There are n
    differences: n - 1.
    """
    return _interval(a - b, freedom=len(a) - 1)


def paired__one_sided(a, b):
    """You leave five percent on one side (t at 0.95). Both sides share them, so t is taken at
    0.975, as it is by default.
    """
    return _interval(a - b, factor=t_quantile(len(a) - 1, 0.95))


def paired__whole_width(a, b):
    """You return the whole width; return half of it, what comes after ±."""
    mean, half = _interval(a - b)
    return mean, 2 * half


def paired__half_of_half(a, b):
    """You halve once too often: t · s / √n is the half width already."""
    mean, half = _interval(a - b)
    return mean, half / 2


def paired__ends(a, b):
    """You return the ends of the interval; return its middle and its half width."""
    mean, half = _interval(a - b)
    return mean - half, mean + half


def paired__other_sign(a, b):
    """You return b − a; return a − b."""
    return _interval(b - a)


def paired__relative(a, b):
    """You divide by b; return the plain difference a − b."""
    return _interval((a - b) / b)


def paired__absolute(a, b):
    """You take the absolute value of each difference, which makes chance look like a gain."""
    return _interval(abs(a - b))


def paired__sorted(a, b):
    """You sort both lists first, and that tears the pairs apart: a[i] and b[i] share a seed as they
    stand.
    """
    return _interval(np.sort(a) - np.sort(b))


def paired__median(a, b):
    """You return the median of the differences; the interval is around their mean."""
    return np.median(a - b), _interval(a - b)[1]
