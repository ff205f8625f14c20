// y = x W + b, where x has few rows: one for each sequence that gets a new token. Such a product takes
// as long as reading W, so W is read once, for all rows of x, and neighbouring threads read numbers
// that are neighbours in memory. There are two kernels, for the two orders in which W is stored.
//
//   W (n, m), row by row: `across`              W (n, m), column by column: `along`
//
//      LANES columns a block                       a warp's 32 threads go along a column
//        0 1 2 ... │                               ┌───┬───┬───
//   rows ┌─────────┼───────                    0  │ 0 │ 0 │
//     0  │ t0 t1 ..│ next block                1  │ 1 │ 1 │      the next warp has the next column,
//     1  │ t8 t9 ..│                           :  │ : │ : │      and a block has WARPS of them
//     :  │  :  :   │                          31  │31 │31 │
//   ROWS │ t0 t1 ..│  (from here on again)    32  │ 0 │ 0 │
//
//   each thread: a sum for each row of x  ──►  shuffles join the threads of a column within a warp
//                                         ──►  `across`: shared memory joins the warps of the block
//
// Constants: STORED, the type of W; BATCH, the rows of x; LANES, a power of two, the columns of a
// block in `across`: few if W is narrow, so that there are blocks for the whole GPU.

#define THREADS 256
#define WARPS (THREADS / 32)
#define ROWS (THREADS / LANES)

extern "C" __global__ void __launch_bounds__(THREADS)
across(const float* x, const STORED* w, const float* bias,   // (BATCH, n), (n, m), (m,) or null
       float* y, int n, int m)                               // (BATCH, m)
{
  __shared__ float parts[WARPS][BATCH][LANES];
  int t = threadIdx.x, lane = t % LANES, first = blockIdx.x * LANES, column = first + lane;
  float sum[BATCH] = {};
  if (column < m) {
#pragma unroll 4
    for (int row = t / LANES; row < n; row += ROWS) {
      float weight = as_float(w[(long long)row * m + column]);
      for (int b = 0; b < BATCH; b++) sum[b] += x[b * n + row] * weight;
    }
  }
  for (int b = 0; b < BATCH; b++) {
    for (int step = LANES; step < 32; step *= 2) sum[b] += __shfl_xor_sync(FULL, sum[b], step);
    if (t % 32 < LANES) parts[t / 32][b][lane] = sum[b];
  }
  __syncthreads();
  for (int i = t; i < BATCH * LANES; i += THREADS) {         // a thread adds up one result
    int b = i / LANES, c = i % LANES;
    if (first + c >= m) continue;
    float total = bias ? bias[first + c] : 0;
    for (int warp = 0; warp < WARPS; warp++) total += parts[warp][b][c];
    y[b * m + first + c] = total;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
along(const float* x, const STORED* w, const float* bias, float* y, int n, int m)
{
  int lane = threadIdx.x % 32, column = blockIdx.x * WARPS + threadIdx.x / 32;
  if (column >= m) return;                                   // the whole warp
  float sum[BATCH] = {};
#pragma unroll 4
  for (int row = lane; row < n; row += 32) {
    float weight = as_float(w[(long long)column * n + row]);
    for (int b = 0; b < BATCH; b++) sum[b] += x[b * n + row] * weight;
  }
  for (int b = 0; b < BATCH; b++) {
    float total = warp_sum(sum[b]);
    if (lane == 0) y[b * m + column] = total + (bias ? bias[column] : 0);
  }
}
