"""The Fleet view inside the Airflow interface."""
