"""A TCP proxy that makes a server far away: what is sent arrives late, at full bandwidth."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 16


@contextmanager
def slow_link(endpoint: str, latency_s: float) -> Iterator[str]:
    """Address at which a server answers later.

    Args:
        endpoint: `http://host:port` of the server.
        latency_s: Added to every round trip, half of it each way.
    """
    address = urlsplit(endpoint)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Two tasks, so that waiting delays what is on its way but not what is read meanwhile."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def receive() -> None:
            data = b"first"
            while data:
                data = await reader.read(CHUNK_BYTES)
                await on_the_way.put((loop.time() + latency_s / 2, data))

        receiving = asyncio.create_task(receive())
        try:
            while True:
                due_s, data = await on_the_way.get()
                await asyncio.sleep(due_s - loop.time())
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            receiving.cancel()
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError:
            writer.close()
            return
        with suppress(asyncio.CancelledError):  # the link is cut with connections open
            await asyncio.gather(forward(reader, far_writer), forward(far_reader, writer), return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(connect, "127.0.0.1", 0), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
