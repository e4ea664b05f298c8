"""Every name under which a study or a trial keeps something.

User attributes (``..._ATTR``) are for people, too: Optuna Dashboard shows them. System attributes
(``..._KEY``) are for programs.
"""

from __future__ import annotations

# User attributes of a study.
SPACE_ATTR = "nis:space"
METRIC_ATTR = "nis:metric"
MONITOR_MODE_ATTR = "nis:monitor_mode"
DATASET_ATTR = "nis:dataset"
TASK_ATTR = "nis:task"
DATA_ATTR = "nis:data"
VOCABULARY_ATTR = "nis:vocabulary"
FEATURES_ATTR = "nis:features"
PLAN_ATTR = "nis:plan"
MODEL_OPTIONS_ATTR = "nis:model_options"
RESULTS_ATTR = "nis:results"
VERDICT_ATTR = "nis:verdict"
FINALIST_ATTR = "nis:finalist"
"""Study user attribute: the trial that a retraining found best, and those it was compared with."""
SEARCH_SECONDS_ATTR = "nis:search_seconds"
PLAIN_SECONDS_ATTR = "nis:plain_seconds"
PARTS_ATTR = "nis:parts"
OUTPUTS_ATTR = "nis:outputs"
"""Study user attribute: the features whose tables are of output layers alone."""
NUM_ROWS_ATTR = "nis:num_rows"
SEEN_ROWS_ATTR = "nis:seen_rows"
# Among the settings of a search: which rows it sees.
ROWS = "rows"
TABLE_ROWS_ATTR = "nis:table_rows"
"""Study user attribute: a digest of all rows of the data, of which a search may see some."""
SEARCH_KEY = "nis:search:"
"""Study user attribute: a search, the rest of the name is its id."""

# System attributes of a study.
MOMENTS_KEY = "nis:moments"
"""Study system attribute: the moments of the policy, oldest first."""
PIECE_KEY = "nis:piece:"
"""Study system attribute: a piece of a long text, the rest of the name says of which."""
PUBLISHED_KEY = "nis:published"
"""Study system attribute: when figures for the dashboard were last written."""
TRAINING_KEY = "nis:training:"
"""Study system attribute: a finished training, the rest of the name says which."""

# User attributes of a trial.
QUALITY_ATTR = "quality"
PENALTY_ATTR = "penalty"
REFERENCE_ATTR = "reference"
"""Trial user attribute: how much of the quality makes groups on different examples compare."""
NUM_PARAMETERS_ATTR = "num_parameters"
NBYTES_ATTR = "nbytes"
FIDELITY_ATTR = "fidelity"
STEP_ATTR = "step"
SEARCH_ATTR = "search"
ORIGIN_ATTR = "origin"
"""Trial user attribute: what proposed the choice, where several compete."""

# System attributes of a trial.
GROUP_KEY = "nis:group"
"""Trial system attribute: id of the group of trials scored on the same examples."""
GROUP_SIZE_KEY = "nis:group_size"
"""Trial system attribute: number of trials in the group."""
LOG_PROB_KEY = "nis:log_prob"
"""Trial system attribute: log-probability with which the policy drew the trial's parameters."""
PROPOSAL_KEY = "nis:proposal"
"""Trial system attribute: fingerprint of the proposal that the log-probability speaks of."""
PLAN_OF_BEFORE = ("same_cost",)
"""Numbers that plans of before have."""
HEARTBEAT_KEY = "nis:heartbeat"
"""Trial system attribute: how often the worker of a trial has given a sign of life."""
CONSTRAINTS_KEY = "constraints"
"""Trial system attribute: the constraints of Optuna 4, above 0 where a trial breaks one."""
# Before the name of what `Trial.set_constraint` of Optuna 5 sets.
CONSTRAINT_PREFIX = "constraints:"
BUDGET_KEY = f"{CONSTRAINT_PREFIX}budget"
"""Trial system attribute: above 0 if a trial is over the budget."""

# How a trial was scored: on a validation batch with the supernet's weights, on all validation
# data with them, or on all validation data after a training of its own, which was a short one for
# those that were dropped.
SUPERNET = "supernet"
VALIDATED = "validated"
DROPPED = "dropped"
TRAINED = "trained"
SHARED_WEIGHTS = (SUPERNET, VALIDATED)
# What to Optuna is an evaluation that was cut short.
CUT_SHORT = (*SHARED_WEIGHTS, DROPPED)
FIDELITIES = (*CUT_SHORT, TRAINED)
