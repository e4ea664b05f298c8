"""Sizes and budgets
=================

What a search chooses from, single-size or multi-size, and what a budget does.
"""

# %%
# A table is cut into blocks of rows, the most frequent ids first, and into widths.
# :doc:`/how_it_works` has the drawing.
import os

from optuna_nis import EmbeddingSpec, SearchSpace, penalised_reward
from optuna_nis.data import load_dataset
from optuna_nis.lightning import reference_model, search_sizes, train
from optuna_nis.show.figures import plot_allocation
from optuna_nis.strategy import baselines

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
quick = {"epochs": 1, "num_updates": 5} if SHORT else {}

aircraft = EmbeddingSpec("tailnum", num_embeddings=4000, embedding_dim=32)
print("rows of the blocks:", aircraft.row_blocks)
print("widths:", aircraft.widths)

# %%
# *Single-size*: each table keeps some of its ids and gives all of them one width. *Multi-size*:
# each block of rows has a width of its own, never wider than that of more frequent ids.
for mode in ("single", "multi"):
    space = SearchSpace([aircraft], mode=mode)
    for name, distribution in space.distributions().items():
        print(f"{mode:6} {name:18} {distribution.choices}")

# %%
# What a size costs
# -----------------
#
# Bytes: four for each number of its rows, and for a table with rows narrower than its full width
# a projection to that, without which the model could not add or compare them. A budget is bytes, a
# share of the full tables, or a number of such parameters of four bytes.
narrow = baselines.uniform(SearchSpace([aircraft]), width=8, projected=True)
print(narrow, "takes", narrow.nbytes(), "bytes")
for budget in (32_000, 0.25, "25%", "128kB"):
    print(f"{budget!r:7} is {SearchSpace([aircraft], budget=budget).budget_nbytes:,} bytes")

# %%
# Numbers can be stored in fewer bits: 16 are floats, 8, 4 and 2 codes with a scale beside them.
# With ``precisions``, which ``search_sizes`` takes too, each block of rows is given bits with its
# width, never more than those of more frequent ids. A budget then buys more rows and wider ones.
packed = EmbeddingSpec("tailnum", 4000, 32, precisions=(32, 8, 4, 2))
for name, distribution in SearchSpace([packed]).distributions().items():
    print(f"{name:18} {distribution.choices[:9]} ...")
print(
    packed.table([32, 16, 8], [32, 8, 4]), "takes", packed.table([32, 16, 8], [32, 8, 4]).nbytes()
)

# %%
# The budget is hard: a choice above it is never drawn. The paper's way is a penalty on the reward,
# which may be paid if the memory is worth it; with a study of your own you can have that too.
print(penalised_reward(0.77, 160_000, budget=128_000, penalty_weight=0.1))

# %%
# What a budget does
# ------------------
#
# Is a flight late, once more: both modes with a large and a small budget, and beside them uniform
# widths. Qualities are on validation data, which the search has chosen by; :doc:`the first
# tutorial <01_first_search>` shows how to test what it found.
data = load_dataset("flights", max_rows=2_000 if SHORT else 50_000)
build = reference_model(data.features)
found = {}
for budget in ("20%", "2%"):
    for mode in ("single", "multi"):
        found[budget, mode] = search_sizes(build, data, budget, mode=mode, **quick)
        best, sizes = found[budget, mode].study.best_value, found[budget, mode].allocation
        print(f"{budget:>3} {mode:8} {best:.4f}, {sizes.nbytes():>7,} bytes")
    sizes = baselines.uniform(found[budget, "multi"].space)
    run = train(build, sizes, data, seed=0, max_epochs=1 if SHORT else None)
    print(f"{budget:>3} uniform  {run.val_metric:.4f}, {sizes.nbytes():>7,} bytes")

# %%
# A search may leave memory unused where more of it does not help: on these data large tables
# overfit. A small budget makes it choose who gets the memory.
print(found["2%", "multi"].allocation)
plot_allocation(found["2%", "multi"].allocation)

# %%
# On flights there is little between the modes: what counts is which features keep any memory.
# Multi-size is the default, since it can do whatever single-size can, and give frequent ids more.
# Take single-size if whatever serves your model cannot have several widths in a table.
#
# Next: many workers on one study.
