"""Triton kernels. Imported only when the backend first runs, so that the package needs no triton."""
