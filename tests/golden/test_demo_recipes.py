"""Checks the pieces that the demo recipes share: what towers are taught, how language halves begin, what pairs say."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.torch

CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # by torch.compile itself
def test_every_recipe_can_be_started() -> None:
    from stages import Run
    from train import RECIPES

    for recipe in RECIPES.values():
        signature = inspect.signature(importlib.import_module(recipe.module).train, eval_str=True)
        assert [parameter.annotation for parameter in signature.parameters.values()] == [Run]


def test_checkpoints_are_small_together() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINTS.rglob("*") if file.is_file()) <= 30_000_000


def test_cells_show_what_the_pool_says_of_them() -> None:
    from distilling import cell_targets
    from model import image_processor
    from pool import IGNORED, draw_pool

    [pool] = draw_pool(96, 3, image_processor())
    found = cell_targets(pool.scenes, (4, 4))
    is_decided = (found != IGNORED) & (pool.targets != IGNORED)
    assert is_decided.float().mean() > 0.9
    assert (found == pool.targets)[is_decided].all()


def test_each_cell_of_a_wider_grid_shows_the_thing_that_stands_there() -> None:
    from distilling import cell_targets
    from scenes import COLORS, Scene, Thing

    scene = Scene((Thing("star", "red", "at the top left"), Thing("circle", "blue", "at the bottom right")), "white")
    colors = cell_targets([scene, None], (3, 5))[..., 1].reshape(2, 3, 5)
    red, blue, nothing = [*COLORS].index("red"), [*COLORS].index("blue"), len(COLORS)
    assert colors[0, 0, 0] == colors[0, 0, 1] == red
    assert colors[0, 2, 4] == colors[0, 2, 3] == blue
    assert colors[0, 0, 4] == nothing
    assert (colors[1] == nothing).all()


def test_finer_grid_repeats_each_cell() -> None:
    import torch
    from distilling import as_grid

    features = torch.arange(16.0)[None, :, None]
    finer = as_grid(features, (8, 8)).reshape(8, 8)
    assert torch.equal(finer, torch.arange(16.0).reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_language_half_begins_with_the_known_words() -> None:
    import torch
    from language_start import begin_language, load_known, narrow
    from llava_model import INTERMEDIATE, LLAMA, build_model, build_tokenizer

    weights, known = load_known(CHECKPOINTS / LLAMA.begins_as)
    tokenizer = build_tokenizer(LLAMA, known)
    model = build_model(LLAMA, tokenizer, 0)
    narrowed = narrow(weights, INTERMEDIATE)
    begin_language(model, tokenizer, narrowed, known, LLAMA.same)
    embeddings = model.model.language_model.embed_tokens.weight
    for ours, theirs in ((" circle", " circle"), ("</s>", "<end_of_utterance>")):
        [one], [other] = (
            t.encode(text, add_special_tokens=False).ids for t, text in ((tokenizer, ours), (known, theirs))
        )
        assert torch.equal(embeddings[one], weights["embed_tokens.weight"][other].float())
        assert torch.equal(model.lm_head.weight[one], weights["lm_head.weight"][other].float())
    layers = model.model.language_model
    for layer in ("layers.3.self_attn.q_proj.weight", "layers.3.mlp.down_proj.weight"):
        assert torch.equal(layers.get_parameter(layer), narrowed[layer].float())


def test_narrower_mlp_keeps_its_largest_neurons() -> None:
    import torch
    from language_start import narrow

    sizes = torch.tensor([3.0, 1.0, 2.0, 0.5])
    weights = {
        "layers.0.mlp.gate_proj.weight": sizes[:, None] * torch.ones(4, 5),
        "layers.0.mlp.up_proj.weight": torch.ones(4, 5),
        "layers.0.mlp.down_proj.weight": torch.arange(20.0).reshape(5, 4) + 1,
        "norm.weight": torch.ones(5),
    }
    weights["layers.0.mlp.down_proj.weight"][:, 3] = 1000.0
    found = narrow(weights, 2)
    for part, kept in (("gate", [0, 3]), ("up", [0, 3])):
        name = f"layers.0.mlp.{part}_proj.weight"
        assert torch.equal(found[name], weights[name][kept])
    assert torch.equal(found["layers.0.mlp.down_proj.weight"], weights["layers.0.mlp.down_proj.weight"][:, [0, 3]])
    assert found["norm.weight"] is weights["norm.weight"]


def test_new_words_begin_as_the_mean_of_their_pieces() -> None:
    import torch
    from language_start import begin_language, load_known
    from qwen2_vl_model import build_model
    from tokenizers import Tokenizer

    weights, known = load_known(CHECKPOINTS / "smolvlm")
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "qwen2_vl" / "tokenizer.json"))
    model = build_model(tokenizer, 0)
    begin_language(model, tokenizer, weights, known, {})
    [token] = tokenizer.encode("円").ids
    pieces = known.encode("円").ids
    assert len(pieces) == 3
    expected = weights["embed_tokens.weight"][pieces].float().mean(0)
    assert torch.equal(model.model.language_model.embed_tokens.weight[token], expected)
    assert not model.model.language_model.layers[0].self_attn.q_proj.bias.any()


@pytest.mark.parametrize("follows", ["です。", "さん！", "と申します。", ""])
def test_a_name_is_cut_alike_whatever_follows(follows: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "qwen2_vl" / "tokenizer.json"))
    for name in ("山田花子", "鷹司", "ミツル", "薫"):
        ids = tokenizer.encode(name).ids
        assert tokenizer.encode(name + follows).ids[: len(ids)] == ids


def test_pairs_are_read_by_the_command_and_show_the_pool(tmp_path: Path) -> None:
    import torch
    from conversations import Talker
    from model import image_processor
    from pairs import write_pairs
    from PIL import Image
    from pool import draw_pool

    from deployments.training.pairs import read_pairs

    [pool] = draw_pool(40, 3, image_processor())
    write_pairs(tmp_path, pool, Talker(pool.scenes, np.random.default_rng(1)), range(30, 40))
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    named = [pair.exchanges for pair in pairs if len(pair.exchanges) > 2]
    assert 0 < len(named) < len(pairs) == 10
    assert all(exchanges[-1].answer.startswith("Your name is ") for exchanges in named)
    with Image.open(pairs[3].image) as image:
        assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), pool.pixels[33])
