"""CPU kernels in C++: attention, GEMM, LayerNorm, GeGLU, cross entropy, optimizer. Compiled on first use."""
