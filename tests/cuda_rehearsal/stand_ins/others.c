// What the generated stubs of the smaller libraries cannot guess: functions that return or fill in something other than a
// status of 0 and a handle. Each library is compiled with its own name defined.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef LIBCUBLAS
int cublasGetVersion_v2(void *handle, int *version) { *version = 130100; return 0; }
const char *cublasGetStatusString(int status) { return "an error of the stand-in"; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return 0; }
#endif
#ifdef LIBCUBLASLT
size_t cublasLtGetVersion(void) { return 130100; }
int cublasLtMatmulAlgoGetHeuristic(void *l, void *o, void *a, void *b, void *c, void *d, void *p, int most, void *results, int *number) {
  memset(results, 0, 8 * 8 + 8 + 4 * 6);  // cublasLtMatmulHeuristicResult_t: no workspace, successful
  *number = 1;
  return 0;
}
#endif
#ifdef LIBCUDNN
size_t cudnnGetVersion(void) { return 92000; }
int cudnnGetProperty(int part, int *value) { *value = part == 0 ? 9 : part == 1 ? 20 : 0; return 0; }  // the same in parts
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return "an error of the stand-in"; }
enum { INT64 = 3, DESCRIPTOR = 15, INT32 = 23, CHOICES_OF_KNOBS = 302, KNOBS = 1302 };  // types and names of attributes
int cudnnBackendCreateDescriptor(int type, void **made) { static char zeros[4096]; *made = zeros; return 0; }
int cudnnBackendGetAttribute(void *of, int name, int type, int64_t most, int64_t *number, void *values) {
  int64_t there = type == INT64 || type == INT32 || (type == DESCRIPTOR && name != KNOBS && name != CHOICES_OF_KNOBS);
  if (number) *number = there;  // one engine without knobs and notes, whose workspace is empty
  if (there && most && values && type == INT64) *(int64_t *)values = 0;
  if (there && most && values && type == INT32) *(int32_t *)values = 0;
  return 0;
}
#endif
#ifdef LIBCUPTI
int cuptiActivityGetNextRecord(void *buffer, size_t bytes, void **record) { *record = NULL; return 12; }  // no more records
int cuptiGetResultString(int result, const char **text) { *text = "an error of the stand-in"; return 0; }
int cuptiGetVersion(uint32_t *version) { *version = 130000; return 0; }
#endif
#ifdef LIBCUSPARSELT
int cusparseLtSpMMACompressedSize2(void *handle, void *matrix, size_t *bytes, size_t *buffer) { *bytes = 1 << 20; *buffer = 0; return 0; }
int cusparseLtMatmulGetWorkspace(void *handle, void *plan, size_t *bytes) { *bytes = 0; return 0; }
int cusparseLtMatmulAlgGetAttribute(void *handle, void *choice, int name, void *value, size_t bytes) { memset(value, 0, bytes); return 0; }
#endif
#ifdef LIBNVRTC
int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }
int nvrtcGetPTXSize(void *program, size_t *bytes) { *bytes = 1; return 0; }
int nvrtcGetCUBINSize(void *program, size_t *bytes) { *bytes = 1; return 0; }
int nvrtcGetProgramLogSize(void *program, size_t *bytes) { *bytes = 1; return 0; }
int nvrtcGetLoweredName(void *program, const char *name, const char **lowered) { *lowered = name; return 0; }
const char *nvrtcGetErrorString(int error) { return "an error of the stand-in"; }
#endif
#ifdef LIBNVIDIA_ML
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *number, void *processes) { *number = 0; return 0; }
#endif
