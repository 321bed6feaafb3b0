"""Links from a task to what it made in MLflow."""
