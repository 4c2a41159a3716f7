"""What a model is asked about an image: a caption, and what can be heard.

`PROMPT_VERSION` rises with every change of the words: answers to another prompt are other answers.
"""

PROMPT_VERSION = 1

# The paper's own example ("Seeing Sound", section 3). A small model copies it into its answer: the parser knows it.
EXAMPLE_NAME = "dog"
EXAMPLE_DESCRIPTION = "sound of a dog barking while running in the grass"

# "visible and present in the image" is the paper's: without it models name what is off camera, seagulls at any beach.
CONCEPTS_PROMPT = (
    "What can be heard in this image? Answer in plain lines, without markdown.\n"
    "First line: caption: one sentence that describes the image\n"
    "Then at most {max_concepts} lines, one for each thing that is visible and present in the image and makes a sound"
    " right now:\n"
    "name: description (foreground, background or ambience)\n"
    "The description says how the thing sounds here. An example, from another image:\n"
    f"{EXAMPLE_NAME}: {EXAMPLE_DESCRIPTION} (foreground)\n"
    "Leave out what is silent and what is outside the image. If nothing sounds, write none instead of the names."
)


def concepts_prompt(max_concepts: int) -> str:
    """The question to ask of each image."""
    return CONCEPTS_PROMPT.format(max_concepts=max_concepts)
