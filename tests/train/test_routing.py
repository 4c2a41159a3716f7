"""Fewer tokens through the middle blocks: which they are, what is computed with them, and where all go through."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sonify.config.loader import make_settings
from sonify.errors import InputError
from tests.train.runs import training_config, training_input
from train.config import Routing, TrainConfig, Transformer
from train.execution import set_execution
from train.loader import Batch
from train.metrics import forward_flops, read_metrics, training_flops
from train.model import init_transformer, predict
from train.pixart import train
from train.routing import Route, draw_route, routed
from train.trial import make_batch

SIZES = {"layers": 6, "heads": 2, "head_dim": 8, "sample_size": 32, "caption_channels": 12}
ROUTING = {"share": 0.5, "first": 1, "last": 2, "finish_steps": 2}
TOKENS = 256


def config_of(folder: Path, **sections: object) -> TrainConfig:
    base = {"run_dir": str(folder / "run"), "max_steps": 10, "data": {"runs": [str(folder)]}, "model": SIZES}
    batch = {"batch": {"total": 8, "per_device": 4}}
    return make_settings(base | batch | {"routing": ROUTING} | sections, TrainConfig)


def made(recompute: bool = False) -> PixArtTransformer2DModel:
    """A model of which no weight is zero."""
    model, _ = init_transformer(Transformer.model_validate(SIZES), seed=9)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    torch.nn.Module.train(model)
    set_execution(model, compiled=False, recompute=recompute)
    return model


def some_input() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 32, 32, generator=generator)
    return latents, torch.tensor([3, 600]), torch.randn(2, 5, 12, generator=generator)


def some_route(kept: int, first: int = 1, end: int = 4) -> Route:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(TOKENS, generator=generator)[:kept].sort().values for _ in range(2)]
    return Route(kept_BK=torch.stack(rows), first=first, end=end)


def output_and_gradients(model: PixArtTransformer2DModel, route: Route | None) -> tuple[Tensor, list[Tensor]]:
    with routed(model, route):
        output = predict(model, *some_input())
    output.square().sum().backward()
    return output.detach(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(("first", "end"), [(1, 4), (2, 3)])
def test_the_blocks_between_see_the_share_and_the_others_all(first, end):
    model, seen = made(), []
    for number in range(6):
        model.get_submodule(f"transformer_blocks.{number}.attn1").register_forward_hook(
            lambda _block, given, _output: seen.append(given[0].shape[1])
        )
    output_and_gradients(model, some_route(64, first, end))
    assert seen == [64 if first <= n < end else TOKENS for n in range(6)]


def test_what_is_left_out_goes_around_as_it_is():
    model, ends = made(), {}
    model.transformer_blocks[0].register_forward_hook(lambda _block, _given, output: ends.update(before=output))
    model.transformer_blocks[4].register_forward_pre_hook(lambda _block, given: ends.update(behind=given[0]))
    route = some_route(64)
    output_and_gradients(model, route)
    same = (ends["before"] == ends["behind"]).all(2)
    for row in range(2):
        assert sorted(torch.nonzero(~same[row]).flatten().tolist()) == route.kept_BK[row].tolist()


def test_a_route_of_all_tokens_and_none_compute_the_same_and_a_share_does_not():
    usual, _ = output_and_gradients(made(), None)
    everything, _ = output_and_gradients(made(), some_route(TOKENS))
    half, _ = output_and_gradients(made(), some_route(128))
    assert torch.equal(everything, usual)
    assert not torch.allclose(half, usual, atol=1e-2)
    model = made()
    output_and_gradients(model, some_route(128))
    assert torch.equal(predict(model, *some_input()), usual)  # as pictures are made


def test_recomputing_a_routed_pass_changes_no_gradient():
    usual, again = (output_and_gradients(made(recompute), some_route(128)) for recompute in (False, True))
    assert torch.equal(usual[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(usual[1], again[1], strict=True))


def test_which_tokens_follows_from_seed_and_position_alone(tmp_path):
    config = config_of(tmp_path)
    whole = draw_route(config, make_batch(config, 5))
    assert whole is not None
    assert whole.kept_BK.shape == (4, 128)
    assert (whole.first, whole.end) == (1, 4)
    assert all(len(set(row)) == 128 for row in whole.kept_BK.tolist())
    single = config.model_copy(update={"batch": config.batch.model_copy(update={"per_device": 1})})
    for n in range(4):  # as another number of processes has them
        part = draw_route(single, at(make_batch(single, 5), n))
        assert part is not None
        assert torch.equal(part.kept_BK[0], whole.kept_BK[n])
    assert not torch.equal(whole.kept_BK[0], whole.kept_BK[1])
    other = draw_route(config_of(tmp_path, seed=1), make_batch(config, 5))
    assert other is not None
    assert not torch.equal(whole.kept_BK, other.kept_BK)


def at(batch: Batch, position: int) -> Batch:
    return replace(batch, position=position)


def test_the_last_steps_have_all_tokens(tmp_path):
    config = config_of(tmp_path)
    routes = [draw_route(config, at(make_batch(config, 5), 8 * step)) for step in range(10)]
    assert [route is None for route in routes] == [False] * 8 + [True] * 2
    assert draw_route(config_of(tmp_path, routing=None), make_batch(config, 5)) is None


def test_operations_are_those_that_torch_counts(tmp_path):
    config = config_of(tmp_path)
    with torch.device("meta"):
        model, _ = init_transformer(config.model, 0)
        given = (torch.empty(2, 4, 32, 32), torch.zeros(2), torch.empty(2, 5, 12))
        kept = torch.zeros(2, Routing.model_validate(ROUTING).kept_of(TOKENS), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), routed(model, Route(kept_BK=kept, first=1, end=4)):
        predict(model, *given)
    assert 2 * forward_flops(config.model, 5, config.routing) == counter.get_total_flops()
    steps = [training_flops(config, 5, step) for step in (1, 8, 9, 10)]
    assert steps == [3 * forward_flops(config.model, 5, config.routing)] * 2 + [3 * forward_flops(config.model, 5)] * 2


@pytest.mark.parametrize(
    ("model", "routing", "message"),
    [
        ({"sample_size": 30}, {}, "routing: an image has 225 tokens, expected at least 256"),
        ({"layers": 3}, {}, "routing: of 3 blocks the first 1 and the last 2 see all tokens"),
        ({}, {"share": 1.0}, "routing.share"),
    ],
)
def test_what_cannot_be_routed_is_one_line(tmp_path, model, routing, message):
    with pytest.raises(InputError) as error:
        config_of(tmp_path, model=SIZES | model, routing=ROUTING | routing)
    assert message in str(error.value)
    assert "\n" not in str(error.value).strip()


def test_a_resumed_routed_run_has_the_losses_of_one_never_stopped(tmp_path):
    training_input(tmp_path, latent_shape=(4, 32, 32))
    sections = {"model": {"layers": 4, "sample_size": 32}, "routing": ROUTING | {"last": 1, "finish_steps": 1}}
    sections["samples"] = {"sounds": 0}
    train(training_config(tmp_path, "straight", max_steps=4, **sections))
    for steps, finish in ((2, 0), (4, 1)):
        part = sections | {"routing": sections["routing"] | {"finish_steps": finish}}
        train(training_config(tmp_path, "resumed", max_steps=steps, **part))
    straight, resumed = ([line["loss"] for line in read_metrics(tmp_path / run)] for run in ("straight", "resumed"))
    np.testing.assert_array_equal(straight, resumed)
