"""Many workers
============

How to let any number of processes and machines search together, through a database, and what
happens if one of them dies.
"""

# %%
# A worker is this script: started on two machines with the same address of a database, it is a
# search with two workers.
#
# .. code-block:: console
#
#     python 05_many_workers.py --storage postgresql+psycopg://user:password@host/database
#
# Redis, MySQL, a journal file or a gRPC proxy do as well, see
# :func:`~optuna_nis.study.storages.open_storage`. Without ``--storage`` it is an SQLite file here,
# which serves the processes of one machine.
import argparse
from collections import Counter
import os
from pathlib import Path
import subprocess
import sys
import tempfile

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
import torch

from optuna_nis import NISSampler, SearchSpace
from optuna_nis.data import load_dataset
from optuna_nis.lightning import RankingModule, objective
from optuna_nis.show.figures import plot_memory_vs_quality
from optuna_nis.study.storages import open_storage

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
optuna.logging.set_verbosity(optuna.logging.WARNING)

parser = argparse.ArgumentParser()
parser.add_argument("--storage", help="Where the study is kept.")
parser.add_argument("--helpers", type=int, default=1, help="More workers started from here.")
arguments = parser.parse_args()
address = arguments.storage
if address is None:
    address = f"sqlite:///{tempfile.mkdtemp()}/flights.db"
    print(f"No --storage was given: the study is in {address}.")

# %%
# One training for each trial
# ---------------------------
#
# The one-shot search of the other tutorials is a single training, in one place. Here each trial
# trains a model of its own for a few epochs: it takes longer, its trials are worth more, and any
# number of workers can share them. All make the same data and the same space.
torch.set_num_threads(1)
data = load_dataset(
    "flights", max_rows=2_000 if SHORT else 40_000, batch_size=1024, withhold_test=True
)
space = SearchSpace(data.embedding_specs(16), budget="10%")
training = objective(RankingModule, data, space, max_epochs=1 if SHORT else 4)


def late(trial):
    """Note whose trial it is, and train."""
    trial.set_user_attr("worker", os.getpid())
    return training(trial)


# %%
# The study
# ---------
#
# Whoever comes first makes it, the others join. A worker gives a sign of life every 10 seconds; if
# it stays away for twice as long, the others run its trial again.
storage = open_storage(
    address,
    heartbeat_interval=10,
    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=2),
)
study = optuna.create_study(
    storage=storage,
    study_name="flights-by-many",
    direction="maximize",
    sampler=NISSampler(budget=space),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=1),
    load_if_exists=True,
)

# %%
# The helpers are the same script. On other machines you start them yourself, earlier or later;
# here this worker starts one.
command = [sys.executable, str(Path(__file__)), "--storage", address, "--helpers", "0"]
helpers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(arguments.helpers)]

study.optimize(late, n_trials=2 if SHORT else 20)
for helper in helpers:
    helper.wait()

# %%
# One policy
# ----------
#
# Nothing passes between workers but the trials. The policy is a function of them, so every worker
# has learned from all.
finished = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
print("trials of each worker:", Counter(trial.user_attrs["worker"] for trial in finished))
best = space.allocation(study.best_params)
print(f"ROC-AUC {study.best_value:.4f} with {best.nbytes():,} of {space.budget_nbytes:,} bytes")
print(best)

# %%
plot_memory_vs_quality(study)

# %%
# While it runs, ``optuna-nis status --watch --storage ... --study-name flights-by-many`` and
# :doc:`Optuna Dashboard </dashboard>` show how far it is. What a crash costs is in
# :doc:`/how_it_works`.
#
# Next: reading the figures.
