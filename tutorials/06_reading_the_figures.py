"""Reading the figures
===================

Which figure answers which question about a search, and what to do about the answer.
"""

# %%
# Any study will do; here is a short one, with its retraining. :doc:`/figures` describes each
# figure in full.
import os

from optuna_nis.data import load_dataset
from optuna_nis.lightning import reference_model, search_sizes
from optuna_nis.show.figures import (
    plot_allocation,
    plot_feature_budget,
    plot_learning,
    plot_memory_vs_quality,
    plot_policy,
    plot_reward_history,
)
from optuna_nis.show.report import write_report

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
quick = {"epochs": 1, "num_updates": 5} if SHORT else {}

data = load_dataset("flights", max_rows=2_000 if SHORT else 50_000)
found = search_sizes(reference_model(data.features), data, budget="10%", **quick)
found.retrain(seeds=[0], max_epochs=1 if SHORT else None)
study = found.study

# %%
# What was found?
# ---------------
#
# Look for tables that are cut to a few ids or removed: their feature says little, or its rare ids
# overfit. Tables that are kept whole and wide are worth their memory.
plot_allocation(study)

# %%
# Is the budget right?
# --------------------
#
# Compare marks of one kind only. If the front of the models that were trained is still rising at
# the dashed line, try a larger budget. If it is flat or falls, a smaller one will do. The large
# marks are the final test.
plot_memory_vs_quality(study)

# %%
# Who gets the memory?
# --------------------
#
# If one feature takes nearly all of it, ask whether its vocabulary should be smaller
# (``max_vocabulary``). If the sum stays below the dashed line, more memory does not help.
plot_feature_budget(study)

# %%
# Has the search gone on for long enough?
# ---------------------------------------
#
# The mean reward should have levelled off, and the entropy should have fallen. If both are still
# on their way at the end, give it more updates (``num_updates``).
plot_reward_history(study)

# %%
# What does the controller believe?
# ---------------------------------
#
# Bright rows are sizes that it keeps large. A parameter that is still in the middle at the end
# does not matter, or needs more trials: choose it from the menu, and see whether its probabilities
# move.
plot_policy(study)

# %%
# Is there anything left to learn?
# --------------------------------
#
# Advantages are what the critic did not expect. While they spread widely, choices differ in ways
# that it cannot explain. Trials unseen are of interest with many workers: how slowly these hear of
# each other.
plot_learning(study)

# %%
# All of it on one page, which needs no network, to be sent to others:
print(write_report(study, "report.html"))

# %%
# Next: from the sizes found to a model that serves.
