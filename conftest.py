"""What pytest leaves out where an optional package is not installed."""

from importlib.util import find_spec

# Its docstrings are run where torchrec, which is optional, is installed.
collect_ignore = [] if find_spec("torchrec") else ["optuna_nis/export/torchrec.py"]
