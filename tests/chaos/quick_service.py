"""The repository's jupyterhub_config.py under a hub that looks after its service every second.

JupyterHub looks every 30 s and has no setting for it; only this waiting is shortened here.
"""

from pathlib import Path

from jupyterhub.services import service
from traitlets import Integer


class _LookedAfter(service._ServiceSpawner):  # type: ignore[misc]
    poll_interval = Integer(1)


service._ServiceSpawner = _LookedAfter
load_subconfig(str(Path(__file__).parents[2] / "jupyterhub_config.py"))  # type: ignore[name-defined]  # noqa: F821
