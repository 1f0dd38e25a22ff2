"""An asyncio server that answers each line with its number on this connection and the line.

Usage: asyncio_echo.py HOST PORT
"""

import asyncio
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    count = 0
    while line := await reader.readline():
        count += 1
        writer.write(f"{count} ".encode() + line)
        await writer.drain()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()


asyncio.run(main())
