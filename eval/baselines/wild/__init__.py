"""The system of "Generating Realistic Images from In-the-wild Sounds" by its description: a caption's words, each with
its weight, condition Stable Diffusion, and ten steps of direct optimisation change the weights."""
