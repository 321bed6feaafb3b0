"""The steps from a dataset to a promoted adapter, as a plain library that never imports Airflow."""
