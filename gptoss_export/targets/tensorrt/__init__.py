"""TensorRT: engines for the plain operators of a program, Triton kernels for the rest."""
