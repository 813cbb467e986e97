"""How long a right lasts that was taken away: together less than a minute."""

from __future__ import annotations

from typing import Final

# For how long the hub's answer about a token is believed.
AUTH_CACHE_S: Final = 30
# A stream asks again at least this often, and ends now and then; clients come back.
RECHECK_S: Final = 25.0
STREAM_S: Final = 600.0
