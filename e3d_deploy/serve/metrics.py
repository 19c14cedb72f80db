"""Prometheus metrics of one server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import generate_latest

from e3d_deploy import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCIES_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Prometheus metrics of one server, in a registry of its own, because a process may run several servers.

    Args:
        name: name of the model.
        backend: name of the backend that runs the model.
        precision: precision policy of the model.
    """

    def __init__(self, *, name: str, backend: str, precision: str) -> None:
        self.registry = registry = CollectorRegistry()
        self.frames = Counter("e3d_frames", "Pictures processed by sessions.", registry=registry)
        self.forecasts = Counter("e3d_forecasts", "Forecasts made, live and by /v1/predict.", registry=registry)
        self.latency = Histogram(
            "e3d_latency_seconds",
            "Time from a decoded picture to its forecast, ready to be sent.",
            buckets=LATENCIES_S,
            registry=registry,
        )
        self.sessions = Gauge("e3d_sessions", "Open live sessions.", registry=registry)
        self.opened = Counter("e3d_sessions_opened", "Live sessions opened.", ["source"], registry=registry)
        self.drops = Counter("e3d_drops", "Pictures dropped.", ["reason"], registry=registry)
        self.predictions = Counter("e3d_predictions", "Requests to /v1/predict answered.", registry=registry)
        self.clips = Gauge("e3d_clips", "Uploaded clips stored on the server.", registry=registry)
        self.errors = Counter(
            "e3d_errors", "Requests and sessions that failed or were refused.", ["code"], registry=registry
        )
        for reason in ("source", "viewer"):
            self.drops.labels(reason)
        for kind in ("offer", "clip", "webcam"):
            self.opened.labels(kind)
        build = Info("e3d_build", "Version, model and backend.", registry=registry)
        build.info({"version": __version__, "model": name, "backend": backend, "precision": precision})

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)
