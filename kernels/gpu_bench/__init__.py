"""The Triton kernels on a real GPU, timed beside torch: ``python -m thriftree.kernels.gpu_bench``."""
