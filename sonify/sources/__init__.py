"""Where images and sounds come from: one module for each, one function for each kind."""
