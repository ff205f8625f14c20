"""Near misses 04: steps that are almost Adam's, each with what they do wrong."""

import numpy as np


def _averages(g, state, beta1, beta2, square=None):
    """m, v and t after this step, kept in state."""
    t = state.get("t", 0) + 1
    m = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = beta2 * state.get("v", 0) + (1 - beta2) * (g**2 if square is None else square)
    state.update(t=t, m=m, v=v)
    return m, v, t


def _move(w, m, v, t, lr, beta1, beta2, eps):
    return w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)


def adam__nothing_corrected(w, g, state, lr, beta1, beta2, eps):
    """Your averages are not corrected: both start at zero, so divide m by `1 - beta1**t` and v by
    `1 - beta2**t`.
    """
    m, v, _ = _averages(g, state, beta1, beta2)
    return w - lr * m / (np.sqrt(v) + eps)


def adam__only_m_corrected(w, g, state, lr, beta1, beta2, eps):
    """You correct m, but not v: it starts at zero as well, so divide it by `1 - beta2**t`."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1**t)) / (np.sqrt(v) + eps)


def adam__only_v_corrected(w, g, state, lr, beta1, beta2, eps):
    """You correct v, but not m: it starts at zero as well, so divide it by `1 - beta1**t`."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * m / (np.sqrt(v / (1 - beta2**t)) + eps)


def adam__corrected_by_multiplying(w, g, state, lr, beta1, beta2, eps):
    """You multiply by `1 - beta**t`; the averages are too small at first, so divide."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m * (1 - beta1**t)) / (np.sqrt(v * (1 - beta2**t)) + eps)


def adam__beta_times_t(w, g, state, lr, beta1, beta2, eps):
    """You correct by `1 - beta * t`; it is beta to the power of t (`beta**t`)."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1 * t)) / (np.sqrt(v / (1 - beta2 * t)) + eps)


def adam__beta_without_power(w, g, state, lr, beta1, beta2, eps):
    """You correct by 1 - beta at every step, which is right in the first only: it is `1 - beta**t`,
    and t has to grow in `state`.
    """
    m, v, _ = _averages(g, state, beta1, beta2)
    return _move(w, m, v, 1, lr, beta1, beta2, eps)


def adam__power_of_the_difference(w, g, state, lr, beta1, beta2, eps):
    """You correct by `(1 - beta)**t`; only beta is raised to the power, so it is `1 - beta**t`."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1) ** t) / (np.sqrt(v / (1 - beta2) ** t) + eps)


def adam__steps_counted_from_zero(w, g, state, lr, beta1, beta2, eps):
    """Your t is 0 in the first step, so that `1 - beta**t` is 0. Count the step before you use
    t.
    """
    m, v, t = _averages(g, state, beta1, beta2)
    return _move(w, m, v, np.float64(t - 1), lr, beta1, beta2, eps)


def adam__one_step_ahead(w, g, state, lr, beta1, beta2, eps):
    """Your t is one too large: it is 1 in the first step."""
    m, v, t = _averages(g, state, beta1, beta2)
    return _move(w, m, v, t + 1, lr, beta1, beta2, eps)


def adam__corrected_averages_kept(w, g, state, lr, beta1, beta2, eps):
    """You keep the corrected averages in state, so that they are corrected again at each step. Keep
    m and v as they were.
    """
    m, v, t = _averages(g, state, beta1, beta2)
    state.update(m=m / (1 - beta1**t), v=v / (1 - beta2**t))
    return w - lr * state["m"] / (np.sqrt(state["v"]) + eps)


def adam__one_beta_for_correcting(w, g, state, lr, beta1, beta2, eps):
    """You correct v with beta1; its average was made with beta2, so it is `1 - beta2**t`."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta1**t)) + eps)


def adam__corrections_swapped(w, g, state, lr, beta1, beta2, eps):
    """You correct m with beta2 and v with beta1; each average is corrected with its own."""
    m, v, t = _averages(g, state, beta1, beta2)
    return _move(w, m, v, t, lr, beta2, beta1, eps)


def adam__v_corrected_outside_the_root(w, g, state, lr, beta1, beta2, eps):
    """You take √v and correct it afterwards by `1 - beta2**t`: correct v, then take the root."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1**t)) / (np.sqrt(v) / (1 - beta2**t) + eps)


def adam__eps_inside_the_root(w, g, state, lr, beta1, beta2, eps):
    """Your eps is inside the square root; add it to the root."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1**t)) / np.sqrt(v / (1 - beta2**t) + eps)


def adam__eps_before_correcting(w, g, state, lr, beta1, beta2, eps):
    """You add eps to √v before v is corrected, so that eps is corrected with it. (The shortcut in
    Adam's paper does so.)
    """
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1**t)) * np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)


def adam__no_eps(w, g, state, lr, beta1, beta2, eps):
    """You leave eps out: it is added to √v."""
    m, v, t = _averages(g, state, beta1, beta2)
    return _move(w, m, v, t, lr, beta1, beta2, 0.0)


def adam__betas_swapped(w, g, state, lr, beta1, beta2, eps):
    """Your betas are swapped: beta1 belongs to m, beta2 to v."""
    m, v, t = _averages(g, state, beta2, beta1)
    return _move(w, m, v, t, lr, beta2, beta1, eps)


def adam__one_beta_for_both(w, g, state, lr, beta1, beta2, eps):
    """You use beta1 for both averages; v has its own, beta2."""
    m, v, t = _averages(g, state, beta1, beta1)
    return _move(w, m, v, t, lr, beta1, beta1, eps)


def adam__weights_swapped(w, g, state, lr, beta1, beta2, eps):
    """Old and new are swapped: the old average is multiplied by beta, the new gradient by 1 -
    beta.
    """
    m = (1 - beta1) * state.get("m", 0) + beta1 * g
    v = (1 - beta2) * state.get("v", 0) + beta2 * g**2
    t = state.get("t", 0) + 1
    state.update(m=m, v=v, t=t)
    return _move(w, m, v, t, lr, beta1, beta2, eps)


def adam__whole_gradient_added(w, g, state, lr, beta1, beta2, eps):
    """You add the whole gradient, so that m and v are sums, not averages: multiply what is new by 1
    - beta.
    """
    m, v = beta1 * state.get("m", 0) + g, beta2 * state.get("v", 0) + g**2
    t = state.get("t", 0) + 1
    state.update(m=m, v=v, t=t)
    return _move(w, m, v, t, lr, beta1, beta2, eps)


def adam__not_squared(w, g, state, lr, beta1, beta2, eps):
    """You average g in v, not its square; a negative average has no root."""
    return _move(w, *_averages(g, state, beta1, beta2, square=g), lr, beta1, beta2, eps)


def adam__sizes_not_squared(w, g, state, lr, beta1, beta2, eps):
    """You average the size of g in v, not its square: the root then belongs to another average."""
    return _move(w, *_averages(g, state, beta1, beta2, square=abs(g)), lr, beta1, beta2, eps)


def adam__average_squared(w, g, state, lr, beta1, beta2, eps):
    """You square m for v; v averages the squares of the gradients themselves."""
    m = beta1 * state.get("m", 0) + (1 - beta1) * g
    return _move(w, *_averages(g, state, beta1, beta2, square=m**2), lr, beta1, beta2, eps)


def adam__squares_added_up(w, g, state, lr, beta1, beta2, eps):
    """You square the sum over all parameters; each parameter has its own v (g**2, not g @ g)."""
    return _move(w, *_averages(g, state, beta1, beta2, square=g @ g), lr, beta1, beta2, eps)


def adam__no_root(w, g, state, lr, beta1, beta2, eps):
    """You divide by v itself; it is a mean of squares, so take its root."""
    m, v, t = _averages(g, state, beta1, beta2)
    return w - lr * (m / (1 - beta1**t)) / (v / (1 - beta2**t) + eps)


def adam__gradient_for_m(w, g, state, lr, beta1, beta2, eps):
    """You move along g, not along its average m."""
    _, v, t = _averages(g, state, beta1, beta2)
    return w - lr * g / (np.sqrt(v / (1 - beta2**t)) + eps)


def adam__no_learning_rate(w, g, state, lr, beta1, beta2, eps):
    """Your step is never multiplied by lr, the learning rate."""
    return _move(w, *_averages(g, state, beta1, beta2), 1.0, beta1, beta2, eps)


def adam__uphill(w, g, state, lr, beta1, beta2, eps):
    """You add the step; the gradient points uphill, so subtract it."""
    return 2 * w - _move(w, *_averages(g, state, beta1, beta2), lr, beta1, beta2, eps)


def adam__nothing_remembered(w, g, state, lr, beta1, beta2, eps):
    """Nothing is kept between steps: put m, v and the count into `state` (`state = ...` makes
    another dict).
    """
    return _move(w, *_averages(g, {}, beta1, beta2), lr, beta1, beta2, eps)


def adam__only_the_count_remembered(w, g, state, lr, beta1, beta2, eps):
    """You count the steps, but m and v begin at zero each time: keep them in state as well."""
    state.update(m=0, v=0)
    return _move(w, *_averages(g, state, beta1, beta2), lr, beta1, beta2, eps)


def adam__m_not_kept(w, g, state, lr, beta1, beta2, eps):
    """Your m begins at zero each time: keep it in state, as you keep v."""
    state.update(m=0)
    return _move(w, *_averages(g, state, beta1, beta2), lr, beta1, beta2, eps)


def adam__v_not_kept(w, g, state, lr, beta1, beta2, eps):
    """Your v begins at zero each time: keep it in state, as you keep m."""
    state.update(v=0)
    return _move(w, *_averages(g, state, beta1, beta2), lr, beta1, beta2, eps)


def adam__decay_in_the_gradient(w, g, state, lr, beta1, beta2, eps):
    """You add one hundredth of w to the gradient, which is a form of weight decay. Adam has
    none.
    """
    return _move(w, *_averages(g + 0.01 * w, state, beta1, beta2), lr, beta1, beta2, eps)


def adam__weight_decay(w, g, state, lr, beta1, beta2, eps):
    """You shrink w by one hundredth of lr as well: that is AdamW. Adam has no weight decay."""
    return _move(w * (1 - lr * 0.01), *_averages(g, state, beta1, beta2), lr, beta1, beta2, eps)


def adam__step_only(w, g, state, lr, beta1, beta2, eps):
    """You return the step alone; return where the parameters are after it: w minus the step."""
    return w - _move(w, *_averages(g, state, beta1, beta2), lr, beta1, beta2, eps)
