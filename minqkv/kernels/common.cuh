// What the kernels share. The loader puts this text in front of every .cu file.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef signed char int8;

#define FULL 0xffffffffu                            // all 32 threads of a warp
#define LOWEST (-3.402823466e38f)                   // the smallest float: no score lies below it
#ifndef INFINITY                                    // of math.h, which NVRTC has not
#define INFINITY __int_as_float(0x7f800000)
#endif

// Stored numbers are read as float and written back rounded to nearest.
__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float as_float(signed char x) { return float(x); }
__device__ inline void store(float* at, float x) { *at = x; }
__device__ inline void store(__half* at, float x) { *at = __float2half(x); }
__device__ inline void store(__nv_bfloat16* at, float x) { *at = __float2bfloat16(x); }

// Four numbers that begin at a multiple of 16 bytes, in one load; and the product of two such.
__device__ inline float4 four(const float* at) { return *(const float4*)at; }
__device__ inline float dot(float4 a, float4 b)
{
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

// The largest value and the sum over a warp; every thread gets it.
__device__ inline float warp_max(float x) {
  for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
  return x;
}
__device__ inline float warp_sum(float x) {
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(FULL, x, step);
  return x;
}

// The same over a block of whole warps. After the last barrier, of_warp may be used again.
__device__ static inline float block_max(float x) {
  __shared__ float of_warp[32];
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = warp_max(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : -INFINITY);
  __syncthreads();
  return x;
}
__device__ static inline float block_sum(float x) {
  __shared__ float of_warp[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0);
  __syncthreads();
  return x;
}
