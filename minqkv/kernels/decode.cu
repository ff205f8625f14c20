// One new token against the cache. Each stored row is read once, for all its queries, and for both
// its uses: as a key, whose product with a query is a score, and as a value, which scores mix.
//
//   cache of one head       a block of 128 threads           for each query
//   ┌───────────┐
//   │ span 0    │ ── ROWS rows at a time ─► tile ─► scores ─► peak, total, mixed ─┐
//   ├───────────┤                             └──────────────────┘                │ join
//   │ span 1    │ ── another block          (the same tile, read again on chip) ──┼──► answer
//   ├───────────┤                                                                 │
//   │ ...       │ ── ...                                        ──────────────────┘
//   └───────────┘
//
// peak is the largest score so far, total is Σ exp(score - peak), mixed is Σ exp(score - peak) ·
// value. A tile that raises the peak multiplies the other two by exp(old peak - new peak); `join`
// combines the spans of positions in the same way. online.py has the readable form.
//
// Constants: STORED, the type of stored numbers; WIDTH, the channels of a row; GROUP, the queries
// that share it here; ROWS, the rows of a tile; APART, 1 if values are rows of their own.

#define THREADS 128
#define WARPS (THREADS / 32)
#define PARTS (THREADS / ROWS)                      // threads that share the work on one row
#define CHANNELS ((WIDTH + THREADS - 1) / THREADS)  // of the answer, that a thread keeps
#define PITCH (WIDTH + 1)                           // a row of the tile: one more, so that rows
                                                    // begin in different banks
extern "C" __global__ void __launch_bounds__(THREADS)
decode(const float* q,                              // (B, H, WIDTH), scaled
       const STORED* keys, const STORED* values,    // (B, h, S, WIDTH), at these strides:
       long long of_sequence, long long of_head, int of_row,
       float* mixed, float* totals, float* peaks,   // (B, H, spans, WIDTH), (B, H, spans) twice
       int n, int span, int heads, int queries)     // positions; a block's; h; H
{
  __shared__ float tile[ROWS * PITCH], rows[APART ? ROWS * PITCH : 1];
  __shared__ float query[GROUP * WIDTH], weight[GROUP][ROWS];
  __shared__ float peak[GROUP], total[GROUP], shrink[GROUP];
  const float* value = APART ? rows : tile;
  int t = threadIdx.x, lane = t % 32, warp = t / 32, row = t / PARTS, part = t % PARTS;
  int chunks = queries / heads / GROUP, head = blockIdx.y / chunks, b = blockIdx.z;
  int first = blockIdx.y * GROUP;                   // query: those of a stored head are neighbours
  long long place = b * of_sequence + head * of_head;
  int begin = blockIdx.x * span, end = min(begin + span, n);
  float mix[GROUP][CHANNELS] = {};
  if (t < GROUP) peak[t] = LOWEST, total[t] = 0;
  for (int i = t; i < GROUP * WIDTH; i += THREADS)
    query[i] = q[((long long)b * queries + first) * WIDTH + i];

  for (int start = begin; start < end; start += ROWS) {
    __syncthreads();                                // the last tile has been used
    for (int i = t; i < ROWS * WIDTH; i += THREADS) {
      int r = i / WIDTH, c = i % WIDTH;
      long long at = place + (long long)(start + r) * of_row + c;
      tile[r * PITCH + c] = start + r < end ? as_float(keys[at]) : 0;
      if (APART) rows[r * PITCH + c] = start + r < end ? as_float(values[at]) : 0;
    }
    __syncthreads();
    for (int g = 0; g < GROUP; g++) {               // PARTS threads add up one score
      float score = 0;
      for (int c = part; c < WIDTH; c += PARTS)
        score += query[g * WIDTH + c] * tile[row * PITCH + c];
      for (int step = PARTS / 2; step; step /= 2) score += __shfl_xor_sync(FULL, score, step);
      if (part == 0) weight[g][row] = start + row < end ? score : -INFINITY;
    }
    __syncthreads();
    for (int g = warp; g < GROUP; g += WARPS) {     // a warp has the scores of one query
      float score = lane < ROWS ? weight[g][lane] : -INFINITY;
      float high = fmaxf(peak[g], warp_max(score));
      float w = __expf(score - high), old = __expf(peak[g] - high);
      float sum = total[g] * old + warp_sum(w);     // a shuffle: all lanes have read peak
      if (lane < ROWS) weight[g][lane] = w;
      if (lane == 0) peak[g] = high, total[g] = sum, shrink[g] = old;
    }
    __syncthreads();
    for (int g = 0; g < GROUP; g++)                 // a thread has a few channels of the answer
      for (int i = 0, c = t; i < CHANNELS; i++, c += THREADS) {
        mix[g][i] *= shrink[g];
        if (c < WIDTH)
          for (int r = 0; r < ROWS; r++) mix[g][i] += weight[g][r] * value[r * PITCH + c];
      }
  }

  __syncthreads();
  for (int g = 0; g < GROUP; g++) {
    long long out = ((long long)b * queries + first + g) * gridDim.x + blockIdx.x;
    if (t == 0) totals[out] = total[g], peaks[out] = peak[g];
    for (int i = 0, c = t; i < CHANNELS; i++, c += THREADS)
      if (c < WIDTH) mixed[out * WIDTH + c] = mix[g][i];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
join(const float* mixed, const float* totals, const float* peaks, float* answer, int spans)
{
  long long query = blockIdx.x;                     // of B · H
  float high = LOWEST, total = 0;
  for (int s = 0; s < spans; s++) high = fmaxf(high, peaks[query * spans + s]);
  for (int s = 0; s < spans; s++)
    total += totals[query * spans + s] * __expf(peaks[query * spans + s] - high);
  for (int c = threadIdx.x; c < WIDTH; c += THREADS) {
    float z = 0;
    for (int s = 0; s < spans; s++)
      z += mixed[(query * spans + s) * WIDTH + c] * __expf(peaks[query * spans + s] - high);
    answer[query * WIDTH + c] = total ? z / total : 0;  // zeros for a query that sees nothing
  }
}
