"""transformers' own model and processor of a tiny LLaVA checkpoint, in float32: what ours must equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, modeling_utils


class Original:
    """Parts are loaded when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folder, backend="pil")

    def inputs(self, turns: list[dict[str, object]], pictures: list[Image.Image]) -> Any:
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        return self.processor(text=text, images=pictures or None, return_tensors="pt")

    @torch.inference_mode()
    def features(self, picture: Image.Image) -> torch.Tensor:
        """(tokens, width of the tower): hidden states of the whole tower, chosen by the configuration's own words."""
        pixels = self.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
        config = self.model.config
        states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        rows = torch.cat(chosen, dim=-1)[0]
        return rows[1:] if config.vision_feature_select_strategy == "default" else rows

    @torch.inference_mode()
    def projected(self, picture: Image.Image) -> torch.Tensor:
        """(tokens, D)"""
        pixels = self.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
        [rows] = self.model.get_image_features(pixels, return_dict=True).pooler_output
        return rows

    @torch.inference_mode()
    def answer(self, turns: list[dict[str, object]], pictures: list[Image.Image], max_new_tokens: int) -> list[int]:
        """Greedy; the stop token included."""
        inputs = self.inputs(turns, pictures)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return ids


@contextmanager
def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the tensors whose values `from_pretrained` reads from safetensors files meanwhile."""
    names: set[str] = set()
    original = modeling_utils.safe_open

    class Slice:
        def __init__(self, name: str, slice_: Any) -> None:
            self._name, self._slice = name, slice_

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self._slice, attribute)

        def __getitem__(self, index: Any) -> Any:
            names.add(self._name)
            return self._slice[index]

    class File:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._file = original(*args, **kwargs)

        def __enter__(self) -> File:
            self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self._file, attribute)

        def get_slice(self, name: str) -> Slice:
            return Slice(name, self._file.get_slice(name))

        def get_tensor(self, name: str) -> Any:
            names.add(name)
            return self._file.get_tensor(name)

    with monkeypatch.context() as patch:
        patch.setattr(modeling_utils, "safe_open", File)
        yield names
