"""How long a right lasts that was taken away: together less than a minute."""

from __future__ import annotations

from typing import Final

# For how long the hub's answer about a token is believed.
AUTH_CACHE_S: Final = 30
# A stream asks again this often, but looks at the time only when it has something to send or a
# keep-alive (10 s) is due: 30 + 15 + 10 s at the worst. It ends now and then; clients come back.
RECHECK_S: Final = 15.0
STREAM_S: Final = 600.0
