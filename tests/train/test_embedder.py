"""AudioToken's embedder, prompt and losses against upstream's own numbers; all weights are seeded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.builders import refused
from tests.eval.towers.built import golden, seeded_weights
from train.embedder import Embedder, TokenPrompt, make_noise_scheduler, token_loss
from train.tiny import write_tiny_sd

WORDS = {"photo</w>": 1125, "of</w>": 539, "dog</w>": 1929}  # numbers as CLIP's own vocabulary has them
MERGES: Any = [("o", "f</w>"), ("p", "h"), ("ph", "o"), ("t", "o</w>"), ("pho", "to</w>"), ("d", "o"), ("do", "g</w>")]


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def embedder_of(keys: dict[str, list[int]], base_seed: int, **config: Any) -> Embedder:
    embedder = Embedder(**config)
    embedder.load_state_dict(seeded_weights({name: tuple(shape) for name, shape in keys.items()}, base_seed))
    return embedder.eval()


def tiny_embedder(**config: Any) -> Embedder:
    shapes = Embedder(audio_width=12, token_width=8).state_dict()
    keys = {name: list(tensor.shape) for name, tensor in shapes.items()}
    return embedder_of(keys, 3100, audio_width=12, token_width=8, **config)


@pytest.fixture(scope="module")
def published_words() -> CLIPTokenizer:
    """A tokenizer of CLIP's size and of its numbers for the words of the golden prompt; what is between has no use."""
    letters = [*bytes_to_unicode().values()]
    numbers = {letter: n for n, letter in enumerate(letters)}
    numbers |= {f"{letter}</w>": 256 + n for n, letter in enumerate(letters)}
    pieces = {"".join(pair): 512 + n for n, pair in enumerate(MERGES) if "".join(pair) not in WORDS}
    numbers |= WORDS | pieces | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    taken = {*numbers.values()}
    numbers |= {f"unused {n}": n for n in range(49408) if n not in taken}
    return CLIPTokenizer(vocab=numbers, merges=MERGES, model_max_length=77)


@pytest.fixture(scope="module")
def published_tower() -> CLIPTextModel:
    facts = golden("audiotoken")[1]["clip_text"]
    size = facts["config"]
    tower = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=size["hidden"], intermediate_size=size["intermediate"],
            num_hidden_layers=size["layers"], num_attention_heads=size["heads"], eos_token_id=49407,
        )
    )  # fmt: skip
    tower.load_state_dict(seeded_weights({name: tuple(shape) for name, shape in facts["keys"].items()}, 5000))
    return tower.eval()


@pytest.fixture(scope="module")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def tower(tiny_sd: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(tiny_sd / "text_encoder")


@pytest.fixture
def words(tiny_sd: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")


def test_weights_in_the_published_layout_give_upstreams_token() -> None:
    arrays, facts = golden("audiotoken")
    embedder = embedder_of(facts["keys_true_size"], 3000)
    assert sum(parameter.numel() for parameter in embedder.parameters()) == 8_853_507
    with torch.no_grad():
        token = embedder(uniform(3500, 2, 248, 2304))
    torch.testing.assert_close(token, torch.from_numpy(arrays["true__token_without_dropout"]), rtol=0, atol=1e-4)


def test_every_step_of_the_embedder_is_upstreams() -> None:
    arrays = {name: torch.from_numpy(array) for name, array in golden("audiotoken")[0].items()}
    embedder = tiny_embedder()
    for name, tensor in embedder.state_dict().items():
        assert torch.equal(tensor, arrays[f"tiny__weight__{name}"]), name
    with torch.no_grad():
        hidden = embedder.hidden(arrays["tiny__input"])
        attention, across = embedder.fga, hidden.transpose(1, 2)
        found = {
            "hidden": hidden,
            "unary": attention.un_models[0](across),
            "self_pairwise": attention.pp_models[0](across),
            "potential": attention.potential(hidden),
            "weights": attention(hidden),
            "token": embedder(arrays["tiny__input"]),
        }
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, arrays[f"tiny__{name}"], rtol=0, atol=1e-5, msg=name)


def test_dropout_is_for_training_or_for_upstreams_parity() -> None:
    sound, facts = uniform(3600, 2, 5, 12), golden("audiotoken")[1]["dropout_is_on_in_eval"]
    embedder = tiny_embedder()
    assert torch.equal(embedder(sound), embedder(sound))
    embedder.train()
    assert not torch.equal(embedder(sound), embedder(sound))

    upstreams = embedder_of(golden("audiotoken")[1]["keys_true_size"], 3000, upstream_dropout=True)
    torch.manual_seed(0)
    with torch.no_grad():
        tokens = torch.stack([upstreams(uniform(3500, 2, 248, 2304)) for _ in range(8)])
    measured = facts["std over 32 draws of the token, mean over elements"]
    assert tokens.std(0).mean() == pytest.approx(measured, rel=0.5)


def test_a_saved_embedder_loads_with_its_settings(tmp_path: Path) -> None:
    embedder = tiny_embedder(upstream_dropout=True)
    embedder.save_pretrained(tmp_path)
    loaded = Embedder.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.config["upstream_dropout"] is True
    assert all(torch.equal(one, loaded.state_dict()[name]) for name, one in embedder.state_dict().items())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_features_of_another_width_are_refused() -> None:
    for wrong in (torch.zeros(1, 5, 13), torch.zeros(5, 12), torch.zeros(1, 0, 12)):
        with refused(r"expected audio features \(B, T, 12\)", ValueError):
            tiny_embedder()(wrong)


def test_the_prompt_with_its_token_is_upstreams(published_words: CLIPTokenizer, published_tower: CLIPTextModel) -> None:
    arrays = golden("audiotoken")[0]
    prompt = TokenPrompt(published_tower, published_words)
    assert prompt.token_id == 49408
    assert torch.equal(prompt.input_ids("a photo of <*>"), torch.from_numpy(arrays["clip_text__input_ids"])[0])
    hidden = prompt(torch.from_numpy(arrays["clip_text__audio_token"]))
    torch.testing.assert_close(hidden, torch.from_numpy(arrays["clip_text__hidden"]), rtol=0, atol=1e-5)


def test_gradients_reach_all_of_the_embedder_and_nothing_else(tower: CLIPTextModel, words: CLIPTokenizer) -> None:
    embedder = Embedder(audio_width=12, token_width=32).train()
    prompt = TokenPrompt(tower, words)
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    torch.manual_seed(0)
    token = embedder(uniform(1, 3, 7, 12))
    hidden = prompt(token)
    labels = prompt.embed_labels(["dog", "cat", "sea"])
    token_loss(hidden, torch.zeros_like(hidden), token, labels).total_B.mean().backward()
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tower.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())


def test_each_of_a_batch_has_its_own_token_and_the_rest_of_the_prompt_is_kept(
    tower: CLIPTextModel, words: CLIPTokenizer
) -> None:
    prompt = TokenPrompt(tower, words)
    tokens = uniform(2, 3, 32)
    together = prompt(tokens, "a <*> by night")
    assert together.shape == (3, 77, 32)
    for number in range(3):
        torch.testing.assert_close(together[number], prompt(tokens[number : number + 1], "a <*> by night")[0])
    # what stands before the token cannot see it; from its place on, the sounds part
    place = int((prompt.input_ids("a <*> by night") == prompt.token_id).nonzero())
    assert torch.equal(together[0, :place], together[1, :place])
    assert not torch.allclose(together[0, place], together[1, place])
    assert not torch.allclose(together[0, -1], together[1, -1])


def test_a_word_of_the_tower_as_the_token_is_that_word(tower: CLIPTextModel, words: CLIPTokenizer) -> None:
    prompt = TokenPrompt(tower, words)
    token, empty = prompt.embed_labels(["x"]), prompt.encode_text("")
    torch.testing.assert_close(prompt(token, "a photo of <*>"), prompt.encode_text("a photo of x"))
    assert prompt.encode_text("").shape == (1, 77, 32)
    # the hook of a call is gone after it, and the tokenizer is as it was
    assert torch.equal(prompt.encode_text(""), empty)
    assert "<*>" not in words.get_vocab()


def test_a_label_is_the_mean_of_its_words_without_start_and_end(tower: CLIPTextModel, words: CLIPTokenizer) -> None:
    table = tower.embeddings.token_embedding.weight
    ids = words("two dogs").input_ids[1:-1]
    found = TokenPrompt(tower, words).embed_labels(["two dogs", "x"])
    torch.testing.assert_close(found[0], table[ids].mean(0))
    assert found.shape == (2, 32)
    with refused("expected a label with words for the classification term, found ''", ValueError):
        TokenPrompt(tower, words).embed_labels(["dog", ""])


@pytest.mark.parametrize("placeholder", ["x", "x</w>", "<|endoftext|>"])
def test_a_placeholder_that_is_a_word_already_is_refused(
    placeholder: str, tower: CLIPTextModel, words: CLIPTokenizer
) -> None:
    with refused("is a word that the tokenizer knows; take another", ValueError):
        TokenPrompt(tower, words, placeholder, f"a photo of {placeholder}")


@pytest.mark.parametrize("placeholder", ["", " ", "\n"])
def test_a_placeholder_that_does_not_become_one_token_is_refused(
    placeholder: str, tower: CLIPTextModel, words: CLIPTokenizer
) -> None:
    with refused("is not one token to the tokenizer", ValueError):
        TokenPrompt(tower, words, placeholder, f"a photo of {placeholder}")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a photo of a dog", "expected the placeholder <\\*> once in the prompt, found it no time: 'a photo of a dog'"),
        ("<*> and <*>", "found it 2 times"),
        ("<*>" + "x" * 74, "expected a prompt under 77 tokens, with its start and end, found 77"),
        ("<*>" + "x" * 500, "expected a prompt under 77 tokens, with its start and end, found 503"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(
    prompt: str, message: str, tower: CLIPTextModel, words: CLIPTokenizer
) -> None:
    with refused(message, ValueError):
        TokenPrompt(tower, words, prompt=prompt)
    with refused(message, ValueError):
        TokenPrompt(tower, words)(torch.zeros(1, 32), prompt)
    assert TokenPrompt(tower, words)(torch.zeros(1, 32), "<*>" + "x" * 73).shape == (1, 77, 32)


def test_tokens_and_words_of_another_tower_are_refused(
    tower: CLIPTextModel, words: CLIPTokenizer, published_words: CLIPTokenizer
) -> None:
    with refused(r"expected tokens \(B, 32\), as wide as the text tower, found \(2, 768\)", ValueError):
        TokenPrompt(tower, words)(torch.zeros(2, 768))
    with refused("the tokenizer has 49408 words and the text tower 514", ValueError):
        TokenPrompt(tower, published_words)


def test_the_losses_are_upstreams() -> None:
    expected = golden("audiotoken")[1]["losses"]
    token, label = uniform(5600, 4, 768) * 0.3, uniform(5603, 4, 768) * 0.05
    predicted, noise = uniform(5601, 4, 4, 8, 8), uniform(5602, 4, 4, 8, 8)
    losses = token_loss(predicted, noise, token, label)
    found = {
        "mse": losses.mse_B,
        "l1_mean_abs_token": losses.l1_B,
        "l2sq": losses.l2sq_B,
        "cosine_penalty": losses.penalty_B,
        "total_lambda_a01_c01": losses.total_B,
    }
    for name, values in found.items():
        assert values.shape == (4,)
        assert values.mean().item() == pytest.approx(expected[name], abs=1e-5), name

    without = token_loss(predicted, noise, token)
    assert without.penalty_B.tolist() == [0.0] * 4
    torch.testing.assert_close(without.total_B, losses.mse_B + 0.01 * losses.l1_B)
    squared = token_loss(predicted, noise, token, l1_weight=0.0, l2sq_weight=0.5)
    torch.testing.assert_close(squared.total_B, losses.mse_B + 0.5 * losses.l2sq_B)


def test_noise_is_that_of_the_models_schedule() -> None:
    sampler = PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    kept = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[[0, 999]]
    latents, noise = uniform(1, 2, 4, 8, 8), uniform(2, 2, 4, 8, 8)
    first_and_last: Any = torch.tensor([0, 999])
    noisy = make_noise_scheduler(sampler).add_noise(latents, noise, first_and_last)
    kept_B111 = kept[:, None, None, None]
    torch.testing.assert_close(
        noisy.double(), kept_B111.sqrt() * latents + (1 - kept_B111).sqrt() * noise, rtol=0, atol=1e-6
    )
    other = PNDMScheduler(prediction_type="v_prediction")
    with refused("expected a model whose prediction_type is epsilon, the noise, found v_prediction", ValueError):
        make_noise_scheduler(other)
