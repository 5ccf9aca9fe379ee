"""python -m app: serve the playground. Prints one line with the address when it can be opened, and at the first start one that
says where the administrator's password is.

Exit status: 0 after a signal to stop, 1 if the database can't be used, 2 for a setting that can't be used.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from app.settings import Settings, WrongSetting

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from app.service import Service
    from engine.serving.pool import Pool
    from storage import Database

STOP_SECONDS = 5  # how long open connections may take to end


def main(arguments: list[str]) -> int:
    """Run the server until it is told to stop; returns the exit status."""
    try:
        settings = Settings.from_arguments(arguments)
        listener = listen(settings.host, settings.port)
    except WrongSetting as error:
        sys.stderr.write(f"{error}\n")
        return 2
    signal.signal(signal.SIGTERM, _leave)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The model and the page take seconds to import, so settings are read before.
    from engine.errors import GLMError
    from storage import Database, StorageError

    try:
        from engine.glm.size import parse_size
        from engine.serving.pool import Pool

        pool = Pool(
            settings.model,
            replicas=settings.replicas,
            tensor_parallel=settings.tensor_parallel,
            slots=settings.slots,
            gap_seconds=settings.gap_seconds,
            batch_invariant=settings.batch_invariant,
            kv_cache=settings.kv_cache,
            eager=settings.eager,
            queue=settings.queue,
            threads=settings.threads or None,
            precision=settings.precision,
            quantize=None if settings.quantize == "none" else settings.quantize,
            offload=settings.offload,
            weights_budget=parse_size(settings.weights_budget) if settings.weights_budget else None,
            device=settings.device,
        )
        database = Database(settings.database)
    except (GLMError, StorageError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        if not asyncio.run(_serve(settings, listener, pool, database)):
            return 2
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except WrongSetting as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    # uvicorn takes the signal while it serves, ends everything in order, and then raises it again.
    raise SystemExit(0)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises WrongSetting with a sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise WrongSetting(f"--host (GLM_HOST): {host} is not an address of this machine.") from error
    listener = socket.socket(family, kind, protocol)
    # A server that has just stopped must not keep its port for a minute. (On Windows this would share a port in use.)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # Listening at once makes a second server fail here and now, not after the model has loaded.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise WrongSetting(
            f"--port (GLM_PORT): can't listen on {host} port {port}: {error.strerror or error}. "
            "Choose another one, or 0 for any free one."
        ) from error
    return listener


async def _prepared(settings: Settings, pool: Pool, database: Database) -> FastAPI:
    """The application, its database ready. The model's processes start while the page is imported: both take seconds."""
    from app.deployment import choose_model

    reason = await choose_model(settings, pool, database)
    pool.launch()
    try:
        from app.admin.administrator import first_administrator
        from app.main import create_app, import_gradio

        await asyncio.to_thread(import_gradio)
        app = create_app(settings, pool, database)
        app.state.service.deployments.reason = reason
        await app.state.service.prepare()
        # Here, too, since what is wrong with the file is a sentence before anything is served.
        app.state.password_file = await first_administrator(app.state.service)
    except BaseException:
        await pool.stop()
        raise
    return app


async def _serve(settings: Settings, listener: socket.socket, pool: Pool, database: Database) -> bool:
    """False if it ended because the machine has no room for the model, which the log says with a table."""
    import uvicorn

    app = await _prepared(settings, pool, database)
    service: Service = app.state.service

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                announce(settings, listener, app.state.password_file)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.stopping.set()
            await super().shutdown(sockets)

    server = Server(configuration(settings, app))

    async def leave_without_room() -> None:
        await service.decided.wait()
        server.should_exit = server.should_exit or service.no_room

    watching = asyncio.create_task(leave_without_room())
    await server.serve([listener])
    watching.cancel()
    return not service.no_room


def configuration(settings: Settings, app: object) -> uvicorn.Config:
    """How uvicorn serves the application."""
    import uvicorn

    from app.schemas import FRAME_BYTES

    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        log_level=settings.log_level,
        access_log=settings.access_log,
        proxy_headers=True,
        forwarded_allow_ips=",".join(settings.trusted_proxies),
        server_header=False,
        ws_max_size=FRAME_BYTES,
        # Tokens are small: compressing each costs more time than it saves, and 300 kB a connection.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def announce(settings: Settings, listener: socket.socket, password_file: Path | None = None) -> None:
    """The line with the address, a warning where others can reach it, and where the first administrator's password is."""
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    if settings.is_public:
        sys.stderr.write(
            f"Warning: {settings.host} can be reached from other machines; anybody who reaches it can use the model.\n"
        )
        if settings.host in ("0.0.0.0", "::"):
            host = socket.gethostname()
    sys.stdout.write(f"GLM Playground: http://{host}:{port}{settings.root_path}/\n")
    if password_file is not None:
        sys.stdout.write(f"For staff: /admin. The password of the account `admin` is in {password_file}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
