// From a row of student and teacher logits to the losses and their gradient, with a single read of the logits. The row
// is cut into slices, one for each thread block of a cluster, which keeps it in its own memory; the blocks exchange the
// sums of their slices and write the gradient from what they kept.
//
// Plain C++ over a Team of threads: rows.cu makes one of a GPU's, the tests one of a CPU's. A Team has
//   kLanes threads a warp, thread() of threads() in this block, rank() of blocks() in this cluster,
//   memory()              this block's shared memory, aligned to 16 bytes
//   of(pointer, rank)     where another block has what this one has at `pointer`
//   exchange(value, mask) the value of the lane whose number differs in `mask`
//   arrive(), wait()      the two halves of a barrier of the whole cluster

#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define MEGADISTILL_INLINE __device__ __forceinline__
#define MEGADISTILL_ANYWHERE __host__ __device__ inline
#else
#define MEGADISTILL_INLINE inline
#define MEGADISTILL_ANYWHERE inline
#endif

namespace megadistill {

// One block of rows. `u` is null without a soft term, `labels` without a hard one, biases where there are none.
struct Block {
  const void* z;
  const void* u;
  void* gradient;  // may be z
  const float* z_bias;
  const float* u_bias;
  const int64_t* labels;
  const float* hard_coefficients;
  const float* soft_coefficients;
  float* hard_losses;
  float* soft_losses;
  int64_t rows, vocabulary, z_stride, u_stride, gradient_stride;
  int64_t aligned;  // whether every row and bias starts at a multiple of 16 bytes
  float temperature, smoothing;
};

// Of some columns of a row: their largest logits, and sums relative to these.
struct alignas(16) Sums {
  float z_top, u_top;
  float z_soft, z_one;  // of exp((z - z_top) / T) and exp(z - z_top)
  float u_soft;         // of exp((u - u_top) / T)
  float gap;            // of exp((u - u_top) / T) ((u - u_top) - (z - z_top)) / T
  float z_total;        // of z
  float z_label;        // z of the label, if it is among the columns
};

constexpr int kGroup = 8;          // columns that a thread takes at once: 16 bytes of bf16
constexpr float kLowest = -1e30f;  // stands for a logit of -inf: 0 times it is no NaN
constexpr float kLog2E = 1.44269504f;

MEGADISTILL_ANYWHERE int slice_groups(const Block& block, int blocks) {
  const int64_t groups = (block.vocabulary + kGroup - 1) / kGroup;
  return static_cast<int>((groups + blocks - 1) / blocks);
}

// Shared memory of one thread block: the sums of its warps, then its slice of z and of u.
MEGADISTILL_ANYWHERE int64_t shared_bytes(const Block& block, int blocks, int warps) {
  const int64_t slice = int64_t{slice_groups(block, blocks)} * kGroup * sizeof(float);
  return warps * static_cast<int64_t>(sizeof(Sums)) + slice * (block.u ? 2 : 1);
}

// Of whole 16 bytes, which lie at multiples of 16.
struct alignas(16) Sixteen {
  uint32_t words[4];
};

template <int kCount, class Value>
MEGADISTILL_INLINE void copy(Value* to, const Value* from) {
  static_assert(kCount * sizeof(Value) % sizeof(Sixteen) == 0, "16 bytes at a time");
  for (int i = 0; i < static_cast<int>(kCount * sizeof(Value) / sizeof(Sixteen)); ++i)
    reinterpret_cast<Sixteen*>(to)[i] = reinterpret_cast<const Sixteen*>(from)[i];
}

// kGroup values from `column` on, kLowest past the vocabulary.
template <class Logit>
MEGADISTILL_INLINE void load(const Logit* row, const float* bias, int column, const Block& block,
                             float (&to)[kGroup]) {
  if (block.aligned && column + kGroup <= block.vocabulary) {
    alignas(16) Logit raw[kGroup];
    copy<kGroup>(raw, row + column);
    for (int k = 0; k < kGroup; ++k) to[k] = static_cast<float>(raw[k]);
    if (bias) {
      alignas(16) float add[kGroup];
      copy<kGroup>(add, bias + column);
      for (int k = 0; k < kGroup; ++k) to[k] += add[k];
    }
  } else {
    for (int k = 0; k < kGroup; ++k) {
      const bool inside = column + k < block.vocabulary;
      to[k] = inside ? static_cast<float>(row[column + k]) + (bias ? bias[column + k] : 0.0f) : kLowest;
    }
  }
  for (int k = 0; k < kGroup; ++k) to[k] = to[k] < kLowest ? kLowest : to[k];  // a NaN stays one
}

template <class Gradient>
MEGADISTILL_INLINE void store(Gradient* row, int column, const Block& block, const float (&from)[kGroup]) {
  alignas(16) Gradient raw[kGroup];
  for (int k = 0; k < kGroup; ++k) raw[k] = static_cast<Gradient>(from[k]);
  if (block.aligned && column + kGroup <= block.vocabulary) {
    copy<kGroup>(row + column, raw);
  } else {
    for (int k = 0; k < kGroup; ++k)
      if (column + k < block.vocabulary) row[column + k] = raw[k];
  }
}

// A slice in shared memory, each group in two halves that lie apart: neighbouring threads' 16-byte accesses then meet
// every bank once. A thread reads only what it wrote.
struct Slice {
  float* values;
  int groups;
  MEGADISTILL_INLINE void put(int group, const float (&from)[kGroup]) const {
    alignas(16) float raw[kGroup];
    for (int k = 0; k < kGroup; ++k) raw[k] = from[k];
    copy<4>(values + 4 * group, raw);
    copy<4>(values + 4 * (groups + group), raw + 4);
  }
  MEGADISTILL_INLINE void get(int group, float (&to)[kGroup]) const {
    alignas(16) float raw[kGroup];
    copy<4>(raw, values + 4 * group);
    copy<4>(raw + 4, values + 4 * (groups + group));
    for (int k = 0; k < kGroup; ++k) to[k] = raw[k];
  }
};

// The same sums relative to larger logits.
MEGADISTILL_INLINE Sums rebased(Sums sums, float z_top, float u_top, float inverse_t) {
  const float z_shift = sums.z_top - z_top, u_shift = sums.u_top - u_top;
  const float u_factor = exp2f(u_shift * inverse_t * kLog2E);
  sums.gap = u_factor * (sums.gap + sums.u_soft * ((u_shift - z_shift) * inverse_t));
  sums.u_soft *= u_factor;
  sums.z_soft *= exp2f(z_shift * inverse_t * kLog2E);
  sums.z_one *= exp2f(z_shift * kLog2E);
  sums.z_top = z_top, sums.u_top = u_top;
  return sums;
}

// The sums of part(0) ... part(count - 1) together, in every lane.
template <class Team, class Part>
MEGADISTILL_INLINE Sums total(const Team& team, const Part& part, int count, float inverse_t) {
  const int lane = team.thread() % Team::kLanes;
  Sums all = {kLowest, kLowest, 0, 0, 0, 0, 0, 0};
  for (int i = lane; i < count; i += Team::kLanes) {
    const Sums one = part(i);
    all.z_top = fmaxf(all.z_top, one.z_top), all.u_top = fmaxf(all.u_top, one.u_top);
  }
  for (int mask = Team::kLanes / 2; mask > 0; mask /= 2) {
    all.z_top = fmaxf(all.z_top, team.exchange(all.z_top, mask));
    all.u_top = fmaxf(all.u_top, team.exchange(all.u_top, mask));
  }
  for (int i = lane; i < count; i += Team::kLanes) {
    const Sums one = rebased(part(i), all.z_top, all.u_top, inverse_t);
    all.z_soft += one.z_soft, all.z_one += one.z_one, all.u_soft += one.u_soft;
    all.gap += one.gap, all.z_total += one.z_total, all.z_label += one.z_label;
  }
  for (int mask = Team::kLanes / 2; mask > 0; mask /= 2) {
    all.z_soft += team.exchange(all.z_soft, mask), all.z_one += team.exchange(all.z_one, mask);
    all.u_soft += team.exchange(all.u_soft, mask), all.gap += team.exchange(all.gap, mask);
    all.z_total += team.exchange(all.z_total, mask), all.z_label += team.exchange(all.z_label, mask);
  }
  return all;
}

template <class Logit, class Gradient, class Team>
MEGADISTILL_INLINE void row(const Block& block, const Team& team, int64_t number) {
  const bool soft = block.u != nullptr, hard = block.labels != nullptr, smooth = block.smoothing > 0;
  const float t = soft ? block.temperature : 1.0f, inverse_t = 1.0f / t, scale = inverse_t * kLog2E;
  const bool squares = t == 2.0f;                            // exp(z) from exp(z / 2)
  const bool both = hard && soft && t != 1.0f && !squares;   // exp(z) apart: the logit is kept, not its exponential
  const int warps = team.threads() / Team::kLanes, size = static_cast<int>(block.vocabulary);
  const int groups = slice_groups(block, team.blocks()), first = team.rank() * groups;
  const int left = (size + kGroup - 1) / kGroup - first, count = left < groups ? left : groups;
  const int64_t given = hard ? block.labels[number] : -1;
  const int label = hard ? static_cast<int>(given > 0 ? given : 0) : -1;
  const Logit* const z_row = static_cast<const Logit*>(block.z) + number * block.z_stride;
  const Logit* const u_row = static_cast<const Logit*>(block.u) + (soft ? number * block.u_stride : 0);
  Gradient* const out = static_cast<Gradient*>(block.gradient) + number * block.gradient_stride;
  Sums* const shared = static_cast<Sums*>(team.memory());
  const Slice z_kept = {reinterpret_cast<float*>(shared + warps), groups};
  const Slice u_kept = {z_kept.values + groups * kGroup, groups};

  Sums own = {kLowest, kLowest, 0, 0, 0, 0, 0, 0};
  float z[kGroup], u[kGroup];
#pragma unroll 2
  for (int i = team.thread(); i < count; i += team.threads()) {
    const int column = (first + i) * kGroup;
    load(z_row, block.z_bias, column, block, z);
    if (soft) load(u_row, block.u_bias, column, block, u);
    z_kept.put(i, z);
    for (int k = 0; k < kGroup; ++k) {
      own.z_top = fmaxf(own.z_top, z[k]);
      own.z_total += smooth && column + k < size ? z[k] : 0.0f;
      own.z_label += column + k == label ? z[k] : 0.0f;
    }
    if (!soft) continue;
    u_kept.put(i, u);
    for (int k = 0; k < kGroup; ++k) own.u_top = fmaxf(own.u_top, u[k]);
  }
  for (int i = team.thread(); i < count; i += team.threads()) {
    z_kept.get(i, z);
    if (soft) u_kept.get(i, u);
    for (int k = 0; k < kGroup; ++k) {
      const float below = z[k] - own.z_top, q = exp2f(below * scale);
      own.z_soft += q;
      own.z_one += both ? exp2f(below * kLog2E) : squares ? q * q : q;
      z[k] = both ? below : q;
      if (!soft) continue;
      const float u_below = u[k] - own.u_top, p = exp2f(u_below * scale);
      own.u_soft += p;
      own.gap += p * ((u_below - below) * inverse_t);
      u[k] = p;
    }
    z_kept.put(i, z);
    if (soft) u_kept.put(i, u);
  }

  const Sums mine = total(team, [&](int) { return own; }, Team::kLanes, inverse_t);
  if (team.thread() % Team::kLanes == 0) shared[team.thread() / Team::kLanes] = mine;
  team.arrive();
  team.wait();
  const auto of_warp = [&](int i) { return *team.of(shared + i % warps, i / warps); };
  const Sums all = total(team, of_warp, warps * team.blocks(), inverse_t);
  team.arrive();  // this thread has read what it needs of other blocks

  const float a = hard ? block.hard_coefficients[number] : 0.0f, b = soft ? block.soft_coefficients[number] * t : 0.0f;
  const float rest = 1.0f - block.smoothing, even = a * block.smoothing / static_cast<float>(size);
  if (team.rank() == 0 && team.thread() == 0) {
    if (hard) {
      const float whole = logf(all.z_one) + all.z_top;  // log-sum-exp of z
      float loss = rest * (whole - all.z_label);
      if (smooth) loss += block.smoothing * (whole - all.z_total / static_cast<float>(size));
      block.hard_losses[number] = loss;
    }
    if (soft) block.soft_losses[number] = (all.gap / all.u_soft + logf(all.z_soft) - logf(all.u_soft)) * t * t;
  }
  const float z_shift = own.z_top - all.z_top;
  const float q_scale = soft ? b / all.z_soft * exp2f(z_shift * scale) : 0.0f;
  const float p_scale = soft ? b / all.u_soft * exp2f((own.u_top - all.u_top) * scale) : 0.0f;
  const float hard_scale = hard ? a / all.z_one * exp2f(z_shift * kLog2E) : 0.0f;
  for (int i = team.thread(); i < count; i += team.threads()) {
    const int column = (first + i) * kGroup;
    z_kept.get(i, z);
    if (soft) u_kept.get(i, u);
    float g[kGroup];
    for (int k = 0; k < kGroup; ++k) {
      const float q = both ? exp2f(z[k] * scale) : z[k];
      const float one = both ? exp2f(z[k] * kLog2E) : squares ? q * q : q;
      g[k] = one * hard_scale - even;
      if (soft) g[k] += q * q_scale - u[k] * p_scale;
      g[k] -= column + k == label ? a * rest : 0.0f;
    }
    store(out, column, block, g);
  }
  team.wait();  // all have read what they need of this block, whose memory may go
}

}  // namespace megadistill
