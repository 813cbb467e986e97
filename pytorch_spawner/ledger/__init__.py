"""The one shared state: identities, homes, starts, leases, devices, journal. No decisions."""
