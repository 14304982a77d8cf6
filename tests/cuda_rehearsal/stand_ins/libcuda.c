// A stand-in for the driver, as far as torch and triton call it themselves. It asks the runtime about the GPUs.
#include "fake.h"
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>

static char context, module;

CUresult cuInit(unsigned flags) { return (CUresult)fake_gate(QUESTION); }
CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return (CUresult)cudaGetDeviceCount(count); }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute name, CUdevice device) {
  return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)name, device);
}
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  *flags = 0;
  *active = fake_has_context(device);
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *made, CUdevice device) { *made = (CUcontext)&context; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *now) { *now = (CUcontext)&context; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return (CUresult)cudaGetDevice(device); }
CUresult cuModuleLoadData(CUmodule *made, const void *image) { *made = (CUmodule)&module; return CUDA_SUCCESS; }
CUresult cuModuleLoadDataEx(CUmodule *made, const void *image, unsigned count, CUjit_option *names, void **values) {
  return cuModuleLoadData(made, image);
}
CUresult cuModuleLoad(CUmodule *made, const char *path) { return cuModuleLoadData(made, path); }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule from, const char *name) {
  *function = (CUfunction)&module;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute name, CUfunction function) {
  *value = name == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : name == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned shared, CUstream stream, void **arguments, void **more) {
  return (CUresult)cudaLaunchKernel(f, (dim3){x, y, z}, (dim3){a, b, c}, arguments, shared, (cudaStream_t)stream);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *how, CUfunction f, void **arguments, void **more) {
  return cuLaunchKernel(f, how->gridDimX, how->gridDimY, how->gridDimZ, how->blockDimX, how->blockDimY, how->blockDimZ, how->sharedMemBytes, how->hStream, arguments, more);
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *number, CUfunction function, int threads, size_t shared) {
  *number = fake_occupied();
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *number, CUfunction function, const CUlaunchConfig *how) {
  *number = fake_occupied();
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute name, CUdeviceptr pointer) {
  struct cudaPointerAttributes about;
  cudaError_t error = cudaPointerGetAttributes(&about, (void *)pointer);
  if (error || about.type == cudaMemoryTypeUnregistered) return CUDA_ERROR_INVALID_VALUE;
  if (name == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) memcpy(value, &pointer, sizeof pointer);
  else *(int *)value = name == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? about.device : 0;
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) { return (CUresult)cudaStreamSynchronize((cudaStream_t)stream); }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = cudaGetErrorString((cudaError_t)error); return CUDA_SUCCESS; }
