"""The parts of `benchmarks.on_gpu`, which runs each in a process of its own."""
