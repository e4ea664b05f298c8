"""First search in five minutes
============================

How to search the sizes of all embedding tables of a model in one call, and how to find out
whether they are worth it.
"""

# %%
# Is a flight from New York late? The model of this tutorial, a DeepFM, looks up ten embeddings for
# each flight: one for its carrier, one for its aircraft, and so on. How many ids of each feature
# should keep an embedding, and how wide should it be? A quarter of the memory of the full tables
# is allowed.
import os

from optuna_nis.data import load_dataset
from optuna_nis.lightning import reference_model, search_sizes
from optuna_nis.show.figures import plot_allocation

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))  # Seconds instead of minutes, for a test.
quick = {"epochs": 1, "num_updates": 5} if SHORT else {}

data = load_dataset("flights", max_rows=2_000 if SHORT else 100_000)
build = reference_model(data.features)
found = search_sizes(build, data, budget="25%", progress=print, **quick)

# %%
# The search has trained one *supernet* that holds all sizes, while a controller learned which of
# them score well on validation data. Every choice that it scored is a trial of the study. The best
# few were then trained for real. What came out:
print(f"{len(found.study.trials)} trials")
print(found.allocation)

# %%
# Each line is a table. ``100x32 + 300x8 (of 900x32)`` would say that the 100 most frequent ids
# have 32 numbers each, the next 300 have 8, and the other 500 share a row of zeros. Drawn:
plot_allocation(found.allocation)

# %%
# In a notebook a figure shows itself; in a script, append ``.show()``.
#
# Is it worth it?
# ---------------
#
# The search has judged sizes by shared weights and by validation data. So train a model of these
# sizes again from scratch. Beside it: uniform widths and mixed dimensions within the same budget,
# and the full tables. Validation decides which of them to take; then they are tested on flights
# that nobody has seen so far.
results = found.retrain(seeds=[0], max_epochs=1 if SHORT else None, progress=print)

# %%
print(results)

# %%
# One seed is an anecdote; leave out ``seeds`` for three. The README has such a table for all
# flights.
#
# The same from the command line
# ------------------------------
#
# .. code-block:: console
#
#     optuna-nis search --dataset flights --budget 25%
#     optuna-nis retrain --output model
#     optuna-nis report
#
# There the study is kept in a file, so that an interrupted search goes on where it was. In Python
# that is ``search_sizes(..., study=optuna.create_study(storage="sqlite:///flights.db", ...))``. A
# table of your own is a :class:`~optuna_nis.data.TableDataModule`.
#
# Next: a search in a Lightning model of your own.
