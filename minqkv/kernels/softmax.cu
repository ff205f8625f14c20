// The softmax of a block of scores and its gradient, each in place and in one pass over the rows.
// The products before and after it are cuBLAS's: no array of all scores exists.
//
//   forward    q kᵀ = scores ──┐                      ┌─► weights v, times inv_sum
//        bias of "+", mask ────┴─► exp(score - peak) ─┴─► inv_sum = 1 / Σ weights
//
//   backward   inv_sum · g vᵀ = d ──┐
//                         weights ──┴─► dS = weights (d - inv_sum Σ weights d) ──► dS k, dSᵀ q
//
//   A block of THREADS threads has a row of n numbers:
//
//     0 1 2 3 ... 0 1 2 3 ... 0 1 2 3 ...      the thread that has each number
//     └──────── HELD times ──────────┘└ ─ ─ ┘
//       in registers, read once       a longer row: this part is read twice
//
// Constants: NUMBER, the type of scores and weights; THREADS. Sums are float.

#define HELD 8                                      // numbers of a row that a thread keeps

extern "C" __global__ void __launch_bounds__(THREADS, 1)
weigh(NUMBER* scores, float* inv_sums,              // (B, H, T, n), to become weights; (B, H, T)
      const float* bias, const bool* mask,          // or null, at these strides of B, H and T:
      long long bias_b, long long bias_h, long long bias_t, long long mask_b, long long mask_t,
      int n, int heads, int queries)
{
  long long row = blockIdx.x;
  int first = threadIdx.x;
  long long t = row % queries, h = row / queries % heads, b = row / queries / heads;
  scores += row * n;
  if (bias) bias += b * bias_b + h * bias_h + t * bias_t;
  if (mask) mask += b * mask_b + t * mask_t;
  auto score = [&](int c) {
    if (c >= n || (mask && !mask[c])) return -INFINITY;
    return as_float(scores[c]) + (bias ? bias[c] : 0);
  };

  float held[HELD], peak = LOWEST, sum = 0;         // of a row that sees nothing, the peak is finite
  for (int i = 0; i < HELD; i++) {
    held[i] = score(first + i * THREADS);
    peak = fmaxf(peak, held[i]);
  }
  for (int c = first + HELD * THREADS; c < n; c += THREADS) peak = fmaxf(peak, score(c));
  peak = block_max(peak);

  for (int i = 0; i < HELD; i++) {
    int c = first + i * THREADS;
    float weight = expf(held[i] - peak);
    if (c < n) store(&scores[c], weight);
    sum += weight;
  }
  for (int c = first + HELD * THREADS; c < n; c += THREADS) {
    float weight = expf(score(c) - peak);
    store(&scores[c], weight);
    sum += weight;
  }
  sum = block_sum(sum);
  if (first == 0) inv_sums[row] = 1 / (sum == 0 ? 1 : sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
gradient(NUMBER* d, const NUMBER* weights, const float* inv_sums, int n)
{
  long long row = blockIdx.x;
  int first = threadIdx.x;
  d += row * n, weights += row * n;                 // d becomes the gradient of the scores
  float weight[HELD], held[HELD], shared = 0;
  for (int i = 0; i < HELD; i++) {
    int c = first + i * THREADS;
    weight[i] = c < n ? as_float(weights[c]) : 0;
    held[i] = c < n ? as_float(d[c]) : 0;
    shared += weight[i] * held[i];
  }
  for (int c = first + HELD * THREADS; c < n; c += THREADS)
    shared += as_float(weights[c]) * as_float(d[c]);
  shared = block_sum(shared) * inv_sums[row];       // what all scores of the row have in common

  for (int i = 0; i < HELD; i++) {
    int c = first + i * THREADS;
    if (c < n) store(&d[c], weight[i] * (held[i] - shared));
  }
  for (int c = first + HELD * THREADS; c < n; c += THREADS)
    store(&d[c], as_float(weights[c]) * (as_float(d[c]) - shared));
}
