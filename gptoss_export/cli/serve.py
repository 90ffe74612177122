"""gptoss-export serve"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ..server.api_keys import KEY_VARIABLE
from .errors import missing_package, reports_errors
from .params import (
    Bytes,
    NamedFolder,
    UTF8Text,
    artifact_argument,
    hashes_option,
    kv_memory_option,
    read_text,
    trust_option,
    trusted,
)
from .plain import plain, say
from .progress import progress
from .streams import silence_broken_streams


@click.command("serve")
@artifact_argument
@click.option("--host", type=UTF8Text(), default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen at. 0: any free one."
)
@click.option("--model-name", type=UTF8Text(), help="What clients call the model.  [default: the artifact's folder]")
@click.option(
    "--adapter",
    "adapters",
    type=NamedFolder(),
    multiple=True,
    help="LoRA adapter of PEFT that clients choose as the model NAME, where the build has --adapter-slots. Repeatable.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"File of API keys, one a line. Clients must send one of them. {KEY_VARIABLE} can hold a key as well.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Most tokens of an answer, also of one that asks for no number.  [default: what the context has room for]",
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Answers that are generated or wait at a time. More get status 429.",
)
@click.option("--max-body", type=Bytes(), default="16MB", show_default=True, help="Largest request. More gets 413.")
@click.option(
    "--queue-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="How long a request waits for its first token. Then it gets 503.",
)
@click.option(
    "--request-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="How long a request takes at most. Then it gets 504.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long requests may go on after SIGTERM or Ctrl-C. A second signal ends at once.",
)
@click.option(
    "--allow-origin",
    "origins",
    type=UTF8Text(),
    multiple=True,
    metavar="ORIGIN",
    help="Web pages of this origin may use the server, such as https://example.org. May be repeated. `*`: all pages.",
)
@click.option(
    "--allow-host",
    "hosts",
    type=UTF8Text(),
    multiple=True,
    metavar="NAME",
    help="Name that clients may call the server by, without a port. May be repeated.  [default: names of this machine "
    "with a --host that only this machine reaches, otherwise any]",
)
@click.option(
    "--fixed-width",
    is_flag=True,
    help="Run every step at the largest width: an answer has the same bits alone and beside others. Slower for few.",
)
@kv_memory_option
@hashes_option
@trust_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON objects, one a line: when ready, and for each request."
)
@reports_errors
def command(
    artifact: Path,
    host: str,
    port: int,
    model_name: str | None,
    adapters: tuple[tuple[str, Path], ...],
    api_key_file: Path | None,
    max_new_tokens: int | None,
    max_requests: int,
    max_body: int,
    queue_seconds: float,
    request_seconds: float,
    drain_seconds: float,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    fixed_width: bool,
    kv_memory: int | None,
    verify_hashes: bool,
    trust: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Serve ARTIFACT with OpenAI's API over HTTP, and a page to chat at its address.

    It ends with exit code 0 where all requests ended before it did.
    """
    from ..errors import UsageError
    from ..server.allowed_names import check_names
    from ..server.api_keys import api_keys

    check_names(hosts, origins)
    name = artifact.absolute().name if model_name is None else model_name
    _check_adapter_names(name, [adapter for adapter, _ in adapters])
    keys = api_keys(() if api_key_file is None else _keys_of(api_key_file))
    try:
        from ..server.log import Log
        from ..server.process import address_of, leave, listening_socket
        from ..server.settings import ServerSettings, hosts_of, is_loopback
        from ..server.starting import Prepared, serve
    except ImportError as error:
        if package := missing_package(error):
            raise UsageError(f"{package} is not installed; run: pip install 'gptoss-export[serve]'") from None
        raise
    from ..loading import load

    # The address is taken first: whether it is free should not depend on how long the artifact takes to load.
    with listening_socket(host, port) as bound:
        address = bound.getsockname()[0]
        settings = ServerSettings(
            api_keys=keys,
            max_new_tokens=max_new_tokens,
            max_requests=max_requests,
            max_body=max_body,
            queue_seconds=queue_seconds,
            request_seconds=request_seconds,
            drain_seconds=drain_seconds,
            hosts=hosts_of(host, address, hosts),
            origins=origins,
        )
        if not keys and not is_loopback(address):
            say(f"note: anybody who reaches {host} can use the model; --api-key-file asks for a key", err=True)
        with progress() as shown:
            runner = load(
                artifact,
                verify_hashes,
                shown,
                tune_process=True,
                trust=trusted(trust),
                fixed_width=fixed_width,
                kv_memory=kv_memory,
            )
            for adapter, folder in adapters:
                with shown.stage(f"load adapter {adapter}"):
                    runner.load_adapter(adapter, folder)
            prepared = Prepared.of(runner, shown)
        log = Log(_write, as_json)

        def ready() -> None:
            if as_json:
                log.event("ready", url=address_of(bound), model=name)
            else:
                log.line(f"{name}: ready at {address_of(bound)}")

        code = serve(prepared, name, settings, bound, log, ready)
        log.close()
    silence_broken_streams()
    leave(code)


def _write(line: str) -> None:
    click.echo(plain(line))
    sys.stdout.flush()


def _check_adapter_names(model: str, names: Sequence[str]) -> None:
    """Raise UsageError for names that clients could not tell apart."""
    from ..errors import UsageError, raise_all

    problems = [f"--adapter {name}: found it twice, expected different names" for name in _twice(names)]
    if model in names:
        problems.append(f"--adapter {model}: is the name of the model itself; choose another one, or --model-name")
    raise_all(UsageError, "names of adapters that clients could not tell apart", problems)


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _keys_of(path: Path) -> list[tuple[str, str]]:
    """The keys of a file, each after its place. Raises UsageError where it holds none."""
    from ..errors import UsageError

    lines = [line.strip() for line in read_text("--api-key-file", path).splitlines()]
    keys = [(f"--api-key-file {path}, line {at}", line) for at, line in enumerate(lines, start=1) if line]
    if not keys:
        raise UsageError(f"--api-key-file {path}: holds no key, expected one a line")
    return keys
