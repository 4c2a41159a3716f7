"""Captions of a file, of a Whisper and of ACT, each with how sure it is of every word."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from eval.baselines.wild.act import COUNTER, POSITIONS, Act, ActCaptioner, act_shapes, log_mel
from eval.baselines.wild.attention import LISTED_NOUNS, NOUN_LIST
from eval.baselines.wild.captions import MAX_WORDS, NOUN_FILE, WhisperCaptioner, hear, open_captioner, read_captions
from eval.towers.tower import Sound
from tests.builders import refused, sine
from tests.eval.baselines.wild.built import golden_sound, write_act, write_whisper
from tests.eval.towers.built import golden
from tests.tiny_networks import tiny_clip

CPU = torch.device("cpu")
VOCABULARY = ("<sos>", "a", "dog", "barks", "rain", "<eos>", "falls", "<ukn>")


def sound(hz: float = 440.0, seconds: float = 1.0) -> Sound:
    return Sound(samples_S=sine(hz, seconds), sample_rate_hz=16_000)


def test_the_log_mel_is_the_published_programs():
    mel_FM = log_mel(golden_sound())
    assert list(mel_FM.shape) == golden("in_the_wild")[1]["act_logmel_shape"]
    assert np.abs(mel_FM[::10].numpy() - golden("in_the_wild")[0]["act_logmel_every_10th"]).max() < 1e-3


# --- a file


def write(folder: Path, text: str) -> Path:
    (folder / "captions.csv").write_text(text)
    return folder / "captions.csv"


def test_a_published_caption_is_sure(tmp_path):
    found = read_captions(write(tmp_path, "id,caption\na,a dog barks\nb,\n"))
    assert found["a"].heard(LISTED_NOUNS).probabilities == (1.0, 1.0, 1.0)
    assert found["a"].heard(LISTED_NOUNS).noun_scores == (0.0, 1.0, 0.0)
    assert found["b"].words == ()  # whose item fails, and no other


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x0b", "\x0c", "\x85"])
def test_a_caption_is_not_cut_at_what_is_no_end_of_a_line(tmp_path, odd):
    found = read_captions(write(tmp_path, f"id,caption\na,a dog{odd}barks loud\n"))
    assert found.keys() == {"a"}
    assert found["a"].words == ("a", "dog", "barks", "loud")


def test_a_file_may_say_how_sure_it_is_and_what_is_a_noun(tmp_path):
    text = "id,caption,probabilities,nouns\na,a dog barks,.5 .9 .25,0 .99 .6\nb,rain,,\n"
    found = read_captions(write(tmp_path, text))
    assert found["a"].heard(LISTED_NOUNS).probabilities == (0.5, 0.9, 0.25)
    assert found["a"].heard(LISTED_NOUNS).noun_scores == (0.0, 0.99, 0.6)
    assert [found[id].heard(LISTED_NOUNS).nouns_by for id in ("a", "b")] == [NOUN_FILE, NOUN_LIST]
    assert found["b"].heard(LISTED_NOUNS).probabilities == (1.0,)
    assert found["b"].heard(LISTED_NOUNS).noun_scores == (1.0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text\na,b\n", "expected the columns id and caption, found id, text; no caption"),
        ("", "expected the columns id and caption, found none; no caption"),
        ("id,caption\na,b\na,c\n", "line 3: a has a caption already"),
        ("id,caption,probabilities\na,one two,.5\n", "line 2: probabilities: expected 2 numbers from 0 to 1.*'.5'"),
        ("id,caption,probabilities\na,one,1.5\n", "line 2: probabilities: expected 1 numbers from 0 to 1.*'1.5'"),
        ("id,caption,nouns\na,one,nan\n", "line 2: nouns: expected 1 numbers from 0 to 1.*'nan'"),
        ("id,caption,nouns\na,one,noun\n", "line 2: nouns: expected 1 numbers from 0 to 1.*'noun'"),
        ('id,caption\na,"one\n', "cannot be read as CSV"),
        (
            "id,caption\na,dog,barks\n",
            "line 2: more cells than columns; a caption with a comma in it belongs in quotes",
        ),
        ("id,caption,caption\na,b,c\n", "expected each column once, found id, caption, caption"),
        ("id,caption\na\n", None),
    ],
)
def test_a_file_that_says_something_else_is_refused_with_its_line(tmp_path, text, message):
    path = write(tmp_path, text)
    if message is None:
        assert read_captions(path)["a"].words == ()
        return
    with refused(message):
        read_captions(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with refused("none.csv: cannot be read as text .No such file"):
        read_captions(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00id")
    with refused("bytes.csv: cannot be read as text"):
        read_captions(tmp_path / "bytes.csv")


def test_what_says_nothing_is_refused():
    with refused("its caption is empty"):
        hear(lambda _sound: [], LISTED_NOUNS, sound())


# --- a Whisper


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


def test_a_captioner_gives_the_probability_of_each_greedy_word(whisper):
    """Recomputed by the model class alone: the largest probability of each token, multiplied over a word's bytes."""
    captioner = open_captioner(str(whisper), None, "x > y:", CPU)
    said = captioner(sound())
    network: Any = WhisperForConditionalGeneration.from_pretrained(whisper)
    tokenizer: Any = WhisperTokenizer.from_pretrained(whisper)
    ids = [*tokenizer.prefix_tokens, *tokenizer.encode("x > y:", add_special_tokens=False)]
    start = len(ids)
    features = captioner._front_end(sound().samples_S, sampling_rate=16_000, return_tensors="pt").input_features  # pyright: ignore[reportAttributeAccessIssue]
    text, product = "", 1.0
    with torch.inference_mode():
        for _ in range(64 - start):
            logits = network(input_features=features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            best = logits.softmax(-1).max(-1)
            if int(best.indices) in tokenizer.all_special_ids:
                break
            ids.append(int(best.indices))
            product *= float(best.values)
            text = tokenizer.decode(ids[start:])
    assert [word for word, _ in said] == text.split()
    if len(said) == 1:
        assert said[0][1] == round(product, 4)
    assert all(0 <= p <= 1 and p == round(p, 4) for _, p in said)


def test_tokens_are_put_to_the_words_that_they_are_of(whisper):
    captioner: Any = open_captioner(str(whisper), None, "", CPU)
    ids = captioner._tokenizer.encode(" a dog", add_special_tokens=False)
    sure = [0.9, 0.8, 0.7, 0.5, 0.5, 0.4]  # space a space d o g
    assert captioner._as_words(ids, sure) == [("a", 0.72), ("dog", 0.07)]
    long = captioner._tokenizer.encode(" a" * 40, add_special_tokens=False)
    assert len(captioner._as_words(long, [1.0] * len(long))) == MAX_WORDS


def test_a_prompt_that_fills_the_decoder_is_refused(whisper):
    with refused("captioner_prompt: expected fewer than 64 tokens with its start, found"):
        open_captioner(str(whisper), None, "x" * 80, CPU)


def test_what_is_no_captioner_is_refused(tmp_path):
    with refused("expected a model of type 'whisper'"):
        open_captioner(str(tiny_clip(tmp_path / "clip")), None, "", CPU)


def test_a_captioner_is_of_whispers_class(whisper):
    assert isinstance(open_captioner(str(whisper), None, "", CPU), WhisperCaptioner)


# --- ACT


@pytest.fixture(scope="module")
def act(tmp_path_factory) -> tuple[Path, Path]:
    return write_act(tmp_path_factory.mktemp("act"), VOCABULARY)


def test_act_says_words_of_its_vocabulary_and_how_sure_it_was(act):
    captioner: Any = ActCaptioner(act[0], act[1], CPU)
    said = captioner(sound(440.0, 12.0))
    assert 0 < len(said) <= MAX_WORDS
    network: Any = captioner._network
    heard = sound(440.0, 12.0)
    import soxr  # noqa: PLC0415 - for what the network is given, made apart

    samples = soxr.resample(heard.samples_S, 16_000, 32_000, quality="HQ")[:320_000]
    ids = [0, *(VOCABULARY.index(word) for word, _ in said)]
    with torch.inference_mode():
        scores = network.decode(network.encode(log_mel(samples)[None]), torch.tensor([ids]))[: len(said), 0].softmax(-1)
    assert scores.argmax(-1).tolist() == ids[1:]
    assert [p for _, p in said] == pytest.approx(scores.max(-1).values.tolist(), abs=1e-4)


def test_acts_words_do_not_see_what_follows_them(act):
    network = Act(len(VOCABULARY)).eval()
    network.load_state_dict({COUNTER: torch.tensor(0)} | load_file(act[0]))
    with torch.inference_mode():
        encoded = network.encode(log_mel(np.pad(golden_sound(), (0, 256_000)))[None])
        assert encoded.shape == (126, 1, 512)
        one, other = (network.decode(encoded, torch.tensor([ids])) for ids in ([0, 1, 2], [0, 1, 5]))
    assert torch.allclose(one[:2], other[:2], atol=1e-5)
    assert not torch.allclose(one[2], other[2], atol=1e-3)


def test_acts_tensors_are_named_as_its_public_code_builds_them():
    shapes = act_shapes(4368)
    expected = {
        "encoder.bn0.running_mean": (64,),
        "encoder.patch_embed.proj.weight": (768, 256),
        "encoder.pos_embedding": (1, 126, 768),
        "encoder.cls_token": (1, 1, 768),
        "encoder.blocks.layers.11.0.norm.weight": (768,),
        "encoder.blocks.layers.11.0.fn.qkv.weight": (2304, 768),
        "encoder.blocks.layers.11.0.fn.proj.0.weight": (768, 768),
        "encoder.blocks.layers.11.1.fn.mlp.fc1.weight": (3072, 768),
        "encoder.blocks.layers.11.1.fn.mlp.fc2.bias": (768,),
        "encoder.mlp_head.0.weight": (768,),
        "encoder.mlp_head.1.weight": (527, 768),
        "encoder_linear.weight": (512, 527),
        "transformer_decoder.layers.3.self_attn.in_proj_weight": (1536, 512),
        "transformer_decoder.layers.3.multihead_attn.out_proj.weight": (512, 512),
        "transformer_decoder.layers.3.linear1.weight": (2048, 512),
        "word_emb.weight": (4368, 512),
        "dec_fc.weight": (4368, 512),
        POSITIONS: (2000, 1, 512),
    }
    assert {name: shapes[name] for name in expected} == expected
    front, block, heads, layer, ends = 5 + 2 + 2, 12, 4, 18, 2 + 1 + 2  # of the norm, the patches and their places
    assert len(shapes) == front + 12 * block + heads + 4 * layer + ends + 1


def test_weights_of_another_vocabulary_are_refused(act, tmp_path):
    (tmp_path / "words.txt").write_text("<sos>\na\n<eos>\n")
    with refused(r"expected the .* tensors of ACT.*dec_fc.bias is \[8\] instead of \[3\]"):
        ActCaptioner(act[0], tmp_path / "words.txt", CPU)
    (tmp_path / "words.txt").write_text("a\nb\n")
    with refused("words.txt: expected ACT's vocabulary, a word a line, with <eos> among them, found 2 lines"):
        ActCaptioner(act[0], tmp_path / "words.txt", CPU)
    with refused("none.safetensors: expected ACT's weights as safetensors, found no file"):
        ActCaptioner(tmp_path / "none.safetensors", act[1], CPU)


def test_the_positions_and_counter_of_a_published_file_are_taken(act, tmp_path):
    whole = load_file(act[0]) | {POSITIONS: torch.zeros(2000, 1, 512), COUNTER: torch.tensor(7)}
    save_file(whole, tmp_path / "act.safetensors")
    captioner: Any = ActCaptioner(tmp_path / "act.safetensors", act[1], CPU)
    assert captioner._network.encoder.bn0.num_batches_tracked == 7
