"""Everything that depends on the hardware: attention, GEMMs, elementwise kernels, packed weights, CUDA graphs."""
