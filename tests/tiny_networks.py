"""Real model classes at tiny size with seeded random weights, saved as ordinary model folders.

`answering_llava` and `answering_qwen_vl` are taught a few pairs of image and answer, so that they say what a parser
reads. One network is as published: `taesd_folder`. The AST, the BEATs and the VAE are written by `train.tiny`.
"""

import json
import random
import string
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torchaudio.models import ConvTasNet
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    ClapTextConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    HubertConfig,
    HubertModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    RobertaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    Wav2Vec2FeatureExtractor,
)

from sonify.config import ClapEncoder
from sonify.features.ast import AstLogMel, load_ast
from sonify.features.beats import Beats
from sonify.features.vae import load_vae
from sonify.models.fetch import AST_FILES, VAE_FILES, fetch_model
from sonify.retrieval.clap import load_clap
from sonify.retrieval.encoders import fetch_clap
from tests.builders import RATE_HZ
from train.embedder import Embedder
from train.pipeline import AudioPixArtPipeline, make_scheduler
from train.released import write_code
from train.tiny import (
    AST_WIDTH,
    BEATS_WIDTH,
    TEXT_WIDTH,
    write_tiny_ast,
    write_tiny_beats,
    write_tiny_sd,
    write_tiny_vae,
)
from train.token_pipeline import AudioTokenPipeline

Pairs = Sequence[tuple[Image.Image, str]]

SENTENCES = (
    "Caption: a dog on grass.",
    "dog: sound of a dog barking (foreground)",
    "wind: wind in the trees (background)",
)
CPU = torch.device("cpu")
LATENT_SIDE = 8  # of the pipeline: images of 64 pixels
HIDDEN = 64
MOST_STEPS = 1000
LEARNT, STEPS_LEARNT = 0.01, 30  # mean loss of a token of an answer, in so many steps in a row
PROMPT_SEEN = 16  # characters at its end that the templates below pass on, so that what is learnt holds for any prompt
PROMPT_LETTERS = string.ascii_letters + string.digits + ".,:-\n()'" + 10 * "etaoin"

SEEN = f"{{{{ part['text'][-{PROMPT_SEEN}:] }}}}"
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    f"{{% for part in message['content'] %}}{{% if part['type'] == 'text' %}}{SEEN} {{% endif %}}{{% endfor %}}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    f"{{% else %}}{SEEN}{{% endif %}}{{% endfor %}}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_t5(folder: Path, width: int = 32) -> Path:
    """T5's encoder with a tokenizer that knows letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    sizes: dict[str, Any] = {"d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = T5EncoderModel(T5Config(vocab_size=len(pieces), **sizes))
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llava(folder: Path, sentences: Sequence[str] = SENTENCES, specials: Sequence[str] = ()) -> Path:
    """LLaVA-1.5: a CLIP tower, a projector and a Llama; four image tokens of 14 pixels each side."""
    tokenizer = _trained_tokenizer(sentences, ["<unk>", "<s>", "</s>", "<pad>", "<image>", *specials])
    tokenizer.add_special_tokens({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_text_shape(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def tiny_qwen_vl(folder: Path, sentences: Sequence[str] = SENTENCES) -> Path:
    """Qwen2-VL; images are brought to at most 16 patches of 14 pixels, four of which make a token."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = _trained_tokenizer(sentences, [*specials, "<|image_pad|>", "<|video_pad|>"])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    pixels: dict[str, Any] = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels), chat_template=QWEN_TEMPLATE
    )
    config = Qwen2VLConfig(
        text_config=_text_shape(tokenizer)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}},
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": HIDDEN, "mlp_ratio": 2},
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
    )
    torch.manual_seed(0)
    return _save(folder, Qwen2VLForConditionalGeneration(config), processor)


def tiny_qwen3_vl(folder: Path, sentences: Sequence[str] = SENTENCES) -> Path:
    """Qwen3-VL; images are brought to at most 16 patches of 16 pixels, four of which make a token."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = _trained_tokenizer(sentences, [*specials, "<|image_pad|>", "<|video_pad|>"])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    area = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, size=area),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=16, size=area),
        chat_template=QWEN_TEMPLATE,
    )
    text = _text_shape(tokenizer) | {"head_dim": HIDDEN // 4}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
    )
    torch.manual_seed(0)
    return _save(folder, Qwen3VLForConditionalGeneration(config), processor)


def tiny_clap(folder: Path, sentences: Sequence[str] = SENTENCES) -> Path:
    """CLAP with the front end of `laion/clap-htsat-unfused`: 48 kHz, ten seconds, 64 mel bands."""
    bpe = _trained_bpe(sentences, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    vocab, merges = bpe.get_vocab(), _merges(bpe)
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=512)
    front_end = ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=48_000,
        hop_length=480,
        max_length_s=10,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=14_000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    text = ClapTextConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        projection_dim=32,
    )  # fmt: skip
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=8, hidden_size=32, depths=[1, 1, 1], num_attention_heads=[1, 2, 4],
        num_hidden_layers=3, patch_size=8, patch_stride=[8, 8], mlp_ratio=2.0, projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=32))
    return _save(folder, model, ClapProcessor(front_end, tokenizer))


def hearing_clap(folder: Path, sounds: Sequence[np.ndarray], texts: Sequence[str]) -> Path:
    """A tiny CLAP that was taught which text belongs to which sound, and nothing else.

    Sounds are (S,) int16 at 48 kHz; what is taught is the last layer of both towers, exactly.
    """
    settings = ClapEncoder(kind="clap", model=str(tiny_clap(folder, texts)), device="cpu")
    clap = load_clap(settings, fetch_clap(settings))
    network = clap._towers._network  # pyright: ignore[reportAttributeAccessIssue]
    wanted = torch.eye(len(texts), network.config.projection_dim)
    _teach_layer(network.audio_projection.linear2, lambda: list(clap.embed_segments(sounds)), wanted)
    _teach_layer(network.text_projection.linear2, lambda: [clap([text]) for text in texts], wanted, every=clap._texts)
    return _save(folder, network, ClapProcessor.from_pretrained(folder))


@torch.no_grad()
def _teach_layer(layer: torch.nn.Linear, run: Callable[[], object], wanted: torch.Tensor, every: int = 1) -> None:
    """Solve a layer so that what comes to it in a run leaves it as is wanted; of `every` rows the first counts."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][::every].clone()))
    run()
    hook.remove()
    known = torch.cat([torch.cat(seen), torch.ones(len(wanted), 1)], 1)
    solved = torch.linalg.lstsq(known, wanted, driver="gelsd").solution
    layer.load_state_dict({"weight": solved[:-1].T, "bias": solved[-1]})


def tiny_tagger(folder: Path, labels: Sequence[str], sounds: Sequence[np.ndarray] = (), **settings: Any) -> Path:
    """An AST that tags: with random weights, or one that was taught to hear `sounds`, one for each label.

    Sounds are (S,) int16 at 16 kHz; what is taught is the last layer, exactly.
    """
    config = ASTConfig(
        hidden_size=AST_WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * AST_WIDTH,
        id2label=dict(enumerate(labels)), label2id={label: n for n, label in enumerate(labels)}, **settings,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ASTForAudioClassification(config).eval()
    front_end = ASTFeatureExtractor(max_length=config.max_length, num_mel_bins=config.num_mel_bins)
    if len(sounds):
        _teach_sounds(network, AstLogMel(front_end), sounds)
    return _save(folder, network, front_end)


@torch.no_grad()
def _teach_sounds(network: ASTForAudioClassification, log_mel: AstLogMel, sounds: Sequence[np.ndarray]) -> None:
    heard = [log_mel(torch.from_numpy(sound[None] / np.float32(32768))) for sound in sounds]
    pooled = network.audio_spectrogram_transformer(torch.cat(heard)).pooler_output
    features = network.classifier.layernorm(pooled)
    wanted = torch.eye(len(sounds)) * 12 - 6  # one class at 0.998, the others at 0.002
    known = torch.cat([features, torch.ones(len(features), 1)], 1)
    solved = torch.linalg.lstsq(known, wanted, driver="gelsd").solution
    taught = {"classifier.dense.weight": solved[:-1].T, "classifier.dense.bias": solved[-1]}
    network.load_state_dict(network.state_dict() | taught)


def tiny_clip(folder: Path, width: int = 16) -> Path:
    """CLIP: texts letter by letter, images of 32 pixels, in a space of this width."""
    letters = string.ascii_lowercase
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: n for n, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, bos_token_id=vocab["<|startoftext|>"], eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=width,
    )  # fmt: skip
    torch.manual_seed(0)
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, network, CLIPProcessor(images, tokenizer))


def tiny_hubert(folder: Path) -> Path:
    """HuBERT, built as `facebook/hubert-base-ls960`: a group norm behind the first layer, a normalising front end."""
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    front_end = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    return _save(folder, HubertModel(config), front_end)


def answering_llava(folder: Path, pairs: Pairs, specials: Sequence[str] = ()) -> Path:
    """A tiny LLaVA that gives each image its answer, whatever the prompt, and images of a like colour the same.

    `specials` are special tokens that its answers may hold.
    """
    return _teach(tiny_llava(folder, [answer for _, answer in pairs], specials), pairs)


def answering_qwen_vl(folder: Path, pairs: Pairs) -> Path:
    """As `answering_llava`, of the Qwen2-VL kind."""
    return _teach(tiny_qwen_vl(folder, [answer for _, answer in pairs]), pairs)


def answering_qwen3_vl(folder: Path, pairs: Pairs) -> Path:
    """As `answering_llava`, of the Qwen3-VL kind."""
    return _teach(tiny_qwen3_vl(folder, [answer for _, answer in pairs]), pairs)


def tiny_transformer(caption_channels: int = AST_WIDTH, seed: int = 0) -> PixArtTransformer2DModel:
    """Two blocks of width 32 over 8 x 8 x 4 latents."""
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=LATENT_SIDE,
        caption_channels=caption_channels,
    )
    return transformer.eval()


def tiny_pipeline(*, audio: bool = True, caption_channels: int = AST_WIDTH, **settings: Any) -> AudioPixArtPipeline:
    """A pipeline with an AST, or for features of any width without one (`audio=False`); two sounds give two images."""
    with tempfile.TemporaryDirectory() as folder:
        vae = load_vae(fetch_model(str(write_tiny_vae(Path(folder, "vae"))), None, VAE_FILES), CPU, torch.float32)
        fetched_ast = fetch_model(str(write_tiny_ast(Path(folder, "ast"))), None, AST_FILES)
        ast = load_ast(fetched_ast, CPU, torch.float32) if audio else (None, None)
    return AudioPixArtPipeline(tiny_transformer(caption_channels), vae, make_scheduler(), *ast, **settings)


def write_tiny_pixart(folder: Path, **settings: Any) -> Path:
    """Save `tiny_pipeline` as a folder."""
    tiny_pipeline(**settings).save_pretrained(folder)
    return folder


def tiny_token_pipeline(ear: str | None = "beats", **settings: Any) -> AudioTokenPipeline:
    """AudioToken with a BEATs of twelve layers, an AST of two (`ast`), or for features of 24 numbers without an ear."""
    layers, width = {"beats": ((4, 8, 12), 3 * BEATS_WIDTH), "ast": ((1, 2), 2 * AST_WIDTH), None: ((), 24)}[ear]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sd = StableDiffusionPipeline.from_pretrained(write_tiny_sd(folder / "sd"), safety_checker=None)
        heard: Any = {}
        if ear == "beats":
            heard = {"audio_encoder": Beats.from_pretrained(write_tiny_beats(folder / "beats"))}
        elif ear == "ast":
            fetched = fetch_model(str(write_tiny_ast(folder / "ast")), None, AST_FILES)
            heard = dict(
                zip(("audio_encoder", "feature_extractor"), load_ast(fetched, CPU, torch.float32), strict=True)
            )
    torch.manual_seed(0)
    embedder = Embedder(audio_width=width, token_width=TEXT_WIDTH).eval()
    parts = {name: sd.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipeline = AudioTokenPipeline(**parts, **heard, embedder=embedder, **({"layers": layers} | settings))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_tiny_audiotoken(folder: Path, ear: str = "beats", **settings: Any) -> Path:
    """Save `tiny_token_pipeline` as a release's folder, with its code."""
    tiny_token_pipeline(ear, **settings).save_pretrained(folder)
    write_code(folder)
    return folder


def taesd_folder(weights: Path, out: Path) -> Path:
    """Convert the folder `weights/taesd` of the test data; upstream's decoder begins with a clamp, diffusers' not."""
    encoder = load_file(weights / "taesd_encoder.bf16.safetensors")
    decoder = load_file(weights / "taesd_decoder.bf16.safetensors")
    tensors = {f"encoder.layers.{name}": tensor.float() for name, tensor in encoder.items()}
    for name, tensor in decoder.items():
        number, _, rest = name.partition(".")
        tensors[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor.float()
    vae = AutoencoderTiny()
    vae.load_state_dict(tensors)
    vae.save_pretrained(out)
    return out


def tiny_separator(folder: Path, num_sources: int = 3, seed: int = 0, **settings: Any) -> Path:
    """A ConvTasNet of random weights in the folder of a separator, and what else its config.json says."""
    sizes: dict[str, Any] = {"num_sources": num_sources, "enc_kernel_size": 16, "enc_num_feats": 8, "msk_num_feats": 4}
    sizes |= {"msk_num_hidden_feats": 6, "msk_num_layers": 2, "msk_num_stacks": 2, "msk_activate": "sigmoid"}
    torch.manual_seed(seed)
    return _save_separator(folder, ConvTasNet(**sizes), sizes | settings)


def band_separator(folder: Path, edges_hz: Sequence[float], **settings: Any) -> Path:
    """A ConvTasNet whose weights are set, not trained: a source for each band of frequencies between the edges.

    Encoder and decoder are a Fourier transform of 64 samples and its inverse under a sine window, whose square adds up
    to one at half a window's distance; the masks are constant, one for a band and zero for the others.
    """
    size = 64
    sizes: dict[str, Any] = {
        "num_sources": len(edges_hz) + 1,
        "enc_kernel_size": size,
        "enc_num_feats": size,
        "msk_num_feats": 1,
    }
    sizes |= {"msk_num_hidden_feats": 1, "msk_num_layers": 1, "msk_num_stacks": 1, "msk_activate": "sigmoid"}
    network = ConvTasNet(**sizes)
    at = np.arange(size)
    number = np.concatenate([np.arange(size // 2 + 1), np.arange(1, size // 2)])  # cosines, then sines
    phase = np.where(at <= size // 2, 0.0, -np.pi / 2)
    waves = np.cos(2 * np.pi * number[:, None] * at / size + phase[:, None])
    filters = waves / np.linalg.norm(waves, axis=1, keepdims=True) * np.sin(np.pi * (at + 0.5) / size)
    bands = np.searchsorted(edges_hz, number * RATE_HZ / size)
    masks = [np.where(bands == band, 30.0, -30.0) for band in range(len(edges_hz) + 1)]
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.zero_()
        for tensor in (network.encoder.weight, network.decoder.weight):
            tensor.copy_(torch.from_numpy(filters)[:, None])
        network.mask_generator.output_conv.bias = torch.nn.Parameter(torch.from_numpy(np.concatenate(masks)).float())
    return _save_separator(folder, network, sizes | settings)


def _save_separator(folder: Path, network: torch.nn.Module, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "conv_tasnet", "sample_rate": RATE_HZ} | settings))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a safetensors file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def _teach(folder: Path, pairs: Pairs) -> Path:
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).train()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more wait for each other: these matrices are tiny
    _fit(model, processor, pairs)
    torch.set_num_threads(threads)
    return _save(folder, model, processor)


def _fit(model, processor, pairs: Pairs) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    learnt = 0
    for step in range(MOST_STEPS):
        loss = model(**_lessons(processor, pairs, random.Random(step))).loss
        learnt = learnt + 1 if loss.item() < LEARNT else 0
        if learnt == STEPS_LEARNT:
            return
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError(f"the tiny model has not learnt its {len(pairs)} answers in {MOST_STEPS} steps")


def _lessons(processor, pairs: Pairs, rng: random.Random) -> dict:
    """Each pair twice, in random sizes, behind random prompts; only the answers count in the loss."""
    images = [image.resize((rng.randint(60, 120), rng.randint(60, 120))) for image, _ in [*pairs, *pairs]]
    answers = [answer + processor.tokenizer.eos_token for _, answer in pairs] * 2
    prompts = [_prompt(answers, rng.randint(1, PROMPT_SEEN), rng) for _ in images]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    whole = [text + answer for text, answer in zip(texts, answers, strict=True)]
    inputs = processor(text=whole, images=images, padding=True, return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        tokens = len(processor.tokenizer.encode(answer, add_special_tokens=False))
        labels[row, -tokens:] = inputs["input_ids"][row, -tokens:]  # padded on the left
    return {**inputs, "labels": labels}


def _prompt(answers: Sequence[str], length: int, rng: random.Random) -> str:
    """Half nonsense, half words of the answers, which real prompts hold as well."""
    words = " ".join(answers).split()
    nonsense = ("".join(rng.choices(PROMPT_LETTERS, k=rng.randint(1, 9))) for _ in range(length))
    return " ".join(rng.choice((word, rng.choice(words))) for word in nonsense)[:length]


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def _text_shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _trained_bpe(sentences: Sequence[str], specials: list[str]) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        sentences,
        trainers.BpeTrainer(vocab_size=2000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    return bpe


def _trained_tokenizer(sentences: Sequence[str], specials: list[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=_trained_bpe(sentences, specials), padding_side="left")


def _merges(bpe: Tokenizer) -> Any:
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


def _save(folder: Path, model, processor) -> Path:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
