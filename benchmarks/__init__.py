"""Side-by-side measurements, one file a stage; `python -m benchmarks` runs all."""
