"""`e3d serve`: runs a live page and a REST and WebSocket server for one model."""

from contextlib import ExitStack
from pathlib import Path

import click

from e3d_deploy.commands._help import GroupedCommand, option
from e3d_deploy.commands._open import open_bundle
from e3d_deploy.commands._options import BACKEND, BUNDLE, MAX_FRAMES, PATH, RENEWAL, THREADS, Count, Finite

GROUPS = {
    "Address and security": ("host", "port", "token", "token_file", "tls_cert", "tls_key", "behind_proxy", "origins"),
    "Forecast": ("sources", "horizon", "renewal", "backend", "threads"),
    "Limits": ("max_sessions", "memory_limit", "idle_timeout", "max_upload"),
}
EXAMPLES = (
    "e3d serve film.e3d --source clips/ --source rtsp://camera.local/stream",
    "e3d serve film.e3d --host 0.0.0.0 --token-file token --behind-proxy",
)


@click.command(cls=GroupedCommand, groups=GROUPS, examples=EXAMPLES)
@BUNDLE
@option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Address to listen on; an address that other machines can reach requires a token.",
)
@option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0 chooses a free port.")
@option(
    "--source",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Video, folder of videos, camera or address that viewers may choose; repeatable.",
)
@option(
    "--horizon",
    type=Count(MAX_FRAMES),
    help="Maximum horizon that viewers may choose (frames).",
    show_default="the horizon of the bundle",
)
@RENEWAL
@BACKEND
@THREADS
@option("--max-sessions", type=Count(1024), default=32, help="Maximum number of live sessions.")
@option(
    "--memory-limit",
    type=Finite(min=0, min_open=True),
    metavar="MB",
    help="Maximum memory for the states of all sessions (MB).",
)
@option(
    "--idle-timeout",
    type=Finite(min=1),
    default=300.0,
    metavar="S",
    help="Time after which idle sessions end and unused uploads are deleted (seconds).",
)
@option("--max-upload", type=Finite(min=1), default=100.0, metavar="MB", help="Maximum size of an upload (MB).")
@option("--token", metavar="TEXT", help="Secret token of the viewers; `ps` shows it to other users of this machine.")
@option("--token-file", type=PATH, help="File whose first line is the token.")
@option("--tls-cert", type=PATH, help="TLS certificate chain (PEM); requires --tls-key.")
@option("--tls-key", type=PATH, help="Private key of the certificate (PEM); requires --tls-cert.")
@option("--behind-proxy", is_flag=True, help="Trust a reverse proxy in front to encrypt the connections.")
@option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Additional origin of web pages that may connect, such as https://a.example; repeatable.",
)
def serve(
    bundle: Path,
    host: str,
    port: int,
    sources: tuple[str, ...],
    horizon: int | None,
    renewal: str | None,
    backend: str,
    threads: int | None,
    max_sessions: int,
    memory_limit: float | None,
    idle_timeout: float,
    max_upload: float,
    token: str | None,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    behind_proxy: bool,
    origins: tuple[str, ...],
) -> None:
    """Serve live forecasts to browsers, REST and WebSocket clients.

    Prints the address of the page and runs until Ctrl-C.
    """
    from e3d_deploy.live.worker import needed_bytes
    from e3d_deploy.memory import check_memory
    from e3d_deploy.serve.offers import offers_of
    from e3d_deploy.serve.run import serving
    from e3d_deploy.serve.settings import ServerSettings
    from e3d_deploy.workflows.opening import open_predictor

    opened = open_bundle(bundle)
    settings = ServerSettings(
        name=bundle.resolve().name.removesuffix(".e3d"),
        precision=opened.precision,
        host=host,
        port=port,
        token=given_token(token, token_file),
        certificate=tls_cert,
        key=tls_key,
        behind_proxy=behind_proxy,
        origins=tuple(origin.rstrip("/") for origin in origins),
        offers=offers_of(sources, lambda text: click.echo(text, err=True)),
        horizon=horizon or opened.horizon,
        renewal=renewal,
        max_sessions=max_sessions,
        memory_limit_bytes=None if memory_limit is None else int(memory_limit * 1e6),
        idle_timeout_s=idle_timeout,
        max_upload_bytes=int(max_upload * 1e6),
    )
    with ExitStack() as stack:
        predictor = stack.enter_context(open_predictor(bundle, backend, threads=threads))
        check_memory(
            f"--horizon {settings.horizon} --max-sessions {max_sessions}",
            max_sessions * needed_bytes(predictor.config, settings.horizon),
            "give smaller numbers",
        )
        served = stack.enter_context(serving(predictor, settings))
        click.echo(served.address)
        if host in ("0.0.0.0", "::"):
            click.echo(f"from other machines, use the name or address of this machine instead of {host}", err=True)
        click.echo(f"serving {settings.name} on {predictor.backend.name}; press Ctrl-C to stop", err=True)
        served.wait()


def given_token(token: str | None, file: Path | None) -> str | None:
    """Return the token from the command line or from the first line of a file."""
    if token is not None and file is not None:
        raise click.UsageError("--token and --token-file both set the token; give one of them")
    if file is None:
        return token
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or not lines[0].strip():
        raise click.UsageError(f"--token-file {file}: the first line is empty, expected the token")
    return lines[0].strip()
