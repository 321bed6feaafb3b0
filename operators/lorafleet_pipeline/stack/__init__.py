"""The embedded stack: starts, supervises and stops S3, MLflow, Airflow's components and the pod."""
