"""Side-by-side measurements against the libraries that people use today: `python -m benchmarks NAME`."""
