"""A real agent behind a real SSH session on the loopback: started, called, and lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import PROTOCOL_VERSION
from agent.errors import EXIT_REFUSED, AgentError
from agent.wire.frames import encode
from orchestrator import agent_client, bootstrap
from orchestrator import transport as transport_module
from orchestrator.agent_client import AgentClient
from orchestrator.bootstrap import archive
from orchestrator.inventory import parse_target
from orchestrator.transport import SshChannel, open_agent
from tests.support.loopback_ssh import LoopbackHost, loopback_host
from tests.support.polling import until

PRINTER = "echo Welcome to this host; "


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[LoopbackHost]:
    async with loopback_host(tmp_path) as one:
        yield one


class Session:
    """A client, its channel, and the lines that the agent said on stderr."""

    def __init__(self, client: AgentClient, channel: SshChannel, said: list[str]) -> None:
        self.client, self.channel, self.said = client, channel, said


@asynccontextmanager
async def opened(host: LoopbackHost) -> AsyncIterator[Session]:
    said: list[str] = []
    channel = await open_agent(parse_target("src"), [str(host.config)], said.append)
    client = AgentClient(channel)
    try:
        yield Session(client, channel, said)
    finally:
        await client.close()


async def fails_to_start(host: LoopbackHost, code: str) -> AgentError:
    async with opened(host) as session:
        with pytest.raises(AgentError) as raised:
            async with asyncio.timeout(30):
                await session.client.start()
    error = raised.value
    assert error.code == code, error
    assert error.exit_status == EXIT_REFUSED
    assert "src" in error.message and error.hint
    await ended(host)
    return error


async def ended(host: LoopbackHost) -> None:
    """Nothing of the agent is left."""
    await until(lambda: all(one.returncode is not None for one in host.processes))


def agent_of(host: LoopbackHost) -> int:
    """The agent's PID; the shell that sshd started has become it."""
    return host.processes[-1].pid


async def test_start_call_and_end(host: LoopbackHost) -> None:
    async with opened(host) as session:
        await session.client.start()
        assert session.client.addresses == ["127.0.0.1"]
        facts = await session.client.probe_host("/run/streamferry")
        assert facts["uid"] == os.getuid()
        with pytest.raises(AgentError) as raised:
            await session.client.probe_process((1 << 22) - 1)
        assert raised.value.code == "no-such-process"
    await ended(host)
    assert host.processes[-1].returncode == 0
    assert session.said == []


async def test_nothing_is_written_on_the_host(host: LoopbackHost) -> None:
    """The code runs from memory: no file of ours, no bytecode."""
    async with opened(host) as session:
        await session.client.start()
        await session.client.probe_host("/run/streamferry")
        pid = agent_of(host)
        open_files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [name for name in open_files if name.endswith((".py", ".pyc", ".zip"))]
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert arguments[1] == b"-c"


async def test_many_calls_at_once(host: LoopbackHost) -> None:
    async with opened(host) as session:
        await session.client.start()
        calls = (session.client.probe_process(4_100_000 + number) for number in range(50))
        errors = await asyncio.gather(*calls, return_exceptions=True)
        for number, error in enumerate(errors):
            assert isinstance(error, AgentError) and str(4_100_000 + number) in error.message


# --- it cannot start


async def test_no_python(host: LoopbackHost) -> None:
    host.environment["PATH"] = str(host.directory)
    await fails_to_start(host, "python-missing")


async def test_python_too_old(host: LoopbackHost) -> None:
    """The first words of the command are understood by any Python 3."""
    code = "import sys\nsys.version_info = (3, 9, 2)\nexec(sys.argv[2])\n"
    (host.directory / "code.py").write_text(code)
    stub(host, f"exec {real_python()} {host.directory}/code.py " + '"$@"')
    error = await fails_to_start(host, "python-too-old")
    assert "3.9" in error.message


async def test_no_modules(host: LoopbackHost) -> None:
    """A Python without the environment's packages; only what it lacks is named."""
    (host.directory / "pyroute2.py").write_text("")
    stub(host, f'PYTHONPATH={host.directory} exec {real_python()} -S "$@"')
    error = await fails_to_start(host, "modules-missing")
    assert "asyncssh" in error.message and "msgpack" in error.message
    assert "pyroute2" not in error.message.partition("lacks")[2]
    assert "python3-asyncssh" in error.hint


async def test_a_login_shell_that_prints(host: LoopbackHost) -> None:
    host.shell_prefix = PRINTER
    error = await fails_to_start(host, "agent-garbled")
    assert "Welcome" in error.message


async def test_a_login_shell_that_prints_to_stderr_is_only_noted(host: LoopbackHost) -> None:
    host.shell_prefix = "echo Welcome to this host >&2; "
    async with opened(host) as session:
        await session.client.start()
        await until(lambda: session.said)
        assert session.said == ["Welcome to this host"]


async def test_an_account_without_a_shell(host: LoopbackHost) -> None:
    host.shell_prefix = "echo 'This account is currently not available.' >&2; exit 1; "
    error = await fails_to_start(host, "agent-died")
    assert "not available" in error.message and "status 1" in error.message


async def test_a_forced_command(host: LoopbackHost) -> None:
    host.shell_prefix = "printf 'scp only'; exit 0; "
    await fails_to_start(host, "agent-garbled")


async def test_it_never_says_hello(host: LoopbackHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "HELLO_TIMEOUT", 0.3)
    monkeypatch.setattr(transport_module, "END_TIMEOUT", 0.3)
    host.shell_prefix = "exec cat > /dev/null; "
    await fails_to_start(host, "agent-silent")


async def test_an_agent_of_another_version(host: LoopbackHost) -> None:
    hello = encode({"hello": PROTOCOL_VERSION + 1, "agent": "9", "pid": 1})
    (host.directory / "hello").write_bytes(hello)
    host.shell_prefix = f"exec cat {host.directory}/hello -; "
    async with opened(host) as session:
        with pytest.raises(AgentError) as raised:
            await session.client.start()
    assert raised.value.code == "version"


async def test_an_archive_that_is_cut(host: LoopbackHost, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = archive()
    monkeypatch.setattr(transport_module, "archive", lambda: whole[: len(whole) // 2])
    channel = await open_agent(parse_target("src"), [str(host.config)])
    client = AgentClient(channel)
    starting = asyncio.create_task(client.start())
    await until(lambda: host.processes)
    channel._process.stdin.write_eof()
    with pytest.raises(AgentError) as raised:
        await starting
    assert raised.value.code == "agent-died"
    await client.close()
    await ended(host)


# --- it is lost


async def lost(session: Session, lose: Callable[[], object]) -> AgentError:
    """What a call under way fails with when the agent is lost, and each call after it."""
    await session.client.start()
    await session.client.probe_host("/run/streamferry")
    waiting = asyncio.create_task(session.client._call("source.run", {"link": {}}))
    with pytest.raises(AgentError) as raised:
        await waiting
    assert raised.value.code == "not-prepared"  # the session is up
    future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    session.client._waiting[99] = future  # a call whose answer never comes
    lose()
    with pytest.raises(AgentError) as raised:
        async with asyncio.timeout(30):
            await future
    with pytest.raises(AgentError) as again:
        await session.client.probe_host("/run/streamferry")
    assert again.value is raised.value
    assert session.client.gone
    await session.client.send_event("relay", {"data": b"into the void"})
    return raised.value


async def test_the_agent_is_killed(host: LoopbackHost) -> None:
    async with opened(host) as session:
        error = await lost(session, lambda: os.kill(agent_of(host), signal.SIGKILL))
    assert error.code == "agent-died" and "137" in error.message


async def test_the_agent_is_told_to_end(host: LoopbackHost) -> None:
    async with opened(host) as session:
        error = await lost(session, lambda: os.kill(agent_of(host), signal.SIGTERM))
    assert error.code == "agent-died"
    await ended(host)
    assert host.processes[-1].returncode == 0


async def test_the_session_is_cut(host: LoopbackHost) -> None:
    """The connection breaks; the agent, whose stdin ends with it, goes as well."""
    async with opened(host) as session:
        error = await lost(session, lambda: session.channel._connection.ssh.abort())
        assert error.code == "unreachable"
    await ended(host)


async def test_garbage_in_the_middle(host: LoopbackHost) -> None:
    """What the agent saved as its stdout is the second pipe from descriptor 10 on."""

    def print_something() -> None:
        directory = Path(f"/proc/{agent_of(host)}/fd")
        saved = sorted(int(path.name) for path in directory.iterdir() if int(path.name) >= 10)
        pipes = [fd for fd in saved if os.readlink(directory / str(fd)).startswith("pipe:")]
        (directory / str(pipes[1])).write_bytes(b"Broadcast message from root: going down")

    async with opened(host) as session:
        error = await lost(session, print_something)
    assert error.code == "agent-garbled"
    assert "Broadcast" in error.message


async def test_what_we_send_is_not_the_protocol(host: LoopbackHost) -> None:
    async with opened(host) as session:
        error = await lost(session, lambda: session.channel.write(b"GET / HTTP/1.1\r\n\r\n"))
        await until(lambda: session.said)
    assert error.code == "agent-died"
    assert "broke the protocol" in error.message and "GET" in error.message
    assert "broke the protocol" in session.said[0]


async def test_the_end_of_its_stdin_is_the_end_of_the_agent(host: LoopbackHost) -> None:
    async with opened(host) as session:
        error = await lost(session, lambda: session.channel._process.stdin.write_eof())
    assert error.code == "agent-died"
    assert host.processes[-1].returncode == 0


async def test_a_close_while_a_call_is_under_way(host: LoopbackHost) -> None:
    async with opened(host) as session:
        await session.client.start()
        call = asyncio.create_task(session.client.probe_host("/run/streamferry"))
        await asyncio.sleep(0)
        await session.client.close()
        done = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(done[0], dict | AgentError)
    await ended(host)


# --- what is sent


def test_the_archive_is_the_same_each_time_and_has_all_of_the_agent() -> None:
    first = archive()
    bootstrap.archive.cache_clear()
    assert archive() == first
    listing = subprocess.run(
        [real_python(), "-c", "import sys, io, zipfile\n"
         "data = sys.stdin.buffer.read()[4:]\n"
         "print('\\n'.join(zipfile.ZipFile(io.BytesIO(data)).namelist()))"],
        input=first, capture_output=True, check=True,
    ).stdout.decode().split()  # fmt: skip
    root = Path(bootstrap.agent.__file__).parent
    code = {f"agent/{path.relative_to(root)}" for path in root.rglob("*.py")}
    assert code <= set(listing)
    assert not [name for name in listing if "__pycache__" in name]


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_the_command_is_read_alike_by_every_shell(shell: str) -> None:
    code = bootstrap.COMMAND.removeprefix("exec python3 -c ")
    done = subprocess.run([shell, "-c", f"printf %s {code}"], capture_output=True, check=True)
    assert done.stdout.decode() == code[1:-1]
    assert not set("'\n\\!`$") & set(code[1:-1])


def real_python() -> str:
    return str(Path(sys.executable).resolve())


def stub(host: LoopbackHost, script: str) -> None:
    """Put another python3 first on the host's path."""
    directory = host.directory / "bin"
    directory.mkdir()
    (directory / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "python3").chmod(0o755)
    host.environment["PATH"] = f"{directory}:{host.environment['PATH']}"


async def test_leftovers_are_looked_for_from_the_archive(host: LoopbackHost) -> None:
    """What others do on this host at the same time may be found; the shape is validated."""
    async with opened(host) as session:
        await session.client.start()
        if os.geteuid() == 0:
            assert isinstance((await session.client.look())["findings"], list)
        else:
            with pytest.raises(AgentError, match="leftovers"):
                await session.client.look()
