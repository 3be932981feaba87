"""What Retina does in figures, always beside something else that was measured in the same run.

Scripts, each with --help: `python -m benchmarks.graph` starts the served graph, puts load on it over HTTP, and does the
same to `transformers serve`; `python -m benchmarks.generator` drives the engine alone, against transformers' `generate`
and against what the machine could do (`ceilings.py`); `python -m benchmarks.load` puts load on a service that runs
already; `python -m benchmarks.checkpoint` writes the checkpoint that all of them use; `python -m benchmarks.card` says
what machine this is.

The route of one measurement over HTTP: `graph.py` reads its words into a plan, `servers.py` starts one server at a
time (`processes.py` counts what it uses and ends it), `load.py` carries what `users.py` ask, `speakers.py` words their
questions and reads the answers, refusing bad ones, `summary.py` makes figures of times, `bars.py` holds the ratios
against what must be reached, `report.py` prints and keeps them.
"""
