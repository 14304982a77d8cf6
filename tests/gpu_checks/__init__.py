"""The checks of `python -m tests.gpu_check`, on a machine with a real NVIDIA GPU."""
