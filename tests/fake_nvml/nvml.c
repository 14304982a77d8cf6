/* A stand-in for libnvidia-ml.so.1: GPUs that follow CLOCK_MONOTONIC, so that all processes see the same ones.

   The environment variable FAKE_NVML describes them and is read at every initialisation; without it there is no driver.
   A line is a list of key=value with tabs between: the first line is the system, each further one a GPU. Every key is
   given (see __init__.py): times in nanoseconds, power in milliwatts, -1 for what a GPU does not support or never does.
   Energy is an integral of whole numbers, without rounding. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default"))) int

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, INSUFFICIENT_SIZE };
enum { LIBRARY_NOT_FOUND = 12, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25 };
enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };
enum { AMPERE = 7, GARBAGE = 12345678, GARBAGE_TYPE = 99 };

#define ABSURD_MILLIWATTS 4000000000u
enum { GPUS = 16, ITEMS = 64, TEXT = 96 };
enum { MEMORY_V2 = 0x02000028, TEMPERATURE_V1 = 0x100000C };

typedef __int128 wide;

typedef struct {
    char key[TEXT];
    int64_t value;
} item_t;

typedef struct {
    int count;
    item_t items[ITEMS];
} list_t;

typedef struct {
    char uuid[TEXT], name[TEXT], pci[32];
    int64_t memory, memory_used, memory_reserved, architecture;
    int64_t high, low, wave_period, wave_high, wave_phase;
    int64_t period, power_period, power_window;
    int64_t reset_at, lost_at, errors_since, errors_until, throttled_since, throttled_until;
    int64_t sm_clock, sm_clock_throttled, sm_clock_max, memory_clock, memory_clock_max, event_reasons;
    int64_t temperature, memory_temperature, limit, limit_default, limit_min, limit_max, pstate, mig_capable;
    list_t power_scopes, errors, mig, pids, graphics_pids, throttle;
} gpu_t;

typedef struct {
    gpu_t *gpu;
    int slice; /* -1: the whole GPU */
} device_t;

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    int type, error;
    union {
        unsigned int ui;
        unsigned long long ull;
    } value;
} field_t;

typedef struct {
    unsigned int pid;
    unsigned long long memory;
    unsigned int gpu_instance, compute_instance;
} process_t;

typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_t;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_t;

typedef struct {
    unsigned int version;
    int sensor, celsius;
} temperature_t;

__attribute__((visibility("default"))) int64_t fake_nvml_now = -1; /* nanoseconds; negative: CLOCK_MONOTONIC */
__attribute__((visibility("default"))) _Atomic int fake_nvml_started = 0;

static pid_t owner;
static char *known, driver[TEXT];
static int64_t init_error;
static int gpu_count;
static gpu_t gpus[GPUS];
static device_t devices[GPUS][ITEMS + 1];

/* --- what FAKE_NVML says */

static void broken(const char *what) {
    fprintf(stderr, "FAKE_NVML is not understood: %s\n", what);
    abort();
}

static void copy(char *to, const char *from, size_t size) {
    if (strlen(from) >= size) broken(from);
    strcpy(to, from);
}

static int64_t number(const char *text) {
    char *end;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end) broken(text);
    return value;
}

/* key:value,key:value */
static void read_list(list_t *list, char *text) {
    char *rest;
    for (char *part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *colon = strchr(part, ':');
        if (!colon || list->count == ITEMS) broken(part);
        *colon = 0;
        item_t *item = &list->items[list->count++];
        copy(item->key, part, sizeof item->key);
        item->value = number(colon + 1);
    }
}

static int64_t *number_of(gpu_t *gpu, const char *key) {
#define NUMBER(name) if (!strcmp(key, #name)) return &gpu->name
    NUMBER(memory); NUMBER(memory_used); NUMBER(memory_reserved); NUMBER(architecture);
    NUMBER(high); NUMBER(low); NUMBER(wave_period); NUMBER(wave_high); NUMBER(wave_phase);
    NUMBER(period); NUMBER(power_period); NUMBER(power_window);
    NUMBER(reset_at); NUMBER(lost_at); NUMBER(errors_since); NUMBER(errors_until);
    NUMBER(throttled_since); NUMBER(throttled_until);
    NUMBER(sm_clock); NUMBER(sm_clock_throttled); NUMBER(sm_clock_max); NUMBER(memory_clock);
    NUMBER(memory_clock_max); NUMBER(event_reasons); NUMBER(temperature); NUMBER(memory_temperature);
    NUMBER(limit); NUMBER(limit_default); NUMBER(limit_min); NUMBER(limit_max); NUMBER(pstate); NUMBER(mig_capable);
#undef NUMBER
    return NULL;
}

static list_t *list_of(gpu_t *gpu, const char *key) {
#define LIST(name) if (!strcmp(key, #name)) return &gpu->name
    LIST(power_scopes); LIST(errors); LIST(mig); LIST(pids); LIST(graphics_pids); LIST(throttle);
#undef LIST
    return NULL;
}

static void read_gpu(gpu_t *gpu, const char *key, char *value) {
    if (!strcmp(key, "uuid")) copy(gpu->uuid, value, sizeof gpu->uuid);
    else if (!strcmp(key, "name")) copy(gpu->name, value, sizeof gpu->name);
    else if (!strcmp(key, "pci")) copy(gpu->pci, value, sizeof gpu->pci);
    else if (number_of(gpu, key)) *number_of(gpu, key) = number(value);
    else if (list_of(gpu, key)) read_list(list_of(gpu, key), value);
    else broken(key);
}

static void read_system(const char *key, const char *value) {
    if (!strcmp(key, "driver")) copy(driver, value, sizeof driver);
    else if (!strcmp(key, "init_error")) init_error = number(value);
    else broken(key);
}

static void read_config(const char *config) {
    if (known && !strcmp(known, config)) return; /* another thread may be reading */
    free(known);
    known = strdup(config);
    char *text = strdup(config), *rest_of_text, *rest_of_line;
    int line_number = -1;
    init_error = SUCCESS;
    memset(gpus, 0, sizeof gpus);
    for (char *line = strtok_r(text, "\n", &rest_of_text); line; line = strtok_r(NULL, "\n", &rest_of_text)) {
        if (++line_number > GPUS) broken("too many GPUs");
        for (char *key = strtok_r(line, "\t", &rest_of_line); key; key = strtok_r(NULL, "\t", &rest_of_line)) {
            char *value = strchr(key, '=');
            if (!value) broken(key);
            *value++ = 0;
            if (line_number == 0) read_system(key, value);
            else read_gpu(&gpus[line_number - 1], key, value);
        }
    }
    free(text);
    gpu_count = line_number > 0 ? line_number : 0;
    for (int i = 0; i < GPUS; i++)
        for (int j = 0; j <= ITEMS; j++) devices[i][j] = (device_t){&gpus[i], j - 1};
}

/* --- time, power and energy */

static int64_t nanoseconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now(void) { return fake_nvml_now >= 0 ? fake_nvml_now : nanoseconds(CLOCK_MONOTONIC); }

static int64_t last_update(int64_t t, int64_t period) { return period ? t - t % period : t; }

static int64_t milliwatts_at(const gpu_t *gpu, int64_t t) {
    return (t + gpu->wave_phase) % gpu->wave_period < gpu->wave_high ? gpu->high : gpu->low;
}

/* The integral of power over wave time, in picojoules. */
static wide integral(const gpu_t *gpu, int64_t t) {
    int64_t whole = t / gpu->wave_period, part = t % gpu->wave_period;
    wide high = (wide)whole * gpu->wave_high + (part < gpu->wave_high ? part : gpu->wave_high);
    return high * gpu->high + (t - high) * gpu->low;
}

static wide picojoules(const gpu_t *gpu, int64_t t0, int64_t t1) {
    return integral(gpu, t1 + gpu->wave_phase) - integral(gpu, t0 + gpu->wave_phase);
}

static unsigned long long counter(const gpu_t *gpu) {
    int64_t t = last_update(now(), gpu->period);
    int64_t start = gpu->reset_at >= 0 && t >= gpu->reset_at ? gpu->reset_at : 0;
    return picojoules(gpu, start, t) / 1000000000;
}

static int64_t mean_milliwatts(const gpu_t *gpu, int64_t t, int64_t window) {
    int64_t start = t > window ? t - window : 0;
    return t > start ? (int64_t)(picojoules(gpu, start, t) / (t - start)) : milliwatts_at(gpu, t);
}

static int64_t instant_milliwatts(const gpu_t *gpu) {
    int64_t t = last_update(now(), gpu->power_period);
    return gpu->power_window ? mean_milliwatts(gpu, t, gpu->power_window) : milliwatts_at(gpu, t);
}

static int throttled(const gpu_t *gpu) { return now() >= gpu->throttled_since && now() < gpu->throttled_until; }

/* Nanoseconds so far of a throttle counter that grows by so many billionths of the time. */
static unsigned long long throttled_ns(const gpu_t *gpu, int64_t billionths) {
    int64_t since = gpu->throttled_since, until = gpu->throttled_until < now() ? gpu->throttled_until : now();
    return until > since ? (wide)(until - since) * billionths / 1000000000 : 0;
}

/* --- who may ask what */

static const item_t *find(const list_t *list, const char *key) {
    for (int i = 0; i < list->count; i++)
        if (!strcmp(list->items[i].key, key)) return &list->items[i];
    return NULL;
}

static const item_t *find_number(const list_t *list, unsigned int key) {
    char text[16];
    snprintf(text, sizeof text, "%u", key);
    return find(list, text);
}

/* NVML belongs to the process that initialised it. */
static int uninitialized(void) { return !fake_nvml_started || owner != getpid(); }

static int planted(const gpu_t *gpu, const item_t *error) {
    return error && now() >= gpu->errors_since && now() < gpu->errors_until ? (int)error->value : SUCCESS;
}

static int is_device(const device_t *device) {
    for (int i = 0; i < gpu_count; i++)
        if (device >= &devices[i][0] && device <= &devices[i][gpus[i].mig.count]) return 1;
    return 0;
}

static int check(const device_t *device, const char *function) {
    if (uninitialized()) return UNINITIALIZED;
    if (!is_device(device)) return INVALID_ARGUMENT;
    if (device->gpu->lost_at >= 0 && now() >= device->gpu->lost_at) return GPU_IS_LOST;
    return planted(device->gpu, find(&device->gpu->errors, function));
}

#define CHECK(device) do { int error_ = check(device, __func__); if (error_) return error_; } while (0)
#define CHECK_WHOLE(device) do { CHECK(device); if ((device)->slice >= 0) return NOT_SUPPORTED; } while (0)

static int give_text(char *to, unsigned int size, const char *from) {
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

static int give_number(unsigned int *to, int64_t value) {
    if (value < 0) return NOT_SUPPORTED;
    *to = (unsigned int)value;
    return SUCCESS;
}

/* --- the library */

API nvmlInitWithFlags(unsigned int flags) {
    const char *config = getenv("FAKE_NVML");
    (void)flags;
    if (!config) return LIBRARY_NOT_FOUND;
    if (owner != getpid()) fake_nvml_started = 0;
    owner = getpid();
    read_config(config);
    if (init_error) return (int)init_error;
    fake_nvml_started++;
    return SUCCESS;
}

API nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API nvmlShutdown(void) {
    if (uninitialized()) return UNINITIALIZED;
    fake_nvml_started--;
    return SUCCESS;
}

__attribute__((visibility("default"))) const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "NVML error %d", code);
    return text;
}

API nvmlSystemGetDriverVersion(char *version, unsigned int size) {
    return uninitialized() ? UNINITIALIZED : give_text(version, size, driver);
}

API nvmlSystemGetNVMLVersion(char *version, unsigned int size) {
    if (uninitialized()) return UNINITIALIZED;
    if (snprintf(version, size, "13.%s", driver) >= (int)size) return INSUFFICIENT_SIZE;
    return SUCCESS;
}

API nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = gpu_count;
    return uninitialized() ? UNINITIALIZED : SUCCESS;
}

/* --- handles and identity */

API nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **device) {
    if (uninitialized()) return UNINITIALIZED;
    if (index >= (unsigned int)gpu_count) return INVALID_ARGUMENT;
    *device = &devices[index][0];
    return check(*device, __func__);
}

static const char *uuid_of(const device_t *device) {
    return device->slice < 0 ? device->gpu->uuid : device->gpu->mig.items[device->slice].key;
}

API nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device) {
    if (uninitialized()) return UNINITIALIZED;
    for (int i = 0; i < gpu_count; i++) {
        for (int j = 0; j <= gpus[i].mig.count; j++) {
            if (strcmp(uuid_of(&devices[i][j]), uuid)) continue;
            *device = &devices[i][j];
            return check(*device, __func__);
        }
    }
    return NOT_FOUND;
}

API nvmlDeviceGetHandleByPciBusId_v2(const char *pci, device_t **device) {
    if (uninitialized()) return UNINITIALIZED;
    for (int i = 0; i < gpu_count; i++) {
        if (strcasecmp(gpus[i].pci, pci)) continue;
        *device = &devices[i][0];
        return check(*device, __func__);
    }
    return NOT_FOUND;
}

API nvmlDeviceGetIndex(const device_t *device, unsigned int *index) {
    CHECK_WHOLE(device);
    return give_number(index, device->gpu - gpus);
}

API nvmlDeviceGetUUID(const device_t *device, char *uuid, unsigned int size) {
    CHECK(device);
    return give_text(uuid, size, uuid_of(device));
}

API nvmlDeviceGetName(const device_t *device, char *name, unsigned int size) {
    CHECK(device);
    return give_text(name, size, device->gpu->name);
}

API nvmlDeviceGetArchitecture(const device_t *device, unsigned int *architecture) {
    CHECK(device);
    return give_number(architecture, device->gpu->architecture);
}

API nvmlDeviceGetPciInfo_v3(const device_t *device, pci_t *info) {
    CHECK_WHOLE(device);
    memset(info, 0, sizeof *info);
    if (sscanf(device->gpu->pci, "%x:%x:%x", &info->domain, &info->bus, &info->device) != 3) broken("pci");
    snprintf(info->legacy, sizeof info->legacy, "%04x:%02x:%02x.0", info->domain & 0xffff, info->bus & 0xff,
             info->device & 0xff);
    strcpy(info->bus_id, device->gpu->pci);
    info->device_id = 0x233010DE;
    return SUCCESS;
}

API nvmlDeviceGetMigMode(const device_t *device, unsigned int *current, unsigned int *pending) {
    CHECK_WHOLE(device);
    if (!device->gpu->mig_capable) return NOT_SUPPORTED;
    *current = *pending = device->gpu->mig.count > 0;
    return SUCCESS;
}

API nvmlDeviceIsMigDeviceHandle(const device_t *device, unsigned int *is) {
    CHECK(device);
    return give_number(is, device->slice >= 0);
}

API nvmlDeviceGetMaxMigDeviceCount(const device_t *device, unsigned int *count) {
    CHECK_WHOLE(device);
    return give_number(count, device->gpu->mig_capable ? 7 : 0);
}

API nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned int index, device_t **slice) {
    CHECK_WHOLE(device);
    if (index >= (unsigned int)device->gpu->mig.count) return NOT_FOUND;
    *slice = device + 1 + index;
    return SUCCESS;
}

API nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t *slice, device_t **device) {
    CHECK(slice);
    if (slice->slice < 0) return INVALID_ARGUMENT;
    *device = slice - 1 - slice->slice;
    return SUCCESS;
}

/* --- memory and processes */

API nvmlDeviceGetMemoryInfo(const device_t *device, unsigned long long memory[3]) {
    CHECK(device);
    const gpu_t *gpu = device->gpu;
    memory[0] = gpu->memory;
    memory[2] = gpu->memory_used + gpu->memory_reserved; /* the first version counts what is reserved as used */
    memory[1] = memory[0] - memory[2];
    return SUCCESS;
}

API nvmlDeviceGetMemoryInfo_v2(const device_t *device, memory_t *memory) {
    CHECK(device);
    const gpu_t *gpu = device->gpu;
    if (memory->version != MEMORY_V2) return ARGUMENT_VERSION_MISMATCH;
    memory->total = gpu->memory;
    memory->reserved = gpu->memory_reserved;
    memory->used = gpu->memory_used;
    memory->free = gpu->memory - gpu->memory_reserved - gpu->memory_used;
    return SUCCESS;
}

static int give_processes(const list_t *pids, unsigned int *count, process_t *processes) {
    unsigned int room = *count;
    *count = pids->count;
    if (room < (unsigned int)pids->count) return INSUFFICIENT_SIZE;
    for (int i = 0; i < pids->count; i++) {
        unsigned long long memory = pids->items[i].value; /* -1: not available, as NVML says it */
        processes[i] = (process_t){(unsigned int)number(pids->items[i].key), memory, UINT32_MAX, UINT32_MAX};
    }
    return SUCCESS;
}

API nvmlDeviceGetComputeRunningProcesses_v3(const device_t *device, unsigned int *count, process_t *processes) {
    CHECK(device);
    return give_processes(&device->gpu->pids, count, processes);
}

API nvmlDeviceGetGraphicsRunningProcesses_v3(const device_t *device, unsigned int *count, process_t *processes) {
    CHECK(device);
    return give_processes(&device->gpu->graphics_pids, count, processes);
}

/* --- energy and power: of whole GPUs only */

API nvmlDeviceGetTotalEnergyConsumption(const device_t *device, unsigned long long *millijoules) {
    *millijoules = GARBAGE;
    CHECK_WHOLE(device);
    *millijoules = counter(device->gpu);
    return SUCCESS;
}

/* Instant power on old chips; on others a mean of 1 s, which nothing may take for it. */
API nvmlDeviceGetPowerUsage(const device_t *device, unsigned int *milliwatts) {
    CHECK_WHOLE(device);
    *milliwatts = device->gpu->architecture >= AMPERE ? ABSURD_MILLIWATTS : instant_milliwatts(device->gpu);
    return SUCCESS;
}

static int give_field(const gpu_t *gpu, field_t *field) {
    int error = planted(gpu, find_number(&gpu->errors, field->field));
    const item_t *scope = find_number(&gpu->power_scopes, field->scope);
    const item_t *throttle = find_number(&gpu->throttle, field->field);
    field->type = UNSIGNED_INT;
    if (error) return error;
    if (field->field == 83) {
        field->type = UNSIGNED_LONG_LONG;
        field->value.ull = counter(gpu);
    } else if (field->field == 185 && scope && gpu->architecture >= AMPERE) {
        int64_t t = last_update(now(), gpu->power_period);
        field->value.ui = mean_milliwatts(gpu, t, 1000000000) + scope->value;
    } else if (field->field == 186 && scope) {
        field->value.ui = instant_milliwatts(gpu) + scope->value;
    } else if (field->field == 82 && gpu->memory_temperature >= 0) {
        field->value.ui = gpu->memory_temperature;
    } else if (throttle) {
        field->type = UNSIGNED_LONG_LONG;
        field->value.ull = throttled_ns(gpu, throttle->value);
    } else {
        return NOT_SUPPORTED;
    }
    return SUCCESS;
}

API nvmlDeviceGetFieldValues(const device_t *device, int count, field_t *fields) {
    CHECK_WHOLE(device);
    for (int i = 0; i < count; i++) {
        field_t *field = &fields[i];
        field->value.ull = 0;
        field->timestamp = (now() - nanoseconds(CLOCK_MONOTONIC) + nanoseconds(CLOCK_REALTIME)) / 1000;
        field->latency_us = 20;
        field->error = give_field(device->gpu, field);
        if (field->error) {
            field->type = GARBAGE_TYPE;
            field->value.ull = GARBAGE;
        }
    }
    return SUCCESS;
}

API nvmlDeviceGetSamples(const device_t *device, int type, unsigned long long since, int *value_type, unsigned int *count,
                         void *samples) {
    (void)type, (void)since, (void)value_type, (void)count, (void)samples;
    CHECK(device);
    return NOT_SUPPORTED;
}

/* --- clocks, limits, temperatures */

API nvmlDeviceGetClockInfo(const device_t *device, int type, unsigned int *mhz) {
    CHECK_WHOLE(device);
    if (type == 2) return give_number(mhz, device->gpu->memory_clock);
    return give_number(mhz, throttled(device->gpu) ? device->gpu->sm_clock_throttled : device->gpu->sm_clock);
}

API nvmlDeviceGetMaxClockInfo(const device_t *device, int type, unsigned int *mhz) {
    CHECK_WHOLE(device);
    return give_number(mhz, type == 2 ? device->gpu->memory_clock_max : device->gpu->sm_clock_max);
}

API nvmlDeviceGetCurrentClocksEventReasons(const device_t *device, unsigned long long *reasons) {
    CHECK_WHOLE(device);
    if (device->gpu->event_reasons < 0) return NOT_SUPPORTED;
    *reasons = throttled(device->gpu) ? device->gpu->event_reasons : 0;
    return SUCCESS;
}

API nvmlDeviceGetTemperatureV(const device_t *device, temperature_t *temperature) {
    CHECK_WHOLE(device);
    if (temperature->version != TEMPERATURE_V1) return ARGUMENT_VERSION_MISMATCH;
    if (temperature->sensor) return INVALID_ARGUMENT;
    return give_number((unsigned int *)&temperature->celsius, device->gpu->temperature);
}

API nvmlDeviceGetEnforcedPowerLimit(const device_t *device, unsigned int *milliwatts) {
    CHECK_WHOLE(device);
    return give_number(milliwatts, device->gpu->limit);
}

API nvmlDeviceGetPowerManagementLimit(const device_t *device, unsigned int *milliwatts) {
    CHECK_WHOLE(device);
    return give_number(milliwatts, device->gpu->limit);
}

API nvmlDeviceGetPowerManagementDefaultLimit(const device_t *device, unsigned int *milliwatts) {
    CHECK_WHOLE(device);
    return give_number(milliwatts, device->gpu->limit_default);
}

API nvmlDeviceGetPowerManagementLimitConstraints(const device_t *device, unsigned int *low, unsigned int *high) {
    CHECK_WHOLE(device);
    int error = give_number(low, device->gpu->limit_min);
    return error ? error : give_number(high, device->gpu->limit_max);
}

API nvmlDeviceGetPerformanceState(const device_t *device, unsigned int *state) {
    CHECK_WHOLE(device);
    return give_number(state, device->gpu->pstate);
}
