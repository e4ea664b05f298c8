"""Any categorical problem
=======================

How to use ``NISSampler`` for something else than embeddings, under a budget that no trial breaks.
"""

# %%
# A picture of a handwritten digit is a vector of 20 numbers, its principal components. How many
# bits does each of them need, if there are 30 bits for a picture? That is a categorical problem
# with a budget: 20 parameters of 6 choices each, whose effects mostly add up, which is what
# :class:`~optuna_nis.NISSampler` is made for. Neither torch nor Lightning is needed.
import os

import numpy as np
import optuna
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from optuna_nis import AdditiveBudget, NISSampler

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
optuna.logging.set_verbosity(optuna.logging.WARNING)

LIMIT, CHOICES = 30, [0, 1, 2, 3, 4, 5]
pictures, digits = load_digits(return_X_y=True)
shuffled = np.random.default_rng(0).permutation(len(digits))
train, validation, test = np.split(shuffled, [900, 1350])
numbers = PCA(20, random_state=0).fit(pictures[train]).transform(pictures)
names = [f"component {index}" for index in range(20)]


def coded(column, bits):
    """Each number replaced by the mean of its bin, of which there are ``2**bits``."""
    edges = np.quantile(column[train], np.linspace(0, 1, 2**bits + 1)[1:-1])
    bins = np.searchsorted(edges, column)
    means = np.array([column[train][bins[train] == each].mean() for each in range(2**bits)])
    return means[bins]


codes = [{bits: coded(column, bits) for bits in CHOICES} for column in numbers.T]


def accuracy(bits, rows):
    """How many digits are recognised by their nearest neighbours."""
    vectors = np.stack([code[b] for code, b in zip(codes, bits)], 1)
    nearest = KNeighborsClassifier(3).fit(vectors[train], digits[train])
    return nearest.score(vectors[rows], digits[rows])


def objective(trial):
    """An ordinary Optuna objective."""
    bits = [trial.suggest_categorical(name, CHOICES) for name in names]
    return accuracy(bits, validation)


# %%
# A budget
# --------
#
# :class:`~optuna_nis.AdditiveBudget` needs the cost of each choice; the sampler then draws one
# parameter after the other, in the order given here, and leaves out the choices that no longer
# fit. Whoever comes first has the most to choose from, so begin with those that matter most or
# cost least.
budget = AdditiveBudget(LIMIT, {name: {bits: bits for bits in CHOICES} for name in names})
sampler = NISSampler(budget=budget, seed=0)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(objective, n_trials=20 if SHORT else 300)
spent = [sum(trial.params.values()) for trial in study.trials]
print(f"{len(spent)} trials of {min(spent)} to {max(spent)} bits")
found = [study.best_params[name] for name in names]
print("bits:", found)

# %%
# Compared
# --------
#
# Samplers that know nothing of budgets need a penalty for what is above it. The test pictures have
# been seen by nobody so far.


def penalised(trial):
    """The same with a penalty."""
    return objective(trial) - max(0, sum(trial.params.values()) / LIMIT - 1)


tpe = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
tpe.optimize(penalised, n_trials=20 if SHORT else 300)
for name, bits in {
    "NISSampler": found,
    "TPE": [tpe.best_params[name] for name in names],
    "1 bit each": [1] * 20,
    "2 bits each": [2] * 20,
}.items():
    print(f"{name:11} {sum(bits)} bits, accuracy on test {accuracy(bits, test):.3f}")

# %%
# What it has learned
# -------------------
#
# The policy is a distribution for each parameter; its mode is what it would choose now.
policy = sampler.policy(study)
for name in names[:3]:
    print(name, dict(zip(CHOICES, policy.probabilities()[name].round(2).tolist())))
print("mode:", list(policy.params(policy.mode())[0].values()))

# %%
# Without a budget it is ``NISSampler()``, for any objective of ``suggest_categorical`` and of
# integers and floats with few steps; other parameters go to its ``independent_sampler``. For a
# handful of parameters that depend strongly on each other, take Optuna's TPE.
