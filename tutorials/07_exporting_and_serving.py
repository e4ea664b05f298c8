"""Exporting and serving
=====================

How to keep a trained model with its vocabularies, make it smaller still, and serve it where there
is no torch.
"""

# %%
# First a model of sizes that a search has found, as in :doc:`the first tutorial
# <01_first_search>`.
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd

from optuna_nis.data import load_dataset
from optuna_nis.lightning import Predictor, evaluate, export_model, reference_model, search_sizes

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
quick = {"epochs": 1, "num_updates": 5} if SHORT else {}

data = load_dataset("flights", max_rows=2_000 if SHORT else 50_000)
found = search_sizes(reference_model(data.features), data, budget="25%", **quick)

# %%
# A folder
# --------
#
# The trained model, its sizes and its vocabularies, as ``optuna-nis retrain --output model``
# writes it. Nothing in it is executed when it is read.
found.retrain(seeds=[0], max_epochs=1 if SHORT else None, output="model")
model = Predictor.load("model").model

flights = [
    {"carrier": "UA", "flight": 1545, "tailnum": "N14228", "origin": "EWR", "dest": "IAH"}
    | {"month": 1, "day": 1, "weekday": 1, "hour": 5, "minute": 15},
    {"carrier": "EV", "flight": 9999, "tailnum": None, "origin": "LGA", "dest": "BNA"}
    | {"month": 7, "day": 4, "weekday": 3, "hour": 19, "minute": 30},
]
predicted = Predictor.load("model").predict(pd.DataFrame(flights))
print("late with probability", predicted.round(3))

# %%
# Fewer bits
# ----------
#
# Tables in 8 bits, again as a folder. What does it cost?
print(export_model("model", "int8", "model-int8"))
smaller = Predictor.load("model-int8").model
print(f"ROC-AUC on test {evaluate(model, data):.4f}, in 8 bits {evaluate(smaller, data):.4f}")

# %%
# Without torch
# -------------
#
# ONNX, for batches of any size, checked against the model while it is written. A server needs
# onnxruntime and the vocabularies: the id of a value is its place in them, and values that are not
# there share the id after the last.
print(export_model("model", "onnx", "served"))
session = onnxruntime.InferenceSession("served/model.onnx")
vocabularies = json.loads(Path("served/features.json").read_text())["vocabularies"]
ids = {
    name: {value: place for place, value in enumerate(vocabulary["values"])}
    for name, vocabulary in vocabularies.items()
}


def serve(flight):
    """The probability that a flight is late."""
    batch = {name: np.array([known.get(flight[name], len(known))]) for name, known in ids.items()}
    (probabilities,) = session.run(["probability"], batch)
    return probabilities[0]


served = np.array([serve(flight) for flight in flights])
print("late with probability", served.round(3))

# %%
# ``optuna-nis export --model model --format onnx --output served`` does the same. For a model of
# your own there are :func:`~optuna_nis.serve.save`, :func:`~optuna_nis.serve.quantize` and
# :func:`~optuna_nis.serve.to_onnx`; :doc:`/exporting` has these, plain layers for code that
# cannot change, and TorchRec for tables of many machines.
#
# Next: something else than embeddings.
