// Norms of rows, the loss, and sums of columns. No sum depends on the order of threads.
//
//   norm_forward   x ─► mean, inv = 1 / √(variance + eps) ─► unit = (x - mean) inv ─► unit w + b
//   norm_backward  g, x ─┬─► a = g w ─► dx = inv (a - mean of a - unit · mean of a unit)
//                        └─► Σ g unit, Σ g over the rows of a block ─► columns ─► dw, db
//
//   loss_forward   logits ─► peak, total = Σ exp(logit - peak) ─► log total - (target's - peak)
//   loss_backward  logits ─► (exp(logit - peak) / total, minus 1 at the target) · scale
//
//   A block of THREADS threads has a row. In `columns`, a thread has one column of a slab of rows:
//
//     0 1 2 3 ... 0 1 2 3 ...         slab 0 ─► 0 1 2 3 ...
//     └──── HELD times ─────┘         slab 1 ─► 0 1 2 3 ...
//                                     slab 0 ─► 0 1 2 3 ...
//
// Constants: THREADS. A norm takes off no mean unless `centred`, and has n <= HELD · THREADS.

#define HELD 8                                      // numbers of a row that a thread has at once

extern "C" __global__ void __launch_bounds__(THREADS, 1)
norm_forward(const float* x, const float* w, const float* b,  // (rows, n); (n,) each, or null
             float* y, float* means, float* invs,   // (rows, n); (rows,) each
             float eps, int centred, int n)
{
  long long row = blockIdx.x;
  int first = threadIdx.x;
  x += row * n, y += row * n;
  float held[HELD], sum = 0, square = 0;
  for (int i = 0; i < HELD; i++) {
    int c = first + i * THREADS;
    held[i] = c < n ? x[c] : 0;
    sum += held[i];
  }
  float mean = centred ? block_sum(sum) / n : 0;
  for (int i = 0; i < HELD; i++) {
    held[i] -= mean;
    if (first + i * THREADS < n) square += held[i] * held[i];
  }
  float inv = 1 / sqrtf(block_sum(square) / n + eps);
  for (int i = 0; i < HELD; i++) {
    int c = first + i * THREADS;
    if (c < n) y[c] = held[i] * inv * (w ? w[c] : 1) + (b ? b[c] : 0);
  }
  if (first == 0) means[row] = mean, invs[row] = inv;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
norm_backward(const float* g, const float* x, const float* w, const float* means,
              const float* invs, float* dx, float* sums,  // (blocks, 2, n); null: not wanted
              long long rows, int centred, int n)
{
  int first = threadIdx.x;
  float dw[HELD] = {}, db[HELD] = {};               // of this thread's columns
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    float mean = means[row], inv = invs[row], unit[HELD], a[HELD], sum = 0, along = 0;
    for (int i = 0; i < HELD; i++) {
      int c = first + i * THREADS;
      unit[i] = c < n ? (x[row * n + c] - mean) * inv : 0;
      a[i] = c < n ? g[row * n + c] : 0;
      dw[i] += a[i] * unit[i], db[i] += a[i];
      if (w && c < n) a[i] *= w[c];
      sum += a[i], along += a[i] * unit[i];
    }
    if (!dx) continue;
    sum = centred ? block_sum(sum) / n : 0;         // what would move the mean ...
    along = block_sum(along) / n;                   // ... and what would change the variance
    for (int i = 0; i < HELD; i++) {
      int c = first + i * THREADS;
      if (c < n) dx[row * n + c] = (a[i] - sum - unit[i] * along) * inv;
    }
  }
  for (int i = 0; sums && i < HELD; i++) {
    int c = first + i * THREADS;
    if (c < n) sums[2ll * blockIdx.x * n + c] = dw[i], sums[(2ll * blockIdx.x + 1) * n + c] = db[i];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
columns(const float* a, float* sums, long long rows, int n)  // (rows, n); (slabs, n)
{
  int c = blockIdx.x * THREADS + threadIdx.x, slabs = gridDim.y;
  float sum = 0;
  if (c >= n) return;
  for (long long row = blockIdx.y; row < rows; row += HELD * slabs) {
    float held[HELD];
    for (int i = 0; i < HELD; i++) held[i] = row + i * slabs < rows ? a[(row + i * slabs) * n + c] : 0;
    for (int i = 0; i < HELD; i++) sum += held[i];
  }
  sums[(long long)blockIdx.y * n + c] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
loss_forward(const float* logits, const long long* rows, const long long* targets,  // (N, n); (m,)
             float* losses, float* peaks, float* totals, int n)  // (m,) each
{
  int first = threadIdx.x, m = blockIdx.x;
  logits += (rows ? rows[m] : m) * n;
  float peak = LOWEST, total = 0;                   // of the numbers so far
  for (int start = first; start < n; start += HELD * THREADS) {
    float held[HELD], high = peak;
    for (int i = 0; i < HELD; i++) {
      int c = start + i * THREADS;
      held[i] = c < n ? logits[c] : -INFINITY;
      high = fmaxf(high, held[i]);
    }
    total *= expf(peak - high);
    for (int i = 0; i < HELD; i++) total += expf(held[i] - high);
    peak = high;
  }
  float high = block_max(peak);
  total = block_sum(total * expf(peak - high));
  if (first) return;
  losses[m] = logf(total) - (logits[targets[m]] - high);
  peaks[m] = high, totals[m] = total;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
loss_backward(const float* logits, const long long* rows, const long long* targets,
              const float* peaks, const float* totals, const float* g, float part,
              float* d, int n)                      // (N, n): rows that do not count stay
{
  int m = blockIdx.x;
  long long row = rows ? rows[m] : m, target = targets[m];
  float peak = peaks[m], inv = 1 / totals[m], scale = *g * part;
  #pragma unroll 8
  for (int c = threadIdx.x; c < n; c += THREADS)
    d[row * n + c] = (expf(logits[row * n + c] - peak) * inv - (c == target)) * scale;
}
