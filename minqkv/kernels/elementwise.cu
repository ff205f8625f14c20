// Work on each number of an array by itself. A thread takes one number, then the one that lies as
// many further on as there are threads; neighbours take neighbours, so that memory is read in rows.
//
//   numbers   0  1  2  3 ... 255 | 256 ... 511 | 512 ...         gelu: x -> y, slope
//             │  │  │  │      │     │       │     │              adamw: g, data, m, v -> data, m, v
//   threads   0  1  2  3 ... 255   0 ... 255     0 ...
//                block 0             block 1      block 0 again, if there are two blocks
//
// The gradient's norm has to be known before any parameter moves, and the host must not wait for it:
//
//   g ── squares ──► a sum for each block ── adamw: each block adds them all up ──► norm, scale
//
// Dropout asks a counter instead of a generator. Philox (Salmon et al., 2011) turns a key and a
// counter into four random numbers: number i of a key is part i % 4 of what counter i / 4 gives. So
// the mask need not be kept: backward computes it again, as a resumed run does.

#define THREADS 256
#define FIRST (blockIdx.x * (long long)THREADS + threadIdx.x)
#define STRIDE ((long long)gridDim.x * THREADS)

// x within the bounds; what is not a number stays so, unlike in fminf and fmaxf.
__device__ inline float within(float x, float low, float high) {
  return x < low ? low : x > high ? high : x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
gelu(const float* x, float* y, float* slope, long long n)  // slope: null if nothing is to be learned
{
  const float a = 0.044715f, c = 0.79788456f;              // c is √(2/π)
  for (long long i = FIRST; i < n; i += STRIDE) {
    float in = within(x[i], -1e4f, 1e4f), square = in * in;  // Φ is 0 or 1 beyond; squares overflow
    float phi = (1 + tanhf(in * (c + a * c * square))) * 0.5f;
    y[i] = phi * (x[i] < -1e4f ? -1e4f : x[i]);            // 0 times -∞ is not a number
    if (slope) slope[i] = (6 * a * c * square + 2 * c) * (1 - phi) * phi * in + phi;
  }
}

// The sum over a block; every thread gets it. Doubles, since a float's square may exceed a float.
__device__ inline double block_sum(double x) {
  __shared__ double parts[THREADS / 32];
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(FULL, x, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int warp = 0; warp < THREADS / 32; warp++) x += parts[warp];
  return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
squares(const float* g, double* sums, long long n)         // sums: one for each block
{
  double sum = 0;
  for (long long i = FIRST; i < n; i += STRIDE) sum += double(g[i]) * g[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
adamw(float* data, float* m, float* v, const float* g, long long n,
      long long n_decayed, float decay,                    // data before it are first multiplied
      const double* sums, int n_sums, float max_norm,      // of squares; null: no bound on the norm
      float* norm,                                         // result: the norm before
      float beta1, float fresh1, float beta2, float fresh2,  // fresh: 1 - beta
      float unbias, float eps, float rate)                 // of √v; added to it; of the whole step
{
  const float most = 9.2233718e18f;                        // the square of more would be infinite
  float scale = 1;
  if (sums) {
    double sum = 0;
    for (int i = threadIdx.x; i < n_sums; i += THREADS) sum += sums[i];
    float before = float(sqrt(block_sum(sum)));
    scale = max_norm / (before + 1e-6f);
    scale = scale > 1 ? 1 : scale;
    if (FIRST == 0) *norm = before;
  }
  for (long long i = FIRST; i < n; i += STRIDE) {
    float slope = within(g[i] * scale, -most, most);
    float mean = m[i] = m[i] * beta1 + slope * fresh1;
    float spread = v[i] = v[i] * beta2 + slope * slope * fresh2;
    float from = i < n_decayed ? data[i] * decay : data[i];
    data[i] = from - mean / (sqrtf(spread) * unbias + eps) * rate;
  }
}

__device__ inline void philox(unsigned* c, unsigned key, unsigned other) {  // ten rounds
  for (int round = 0; round < 10; round++) {
    unsigned a = c[0], b = c[2];
    c[0] = __umulhi(0xcd9e8d57u, b) ^ c[1] ^ key, c[1] = 0xcd9e8d57u * b;
    c[2] = __umulhi(0xd2511f53u, a) ^ c[3] ^ other, c[3] = 0xd2511f53u * a;
    key += 0x9e3779b9u, other += 0xbb67ae85u;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
dropout(const float* x, float* y, long long n,
        unsigned long long key, long long begin,           // x[0] has number `begin` of this key
        unsigned least, float scale)                       // dropped where the number is below
{
  int skipped = begin % 4;                                 // of the first four, not ours
  for (long long j = FIRST; 4 * j < skipped + n; j += STRIDE) {
    unsigned long long counter = begin / 4 + j;
    unsigned drawn[4] = {unsigned(counter), unsigned(counter >> 32), 0, 0};
    philox(drawn, unsigned(key), unsigned(key >> 32));
    for (int part = 0; part < 4; part++) {
      long long i = 4 * j + part - skipped;
      if (i >= 0 && i < n) y[i] = drawn[part] >= least ? x[i] * scale : 0;
    }
  }
}
