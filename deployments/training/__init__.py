"""Trains the projector of a LLaVA checkpoint on image-text pairs; tower and language model stay as they are.

The route of one run: `command.py` reads the options. `dataset.py` reads the data (`pairs.py`) and the pictures that it
names (`pictures.py`); `examples.py` makes token ids and targets of conversations, and `features.py` takes what the
tower sees in the pictures from the cache, or makes it. `loop.py` goes through the steps that `batches.py` plans, with
the loss that `model.py` gives, and keeps `state.py` up to date; `checkpoint.py` writes the folder that the graph serves
into the one that `output.py` guards. `run.py` is that route in one place.
"""
