"""The methods' losses in float64 NumPy, written from the papers' equations, one function each."""

import numpy as np


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
