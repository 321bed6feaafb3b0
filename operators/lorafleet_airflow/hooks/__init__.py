"""Hooks: an Airflow connection in, a client out."""
