"""The backends of a vision-language model: which module loads which, and how many questions each wants at once."""

from pathlib import Path
from typing import Any

from sonify.config import EndpointVlm, TransformersVlm, VlmExtractor
from sonify.models.fetch import named
from sonify.vlm.questions import LoadedVlm

REQUEST_KEYS = frozenset({"temperature", "system", "extra_body", "template"})


def load_vlm(config: VlmExtractor, log_folder: Path) -> LoadedVlm:
    """Load a model here, or reach or start the server that has it.

    Raises:
        InputError: the model, the server or what either needs is not there.
    """
    # each backend needs libraries that the others do without
    if isinstance(config, TransformersVlm):
        from sonify.vlm.in_process import load_in_process  # noqa: PLC0415

        return load_in_process(config)
    if isinstance(config, EndpointVlm):
        from sonify.vlm.endpoint import connect_endpoint  # noqa: PLC0415

        return connect_endpoint(config)
    from sonify.vlm.server import start_server  # noqa: PLC0415

    return start_server(config, log_folder)


def fetch_vlm(config: VlmExtractor) -> dict[str, str]:
    """Get a model's files here, or see that its server has it; its name and what exactly it is.

    Raises:
        InputError: there is no such model, or no way to get it.
    """
    if isinstance(config, EndpointVlm):
        from sonify.vlm.endpoint import check_endpoint  # noqa: PLC0415

        check_endpoint(config)
        return {model_name(config): "endpoint"}
    from sonify.models.fetch import SERVER_FILES, VLM_FILES, fetch_model  # noqa: PLC0415

    files = VLM_FILES if isinstance(config, TransformersVlm) else SERVER_FILES
    fetched = fetch_model(config.model, config.revision, files)
    return {model_name(config): fetched.identity}


def model_name(config: VlmExtractor) -> str:
    """What an answer is recorded under: the model as the configuration names it."""
    revision = None if isinstance(config, EndpointVlm) else config.revision
    return named(config.model, revision)


def request_settings(config: VlmExtractor) -> dict[str, Any]:
    """What of a request answers depend on beside the model and the words, where it is not as it always was.

    These keys came when runs had been made: at their defaults they are in no digest.
    """
    values = {name: getattr(config, name) for name in sorted(REQUEST_KEYS & type(config).model_fields.keys())}
    fields = type(config).model_fields
    return {
        name: value for name, value in values.items() if value != fields[name].get_default(call_default_factory=True)
    }


def window_of(config: VlmExtractor) -> int:
    """How many questions one call brings: a batch, or twice what may be on its way, so that no slot waits."""
    return config.batch_size if isinstance(config, TransformersVlm) else 2 * config.concurrency


def overlap_of(config: VlmExtractor) -> int:
    """How many calls run at once: a model here takes one, a server is kept busy by two."""
    return 1 if isinstance(config, TransformersVlm) else 2
