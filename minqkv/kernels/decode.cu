// One new token against the cache. Each stored row is read once, for all queries that share it, and
// for both its uses: as a key, whose product with a query is a score, and as a value, which the
// scores mix. A block takes some queries of one stored head, and a span of its positions:
//   cache of a head           a block                             for each query
//   ┌────────┐  ROWS rows  ┌─────────────────────┐
//   │ span 0 │ ──────────► │ keys   ─► scores    │
//   │        │  at a time  │ values ◄─ weights ──┼─► mixed, total, peak ─┐
//   ├────────┤             └─────────────────────┘                       ├─ join ─► answer
//   │ span 1 │ ──────────► another block ────────► mixed, total, peak ───┘
//   └────────┘
// peak: the largest score so far; total: Σ exp(score - peak); mixed: Σ exp(score - peak) · value.
// When a tile raises the peak, the other two are multiplied by exp(old - new), as in online.py.
//   PARTS threads add up a score: 0 1 2 3 │ 4 5 6 7 │ ...    a thread mixes a channel: 0 1 2 3 ...
//                                 row 0   │ row 1   │        of all rows
// The other constants are explained in decode.py.
enum { SAME, APART, TURNED };   // FORM: a row is key and value; values apart; turned, it is the key
const int THREADS = 128, WARPS = THREADS / 32, PARTS = THREADS / ROWS, KEY = WIDTH + BESIDE;
const int PITCH = KEY + (48 - KEY % 32) % 32;       // two rows, read by fours, are in all 32 banks
const int CHANNELS = (VALUE + THREADS - 1) / THREADS;
struct __align__(sizeof(STORED) * VECTOR) Stored { STORED x[VECTOR]; };  // read at once
struct __align__(VECTOR % 4 ? 4 : 16) Floats { float x[VECTOR]; };

// Rows from place + start on into a tile, integers times their scales; zeros from `end` on.
__device__ __forceinline__ void fetch(float* tile, int pitch, const STORED* from, int width,
                                      const float* scales, long long place, int start, int end)
{
  for (int i = threadIdx.x; i < ROWS * width / VECTOR; i += THREADS) {
    int r = i / (width / VECTOR), c = i % (width / VECTOR) * VECTOR;
    bool inside = start + r < end;
    Stored read = inside ? *(const Stored*)(from + (place + start + r) * width + c) : Stored{};
    float scale = inside && scales ? scales[place + start + r] : 1;
    Floats out;
    for (int j = 0; j < VECTOR; j++) out.x[j] = as_float(read.x[j]) * scale;
    *(Floats*)(tile + r * pitch + c) = out;
  }
}

// A key from a value: times its gains, the last channels turned by the angles of its position.
__device__ __forceinline__ void turn(float* key, const float* value, const float* gains,
                                     const float* cos, const float* sin, int position, int part)
{
  const int half = TURN / 2, still = WIDTH - TURN;
  for (int c = part; c < WIDTH; c += PARTS) key[c] = value[c] * (gains ? gains[c] : 1);
  __syncwarp();                                     // the threads of a row are in one warp
  for (int c = still + part; c < still + half; c += PARTS) {
    long long angle = (long long)position * half + c - still;
    float x = key[c], y = key[c + half], u = cos[angle], v = sin[angle];
    key[c] = x * u - y * v, key[c + half] = y * u + x * v;
  }
  __syncwarp();
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) decode(
    const float* q, float scale, const float* temperature,          // (B, H, ASKED), (), ()
    const STORED* rows, const STORED* apart, const STORED* beside,  // (B, h, capacity, WIDTH), ...
    const float* row_scales, const float* apart_scales, const float* beside_scales,
    const float* gains, const float* cos, const float* sin,         // (WIDTH,), angles by position
    const int* at, const bool* mask, const float* bias,             // by slot: (n,), and from one
    int of_at, int of_mask, int of_bias, int of_head,               // sequence or head to the next
    float* mixed, float* totals, float* peaks, const long long* newest,  // ...; slot, or null: n-1
    int n, int span, int capacity, int heads, int queries)          // slots; a block's; ...; h; H
{
  __shared__ __align__(16) float keys[ROWS * PITCH], query[GROUP * KEY], weight[GROUP][ROWS];
  __shared__ __align__(16) float own[FORM == SAME ? 4 : ROWS * VALUE];
  __shared__ float peak[GROUP], total[GROUP], shrink[GROUP];
  const float* values = FORM == SAME ? keys : own;
  const int pitch = FORM == SAME ? PITCH : VALUE;
  int t = threadIdx.x, lane = t % 32, warp = t / 32, row = t / PARTS, part = t % PARTS;
  long long b = blockIdx.z, first = blockIdx.y * GROUP, head = first / (queries / heads);
  long long place = (b * heads + head) * capacity;  // the first row
  float mix[GROUP][CHANNELS] = {}, strength = temperature ? scale * *temperature : scale;
  if (t < GROUP) peak[t] = LOWEST, total[t] = 0;
  for (int i = t; i < GROUP * KEY; i += THREADS) {  // zeros for what only values have
    int c = i % KEY, from = c < WIDTH ? c : c - (KEY - ASKED);
    bool none = c >= ASKED - BESIDE && c < WIDTH;
    query[i] = none ? 0 : q[(b * queries + first + i / KEY) * ASKED + from] * strength;
  }
  int end = min(int(blockIdx.x + 1) * span, newest ? int(*newest) + 1 : n);
  for (int start = blockIdx.x * span; start < end; start += ROWS) {
    int slot = start + row;
    bool seen = slot < end && (!mask || mask[b * of_mask + slot]);
    if (!__syncthreads_or(seen)) continue;          // the last tile is done; is this one seen?
    if (FORM == TURNED) fetch(own, VALUE, rows, VALUE, row_scales, place, start, end);
    else fetch(keys, PITCH, rows, WIDTH, row_scales, place, start, end);
    if (FORM == APART) fetch(own, VALUE, apart, VALUE, apart_scales, place, start, end);
    fetch(keys + WIDTH, PITCH, beside, BESIDE, beside_scales, b * capacity, start, end);
    __syncthreads();
    if (FORM == TURNED) {
      int place = slot >= end ? 0 : at ? max(at[b * of_at + slot], 0) : slot;
      turn(keys + row * PITCH, own + row * VALUE, gains, cos, sin, place, part);
    }
    float score[GROUP] = {};
    for (int c = 4 * part; c < KEY; c += 4 * PARTS) {
      float4 k = four(keys + row * PITCH + c);
      for (int g = 0; g < GROUP; g++) score[g] += dot(four(query + g * KEY + c), k);
    }
    for (int g = 0; g < GROUP; g++) {
      for (int step = PARTS / 2; step; step /= 2) score[g] += __shfl_xor_sync(FULL, score[g], step);
      if (bias && seen) score[g] += bias[b * of_bias + (first + g) * of_head + slot];
      if (part == 0) weight[g][row] = seen ? score[g] : -INFINITY;
    }
    __syncthreads();
    for (int g = warp; g < GROUP; g += WARPS) {     // a warp has all scores of a query
      float x = lane < ROWS ? weight[g][lane] : -INFINITY;
      float high = fmaxf(peak[g], warp_max(x)), w = __expf(x - high), old = __expf(peak[g] - high);
      float sum = total[g] * old + warp_sum(w);
      __syncwarp();                                 // every lane has read peak and total
      if (lane < ROWS) weight[g][lane] = w;
      if (lane == 0) peak[g] = high, total[g] = sum, shrink[g] = old;
    }
    __syncthreads();
#pragma unroll                                      // mix is in registers: no variable index
    for (int i = 0; i < CHANNELS; i++) {
      int c = min(t + i * THREADS, VALUE - 1);      // what is beyond the last is not written
      for (int g = 0; g < GROUP; g++) mix[g][i] *= shrink[g];
#pragma unroll 4
      for (int r = 0; r < ROWS; r++)
        for (int g = 0; g < GROUP; g++) mix[g][i] += weight[g][r] * values[r * pitch + c];
    }
  }
  for (int g = 0; g < GROUP; g++) {
    long long out = (b * queries + first + g) * gridDim.x + blockIdx.x;  // of this span
    if (t == g) totals[out] = total[g], peaks[out] = peak[g];
    for (int i = 0; i < CHANNELS; i++)
      if (t + i * THREADS < VALUE) mixed[out * VALUE + t + i * THREADS] = mix[g][i];
  }
}

// A block answers 32 channels of one query: a lane for each, and the spans are shared by the warps.
extern "C" __global__ void __launch_bounds__(THREADS) join(
    const float* mixed, const float* totals, const float* peaks, const float* sinks,
    float* answer, int spans, int queries)         // sinks (H,): of one more key, whose value is 0
{
  __shared__ float parts[WARPS][32], sums[WARPS];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.y * 32 + lane;
  long long query = blockIdx.x, from = query * spans;
  float sink = sinks ? sinks[query % queries] : LOWEST, high = sink, total = 0, z = 0;
  for (int s = lane; s < spans; s += 32) high = fmaxf(high, peaks[from + s]);
  high = warp_max(high);
  for (int s = warp; s < spans; s += WARPS) {
    float w = __expf(peaks[from + s] - high);
    total += totals[from + s] * w;
    if (c < VALUE) z += mixed[(from + s) * VALUE + c] * w;
  }
  parts[warp][lane] = z, sums[warp] = total;        // the same total in every lane
  __syncthreads();
  total = sinks ? __expf(sink - high) : 0, z = 0;
  for (int w = 0; w < WARPS; w++) z += parts[w][lane], total += sums[w];
  if (warp == 0 && c < VALUE) answer[query * VALUE + c] = total ? z / total : 0;  // or sees nothing
}
