// A stand-in for the CUDA runtime. Kernels do nothing; memory is that of the host, with a limit for each GPU; copies are
// done at once (not large ones within a GPU: no kernel wrote anything there). Streams, events, captures and forks obey the rules of the documentation of CUDA 13.
//
// FAKE_CUDA describes the GPUs, one after another: "UUID BYTES FAULT LAUNCHES;". From so many launches of a process on, the
// GPU has its fault: a CUDA error that stays (719: launch failed), -1: the process is killed, -2: the GPU never answers.
#define _GNU_SOURCE
#include "fake.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MOST_GPUS = 16, CONTEXT_BYTES = 500 << 20, DISABLE_TIMING = cudaEventDisableTiming };

typedef struct { char uuid[48]; size_t total, used; int bus, fault, context; long launches; atomic_long launched; } Gpu;
typedef struct Block { char *start; size_t bytes, mapped; int gpu; enum cudaMemoryType type; struct Block *next; } Block;
typedef struct { unsigned long long id; int open, broken; enum cudaStreamCaptureMode mode; pthread_t thread; } Capture;
typedef struct { int gpu, priority; unsigned flags; Capture *capture; } Stream;
typedef struct { int gpu; unsigned flags; struct timespec time; Capture *capture; } Event;

static Gpu gpus[MOST_GPUS];
static int count, started, spoiled;
static Block *blocks;
static Capture *captures[64];  // those that are open
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int current;
static _Thread_local cudaError_t last_error;
static _Thread_local enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// --- the GPUs of this process

static void after_fork(void) { spoiled = started; }

static void see(const Gpu *gpu) { gpus[count++] = *gpu; }

static void look(void) {
  Gpu all[MOST_GPUS] = {0};
  int there = 0;
  const char *text = getenv("FAKE_CUDA");
  while (text && there < MOST_GPUS) {
    Gpu *gpu = &all[there];
    if (sscanf(text, "%47s %zu %d %ld", gpu->uuid, &gpu->total, &gpu->fault, &gpu->launches) == 4) gpu->bus = ++there;
    text = strchr(text, ';');
    text = text ? text + 1 : NULL;
  }
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) {
    for (int i = 0; i < there; i++) see(&all[i]);
    return;
  }
  char *list = strdup(visible), *rest = list, *word;
  while ((word = strsep(&rest, ","))) {  // a name that is none hides what follows
    int match = -1;
    for (int i = 0; i < there; i++)
      if (*word && (strncmp(all[i].uuid, word, strlen(word)) == 0 || (strlen(word) < 3 && atoi(word) == i))) match = i;
    if (match < 0) break;
    see(&all[match]);
  }
  free(list);
}

static cudaError_t start(void) {
  if (spoiled) return cudaErrorInitializationError;
  pthread_mutex_lock(&mutex);
  if (!started) {
    started = 1;
    pthread_atfork(NULL, NULL, after_fork);
    look();
  }
  pthread_mutex_unlock(&mutex);
  return count ? cudaSuccess : cudaErrorNoDevice;
}

static int forbidden_now(void) {
  int found = 0;
  for (int i = 0; i < 64; i++) {
    Capture *capture = captures[i];
    if (!capture || thread_mode == cudaStreamCaptureModeRelaxed) continue;
    int mine = pthread_equal(capture->thread, pthread_self()) && capture->mode != cudaStreamCaptureModeRelaxed;
    int everywhere = capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (mine || everywhere) capture->broken = found = 1;
  }
  return found;
}

int fake_gate(enum gate kind) {
  cudaError_t error = start();
  if (error) return error;
  if (kind == QUESTION) return cudaSuccess;
  Gpu *gpu = &gpus[current];
  gpu->context = 1;
  if (gpu->fault && gpu->launched >= gpu->launches) {
    if (gpu->fault == -1) raise(SIGKILL);
    while (gpu->fault == -2 && kind == WAIT) pause();
    if (gpu->fault > 0) return gpu->fault;
  }
  return kind == WAIT && forbidden_now() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

#define GATE(kind) do { cudaError_t closed = fake_gate(kind); if (closed) return answer(closed); } while (0)

const char *fake_uuid(int device) { return gpus[device].uuid; }
int fake_has_context(int device) { return device < count && gpus[device].context && !spoiled; }
int fake_occupied(void) { return 2; }

cudaError_t cudaGetDeviceCount(int *number) {
  cudaError_t error = start();
  *number = error ? 0 : count;
  return answer(error);
}
cudaError_t cudaGetDevice(int *device) { GATE(QUESTION); *device = current; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  GATE(QUESTION);
  if (device < 0 || device >= count) return answer(cudaErrorInvalidDevice);
  current = device;
  gpus[device].context = 1;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char *cudaGetErrorName(cudaError_t error) { return error ? "cudaErrorOfAStandIn" : "cudaSuccess"; }
const char *cudaGetErrorString(cudaError_t error) {
  static const struct { cudaError_t error; const char *text; } texts[] = {
      {cudaSuccess, "no error"},
      {cudaErrorMemoryAllocation, "out of memory"},
      {cudaErrorInitializationError, "initialization error"},
      {cudaErrorNoDevice, "no CUDA-capable device is detected"},
      {cudaErrorInvalidDevice, "invalid device ordinal"},
      {cudaErrorInvalidResourceHandle, "invalid resource handle"},
      {cudaErrorIllegalAddress, "an illegal memory access was encountered"},
      {cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"},
      {cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"},
      {cudaErrorUnknown, "unknown error"},
  };
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    if (texts[i].error == error) return texts[i].text;
  return "an error of the stand-in";
}

// An H100, as far as torch and triton ask.
static const struct { enum cudaDeviceAttr name; int value; } attributes[] = {
    {cudaDevAttrMaxThreadsPerBlock, 1024},      {cudaDevAttrMaxBlockDimX, 1024},
    {cudaDevAttrMaxBlockDimY, 1024},            {cudaDevAttrMaxBlockDimZ, 64},
    {cudaDevAttrMaxGridDimX, 2147483647},       {cudaDevAttrMaxGridDimY, 65535},
    {cudaDevAttrMaxGridDimZ, 65535},            {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448}, {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
    {cudaDevAttrWarpSize, 32},                  {cudaDevAttrMaxRegistersPerBlock, 65536},
    {cudaDevAttrMaxRegistersPerMultiprocessor, 65536}, {cudaDevAttrMultiProcessorCount, 132},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048}, {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
    {cudaDevAttrL2CacheSize, 52428800},         {cudaDevAttrClockRate, 1980000},
    {cudaDevAttrMemoryClockRate, 2619000},      {cudaDevAttrGlobalMemoryBusWidth, 5120},
    {cudaDevAttrComputeCapabilityMajor, 9},     {cudaDevAttrComputeCapabilityMinor, 0},
    {cudaDevAttrUnifiedAddressing, 1},          {cudaDevAttrCooperativeLaunch, 1},
    {cudaDevAttrMemoryPoolsSupported, 1},
};
static int attribute(enum cudaDeviceAttr name) {
  const char *capability = getenv("FAKE_CAPABILITY");  // 9.0 without it
  if (capability && name == cudaDevAttrComputeCapabilityMajor) return atoi(capability);
  for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
    if (attributes[i].name == name) return attributes[i].value;
  return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device) {
  GATE(QUESTION);
  *value = name == cudaDevAttrPciBusId ? gpus[device].bus : attribute(name);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *all, int device) {
  GATE(QUESTION);
  if (device < 0 || device >= count) return answer(cudaErrorInvalidDevice);
  memset(all, 0, sizeof *all);
  strcpy(all->name, "NVIDIA H100 80GB HBM3");
  char digits[33] = "";
  for (const char *c = gpus[device].uuid + 4; *c; c++)
    if (*c != '-') strncat(digits, c, 1);
  for (int i = 0; i < 16; i++) sscanf(digits + 2 * i, "%2hhx", (unsigned char *)&all->uuid.bytes[i]);
  all->totalGlobalMem = gpus[device].total;
  all->major = attribute(cudaDevAttrComputeCapabilityMajor);
  all->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
  all->warpSize = attribute(cudaDevAttrWarpSize);
  all->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
  all->regsPerBlock = all->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerBlock);
  all->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  all->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  all->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  all->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
  all->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  all->maxBlocksPerMultiProcessor = attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
  for (int i = 0; i < 3; i++) {
    all->maxThreadsDim[i] = attribute(cudaDevAttrMaxBlockDimX + i);
    all->maxGridSize[i] = attribute(cudaDevAttrMaxGridDimX + i);
  }
  all->textureAlignment = 512;
  all->memoryBusWidth = attribute(cudaDevAttrGlobalMemoryBusWidth);
  all->unifiedAddressing = all->concurrentKernels = all->memoryPoolsSupported = 1;
  all->pciBusID = gpus[device].bus;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
  GATE(QUESTION);
  snprintf(text, length, "00000000:%02X:00.0", gpus[device].bus);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  GATE(QUESTION);
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { GATE(QUESTION); *can = device != peer; return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { GATE(WAIT); return cudaSuccess; }

// --- memory

static cudaError_t take(void **start_, size_t bytes, int gpu, enum cudaMemoryType type) {
  size_t mapped = (bytes ? bytes + 4095 : 4096) & ~(size_t)4095;
  *start_ = NULL;
  pthread_mutex_lock(&mutex);
  Gpu *owner = gpu >= 0 ? &gpus[gpu] : NULL;
  int fits = !owner || owner->used + bytes + CONTEXT_BYTES <= owner->total;
  char *start = fits ? mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : MAP_FAILED;
  if (start != MAP_FAILED) {
    Block *block = malloc(sizeof *block);
    *block = (Block){start, bytes, mapped, gpu, type, blocks};
    blocks = block;
    if (owner) owner->used += bytes;
    *start_ = start;
  }
  pthread_mutex_unlock(&mutex);
  return start == MAP_FAILED ? cudaErrorMemoryAllocation : cudaSuccess;
}
static cudaError_t give(void *start) {
  cudaError_t error = cudaErrorInvalidValue;
  pthread_mutex_lock(&mutex);
  for (Block **link = &blocks; *link; link = &(*link)->next) {
    Block *block = *link;
    if (block->start != start) continue;
    if (block->gpu >= 0) gpus[block->gpu].used -= block->bytes;
    if (block->mapped) munmap(block->start, block->mapped);
    *link = block->next;
    free(block);
    error = cudaSuccess;
    break;
  }
  pthread_mutex_unlock(&mutex);
  return error;
}
cudaError_t cudaMalloc(void **start, size_t bytes) { GATE(WAIT); return answer(take(start, bytes, current, cudaMemoryTypeDevice)); }
cudaError_t cudaFree(void *start) { GATE(WAIT); return start ? answer(give(start)) : cudaSuccess; }
cudaError_t cudaMallocAsync(void **start, size_t bytes, cudaStream_t stream) { return cudaMalloc(start, bytes); }
cudaError_t cudaFreeAsync(void *start, cudaStream_t stream) { return cudaFree(start); }
cudaError_t cudaHostAlloc(void **start, size_t bytes, unsigned flags) { GATE(WAIT); return answer(take(start, bytes, -1, cudaMemoryTypeHost)); }
cudaError_t cudaFreeHost(void *start) { return start ? answer(give(start)) : cudaSuccess; }
cudaError_t cudaHostRegister(void *start, size_t bytes, unsigned flags) {
  GATE(QUESTION);
  pthread_mutex_lock(&mutex);
  Block *block = malloc(sizeof *block);
  *block = (Block){start, bytes, 0, -1, cudaMemoryTypeHost, blocks};
  blocks = block;
  pthread_mutex_unlock(&mutex);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *start) { return answer(give(start)); }
cudaError_t cudaMemGetInfo(size_t *free_, size_t *total) {
  GATE(WORK);
  *total = gpus[current].total;
  *free_ = *total - CONTEXT_BYTES - gpus[current].used;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *about, const void *pointer) {
  GATE(QUESTION);
  memset(about, 0, sizeof *about);
  pthread_mutex_lock(&mutex);
  for (Block *block = blocks; block; block = block->next) {
    if ((char *)pointer < block->start || (char *)pointer >= block->start + block->bytes) continue;
    about->type = block->type;
    about->device = block->gpu < 0 ? current : block->gpu;
    about->devicePointer = (void *)pointer;
    about->hostPointer = block->type == cudaMemoryTypeHost ? (void *)pointer : NULL;
    break;
  }
  pthread_mutex_unlock(&mutex);
  return cudaSuccess;
}

static void clear(void *start, int value, size_t bytes) {  // zeros give whole pages back, so that large models fit
  char *end = (char *)start + bytes, *first = (char *)(((uintptr_t)start + 4095) & ~(uintptr_t)4095);
  char *after = (char *)((uintptr_t)end & ~(uintptr_t)4095);
  if (value || after <= first || madvise(first, after - first, MADV_DONTNEED)) {
    memset(start, value, bytes);
    return;
  }
  memset(start, 0, first - (char *)start);
  memset(after, 0, end - after);
}
cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t stream) { GATE(WORK); clear(start, value, bytes); return cudaSuccess; }
cudaError_t cudaMemset(void *start, int value, size_t bytes) { GATE(WAIT); clear(start, value, bytes); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  GATE(WORK);
  if (kind != cudaMemcpyDeviceToDevice || bytes < 1 << 20) memmove(to, from, bytes);  // no kernel has written what is large
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) { GATE(WAIT); memmove(to, from, bytes); return cudaSuccess; }
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, cudaStream_t stream) { GATE(WORK); memmove(to, from, bytes); return cudaSuccess; }
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_step, const void *from, size_t from_step, size_t width, size_t rows, enum cudaMemcpyKind kind, cudaStream_t stream) {
  GATE(WORK);
  for (size_t row = 0; row < rows; row++) memmove((char *)to + row * to_step, (char *)from + row * from_step, width);
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) { static char all[1 << 20]; *pointer = all; return cudaSuccess; }

// --- streams, captures and events

static Stream *real(cudaStream_t stream) { return (uintptr_t)stream <= 2 ? NULL : (Stream *)stream; }  // NULL: a default one
static Capture *capture_of(cudaStream_t stream) {
  Capture *capture = real(stream) ? real(stream)->capture : NULL;
  return capture && capture->open ? capture : NULL;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  GATE(WORK);
  Stream *made = calloc(1, sizeof *made);
  *made = (Stream){current, priority, flags, NULL};
  *stream = (cudaStream_t)made;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = real(stream) ? real(stream)->priority : 0; return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { GATE(WAIT); return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (capture_of(stream)) {
    capture_of(stream)->broken = 1;
    return answer(cudaErrorStreamCaptureUnsupported);
  }
  GATE(WAIT);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *data) {
  GATE(WORK);
  if (!capture_of(stream)) call(data);
  return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void *data, unsigned flags) {
  GATE(WORK);
  call(stream, cudaSuccess, data);
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  enum cudaStreamCaptureMode before = thread_mode;
  thread_mode = *mode;
  *mode = before;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  static atomic_ullong ids;
  GATE(WORK);
  if (!real(stream)) return answer(cudaErrorStreamCaptureUnsupported);
  if (capture_of(stream)) return answer(cudaErrorIllegalState);
  Capture *capture = calloc(1, sizeof *capture);  // events may point to it for as long as the process lives
  *capture = (Capture){++ids, 1, 0, mode, pthread_self()};
  for (int i = 0; i < 64; i++)
    if (!captures[i]) {
      captures[i] = real(stream)->capture = capture;
      return cudaSuccess;
    }
  return answer(cudaErrorIllegalState);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  Capture *capture = capture_of(stream);
  if (!capture) return answer(cudaErrorIllegalState);
  capture->open = 0;
  for (int i = 0; i < 64; i++)
    if (captures[i] == capture) captures[i] = NULL;
  *graph = capture->broken ? NULL : (cudaGraph_t)capture;
  return answer(capture->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  GATE(QUESTION);
  Capture *capture = capture_of(stream);
  *status = !capture ? cudaStreamCaptureStatusNone : capture->broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *number) {
  Capture *capture = capture_of(stream);
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = (cudaGraph_t)capture;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (number) *number = 0;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags) { *ready = (cudaGraphExec_t)graph; return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) { GATE(WORK); return ready ? cudaSuccess : answer(cudaErrorInvalidValue); }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *number) { *number = 1; return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  GATE(WORK);
  Event *made = calloc(1, sizeof *made);
  made->gpu = current;
  made->flags = flags;
  *event = (cudaEvent_t)made;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event_, cudaStream_t stream, unsigned flags) {
  GATE(WORK);
  Event *event = (Event *)event_;
  if (event->gpu != (real(stream) ? real(stream)->gpu : current)) return answer(cudaErrorInvalidResourceHandle);
  clock_gettime(CLOCK_MONOTONIC, &event->time);
  event->capture = capture_of(stream);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecordWithFlags(event, stream, 0); }
static cudaError_t ask(const Event *event) {
  GATE(WAIT);
  return event->capture && event->capture->open ? answer(cudaErrorCapturedEvent) : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return ask((Event *)event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return ask((Event *)event); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t first_, cudaEvent_t second_) {
  Event *first = (Event *)first_, *second = (Event *)second_;
  if ((first->flags | second->flags) & DISABLE_TIMING || !first->time.tv_sec || !second->time.tv_sec)
    return answer(cudaErrorInvalidResourceHandle);
  *milliseconds = (second->time.tv_sec - first->time.tv_sec) * 1e3 + (second->time.tv_nsec - first->time.tv_nsec) / 1e6;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event_, unsigned flags) {
  GATE(WORK);
  Event *event = (Event *)event_;
  Capture *inside = capture_of(stream), *other = event->capture && event->capture->open ? event->capture : NULL;
  if (other && !real(stream)) {
    other->broken = 1;
    return answer(cudaErrorStreamCaptureImplicit);
  }
  if (inside && !other && event->time.tv_sec) {
    inside->broken = 1;
    return answer(cudaErrorStreamCaptureIsolation);
  }
  if (other) real(stream)->capture = other;  // the stream joins the capture
  return cudaSuccess;
}

// --- kernels

static cudaError_t launch(dim3 grid, dim3 block) {
  GATE(WORK);
  gpus[current].launched++;
  int empty = !grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z;
  return answer(empty ? cudaErrorInvalidConfiguration : cudaSuccess);
}
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launch(grid, block); }
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launch(grid, block); }
cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return launch(grid, block); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *kernel, void **arguments) { return launch(how->gridDim, how->blockDim); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *about, const void *kernel) {
  memset(about, 0, sizeof *about);
  about->maxThreadsPerBlock = 1024;
  about->numRegs = 32;
  about->binaryVersion = about->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *number, const void *kernel, int threads, size_t shared) { *number = fake_occupied(); return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *number, const void *kernel, int threads, size_t shared, unsigned flags) { *number = fake_occupied(); return cudaSuccess; }
static _Thread_local struct { dim3 grid, block; size_t shared; void *stream; } pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
  *(void **)stream = pushed.stream;
  return cudaSuccess;
}
void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { *kernel = (cudaKernel_t)function; return cudaSuccess; }
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *a, void **b, unsigned c, enum cudaLibraryOption *d, void **e, unsigned f) { *library = (cudaLibrary_t)&pushed; return cudaSuccess; }
cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) { *kernel = (cudaKernel_t)name; return cudaSuccess; }

// --- what is not here

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *pointer) { return answer(cudaErrorNotSupported); }
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
  static void *driver;
  if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  *function = driver ? dlsym(driver, name) : NULL;
  if (!*function) *function = (void *)nothing;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
