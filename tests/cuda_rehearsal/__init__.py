"""The CUDA path of `bench run`, rehearsed on a machine without GPUs: `python -m tests.cuda_rehearsal`.

torch's CUDA build runs unchanged in an environment of its own, on stand-ins for the CUDA libraries. Real are torch's Python
and C++, its caching allocator, ProcessGroupNCCL, autograd's streams, the rules of captures and forks, the choice of attention
kernels, Triton and its assembler. NCCL's stand-in moves data between processes, and a fake NVML has the meters' counters.

Kernels do nothing. So only a real GPU can show:

- arithmetic: losses, accuracy, overflow of fp16 and fp8, whether kernels are right, and whether graphs replay right values;
- speed and energy: throughput, MFU, power, clocks, throttling, and how far the meters disturb the training;
- asynchrony: work that is still running when the host goes on, missing synchronisation, overlap, time limits of NCCL;
- communication: shares (CUPTI reports no kernels), NVLink and peer access, NCCL's own buffers, several nodes;
- memory outside the allocator: the CUDA context, workspaces that cuBLASLt, cuDNN and Triton choose for their kernels;
- what max-autotune chooses, cuDNN's heuristics, and shapes that kernels refuse;
- how a driver behaves: a GPU that falls off the bus, ECC errors, MIG, MPS, persistence mode, containers, another version;
- whether a process that looked for GPUs while they were hidden can use them later, and its children too.
"""
