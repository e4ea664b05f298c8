"""What people look at: figures, the report, Optuna Dashboard, the state of a search."""
