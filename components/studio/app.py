"""The server of the studio's page: one process, one address, nothing fetched from or sent to anywhere else."""

from __future__ import annotations

import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import binding, ui
from pydantic import Field
from starlette.responses import FileResponse, PlainTextResponse, Response

from components.errors import KinoflowError
from components.section import Section
from components.studio.controls import UploadRules
from components.studio.gallery import SUFFIXES
from components.studio.guard import Guard
from components.studio.page import MARK, Catalogue, Page, Shelf
from components.studio.session import Session

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
SHUTDOWN_S = 3
SLOW_S = 1.0  # a page that takes longer to follow its fields is worth a line in the log


class StudioConfig(Section):
    """Where the page is served and where files go."""

    host: str = Field("127.0.0.1", description="Address to listen on; the default is reached from this machine only.")
    port: int = Field(7860, ge=0, le=65535, description="0 takes a free one.")
    folder: Path = Field(Path("runs/studio"), description="For finished files; uploads lie in a folder inside.")
    max_upload_mb: float = Field(64.0, gt=0, description="Largest upload in megabytes.")


def serve(config: StudioConfig, catalogue: Catalogue, say: Callable[[str], None]) -> None:
    """Serve the page until the process is told to stop.

    Args:
        config: where.
        catalogue: gives the checkpoints on offer.
        say: told the address once it answers.

    Raises:
        KinoflowError: the address cannot be listened on, or the folder cannot be written to.
    """
    listening = _listen(config.host, config.port)
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KinoflowError(
            f"Could not write to {config.folder}: {error.strerror}; name another with --out."
        ) from error
    # it looks at every object of the process once, and torch has some that warn when they are looked at
    warnings.filterwarnings("ignore", category=FutureWarning, module="nicegui")
    binding.MAX_PROPAGATION_TIME = SLOW_S
    session = Session(config.folder)
    server = uvicorn.Server(
        uvicorn.Config(
            _application(config, session, Shelf(catalogue)), log_level="warning", timeout_graceful_shutdown=SHUTDOWN_S,
            server_header=False,
        )
    )  # fmt: skip
    host, port = listening.getsockname()[:2]
    say(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        server.run(sockets=[listening])
    finally:
        session.close()


def _application(config: StudioConfig, session: Session, shelf: Shelf) -> FastAPI:
    """The page, the finished files, and the guard before both."""
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    limit_bytes = int(config.max_upload_mb * 1e6)
    rules = UploadRules(config.folder / "uploads", limit_bytes)

    @application.get("/made/{name}")
    def made(name: str, download: bool = False) -> Response:
        if not re.fullmatch(r"[\w.-]+", name) or Path(name).suffix not in SUFFIXES:
            return PlainTextResponse("There is no such file.", 404)
        path = config.folder / name
        if not path.is_file():
            return PlainTextResponse("There is no such file.", 404)
        return FileResponse(path, filename=name, content_disposition_type="attachment" if download else "inline")

    @ui.page("/")
    def page() -> None:
        Page(session, shelf, rules)

    ui.run_with(
        application, title="Kinoflow Studio", favicon=MARK, dark=True, tailwind=False, show_welcome_message=False,
        reconnect_timeout=30.0,
    )  # fmt: skip
    hosts = LOOPBACK if config.host in LOOPBACK else frozenset()
    application.add_middleware(Guard, hosts=hosts, max_body_bytes=limit_bytes + 65536)
    return application


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise KinoflowError(
            f"The studio cannot listen on {host}:{port} ({error.strerror}); choose another --host or --port."
        ) from error
    return listening
