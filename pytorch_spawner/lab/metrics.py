"""The service's own numbers for Prometheus. Labels never name a user."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """Counters of one service process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.accepted = Counter(
            "lab_events_accepted_total",
            "Events accepted from agents, by kind",
            ["kind"],
            registry=self.registry,
        )
        self.refused = Counter(
            "lab_reports_refused_total",
            "Reports refused, by the error's code",
            ["code"],
            registry=self.registry,
        )
        self.viewers = Gauge(
            "lab_viewers", "Open event streams (pages that watch a server)", registry=self.registry
        )
        self.stream_bytes = Counter(
            "lab_stream_bytes_total", "Bytes sent on event streams", registry=self.registry
        )
        self.ledger_errors = Counter(
            "lab_ledger_errors_total", "Reads of the ledger that failed", registry=self.registry
        )

    def render(self) -> bytes:
        """All numbers in Prometheus's text format."""
        return generate_latest(self.registry)
