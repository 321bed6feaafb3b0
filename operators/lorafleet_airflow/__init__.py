"""The Airflow provider: operators, hooks, triggers and the DAG factory."""
