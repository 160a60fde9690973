// A tool in the sense of NVTX, as small as can be: it writes each range of a process to a file.
//
// NVTX looks for a tool when it is first called: it loads the library that NVTX_INJECTION64_PATH
// names and calls its InitializeInjectionNvtx2, which puts functions of its own into NVTX's tables.
// What Nsight Systems records can so be looked at, and tested, with nothing but a C compiler:
//
//     cc -O2 -shared -fPIC -pthread -o build/recorder.so profiling/recorder.c
//     NVTX_INJECTION64_PATH=$PWD/build/recorder.so NVTX_RECORDER_FILE=ranges.jsonl python program.py
//
// The file has a line that says what it is, and one JSON object a range, in the order in which they
// end: nanoseconds of a monotonic clock, name, domain, category, payload, number of the thread. A
// range that is open when the process ends has no end (null). Nothing else of the process is written.
//
// Types and numbers below are those of NVTX's interface of version 3 for tools.

#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef void (*Function)(void);
typedef struct {
  size_t size;
  int (*functions)(int module, Function*** table, unsigned* count);
} Callbacks;
typedef const void* (*ExportTable)(uint32_t id);
enum { CALLBACKS = 1, MODULE_CORE2 = 5 };
enum { RANGE_PUSH = 4, RANGE_POP = 5, NAME_CATEGORY = 8, REGISTER_STRING = 10, CREATE_DOMAIN = 12 };

typedef struct {
  uint16_t version, size;
  uint32_t category;
  int32_t color_type;
  uint32_t color;
  int32_t payload_type, reserved;
  union {
    uint64_t u64;
    int64_t i64;
    double f64;
    uint32_t u32;
    int32_t i32;
    float f32;
  } payload;
  int32_t message_type;
  const void* message;
} Attributes;
enum { MESSAGE_ASCII = 1, MESSAGE_REGISTERED = 3 };

enum { CATEGORIES = 64, DEPTH = 256 };
typedef struct {
  char* name;
  char* categories[CATEGORIES];
} Domain;

typedef struct {
  int64_t start;
  const Domain* domain;
  const char *name, *category;
  char payload[32];
} Range;

// What a thread has open. The list of them is for the end of the process.
typedef struct Thread {
  Range open[DEPTH];
  int depth, number;
  struct Thread* next;
} Thread;

static FILE* file;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Thread* threads;
static __thread Thread* own;
static Domain unnamed;

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static Thread* thread(void) {
  if (!own) {
    own = calloc(1, sizeof *own);
    pthread_mutex_lock(&lock);
    own->number = threads ? threads->number + 1 : 0;
    own->next = threads;
    threads = own;
    pthread_mutex_unlock(&lock);
  }
  return own;
}

static void write_text(const char* key, const char* text) {
  fprintf(file, ", \"%s\": ", key);
  if (!text) {
    fputs("null", file);
    return;
  }
  fputc('"', file);
  for (const unsigned char* c = (const unsigned char*)text; *c; c++) {
    if (*c == '"' || *c == '\\')
      fprintf(file, "\\%c", *c);
    else if (*c < 32)
      fprintf(file, "\\u%04x", *c);
    else
      fputc(*c, file);
  }
  fputc('"', file);
}

static void write_range(const Range* range, int depth, int number, int64_t end) {
  fprintf(file, "{\"start\": %" PRId64 ", \"end\": ", range->start);
  if (end)
    fprintf(file, "%" PRId64, end);
  else
    fputs("null", file);
  write_text("name", range->name);
  write_text("domain", range->domain->name);
  write_text("category", range->category);
  fprintf(file, ", \"payload\": %s, \"depth\": %d, \"thread\": %d}\n", range->payload, depth, number);
}

static void set_payload(Range* range, const Attributes* a) {
  char* p = range->payload;
  size_t n = sizeof range->payload;
  switch (a->payload_type) {
    case 1: snprintf(p, n, "%" PRIu64, a->payload.u64); break;
    case 2: snprintf(p, n, "%" PRId64, a->payload.i64); break;
    case 3: snprintf(p, n, "%.17g", a->payload.f64); break;
    case 4: snprintf(p, n, "%" PRIu32, a->payload.u32); break;
    case 5: snprintf(p, n, "%" PRId32, a->payload.i32); break;
    case 6: snprintf(p, n, "%.9g", (double)a->payload.f32); break;
    default: strcpy(p, "null");
  }
}

static int push(Domain* domain, const Attributes* a) {
  Thread* t = thread();
  if (t->depth < DEPTH) {
    Range* range = &t->open[t->depth];
    range->domain = domain ? domain : &unnamed;
    int told = a->message_type == MESSAGE_ASCII || a->message_type == MESSAGE_REGISTERED;
    range->name = told ? a->message : NULL;
    // A registered string's handle is our copy; another's memory may change before the range ends.
    if (a->message_type == MESSAGE_ASCII) range->name = strdup(a->message);
    range->category = a->category < CATEGORIES ? range->domain->categories[a->category] : NULL;
    set_payload(range, a);
    range->start = now();
  }
  return t->depth++;
}

static int pop(Domain* domain) {
  int64_t end = now();
  Thread* t = thread();
  (void)domain;
  if (t->depth == 0) return -1;
  if (--t->depth < DEPTH) {
    pthread_mutex_lock(&lock);
    write_range(&t->open[t->depth], t->depth, t->number, end);
    pthread_mutex_unlock(&lock);
  }
  return t->depth;
}

static Domain* create_domain(const char* name) {
  Domain* domain = calloc(1, sizeof *domain);
  domain->name = strdup(name);
  return domain;
}

static void name_category(Domain* domain, uint32_t category, const char* name) {
  if (domain && category < CATEGORIES) domain->categories[category] = strdup(name);
}

static const void* register_string(Domain* domain, const char* text) {
  (void)domain;
  return strdup(text);
}

static void finish(void) {
  pthread_mutex_lock(&lock);
  for (Thread* t = threads; t; t = t->next)
    for (int i = t->depth < DEPTH ? t->depth : DEPTH; i-- > 0;)
      write_range(&t->open[i], i, t->number, 0);
  fclose(file);
  file = fopen("/dev/null", "w");
  pthread_mutex_unlock(&lock);
}

// The file that NVTX_RECORDER_FILE names; a process below, whose file it is not, adds its number.
static FILE* open_file(void) {
  const char* path = getenv("NVTX_RECORDER_FILE");
  if (!path) return NULL;
  FILE* made = fopen(path, "wx");
  if (made) return made;
  char other[4096];
  snprintf(other, sizeof other, "%s.%d", path, (int)getpid());
  return fopen(other, "w");
}

int InitializeInjectionNvtx2(ExportTable table) {
  const Callbacks* callbacks = table(CALLBACKS);
  Function** core;
  unsigned count = 0;
  if (!callbacks || callbacks->size < sizeof *callbacks) return 0;
  if (!callbacks->functions(MODULE_CORE2, &core, &count) || count <= CREATE_DOMAIN) return 0;
  if (!(file = open_file())) return 0;
  fputs("{\"format\": \"tinytorch_gpu ranges\", \"version\": 1}\n", file);
  *core[RANGE_PUSH] = (Function)push;
  *core[RANGE_POP] = (Function)pop;
  *core[NAME_CATEGORY] = (Function)name_category;
  *core[REGISTER_STRING] = (Function)register_string;
  *core[CREATE_DOMAIN] = (Function)create_domain;
  atexit(finish);
  return 1;
}

#ifdef REFUSES_EXTENSIONS
// As Nsight Systems 2022.4 does: nvtx 0.2.12 and later then hold every domain for disabled.
int InitializeInjectionNvtxExtension(void* module) {
  (void)module;
  return 0;
}
#endif
