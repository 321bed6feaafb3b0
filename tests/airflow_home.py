"""A home for Airflow inside the test process, made before anything imports Airflow.

Settings are in the home's `airflow.cfg` rather than in environment variables, so that other tests of the same process
see no difference.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
USERS = {"ada": "admin", "vera": "viewer"}
"""Users by name, with their role; each one's password is the name."""

_CONFIG = """\
[core]
load_examples = False
dags_folder = {root}/dags
simple_auth_manager_users = {users}
simple_auth_manager_passwords_file = {home}/passwords.json
[database]
sql_alchemy_conn = sqlite:///{home}/airflow.db
[logging]
base_log_folder = {home}/logs
[api]
secret_key = {secret}
[api_auth]
jwt_secret = {secret}
"""


@cache
def prepare() -> Path:
    """Make the home and let Airflow read it; returns the folder."""
    home = Path(tempfile.mkdtemp(prefix="airflow-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    users = ",".join(f"{name}:{role}" for name, role in USERS.items())
    (home / "airflow.cfg").write_text(_CONFIG.format(root=ROOT, home=home, users=users, secret="s" * 64))
    (home / "passwords.json").write_text("{" + ", ".join(f'"{name}": "{name}"' for name in USERS) + "}")
    before = os.environ.get("AIRFLOW_HOME")
    os.environ["AIRFLOW_HOME"] = str(home)
    try:
        # Both read the home once, when they are imported.
        import airflow.configuration
        import airflow.sdk.configuration  # noqa: F401
    finally:
        os.environ.pop("AIRFLOW_HOME")
        if before is not None:
            os.environ["AIRFLOW_HOME"] = before
    return home


@cache
def migrate() -> Path:
    """Make the home's database; returns the folder."""
    home = prepare()
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(command, env={**os.environ, "AIRFLOW_HOME": str(home)}, check=True, capture_output=True, timeout=240)
    return home
