// The rows of one_read.h on a GPU with thread-block clusters (compute capability 9.0 and up). Built by
// head_losses/rows_cuda.py with nvcc alone; it needs no header of torch or Python.
//
// Not run on a GPU yet: the tests compile it for sm_90, and run one_read.h on threads of a CPU.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "one_read.h"

namespace megadistill {

struct Cluster {
  static constexpr int kLanes = 32;
  MEGADISTILL_INLINE int thread() const { return threadIdx.x; }
  MEGADISTILL_INLINE int threads() const { return blockDim.x; }
  MEGADISTILL_INLINE int rank() const { return __clusterRelativeBlockRank(); }
  MEGADISTILL_INLINE int blocks() const { return __clusterSizeInBlocks(); }
  MEGADISTILL_INLINE void* memory() const {
    extern __shared__ float4 whole[];
    return whole;
  }
  MEGADISTILL_INLINE const Sums* of(const Sums* mine, int rank) const {
    return static_cast<const Sums*>(__cluster_map_shared_rank(mine, rank));
  }
  MEGADISTILL_INLINE float exchange(float value, int mask) const { return __shfl_xor_sync(~0u, value, mask); }
  MEGADISTILL_INLINE void arrive() const {
    __syncwarp();
    __cluster_barrier_arrive();
  }
  MEGADISTILL_INLINE void wait() const { __cluster_barrier_wait(); }
};

constexpr int kMostThreads = 512;

template <class Logit, class Gradient>
__global__ void __launch_bounds__(kMostThreads) rows(const __grid_constant__ Block block) {
  const Cluster cluster;
  row<Logit, Gradient>(block, cluster, blockIdx.x / cluster.blocks());
}

template <class Logit, class Gradient>
cudaError_t launch(const Block& block, int blocks, int threads, cudaStream_t stream) {
  const auto kernel = rows<Logit, Gradient>;
  const int bytes = static_cast<int>(shared_bytes(block, blocks, threads / Cluster::kLanes));
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess && blocks > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(block.rows * blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, block);
}

}  // namespace megadistill

// `types` numbers the pairs of types of logits and gradient, as rows_cuda.py does. Returns a cudaError_t.
extern "C" int megadistill_rows_once(const megadistill::Block* block, int types, int blocks, int threads, int device,
                                     void* stream) {
  using namespace megadistill;
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return error;
  const auto to = static_cast<cudaStream_t>(stream);
  switch (types) {
    case 0: return launch<float, float>(*block, blocks, threads, to);
    case 1: return launch<float, __nv_bfloat16>(*block, blocks, threads, to);
    case 2: return launch<float, __half>(*block, blocks, threads, to);
    case 3: return launch<__nv_bfloat16, __nv_bfloat16>(*block, blocks, threads, to);
    case 4: return launch<__half, __half>(*block, blocks, threads, to);
  }
  return cudaErrorInvalidValue;
}

extern "C" const char* megadistill_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
