// A stand-in for NCCL: collectives that move data between processes, through a file that all ranks of a communicator map.
//
// Each rank has a seat with a slot. A collective goes in rounds of a slot: a rank fills its slot, waits for those of the
// others, takes what it needs, and says that it has. Messages between two ranks go through a ring for each direction, and
// the operations of a group make progress together. All is done when the call returns, so the host waits where a GPU would.
// FAKE_NCCL is the folder of the files. Without it the process is alone in communicators of any size: all other ranks
// gather what it does, and nothing else is moved.
#define _GNU_SOURCE
#include "fake.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

typedef enum { OK, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR } Result;
typedef enum { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, REDUCE, ALL_TO_ALL, SEND, RECEIVE } Kind;
enum { SUM, PRODUCT, MAXIMUM, MINIMUM, AVERAGE };
enum { INT8, UINT8, INT32, UINT32, INT64, UINT64, HALF, FLOAT, DOUBLE, BFLOAT, TYPES };
enum { SLOT = 1 << 20, RING = 16 << 20, MOST_IN_GROUP = 4096 };
static const size_t type_bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};

typedef struct { char text[128]; } Id;
typedef struct {
  _Alignas(64) atomic_ullong joined, filled, taken;
  unsigned long long what;  // kind and bytes of the collective, which all ranks must agree on
  char uuid[48], slot[SLOT];
} Seat;
typedef struct { _Alignas(64) atomic_ullong in, out; char data[RING]; } Ring;
typedef struct {
  int rank, size, splits;
  atomic_int aborted;
  unsigned long long round;
  char name[160];
  Seat *seats;  // one for each rank
  Ring *rings;  // from rank a to rank b: a * size + b
} Comm;
typedef struct { Kind kind; int type, reduction, peer; const char *in; char *out; size_t bytes, done; Comm *comm; } Operation;

static _Thread_local Operation group[MOST_IN_GROUP];
static _Thread_local int grouped, depth;
static _Thread_local char error_text[256];
extern int cudaGetDevice(int *device);

static int waits_for(Comm *comm, atomic_ullong *counter, unsigned long long least) {
  for (long turn = 0; atomic_load(counter) < least; turn++) {
    if (comm->aborted) return 0;
    if (turn < 50) sched_yield();
    else nanosleep(&(struct timespec){0, 100000}, NULL);
  }
  return 1;
}

// --- arithmetic

static float from_bfloat(uint16_t bits) { union { uint32_t bits; float value; } both = {(uint32_t)bits << 16}; return both.value; }
static uint16_t to_bfloat(float value) { union { float value; uint32_t bits; } both = {value}; return (both.bits + 0x7fff + (both.bits >> 16 & 1)) >> 16; }
static double combine(double a, double b, int reduction) {
  switch (reduction) {
    case PRODUCT: return a * b;
    case MAXIMUM: return a > b ? a : b;
    case MINIMUM: return a < b ? a : b;
    default: return a + b;
  }
}
#define FOLD(TYPE, GET, PUT) for (size_t i = 0; i < bytes / sizeof(TYPE); i++) ((TYPE *)to)[i] = PUT(combine(GET(((TYPE *)to)[i]), GET(((const TYPE *)from)[i]), reduction) / divisor)
static void fold(char *to, const char *from, size_t bytes, int type, int reduction, int divisor) {
  switch (type) {
    case INT8: FOLD(int8_t, , ); break;
    case UINT8: FOLD(uint8_t, , ); break;
    case INT32: FOLD(int32_t, , ); break;
    case UINT32: FOLD(uint32_t, , ); break;
    case INT64: FOLD(int64_t, , ); break;
    case UINT64: FOLD(uint64_t, , ); break;
    case HALF: FOLD(_Float16, , ); break;
    case FLOAT: FOLD(float, , ); break;
    case DOUBLE: FOLD(double, , ); break;
    case BFLOAT: FOLD(uint16_t, from_bfloat, to_bfloat); break;
  }
}

// --- collectives

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

// Take from the slot of a rank, which holds `bytes` from `offset` on of what this rank has sent.
static void take(const Operation *op, int rank, const char *slot, size_t offset, size_t bytes) {
  const Comm *comm = op->comm;
  size_t begin = op->kind == REDUCE_SCATTER || op->kind == ALL_TO_ALL ? comm->rank * op->bytes : 0;  // of my part
  size_t first = offset > begin ? offset : begin, after = least(offset + bytes, begin + op->bytes);
  if (first >= after) return;
  const char *from = slot + (first - offset);
  size_t place = first - begin, amount = after - first;
  int divisor = op->reduction == AVERAGE && rank == comm->size - 1 ? comm->size : 1;
  switch (op->kind) {
    case BROADCAST:
      if (rank == op->peer) memcpy(op->out + place, from, amount);
      break;
    case ALL_GATHER: case ALL_TO_ALL: memcpy(op->out + rank * op->bytes + place, from, amount); break;
    default:
      if (op->kind == REDUCE && comm->rank != op->peer) break;
      if (rank == 0) memcpy(op->out + place, from, amount);
      else fold(op->out + place, from, amount, op->type, op->reduction, divisor);
  }
}

static Result collective(const Operation *op) {
  Comm *comm = op->comm;
  Seat *mine = &comm->seats[comm->rank];
  size_t total = op->bytes * (op->kind == REDUCE_SCATTER || op->kind == ALL_TO_ALL ? comm->size : 1), offset = 0;
  do {
    size_t bytes = least(total - offset, SLOT);
    unsigned long long round = ++comm->round;
    for (int rank = 0; rank < comm->size; rank++)
      if (!waits_for(comm, &comm->seats[rank].taken, round - 1)) return REMOTE_ERROR;
    mine->what = (unsigned long long)total << 3 | op->kind;
    if (op->kind != BROADCAST || comm->rank == op->peer) memcpy(mine->slot, op->in + offset, bytes);
    atomic_store(&mine->filled, round);
    for (int rank = 0; rank < comm->size; rank++) {
      if (!waits_for(comm, &comm->seats[rank].filled, round)) return REMOTE_ERROR;
      if (comm->seats[rank].what != mine->what) {
        snprintf(error_text, sizeof error_text, "ranks %d and %d of %s call different collectives", comm->rank, rank, comm->name);
        fprintf(stderr, "[stand-in of NCCL] %s\n", error_text);
        return INVALID_USAGE;
      }
      take(op, rank, comm->seats[rank].slot, offset, bytes);
    }
    atomic_store(&mine->taken, round);
    offset += bytes;
  } while (offset < total);
  return OK;
}

// --- messages

static int advance(Operation *op) {
  Comm *comm = op->comm;
  int sends = op->kind == SEND;
  Ring *ring = &comm->rings[sends ? comm->rank * comm->size + op->peer : op->peer * comm->size + comm->rank];
  unsigned long long in = atomic_load(&ring->in), out = atomic_load(&ring->out), at = (sends ? in : out) % RING;
  size_t bytes = least(least(sends ? RING - (in - out) : in - out, RING - at), op->bytes - op->done);
  if (sends) memcpy(ring->data + at, op->in + op->done, bytes);
  else memcpy(op->out + op->done, ring->data + at, bytes);
  atomic_fetch_add(sends ? &ring->in : &ring->out, bytes);
  op->done += bytes;
  return bytes > 0;
}

static void pretend(const Operation *op) {
  if (op->kind != ALL_GATHER || op->bytes * op->comm->size > SLOT) return;
  for (int rank = 0; rank < op->comm->size; rank++) memmove(op->out + rank * op->bytes, op->in, op->bytes);
}

static Result run_group(void) {
  Result result = fake_gate(WORK) ? CUDA_ERROR : OK;
  int number = grouped, open = 0, alone = !getenv("FAKE_NCCL");
  grouped = 0;
  for (int i = 0; i < number && alone; i++) pretend(&group[i]);
  if (alone) return result;
  for (int i = 0; i < number && result == OK; i++)
    if (group[i].kind < SEND) result = collective(&group[i]);
  for (int idle = 0; result == OK; idle++) {
    open = 0;
    for (int i = 0; i < number; i++) {
      if (group[i].kind < SEND) continue;
      int first_of_its_ring = 1;  // a ring keeps the order of its messages
      for (int j = 0; j < i; j++)
        first_of_its_ring &= group[j].done == group[j].bytes || group[j].kind != group[i].kind || group[j].peer != group[i].peer || group[j].comm != group[i].comm;
      if (first_of_its_ring && advance(&group[i])) idle = 0;
      open += group[i].done < group[i].bytes;
      if (group[i].comm->aborted) result = REMOTE_ERROR;
    }
    if (!open) break;
    if (idle > 50) nanosleep(&(struct timespec){0, 100000}, NULL);
  }
  return result;
}

static Result add(Operation op) {
  if (grouped == MOST_IN_GROUP || op.type >= TYPES + 2) return INTERNAL_ERROR;
  if (op.kind < SEND) op.done = op.bytes;
  group[grouped++] = op;
  return depth ? OK : run_group();
}
#define ADD(KIND, COUNT, ...) add((Operation){.kind = KIND, .type = type, .bytes = (COUNT) * type_bytes[type], .comm = comm, __VA_ARGS__})

Result ncclGroupStart(void) { depth++; return OK; }
Result ncclGroupEnd(void) { return --depth ? OK : run_group(); }
Result ncclAllReduce(const void *in, void *out, size_t count, int type, int reduction, Comm *comm, void *stream) { return ADD(ALL_REDUCE, count, .in = in, .out = out, .reduction = reduction); }
Result ncclAllGather(const void *in, void *out, size_t count, int type, Comm *comm, void *stream) { return ADD(ALL_GATHER, count, .in = in, .out = out); }
Result ncclReduceScatter(const void *in, void *out, size_t count, int type, int reduction, Comm *comm, void *stream) { return ADD(REDUCE_SCATTER, count, .in = in, .out = out, .reduction = reduction); }
Result ncclBroadcast(const void *in, void *out, size_t count, int type, int root, Comm *comm, void *stream) { return ADD(BROADCAST, count, .in = in, .out = out, .peer = root); }
Result ncclBcast(void *data, size_t count, int type, int root, Comm *comm, void *stream) { return ADD(BROADCAST, count, .in = data, .out = data, .peer = root); }
Result ncclReduce(const void *in, void *out, size_t count, int type, int reduction, int root, Comm *comm, void *stream) { return ADD(REDUCE, count, .in = in, .out = out, .reduction = reduction, .peer = root); }
Result ncclAlltoAll(const void *in, void *out, size_t count, int type, Comm *comm, void *stream) { return ADD(ALL_TO_ALL, count, .in = in, .out = out); }
Result ncclSend(const void *in, size_t count, int type, int peer, Comm *comm, void *stream) { return ADD(SEND, count, .in = in, .peer = peer); }
Result ncclRecv(void *out, size_t count, int type, int peer, Comm *comm, void *stream) { return ADD(RECEIVE, count, .out = out, .peer = peer); }

// --- communicators

Result ncclGetVersion(int *version) { *version = 22907; return OK; }
Result ncclGetUniqueId(Id *id) {
  unsigned long long number;
  memset(id, 0, sizeof *id);
  if (getrandom(&number, sizeof number, 0) != sizeof number) return SYSTEM_ERROR;
  snprintf(id->text, sizeof id->text, "nccl-%016llx", number);
  return OK;
}
Result ncclCommInitRankConfig(Comm **made, int size, Id id, int rank, void *how) {
  int device;
  if (cudaGetDevice(&device)) return CUDA_ERROR;
  Comm *comm = calloc(1, sizeof *comm);
  const char *folder = getenv("FAKE_NCCL");
  char path[512];
  comm->rank = rank, comm->size = size;
  *made = comm;
  if (!folder) return OK;
  snprintf(comm->name, sizeof comm->name, "%.127s", id.text);
  snprintf(path, sizeof path, "%s/%s", folder, comm->name);
  size_t bytes = size * sizeof(Seat) + (size_t)size * size * sizeof(Ring);
  int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  char *all = file < 0 || ftruncate(file, bytes) ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (all == MAP_FAILED) {
    fprintf(stderr, "[stand-in of NCCL] %s: %s\n", path, strerror(errno));
    return SYSTEM_ERROR;
  }
  close(file);
  comm->seats = (Seat *)all;
  comm->rings = (Ring *)(all + size * sizeof(Seat));
  strcpy(comm->seats[rank].uuid, fake_uuid(device));
  atomic_store(&comm->seats[rank].joined, 1);
  for (int other = 0; other < size; other++) {
    waits_for(comm, &comm->seats[other].joined, 1);
    if (other == rank || strcmp(comm->seats[other].uuid, comm->seats[rank].uuid)) continue;
    snprintf(error_text, sizeof error_text, "Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", rank, other, device);
    return INVALID_USAGE;
  }
  unlink(path);  // all have it now
  return OK;
}
Result ncclCommInitRank(Comm **made, int size, Id id, int rank) { return ncclCommInitRankConfig(made, size, id, rank, NULL); }
Result ncclCommInitRankScalable(Comm **made, int size, int rank, int ids, Id *id, void *how) { return ncclCommInitRankConfig(made, size, id[0], rank, how); }
Result ncclCommSplit(Comm *comm, int color, int key, Comm **made, void *how) {
  int mine[2] = {color, key}, all[2 * comm->size], size = 0, rank = 0;
  Operation op = {.kind = ALL_GATHER, .type = INT32, .in = (char *)mine, .out = (char *)all, .bytes = sizeof mine, .comm = comm};
  Result result = collective(&op);
  Id id = {0};
  snprintf(id.text, sizeof id.text, "%.90s-%d-%d", comm->name, comm->splits++, color);
  for (int other = 0; other < comm->size; other++) {
    if (all[2 * other] != color) continue;
    size++;
    rank += all[2 * other + 1] < key || (all[2 * other + 1] == key && other < comm->rank);
  }
  *made = NULL;
  return result || color < 0 ? result : ncclCommInitRankConfig(made, size, id, rank, how);
}
Result ncclCommAbort(Comm *comm) { comm->aborted = 1; return OK; }
Result ncclCommCount(Comm *comm, int *size) { *size = comm->size; return OK; }
Result ncclCommUserRank(Comm *comm, int *rank) { *rank = comm->rank; return OK; }
Result ncclCommGetAsyncError(Comm *comm, Result *error) { *error = OK; return OK; }
const char *ncclGetLastError(Comm *comm) { return error_text; }
const char *ncclGetErrorString(Result result) {
  static const char *texts[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument", "invalid usage", "remote process exited or there was a network error"};
  return texts[result];
}
