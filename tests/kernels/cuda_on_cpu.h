// CUDA C on a CPU, one block after another. Each thread of a block is a fiber: it runs until it
// waits for its warp or its block. Who runs next is decided by a seed, so that code which only
// works in one order of threads fails in another. Shared memory starts as garbage in every block:
// not a number in one, and very large numbers in another.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shared_memory")))

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;
extern char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

namespace shim {

const unsigned MOST = 1024;       // threads of a block
const size_t STACK = 1 << 18;     // bytes of a fiber's stack; pages that nobody touches cost nothing
enum State : char { READY, AT_WARP, AT_BLOCK, DONE };
enum What : char { SYNC, SHUFFLE, BALLOT };

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  bool started;
  State state;
  What what;                      // a wait for the warp: for what, at which line, with whom,
  int line;
  unsigned mask;
  unsigned lane;                  // whose value is asked for,
  uint64_t given, got;            // what this thread gives, and what it gets
};

static Fiber home, fiber[MOST];
static char* stacks;
static unsigned now, threads;
static uint64_t random_state;
static char* dynamic_shared;      // `extern __shared__`
static void (*body)(void**);
static void** arguments;
static char message[300];

static unsigned draw(unsigned n) {  // a number below n
  random_state ^= random_state << 13, random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return unsigned(random_state >> 33) % n;
}

// Continue with another fiber. ucontext makes two system calls for it, longjmp none; the address
// sanitiser understands only the former.
static void change(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.jump)) return;
  if (to.started) _longjmp(to.jump, 1);
  to.started = true;
  setcontext(&to.context);
#endif
}

static void life() {              // of a fiber: the same thread of one block after another
  for (;;) {
    body(arguments);
    fiber[now].state = DONE;
    change(fiber[now], home);
  }
}

static void wait(State state, int line) {
  Fiber& me = fiber[now];
  me.state = state, me.line = line;
  change(me, home);
}

static uint64_t with_warp(What what, unsigned mask, uint64_t given, unsigned lane, int line) {
  Fiber& me = fiber[now];
  me.what = what, me.mask = mask, me.given = given, me.lane = lane;
  wait(AT_WARP, line);
  return me.got;
}

// If all living threads of a mask wait at one place, give each its value and let them go on.
static void release_warp(unsigned first) {
  unsigned size = threads - first < 32 ? threads - first : 32, seen = 0;
  for (unsigned i = 0; i < size; i++) {
    Fiber& one = fiber[first + i];
    if (one.state != AT_WARP || seen >> i & 1) continue;
    unsigned ballot = 0, who = 0;
    bool complete = one.mask >> i & 1;
    for (unsigned j = 0; j < size; j++) {
      Fiber& other = fiber[first + j];
      if (!(one.mask >> j & 1) || other.state == DONE) continue;
      complete &= other.state == AT_WARP && other.mask == one.mask && other.line == one.line &&
                  other.what == one.what;
      who |= 1u << j, ballot |= unsigned(other.given != 0) << j;
    }
    if (!complete) continue;
    seen |= who;
    for (unsigned j = 0; j < size; j++) {
      if (!(who >> j & 1)) continue;
      Fiber& other = fiber[first + j];
      bool there = other.lane < 32 && who >> other.lane & 1;  // else what comes is undefined
      other.got = other.what == BALLOT ? ballot
                  : there ? fiber[first + other.lane].given : 0xffffffffffffffffull;
      other.state = READY;
    }
  }
}

static bool any(unsigned from, unsigned to, State state) {
  for (unsigned i = from; i < to; i++) if (fiber[i].state == state) return true;
  return false;
}

static bool run_warp(unsigned first) {  // its threads in a random order, each until it waits
  unsigned start = draw(32), stride = 2 * draw(16) + 1;
  bool ran = false;
  for (unsigned i = 0; i < 32; i++) {
    unsigned t = first + (start + i * stride) % 32;
    if (t >= threads || fiber[t].state != READY) continue;
    ran = true, now = t;
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    change(home, fiber[t]);
  }
  release_warp(first);
  return ran;
}

static const char* stuck() {      // nobody can go on: either a barrier of all, or an error
  int line = -1;
  for (unsigned i = 0; i < threads; i++) {
    Fiber& f = fiber[i];
    if (f.state == DONE) continue;
    if (f.state == AT_WARP || (line >= 0 && line != f.line)) {
      snprintf(message, sizeof message, "thread %u waits at line %d for threads that never come",
               i, f.line);
      return message;
    }
    line = f.line;
  }
  unsigned yes = 0;
  for (unsigned i = 0; i < threads; i++)
    if (fiber[i].state == AT_BLOCK) yes += fiber[i].given != 0;
  for (unsigned i = 0; i < threads; i++)
    if (fiber[i].state == AT_BLOCK) fiber[i].state = READY, fiber[i].got = yes;
  return 0;
}

__attribute__((no_sanitize("address"))) static void garbage(char* from, char* to, char byte) {
  while (from < to) *from++ = byte;
}

static const char* run_block(size_t shared) {
  char byte = draw(2) ? 0xff : 0x7f;  // as a float NaN, which fmaxf overlooks, or 3.4e38
  if (__start_shared_memory) garbage(__start_shared_memory, __stop_shared_memory, byte);
  garbage(dynamic_shared, dynamic_shared + shared, byte);
  for (unsigned i = 0; i < threads; i++) fiber[i].state = READY;
  unsigned warps = (threads + 31) / 32;
  while (any(0, threads, READY) || any(0, threads, AT_BLOCK) || any(0, threads, AT_WARP)) {
    if (!any(0, threads, READY)) {
      if (const char* error = stuck()) return error;
      continue;
    }
    unsigned first = 32 * draw(warps);  // one warp, often for long: the others are then far behind
    for (unsigned left = draw(4) ? 1 + draw(8) : 1u << 20; left && run_warp(first); left--) {}
  }
  return 0;
}

static const char* launch(const unsigned* grid, const unsigned* block, size_t shared, uint64_t seed,
                          void (*f)(void**), void** args) {
  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
  threads = block[0] * block[1] * block[2], body = f, arguments = args;
  if (threads < 1 || threads > MOST) return "a block has 1 to 1024 threads";
  for (int i = 0; i < 3; i++)
    if (!grid[i] || grid[i] > (i ? 65535u : 0x7fffffffu))
      return "a grid has 1 to 2147483647 blocks along x, 1 to 65535 along y and z";
  random_state = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  if (!stacks) stacks = (char*)mmap(0, MOST * STACK, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  dynamic_shared = (char*)malloc(shared);
  for (unsigned i = 0; i < threads; i++) {
    fiber[i].started = false;
    getcontext(&fiber[i].context);
    fiber[i].context.uc_stack.ss_sp = stacks + i * STACK;
    fiber[i].context.uc_stack.ss_size = STACK;
    fiber[i].context.uc_link = 0;
    makecontext(&fiber[i].context, life, 0);
  }
  home.started = true;
  unsigned long blocks = (unsigned long)grid[0] * grid[1] * grid[2];
  unsigned long from = blocks ? draw(blocks) : 0, b;
  bool back = draw(2);
  const char* error = 0;
  for (unsigned long i = 0; i < blocks && !error; i++) {  // from anywhere, forwards or backwards
    b = (back ? from + blocks - i : from + i) % blocks;
    blockIdx = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]),
                unsigned(b / ((unsigned long)grid[0] * grid[1]))};
    error = run_block(shared);
  }
  free(dynamic_shared);
  return error;
}

template <class T> static uint64_t bits(T x) { uint64_t b = 0; memcpy(&b, &x, sizeof x); return b; }
template <class T> static T value(uint64_t b) { T x; memcpy(&x, &b, sizeof x); return x; }
static unsigned me() { return now % 32; }

template <class T> static T shuffle(unsigned mask, T x, unsigned to, int line) {
  return value<T>(with_warp(SHUFFLE, mask, bits(x), to, line));
}

}  // namespace shim

#define LINE int line = __builtin_LINE()
static inline int __syncthreads_count(int yes, LINE) {
  shim::fiber[shim::now].given = yes != 0;
  shim::wait(shim::AT_BLOCK, line);
  return int(shim::fiber[shim::now].got);
}
static inline int __syncthreads_or(int yes, LINE) { return __syncthreads_count(yes, line) != 0; }
static inline int __syncthreads_and(int yes, LINE) { return !__syncthreads_count(!yes, line); }
static inline void __syncthreads(LINE) { __syncthreads_count(0, line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, LINE) {
  shim::with_warp(shim::SYNC, mask, 0, 0, line);
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
// Shuffles within groups of `width` lanes; a lane outside its group is its own.
template <class T> T __shfl_sync(unsigned mask, T x, int from, int width = 32, LINE) {
  unsigned me = shim::me();
  return shim::shuffle(mask, x, (me & ~(width - 1)) + (from & (width - 1)), line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T x, int with, int width = 32, LINE) {
  unsigned me = shim::me(), to = me ^ with;
  return shim::shuffle(mask, x, (to & ~(width - 1)) > (me & ~(width - 1)) ? me : to, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, LINE) {
  unsigned me = shim::me(), to = me + by;
  return shim::shuffle(mask, x, (me & (width - 1)) + by < unsigned(width) ? to : me, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, LINE) {
  unsigned me = shim::me();
  return shim::shuffle(mask, x, (me & (width - 1)) >= by ? me - by : me, line);
}
static inline unsigned __ballot_sync(unsigned mask, int yes, LINE) {
  return unsigned(shim::with_warp(shim::BALLOT, mask, yes != 0, 0, line));
}
static inline int __any_sync(unsigned mask, int yes, LINE) {
  return __ballot_sync(mask, yes, line) != 0;
}
static inline int __all_sync(unsigned mask, int yes, LINE) {
  return __ballot_sync(mask, !yes, line) == 0;
}
#undef LINE

// Only one fiber runs at a time, so an atomic operation is an ordinary one.
template <class T, class U> T atomicAdd(T* at, U x) { T old = *at; *at = T(old + x); return old; }
template <class T, class U> T atomicMax(T* at, U x) { T old = *at; if (x > old) *at = x; return old; }
template <class T, class U> T atomicMin(T* at, U x) { T old = *at; if (x < old) *at = x; return old; }
template <class T, class U> T atomicExch(T* at, U x) { T old = *at; *at = x; return old; }
template <class T, class U, class V> T atomicCAS(T* at, U is, V then) {
  T old = *at;
  if (old == is) *at = then;
  return old;
}

#define __expf expf
#define __logf logf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __int_as_float(int x) { return shim::value<float>(unsigned(x)); }
static inline int __float_as_int(float x) { return shim::value<int>(shim::bits(x)); }
static inline unsigned __float_as_uint(float x) { return shim::value<unsigned>(shim::bits(x)); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
template <class T> T __ldg(const T* at) { return *at; }
template <class T, class U> std::common_type_t<T, U> min(T a, U b) { return b < a ? b : a; }
template <class T, class U> std::common_type_t<T, U> max(T a, U b) { return a < b ? b : a; }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- half and bfloat16, as bits; rounding is to nearest, ties to even

struct alignas(2) __half { uint16_t bits; };
struct alignas(2) __nv_bfloat16 { uint16_t bits; };
typedef __half half;

static inline float __half2float(__half h) {
  unsigned sign = (h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00) return __int_as_float(int(sign | 0x7f800000u | (rest & 0x3ff) << 13));
  float size = ldexpf(__int_as_float(int(rest << 13)), 112);  // the exponent's bias: 15, then 127
  return sign ? -size : size;
}
static inline __half __float2half(float x) {
  unsigned b = __float_as_uint(x), sign = b >> 16 & 0x8000u;
  b &= 0x7fffffffu;
  if (b > 0x7f800000u) return {uint16_t(sign | 0x7fff)};   // not a number
  if (b >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // 65520 and above become infinite
  if (b < 0x38800000u)                                     // below the normal numbers of a half
    return {uint16_t(sign | unsigned(nearbyintf(ldexpf(fabsf(x), 24))))};
  b += 0xfff + (b >> 13 & 1);
  return {uint16_t(sign | ((b >> 13) - (112u << 10)))};
}
static inline __half __float2half_rn(float x) { return __float2half(x); }
static inline float __bfloat162float(__nv_bfloat16 h) { return __int_as_float(int(unsigned(h.bits) << 16)); }
static inline __nv_bfloat16 __float2bfloat16(float x) {
  unsigned b = __float_as_uint(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return {uint16_t(0x7fff)};
  return {uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __float2bfloat16(x); }

// ---- calling a kernel with an array of pointers to its arguments, as the driver does

namespace shim {

template <class T> static const char* type_name() {
  typedef std::remove_cv_t<std::remove_pointer_t<T>> E;
  if (std::is_void<E>::value) return "*any";
  const char* name = std::is_same<E, float>::value ? "*float32" : std::is_same<E, double>::value
    ? "*float64" : std::is_same<E, __half>::value ? "*float16" : std::is_same<E, __nv_bfloat16>::value
    ? "*bfloat16" : std::is_same<E, bool>::value ? "*bool" : !std::is_integral<E>::value ? "*any"
    : sizeof(E) == 8 ? (std::is_signed<E>::value ? "*int64" : "*uint64") : sizeof(E) == 4
    ? (std::is_signed<E>::value ? "*int32" : "*uint32") : sizeof(E) == 2
    ? (std::is_signed<E>::value ? "*int16" : "*uint16") : std::is_signed<E>::value ? "*int8" : "*uint8";
  return std::is_pointer<T>::value ? name : name + 1;
}

// Whether the host passes what the kernel takes; the driver would not notice.
template <class... A> static const char* check(void (*)(A...), const char** given, unsigned n) {
  const char* taken[] = {type_name<A>()..., ""};
  if (n != sizeof...(A)) {
    snprintf(message, sizeof message, "it takes %zu arguments, not %u", sizeof...(A), n);
    return message;
  }
  for (unsigned i = 0; i < n; i++) {
    bool null = !strcmp(given[i], "*null"), any = !strcmp(taken[i], "*any");
    bool fits = !strcmp(given[i], taken[i]) || (given[i][0] == '*' && any) || (null && taken[i][0] == '*');
    fits |= !strcmp(given[i], "*uint16") && !strcmp(taken[i], "*bfloat16");  // NumPy has no other
    if (!fits) {
      snprintf(message, sizeof message, "argument %u is %s, and was given %s", i, taken[i], given[i]);
      return message;
    }
  }
  return 0;
}

template <class... A, size_t... I>
static void unpack(void (*f)(A...), void** args, std::index_sequence<I...>) { f(*(A*)args[I]...); }
template <class... A> static void call(void (*f)(A...), void** args) {
  unpack(f, args, std::index_sequence_for<A...>());
}

}  // namespace shim

#define ENTRY(kernel)                                                                              \
  extern "C" const char* run_##kernel(const unsigned* grid, const unsigned* block, size_t shared, \
                                      uint64_t seed, void** args, const char** types, unsigned n) { \
    if (const char* error = shim::check(kernel, types, n)) return error;                          \
    return shim::launch(grid, block, shared, seed, [](void** a) { shim::call(kernel, a); }, args); \
  }
