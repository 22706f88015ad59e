"""Decoding steps as chains of Triton kernels: the kernels, their arguments, and the trial before they are used."""

__all__ = ["fused_step", "step_kernels", "step_trial"]
