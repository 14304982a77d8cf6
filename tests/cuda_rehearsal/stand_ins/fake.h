// What the stand-ins share. The runtime (libcudart.c) holds the GPUs; the other libraries ask it.
#ifndef FAKE_H
#define FAKE_H
#include <stddef.h>

enum gate { QUESTION, WORK, WAIT };  // a question; work for the GPU; what no graph under capture may contain

int fake_gate(enum gate kind);             // 0, or the CUDA error that every call of this kind returns now
const char *fake_uuid(int device);         // GPU-...
int fake_has_context(int device);          // whether this process has used the device
int fake_occupied(void);                   // blocks that a multiprocessor holds: a guess that all kernels accept
#endif
