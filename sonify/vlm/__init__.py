"""Vision-language models: prompts, backends, and what their answers mean."""
