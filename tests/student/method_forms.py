"""The methods' losses in float64 NumPy, written from the papers' equations, one function each."""

import itertools

import numpy as np
from scipy.special import digamma, gammaln
from scipy.stats import dirichlet


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mixed(teachers, weights, t):
    return np.einsum("k,kbc->bc", weights, softmax(teachers / t))


def kl(p, q):
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum(-1)


def kd(s, z, w, y, t=1.0):
    return t**2 * kl(mixed(z, w, t), softmax(s / t)).mean()


def reverse_kl(s, z, w, y):
    return kl(softmax(s), mixed(z, w, 1)).mean()


def jsd(s, z, w, y):
    p, q = mixed(z, w, 1), softmax(s)
    m = (p + q) / 2
    return (kl(p, m) / 2 + kl(q, m) / 2).mean()


def tvd(s, z, w, y):
    return np.abs(mixed(z, w, 1) - softmax(s)).sum(-1).mean() / 2


def labels(s, z, w, y):
    known = y >= 0
    return -np.log(softmax(s)[known, y[known]]).mean()


def alpha_divergence(s, z, w, y, order=0.5, t=1.0):
    p, q = mixed(z, w, t), softmax(s / t)
    return t**2 * ((p**order * q ** (1 - order)).sum(-1) - 1).mean() / (order * (order - 1))


def mse(s, z, w, y):
    mean = np.einsum("k,kbc->bc", w, z)
    return np.square((s - s.mean(-1, keepdims=True)) - (mean - mean.mean(-1, keepdims=True))).mean()


def zscore(z):
    return (z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True)


def standardised(s, z, w, y, t=2.0):
    return kd(zscore(s), zscore(z), w, y, t)


def target_class(p, y):
    return np.where(y >= 0, y, p.argmax(-1))


def dkd(s, z, w, y, alpha=1.0, beta=8.0, t=4.0):
    p, q = mixed(z, w, t), softmax(s / t)
    total = 0.0
    for row, (a, b) in enumerate(zip(p, q, strict=True)):
        c = target_class(p, y)[row]
        others = [i for i in range(len(a)) if i != c]
        tckd = a[c] * np.log(a[c] / b[c]) + (1 - a[c]) * np.log((1 - a[c]) / (1 - b[c]))
        hat_p, hat_q = a[others] / (1 - a[c]), b[others] / (1 - b[c])
        total += alpha * tckd + beta * (hat_p * np.log(hat_p / hat_q)).sum()
    return t**2 * total / len(p)


def dist(s, z, w, y, beta=1.0, gamma=1.0, t=1.0):
    p, q = mixed(z, w, t), softmax(s / t)
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return t**2 * (beta * rows + gamma * columns)


def mlkd(s, z, w, y, pool=(2.0, 3.0, 4.0, 5.0, 6.0)):
    total = 0.0
    for t in pool:
        p, q = mixed(z, w, t), softmax(s / t)
        total += t**2 * kl(p, q).mean()
        total += np.square(p @ p.T - q @ q.T).sum() / p.shape[0]
        total += np.square(p.T @ p - q.T @ q).sum() / p.shape[1]
    return total


def weighted(s, z, w, y, by="confidence", given=None):
    p = softmax(z)
    k = len(z)
    classes = target_class(mixed(z, w, 1), y)
    ce = np.array([[-np.log(p[m, b, c]) for b, c in enumerate(classes)] for m in range(k)])
    if by == "confidence" and k > 1:
        shares = (1 - np.exp(ce) / np.exp(ce).sum(0)) / (k - 1)
    elif by == "minimum_ce":
        shares = (ce == ce.min(0)).astype(float)
    else:
        shares = np.full_like(ce, 1.0) if given is None else np.repeat(np.array(given)[:, None], len(s), 1)
    shares = shares / shares.sum(0)
    return kl((shares[:, :, None] * p).sum(0), softmax(s)).mean()


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def rkd(s, z, w, y, distance=1.0, angle=2.0):
    mean = np.einsum("k,kbc->bc", w, z)
    a, b = (x - x.mean(-1, keepdims=True) for x in (s, mean))
    n = len(s)
    potentials = []
    for x in (a, b):
        d = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(n)] for i in range(n)])
        potentials.append(d / d[d > 0].mean())
    cosines = [np.zeros((n, n, n)) for _ in range(2)]
    for found, x in zip(cosines, (a, b), strict=True):
        for i, j, k in itertools.permutations(range(n), 3):
            one, other = x[i] - x[j], x[k] - x[j]
            found[i, j, k] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        for i, j in itertools.permutations(range(n), 2):
            found[i, j, i] = 1.0
    first = huber(potentials[0] - potentials[1]).mean()
    return distance * first + angle * huber(cosines[0] - cosines[1]).mean()


def smoothed(z, share=1e-4):
    return (1 - share) * softmax(z) + share / z.shape[-1]


def dirichlet_kl(a, b):
    """KL(Dir(a)‖Dir(b)) of one row."""
    return (
        gammaln(a.sum())
        - gammaln(a).sum()
        - gammaln(b.sum())
        + gammaln(b).sum()
        + ((a - b) * (digamma(a) - digamma(a.sum()))).sum()
    )


def proxy(z, w):
    """The members' mean [B, C] and the proxy's precision [B]."""
    p = smoothed(z)
    mean = np.einsum("k,kbc->bc", w, p)
    spread = (mean * (np.log(mean) - np.einsum("k,kbc->bc", w, np.log(p)))).sum(-1)
    return mean, (z.shape[-1] - 1) / (2 * spread)


def proxy_dirichlet(s, z, w, y):
    """Without the terms that do not depend on the student."""
    mean, precision = proxy(z, w)
    total = 0.0
    for row in range(len(s)):
        b0 = precision[row]
        target = b0 * mean[row] + 1
        flat = np.ones_like(target)
        constant = gammaln(target).sum() - gammaln(target.sum()) + gammaln(len(flat))
        total += (dirichlet_kl(np.exp(s[row]) + 1, target) - constant) / b0
    return total / len(s)


def endd(s, z, w, y):
    p = smoothed(z)
    found = 0.0
    for row in range(len(s)):
        for member, weight in enumerate(w):
            found -= weight * dirichlet.logpdf(p[member, row] / p[member, row].sum(), np.exp(s[row]))
    return found / len(s)
