"""Retrieval
=========

How to search the embedding sizes of a model that finds one of many items, and how to ask it.
"""

# %%
# Where will an aircraft fly next? The query is the flight's carrier, origin, aircraft, hour, month
# and weekday, the previous destination and a bag of the last ten; the items are the destinations.
# The calls are those of :doc:`the first tutorial <01_first_search>`, with another task.
import os

import pandas as pd

from optuna_nis.data import load_dataset
from optuna_nis.lightning import Predictor, reference_model, search_sizes
from optuna_nis.show.figures import plot_allocation

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
quick = {"epochs": 1, "num_updates": 5} if SHORT else {}

rows = 2_000 if SHORT else 60_000
data = load_dataset("flights", "retrieval", max_rows=rows, split="chronological")
found = search_sizes(reference_model(data.features), data, "10%", progress=print, **quick)
print(found.allocation)

# %%
# Retrieval is measured by Recall@1: how often the item with the highest score is the right one. On
# the few thousand examples that a choice is scored on that is a coarse measure, so the search is
# rewarded by the mean reciprocal rank (:doc:`/how_it_works`).
plot_allocation(found.allocation)

# %%
# Worth it?
# ---------
#
# Trained again from scratch and tested on the last tenth of the year. ``output`` keeps the model
# of the sizes that the last line takes.
print(found.retrain(seeds=[0], max_epochs=1 if SHORT else None, output="destinations"))

# %%
# Ask it
# ------
#
# The folder holds the model, its sizes and its vocabularies. New rows have the columns of the
# training; an id that training has never seen, such as the second aircraft, does no harm.
queries = pd.DataFrame(
    {
        "carrier": ["B6", "DL"],
        "origin": ["JFK", "LGA"],
        "tailnum": ["N503JB", "N0"],
        "hour": [8, 17],
        "month": [11, 11],
        "weekday": [0, 4],
        "last_dest": ["BOS", "ATL"],
        "history": [["BOS", "MCO", "BOS"], ["ATL", "ATL", "DTW"]],
    }
)
destinations = Predictor.load("destinations").predict(queries)
for origin, best in zip(queries["origin"], destinations):
    print(f"from {origin}: {', '.join(best[:5])}")

# %%
# From the command line that is ``optuna-nis search --dataset flights --task retrieval`` and
# ``optuna-nis predict``. What happens with very many items is in :doc:`/how_it_works`.
#
# Next: what the sizes mean, and what a budget does.
