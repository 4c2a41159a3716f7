"""A vision-language model in this process, by transformers' auto classes: any model with a chat template.

Decoding is greedy, and a batch is exactly the questions of a call, so the same questions give the same answers on every
worker with the same kind of processor and as many threads.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, GenerationConfig

from sonify.config import TransformersVlm
from sonify.errors import InputError
from sonify.models.fetch import VLM_FILES, FetchedModel, fetch_model
from sonify.models.loading import choose_device, choose_dtype, load_network, load_part
from sonify.rows import Reason
from sonify.vlm.questions import Answer, NoAnswer, Question
from sonify.vlm.thinking import is_piece_of_mark, opened_by

# Asked of the processor when it is loaded: a template for text alone drops the image or writes it out as words.
TRIAL = Question(image=Image.new("RGB", (64, 64)), prompt="any sound")


def load_in_process(config: TransformersVlm) -> "InProcessVlm":
    """Load a model on the GPU, or on the CPU where there is none.

    Raises:
        InputError: there is no such model, it cannot be loaded or has no chat template, or the settings do not fit.
    """
    fetched = fetch_model(config.model, config.revision, VLM_FILES)
    device = choose_device(config.device)
    torch.set_num_threads(config.cpus)
    torch.backends.cudnn.deterministic = True
    processor = load_part(AutoProcessor, fetched)
    network = load_network(AutoModelForImageTextToText, fetched, device, choose_dtype(config.dtype, device))
    return InProcessVlm(processor, network, fetched, config)


class InProcessVlm:
    """Answers questions in one batch."""

    def __init__(self, processor: Any, network: Any, fetched: FetchedModel, config: TransformersVlm) -> None:
        self._threads = config.cpus
        self._network = network
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._tokenizer.padding_side = "left"  # what is generated stands at the end of every row
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._greedy = _greedy(network.generation_config, self._tokenizer, config.max_new_tokens)
        network.generation_config = self._greedy  # what is not set is otherwise taken from the model's own
        self._ends = torch.tensor(self._greedy.eos_token_id).reshape(-1)
        self._template = config.template
        # special tokens that would leave the text, and reasoning without bounds
        self._pieces = {
            number: token.content
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special and is_piece_of_mark(token.content)
        }
        self._opened = self._try_template(fetched)

    def __call__(self, questions: Sequence[Question]) -> list[Answer | NoAnswer]:
        """Answer questions, in their order."""
        torch.set_num_threads(self._threads)  # each time, since another stage in this process may have set its own
        refused: dict[int, NoAnswer] = {}
        try:
            inputs = self._prepare(questions)
        except ValueError:
            refused = self._find_refused(questions)
            taken = [question for n, question in enumerate(questions) if n not in refused]
            if not taken:
                return list(refused.values())
            inputs = self._prepare(taken)
        answers = iter(self._generate(inputs))
        return [refused[n] if n in refused else next(answers) for n in range(len(questions))]

    def close(self) -> None:
        """Nothing was started."""

    def _generate(self, prepared: BatchFeature) -> list[Answer]:
        inputs = prepared.to(self._network.device, self._network.dtype)
        try:
            with torch.inference_mode():
                tokens = self._network.generate(**inputs, generation_config=self._greedy)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(
                f"{len(inputs['input_ids'])} images do not fit on the GPU together, lower `batch_size`: {error}"
            ) from error
        new = tokens[:, inputs["input_ids"].shape[1] :].cpu()
        texts = [self._decode(row) for row in new.tolist()]
        ended = torch.isin(new, self._ends).any(dim=1).tolist()
        return [Answer(text=text.strip(), finished=end) for text, end in zip(texts, ended, strict=True)]

    def _decode(self, tokens: list[int]) -> str:
        """The text of one answer with the marks of reasoning, also the one with which the prompt ends."""
        pieces = [f"{self._opened}\n" if self._opened else ""]
        for is_piece, run in groupby(tokens, key=self._pieces.__contains__):
            if is_piece:
                pieces += [self._pieces[token] for token in run]
            else:
                pieces.append(
                    self._tokenizer.decode(list(run), skip_special_tokens=True, clean_up_tokenization_spaces=False)
                )
        return "".join(pieces)

    def _prepare(self, questions: Sequence[Question]) -> BatchFeature:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": asked.image}, {"type": "text", "text": asked.prompt}],
                }
            ]
            for asked in questions
        ]
        return self._processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            **self._template,
        )

    def _find_refused(self, questions: Sequence[Question]) -> dict[int, NoAnswer]:
        """The questions whose image the model's processor does not take: Qwen's refuses a strip of 1 to 200."""
        refused: dict[int, NoAnswer] = {}
        for n, question in enumerate(questions):
            try:
                self._prepare([question])
            except ValueError as error:
                refused[n] = NoAnswer(reason=Reason.NO_ANSWER, detail=str(error))
        return refused

    def _try_template(self, fetched: FetchedModel) -> str:
        """Refuse a model that cannot be asked about an image; the mark of reasoning with which its prompt ends."""
        try:
            inputs = self._prepare([TRIAL])
        except (ValueError, TypeError, KeyError, TemplateError) as error:
            raise InputError(
                f"{fetched.path}: {fetched.model} has no chat template that takes an image and a text ({error}); take a"
                " model that was trained to chat, or serve it with `backend: server`"
            ) from error
        asked = self._tokenizer.decode(inputs["input_ids"][0])
        if "pixel_values" not in inputs or TRIAL.prompt not in asked:
            raise InputError(
                f"{fetched.path}: the chat template of {fetched.model} loses the image or the text of a question"
            )
        return opened_by(asked)


def _greedy(own: GenerationConfig, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    """A model's own tokens and penalty; others of its settings may draw at random, or return something else."""
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        repetition_penalty=own.repetition_penalty,
    )
