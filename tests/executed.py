"One way to execute a notebook, for every test that needs it."

import os, subprocess, sys
from pathlib import Path


def papermill(notebook: Path, out: Path, cwd: Path, env: dict | None = None, timeout: int = 900, **parameters):
    "Run a notebook as a user does, without a terminal; the finished process. None in `env` takes a variable away."
    words = [w for k, v in parameters.items() for w in ("-p", k, str(v))]
    return subprocess.run(
        [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", str(notebook), str(out), *words],
        cwd=cwd,
        env={k: v for k, v in (os.environ | (env or {})).items() if v is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
