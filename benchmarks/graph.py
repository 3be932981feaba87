"""The served graph under load over HTTP, and other servers under the same load in the same run.

    python -m benchmarks.graph                                        # everything; about half an hour on two cores
    python -m benchmarks.graph --users 16 --scenario unique --tiles 1 --no-peer       # one cell of our own: a minute
    python -m benchmarks.graph --users 16 --scenario unique --tiles 1 --in-process    # what HTTP and Ray cost
    python -m benchmarks.graph --url http://127.0.0.1:8000 --no-peer                  # a service that runs already
    python -m benchmarks.graph --peer llama=http://127.0.0.1:8080,MODEL               # one that speaks OpenAI's API

It starts Retina and `transformers serve` (which needs the extra `bench`), one after the other, never both, and ends
them. Measure on a quiet machine: one busy core makes a server several times slower, and `other cpu s` shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import in_process
from benchmarks.bars import IN_PROCESS, PEER, RETINA, graph_verdicts
from benchmarks.card import machine_card
from benchmarks.checkpoint import cached_checkpoint
from benchmarks.load import Measured, Service, measure
from benchmarks.processes import NotStarted
from benchmarks.report import Plot, Report, add_report_options
from benchmarks.servers import BIN, GraphSettings, parse_override, retina, transformers_serve
from benchmarks.users import SCENARIOS, Load, LoadFailed

DEFAULT_SCENARIOS = "unique,same,repeat,conversation,long"
COLUMNS = (
    "service",
    "tiles",
    "scenario",
    "users",
    "tokens_per_s",
    "ttft_p50_ms",
    "ttft_p95_ms",
    "gap_p50_ms",
    "gap_max_ms",
    "tokens_per_answer",
    "prompt_tokens_p50",
    "reused_tokens",
    "server_cpu_s",
    "other_cpu_s",
    "server_pss_mb",
)
QUIET_SHARE = 0.05  # of the machine's CPU time, that others may take
Run = Callable[[Load], Measured]


@dataclass(frozen=True, slots=True)
class Target:
    """Something that can be measured: what starts it, and ends it again, for pictures of so many tiles."""

    name: str
    open: Callable[[int], AbstractContextManager[Run]]


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    signal.signal(signal.SIGTERM, _interrupt)  # servers are ended on the way out
    card = machine_card()
    progress = Console(stderr=True)
    try:
        rows = measure_all(options, targets(options), progress)
    except (LoadFailed, NotStarted) as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    for row in rows:
        if warning := disturbance(row, card.num_cores):
            progress.print(warning, style="yellow", highlight=False, soft_wrap=True)
    plot = Plot(x="users", y="tokens_per_s", line="service", panel="pictures")
    Report("graph", card, rows, COLUMNS, graph_verdicts(rows), settings=vars(options), plot=plot).finish(options)
    return 0


def _interrupt(signal_number: int, frame: object) -> None:
    raise KeyboardInterrupt


def measure_all(options: argparse.Namespace, chosen: list[Target], progress: Console) -> list[dict[str, object]]:
    """A row for each cell. Pictures differ between cells, and are the same for all targets. Raises LoadFailed."""
    run_id = options.seed or secrets.token_hex(4)
    rows = []
    for tiles in options.tiles:
        for target in chosen:
            with target.open(tiles) as run:
                for scenario in options.scenario:
                    for users in options.users:
                        progress.print(f"{target.name}, {tiles} tiles, {scenario}, {users} users", highlight=False)
                        seed = f"{run_id}/{tiles}/{scenario}/{users}"
                        load = Load(SCENARIOS[scenario], users, options.requests, seed, options.max_tokens)
                        cell = {"service": target.name, "tiles": tiles, "scenario": scenario, "users": users}
                        about = {"pictures": f"{scenario}, {tiles} tiles"}
                        rows.append(cell | about | run(load).to_row())
    return rows


def disturbance(row: Mapping[str, object], num_cores: int) -> str:
    """What to say of a row that was measured while others used the machine; "" for one that was not."""
    other_s, wall_s = row.get("other_cpu_s"), row["wall_s"]
    if not isinstance(other_s, float) or not isinstance(wall_s, float):
        return ""
    share = other_s / (wall_s * num_cores)
    if share <= QUIET_SHARE:
        return ""
    cell = f"{row['service']}, {row['tiles']} tiles, {row['scenario']}, {row['users']} users"
    return f"{cell}: other processes took {share:.0%} of the machine; this is no fair figure"


# ------------------------------------------------------------------------------------- what is measured


def targets(options: argparse.Namespace) -> list[Target]:
    chosen = []
    if options.url is not None:
        chosen.append(_running(RETINA, Service(options.url, "retina", options.model, options.pid)))
    elif options.served:
        chosen.append(Target(RETINA, lambda tiles: _served(retina(_settings(options, tiles)))))
    if options.in_process:
        chosen.append(Target(IN_PROCESS, lambda tiles: in_process.opened(_settings(options, tiles))))
    dtypes = options.peer_dtypes if options.with_peer else ()
    chosen += [_transformers(dtype, options) for dtype in dtypes]
    return chosen + [_running(name, Service(url, "openai", model)) for name, url, model in options.peer]


def _transformers(dtype: str, options: argparse.Namespace) -> Target:
    return Target(
        f"{PEER} {dtype}",
        lambda tiles: _served(
            transformers_serve(options.transformers, _checkpoint(options, tiles), dtype, options.device)
        ),
    )


def _running(name: str, service: Service) -> Target:
    return Target(name, lambda tiles: _served(nullcontext(service)))


@contextlib.contextmanager
def _served(server: AbstractContextManager[Service]) -> Iterator[Run]:
    with server as service:
        yield lambda load: measure(service, load)


def _settings(options: argparse.Namespace, tiles: int) -> GraphSettings:
    return GraphSettings(
        checkpoint=_checkpoint(options, tiles),
        dtype=options.dtype,
        num_threads=options.num_threads,
        vision_threads=options.vision_threads,
        device=options.device,
        overrides=dict(options.set),
    )


def _checkpoint(options: argparse.Namespace, tiles: int) -> Path:
    return options.checkpoint or cached_checkpoint(1 if tiles == 1 else 5)


# ------------------------------------------------------------------------------------- the command


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=_numbers, default="1,4,16", help="who ask at the same time: 1,4,16")
    parser.add_argument("--scenario", type=_scenarios, default=DEFAULT_SCENARIOS, help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--tiles", type=_numbers, default="1,5", help="of a picture: 1, 5 or both")
    parser.add_argument("--requests", type=int, default=2, help="of each user; conversations count as one")
    parser.add_argument("--max-tokens", type=int, help="of an answer; without: 64, in conversations 32")
    parser.add_argument("--seed", help="of the pictures; without: new ones in each run")
    own = parser.add_argument_group("Retina")
    own.add_argument("--url", help="of a Retina that runs already, instead of starting one")
    own.add_argument("--model", help="with --url: its model; without: its default")
    own.add_argument("--pid", type=int, help="with --url: its first process, to count CPU time and memory")
    own.add_argument("--no-served", dest="served", action="store_false", help="leave the served graph out")
    own.add_argument("--in-process", action="store_true", help="also the same graph in one process, without HTTP")
    own.add_argument("--checkpoint", type=Path, help="of the smolvlm family; without: one is made")
    own.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    own.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="also of transformers serve")
    own.add_argument("--num-threads", type=int, default=1, help="of the generator's torch")
    own.add_argument("--vision-threads", type=int, default=1, help="of the vision encoder's torch")
    own.add_argument("--set", type=_override, action="append", default=[], metavar="KEY=VALUE", help="of the config")
    peers = parser.add_argument_group("others")
    peers.add_argument("--no-peer", dest="with_peer", action="store_false", help="without transformers serve")
    peers.add_argument("--peer-dtypes", type=_words, default="float32,bfloat16", help="of transformers serve")
    peers.add_argument(
        "--transformers", type=Path, default=BIN / "transformers", help="the command; it needs the extra"
    )
    peers.add_argument("--peer", type=_peer, action="append", default=[], metavar="NAME=URL,MODEL")
    add_report_options(parser)
    options = parser.parse_args(words)
    if set(options.tiles) - {1, 5}:
        parser.error("--tiles: the checkpoint cuts pictures into 1 or 5")
    if options.url is not None and len(options.tiles) > 1:
        parser.error("--url is one service with one checkpoint: say with --tiles 1 or --tiles 5 which it has")
    return options


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _scenarios(text: str) -> list[str]:
    names = _words(text)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no scenario {unknown[0]!r}; there is {', '.join(SCENARIOS)}")
    return names


def _override(text: str) -> tuple[str, object]:
    try:
        return parse_override(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _peer(text: str) -> tuple[str, str, str]:
    name, _, rest = text.partition("=")
    url, _, model = rest.partition(",")
    if not (name and url and model):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL,MODEL")
    return name, url, model


if __name__ == "__main__":
    sys.exit(main())
