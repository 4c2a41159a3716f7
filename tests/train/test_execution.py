"""How the transformer computes: in one graph, the same as it comes, and as convolutions only where these are faster."""

import copy
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from sonify.errors import InputError
from tests.train.runs import training_config, training_input
from tests.train.test_model import CONFIG as MODEL
from tests.train.test_model import some_input, trained
from train import execution
from train.config import CONFIG, TrainConfig, write_config
from train.execution import ConvolvedLinear, choose_linears, compile_blocks, convolve_linears, set_execution
from train.model import predict
from train.pixart import train
from train.routing import Route, routed

CPU = torch.device("cpu")


def gradients(model: PixArtTransformer2DModel) -> list[Tensor]:
    predict(model, *some_input()).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_recomputing_activations_changes_no_gradient() -> None:
    usual, again = trained(), trained()
    again.enable_gradient_checkpointing()
    expected, found = gradients(usual), gradients(again.train())
    assert len(expected) == len(list(usual.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_compiled_blocks_predict_the_same_under_the_same_names() -> None:
    model = trained().requires_grad_(False)
    names = list(model.state_dict())
    usual = predict(model, *some_input())
    compile_blocks(model)
    torch.testing.assert_close(predict(model, *some_input()), usual, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == names


def product_and_gradients(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    y = module.to(dtype)(x)
    (y * torch.randn(y.shape, generator=generator).to(dtype)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(parameter.grad for parameter in module.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 7), (1, 5, 7), (1, 7), (2, 1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_and_its_gradients_are_the_linear_layers(shape: tuple[int, ...], bias: bool) -> None:
    """In float32 each is as near to what float64 gives as the plain layer's is, but for the order of its sums."""
    torch.manual_seed(0)
    linear = nn.Linear(7, 6, bias=bias)
    convolved = copy.deepcopy(linear)
    convolve_linears(convolved)
    assert type(convolved) is ConvolvedLinear
    ours = product_and_gradients(convolved, shape, torch.float32)
    theirs = product_and_gradients(copy.deepcopy(linear), shape, torch.float32)
    exact = product_and_gradients(linear, shape, torch.float64)
    assert len(ours) == len(theirs) == len(exact) == 3 + bias
    for found, plain, expected in zip(ours, theirs, exact, strict=True):
        assert found.shape == plain.shape == expected.shape
        one_step = torch.finfo(torch.float32).eps * expected.abs().max()
        allowed = 4 * max((plain - expected).abs().max(), one_step)
        assert (found - expected).abs().max() <= allowed


def test_a_transformer_predicts_the_same_under_the_same_names() -> None:
    usual = trained()
    convolved = copy.deepcopy(usual)
    convolve_linears(convolved)
    assert list(convolved.state_dict()) == list(usual.state_dict())
    torch.testing.assert_close(predict(convolved, *some_input(3)), predict(usual, *some_input(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_one_graph_serves_all_blocks(recompute: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, counter = trained(), CompileCounter()
    nn.Module.train(model)
    torch.compiler.reset()
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block, **_: compiled(block, backend=counter))
    set_execution(model, compiled=True, recompute=recompute)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = predict(model, *some_input())
        output.float().square().sum().backward()
    assert counter.frame_count == 1
    assert len(cast(nn.ModuleList, model.transformer_blocks)) == 2


def test_two_graphs_serve_blocks_of_which_some_see_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, counter = trained(MODEL.model_copy(update={"layers": 6})), CompileCounter()
    nn.Module.train(model)
    torch.compiler.reset()
    compiled = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda block, dynamic, **_: compiled(block, dynamic=dynamic, backend=counter)
    )
    set_execution(model, compiled=True)
    kept_BK = torch.stack([torch.randperm(16)[:8] for _ in range(2)])
    for route in (Route(kept_BK=kept_BK, first=1, end=4), None):
        with routed(model, route):
            predict(model, *some_input()).square().sum().backward()
    assert counter.frame_count == 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("execution")
    training_input(folder)
    return folder


def config_of(root: Path, run: str, **sections: Any) -> TrainConfig:
    return training_config(root, run, **{"linears": "auto", **sections})


@pytest.mark.parametrize(("ratio", "choice"), [(1.04, "plain"), (1.06, "convolved")])
def test_linears_are_convolved_where_that_is_measured_to_be_faster(
    root: Path, ratio: float, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(execution, "_ratio", lambda _plain, _convolved: ratio)
    assert choose_linears(config_of(root, "measured"), CPU) == choice
    assert choose_linears(config_of(root, "measured", precision="bf16"), CPU) == "plain"
    assert choose_linears(config_of(root, "measured", compile=True), CPU) == "plain"
    assert choose_linears(config_of(root, "measured"), torch.device("cuda")) == "plain"


def test_nothing_is_tried_on_a_processor_that_has_nothing_to_win(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(execution, "_ratio", lambda _plain, _convolved: pytest.fail("measured"))
    assert choose_linears(config_of(root, "narrow"), CPU) == "plain"


def test_both_ways_are_measured_and_compared() -> None:
    seconds = {"slow": 0.02, "quick": 0.005}
    ratio = execution._ratio(lambda: time.sleep(seconds["slow"]), lambda: time.sleep(seconds["quick"]))
    assert 2 < ratio < 6


@pytest.mark.parametrize("choice", ["plain", "convolved"])
def test_a_run_goes_on_with_the_linears_that_it_began_with(
    root: Path, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config_of(root, f"began-{choice}", max_steps=1, linears=choice, samples={"sounds": 0}))
    monkeypatch.setattr(execution, "convolving_wins", lambda *_: pytest.fail("measured"))
    config = config_of(root, f"began-{choice}")
    assert choose_linears(config, CPU) == choice
    other = "plain" if choice == "convolved" else "convolved"
    with pytest.raises(InputError, match=f"began with {choice} ones, and is told {other} now"):
        choose_linears(config.model_copy(update={"linears": other}), CPU)


def test_what_a_run_began_with_is_refused_where_it_cannot_be(root: Path) -> None:
    config = config_of(root, "convolved", linears="convolved")
    write_config(config, config.run_dir)
    for elsewhere, device in (({"compile": True}, CPU), ({"precision": "bf16"}, CPU), ({}, torch.device("cuda"))):
        moved = config.model_copy(update={"linears": "auto", **elsewhere})
        with pytest.raises(InputError, match="began with convolved ones, which are for a CPU"):
            choose_linears(moved, device)
    with pytest.raises(InputError, match="linears: convolved ones are for a CPU, "):
        choose_linears(config_of(root, "none", linears="convolved", compile=True), CPU)


def test_a_run_that_lost_its_record_is_refused(root: Path) -> None:
    config = config_of(root, "lost")
    (config.run_dir / "checkpoints" / "step-00000002").mkdir(parents=True)
    with pytest.raises(InputError, match="has checkpoints and no "):
        choose_linears(config, CPU)


@pytest.mark.parametrize(("settings", "choice"), [({}, "convolved"), ({"precision": "bf16"}, "plain")])
def test_a_run_of_a_version_before_goes_on_as_that_one_did(root: Path, settings: dict[str, Any], choice: str) -> None:
    config = config_of(root, f"before-{choice}", **settings)
    write_config(config, config.run_dir)
    file = config.run_dir / CONFIG
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "linears" not in line))
    assert choose_linears(config, CPU) == choice
