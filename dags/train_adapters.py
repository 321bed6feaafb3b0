"""One DAG for each AdapterSpec in `adapters/` and in `LORAFLEET_ADAPTERS_DIR`: train, judge, register, promote."""

# Airflow's DAG processor reads only files that hold the words "airflow" and "dag".
from lorafleet_airflow.dag_factory import build_adapter_dags
from lorafleet_airflow.settings import adapters_folders

globals().update(build_adapter_dags(*adapters_folders(__file__)))
