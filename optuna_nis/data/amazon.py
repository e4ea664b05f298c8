"""Reviews of video games on Amazon, as sequences of items, from a file."""

from __future__ import annotations

from types import MappingProxyType

from optuna_nis.data.history import add_history
from optuna_nis.data.named import NamedDataModule
from optuna_nis.data.source import Source

_HISTORY = 20


class AmazonVideoGamesRetrieval(NamedDataModule):
    """Which video game will a user review next?

    From the previous item (``last_item``) and the bag of the last 20 (``history``): 287,107
    reviews of 23,715 items by 31,013 users. Of every user the last item is for the test, the one
    before it for validation, and all others but the first, which nothing precedes, for training;
    users of fewer than three items are in training only. Histories of training rows hold training
    items only.

    The data are those of SASRec. From ``data/Video.txt`` of https://github.com/kang205/SASRec the
    file is made by

    .. code-block:: python

        reviews = pandas.read_csv("Video.txt", sep=" ", names=["user", "item"])
        reviews["position"] = reviews.groupby("user").cumcount()  # 0 is the oldest
        reviews.to_parquet("amazon_video_games_sequences.parquet")

    Args:
        **options: Arguments of :class:`NamedDataModule`; ``data_dir`` is needed. With
            ``max_rows``, histories stay those of all reviews.

    Source: McAuley et al., 2015, https://arxiv.org/abs/1506.04757; Kang and McAuley, 2018,
    https://arxiv.org/abs/1808.09781.
    """

    only_task = "retrieval"
    all_features = ("last_item", "history")
    all_bags = MappingProxyType({"history": None})
    splits = ("leave-one-out",)
    files = MappingProxyType(
        {"amazon_video_games_sequences.parquet": ("user", "item", "position")}
    )
    origin = "https://github.com/kang205/SASRec"

    def load(self) -> Source:
        """Read the reviews.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it cannot be read or lacks a column.
        """
        (rows,) = (self.read(name) for name in self.files)
        rows = rows.sort_values(["user", "position"], kind="stable")
        rows = add_history(rows, group="user", value="item", last="last_item", length=_HISTORY)
        rows = rows[rows["last_item"].notna()]
        return Source(rows, rows["item"], rows["position"].to_numpy(), rows["user"].to_numpy())
