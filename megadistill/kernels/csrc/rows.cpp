// From a row of student and teacher logits to the losses and their gradient, on a CPU. A row is copied to scratch that
// stays in the second-level cache; every logit costs one exponential, whose value is kept for the gradient.
//
// Built by kernels/native.py with GCC or Clang (vector extensions); it needs no header of torch or Python.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));

Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);  // rows need no alignment
  return value;
}

void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// exp(x) for x <= 0, relative error below 2e-7; what would be under 1e-37 is 0.
Floats exponential(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log(2) in two parts, the first exact
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;            // Cephes' polynomial
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -85.0f ? x - x : p * power;
}

float sum(Floats v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

float maximum(Floats v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

}  // namespace

extern "C" {

// One block of rows. `u` is null without a soft term, `labels` without a hard one, biases where there are none.
struct Block {
  float* z;
  float* u;
  const float* z_bias;
  const float* u_bias;
  const int64_t* labels;
  const float* hard_coefficients;
  const float* soft_coefficients;
  float* hard_losses;
  float* soft_losses;
  int64_t rows, vocabulary, z_stride, u_stride;
  float temperature, smoothing;
};

}

namespace {

// A row whose length is a multiple of kLanes: the rest of the scratch is filled with what has no probability.
struct Scratch {
  std::vector<float> z, u, hard;
  explicit Scratch(int64_t size) : z(size), u(size), hard(size) {}
};

float copy_with_bias(const float* from, const float* bias, float* to, int64_t size, int64_t padded) {
  Floats best = Floats{} - INFINITY;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats value = bias ? load(from + i) + load(bias + i) : load(from + i);
    best = larger(best, value);
    store(to + i, value);
  }
  float top = maximum(best);
  for (; i < size; ++i) {
    to[i] = from[i] + (bias ? bias[i] : 0.0f);
    top = to[i] > top ? to[i] : top;
  }
  for (; i < padded; ++i) to[i] = -1e30f;
  return top;
}

void row(const Block& block, int64_t number, Scratch& scratch) {
  constexpr int64_t kPart = 64 * kLanes;  // sums of parts are added up in double precision
  const int64_t size = block.vocabulary, padded = static_cast<int64_t>(scratch.z.size());
  float* const out = block.z + number * block.z_stride;
  float *const z = scratch.z.data(), *const u = scratch.u.data(), *const e = scratch.hard.data();
  const bool soft = block.u != nullptr, hard = block.labels != nullptr, smooth = block.smoothing > 0;
  const float t = soft ? block.temperature : 1.0f, inverse = 1.0f / t;
  const bool squares = soft && t == 2.0f, same = !soft || t == 1.0f;  // exp(z) from exp(z / 2), or the very same

  const float z_max = copy_with_bias(out, block.z_bias, z, size, padded);
  const int64_t label = hard && block.labels[number] > 0 ? block.labels[number] : 0;
  const float z_label = z[label] - z_max;
  float u_max = 0;
  if (soft) u_max = copy_with_bias(block.u + number * block.u_stride, block.u_bias, u, size, padded);

  double z_sum = 0, u_sum = 0, hard_sum = 0, z_mean = 0, gap = 0;
  for (int64_t start = 0; start < padded; start += kPart) {
    const int64_t stop = start + kPart < padded ? start + kPart : padded;
    Floats z_part = {}, u_part = {}, hard_part = {}, gap_part = {}, mean_part = {};
    for (int64_t i = start; i < stop; i += kLanes) {
      const Floats z_here = load(z + i) - z_max, scaled = z_here * inverse, q = exponential(scaled);
      z_part += q;
      store(z + i, q);
      if (smooth) mean_part += z_here < -1e29f ? z_here - z_here : z_here;
      if (hard && squares) hard_part += q * q;
      if (hard && !squares && !same) {
        const Floats one = exponential(z_here);
        hard_part += one;
        store(e + i, one);
      }
      if (soft) {
        const Floats u_here = (load(u + i) - u_max) * inverse, p = exponential(u_here);
        u_part += p;
        store(u + i, p);
        gap_part += p * (u_here - scaled);
      }
    }
    z_sum += sum(z_part), u_sum += sum(u_part), hard_sum += sum(hard_part), gap += sum(gap_part);
    z_mean += sum(mean_part);
  }
  if (same) hard_sum = z_sum;

  const float a = hard ? block.hard_coefficients[number] : 0.0f, rest = 1.0f - block.smoothing;
  if (hard) {
    const double total = std::log(hard_sum);  // of exp(z - z_max)
    double loss = rest * (total - z_label);
    if (smooth) loss += block.smoothing * (total - z_mean / static_cast<double>(size));
    block.hard_losses[number] = static_cast<float>(loss);
  }
  float b = 0;
  if (soft) {
    b = block.soft_coefficients[number] * t;
    block.soft_losses[number] = static_cast<float>((gap / u_sum + std::log(z_sum) - std::log(u_sum)) * t * t);
  }
  const float q_scale = soft ? static_cast<float>(b / z_sum) : 0.0f;
  const float p_scale = soft ? static_cast<float>(b / u_sum) : 0.0f;
  const float hard_scale = hard ? static_cast<float>(a / hard_sum) : 0.0f;
  const float even = hard ? a * block.smoothing / static_cast<float>(size) : 0.0f;
  const auto gradient = [&](int64_t i) {
    const Floats q = load(z + i);
    Floats g = q * q_scale - even;
    if (soft) g -= load(u + i) * p_scale;
    if (hard) g += (squares ? q * q : same ? q : load(e + i)) * hard_scale;
    return g;
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, gradient(i));
  if (i < size) {
    const Floats tail = gradient(i);
    std::memcpy(out + i, &tail, (size - i) * sizeof(float));
  }
  if (hard) out[label] -= a * rest;
}

}  // namespace

extern "C" void megadistill_rows(const Block* block, int32_t num_threads) {
  const int64_t padded = (block->vocabulary + kLanes - 1) / kLanes * kLanes;
  const auto work = [&](int64_t first, int64_t last) {
    Scratch scratch(padded);
    for (int64_t number = first; number < last; ++number) row(*block, number, scratch);
  };
  const int64_t per_thread = (block->rows + num_threads - 1) / num_threads;
  std::vector<std::thread> threads;
  for (int64_t first = per_thread; first < block->rows; first += per_thread)
    threads.emplace_back(work, first, first + per_thread < block->rows ? first + per_thread : block->rows);
  work(0, per_thread < block->rows ? per_thread : block->rows);
  for (auto& thread : threads) thread.join();
}
